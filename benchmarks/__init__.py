"""The harness: it runs suites, measures what comes out, and writes records."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The repository's root."""
