"""The README's example is code that runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def test_the_example_in_the_readme_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    ratio, share = map(float, capsys.readouterr().out.split())
    assert 0.4 < ratio < 0.5 and share == 1
    assert torch.isfinite(names["latents"]).all()
    assert names["trace"].ran.sum() == 26
