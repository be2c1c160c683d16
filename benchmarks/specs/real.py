"""Names the real pictures that generated ones are compared with. No torch: `benchmarks.quality.real` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RealPictures:
    """A set of real pictures, or what is known of their features."""

    path: Path
    """A file of features, an .npz of moments (`mu` [d] and `sigma` [d, d]), a folder that holds one .npz, or a folder
    of pictures."""
    network: Path | None = None
    """The folder of the network that sees both the real pictures and the generated ones."""
    cache: Path | None = None
    """The folder where the moments of a folder of pictures are kept, by the content of the pictures and the network."""
    protocol: str = ""
    """The protocol of a file that names none itself, as files from elsewhere do."""
