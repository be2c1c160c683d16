"""What the small suites of the tests share: the zoo's model at four steps, compared with the run `dense`."""

from __future__ import annotations

DEFAULTS = """
[defaults]
model = "emoji-sd"
method = "dense"
scheduler = "ddim"
steps = 4
guidance = 4.0
resolution = 64
dtype = "float32"
seed = 0
reference = "dense"
"""
