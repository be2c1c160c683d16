"""The prompt sets of the paper profile, read from files as they are published. Nothing here downloads.

The paper evaluates on PartiPrompts and COCO and trains on prompts of DiffusionDB (section 4.1). For its FID-50K
(Table 3) it draws the classes of ImageNet.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from dipgo.errors import DipgoError, first_line, unknown
from dipgo.files import read_json

CLASSES, PICTURES_OF_A_CLASS = 1000, 50
"""ImageNet's classes, and how many pictures of each are drawn."""
LENGTHS = {"parti": 1632, "coco": 5000, "diffusiondb": 1000, "imagenet": CLASSES * PICTURES_OF_A_CLASS}
COCO, COCO_TABLE = "annotations/captions_val2017.json", "*captions*.tsv"


def captions(name: str, path: Path) -> list[str]:
    """Return the captions of a prompt set, in the order that gives them their picture index.

    name: the name of the set. For `imagenet`, the list of all class names comes 50 times over, so that the
        first pictures are of different classes.
    path: the folder of the set; for `imagenet`, that of a DiT pipeline.

    Raises a `DipgoError` of one line for an unknown set, a file that is absent or broken, another number of captions
    than was published, or an empty caption.
    """
    readers = {"parti": _parti, "coco": _coco, "diffusiondb": _diffusiondb, "imagenet": class_names}
    if name not in readers:
        raise unknown("prompt set", name, readers)
    found, classes = readers[name](path), name == "imagenet"
    length, kind = (CLASSES, "classes") if classes else (LENGTHS[name], "captions")
    if len(found) != length:
        raise DipgoError(f"{path} holds {len(found)} {kind} instead of {name}'s {length}; take the whole set")
    return found * PICTURES_OF_A_CLASS if classes else found


def class_names(path: Path) -> list[str]:
    """Return the names of the classes in a pipeline's `model_index.json` (`id2label`), in the order of their labels.

    A name is the whole entry of a class. Where several classes share one ("crane"), the label is put behind it, so that
    every name occurs once.
    """
    file = path / "model_index.json"
    entries = _json(file).get("id2label")
    if not isinstance(entries, dict) or sorted(entries) != sorted(map(str, range(len(entries)))):
        raise DipgoError(f"{file} names no classes in id2label, by labels from 0 on; take the published file")
    names = [entries[str(label)] for label in range(len(entries))]
    _filled(file, names)
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({label})" if name in shared else name for label, name in enumerate(names)]


def _parti(path: Path) -> list[str]:
    return _column(path / "PartiPrompts.tsv", "Prompt")


def _coco(path: Path) -> list[str]:
    """Return the first caption of each picture, in the file's order of pictures, in one line and with single spaces."""
    file = path / COCO
    if not file.exists():
        tables = sorted(path.glob(COCO_TABLE))
        if len(tables) != 1:
            raise DipgoError(f"{path} holds neither {COCO} nor one {COCO_TABLE} of image_id and caption")
        return _column(tables[0], "caption")
    data = _json(file)
    first: dict[int, str] = {}
    try:
        for annotation in data["annotations"]:
            first.setdefault(annotation["image_id"], " ".join(annotation["caption"].split()))
        found = [first[image["id"]] for image in data["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DipgoError(f"{file} holds no captions as COCO publishes them: no {error}; fetch it again") from error
    _filled(file, found)
    return found


def _diffusiondb(path: Path) -> list[str]:
    """Return the prompts of one part, one a picture. A prompt may be empty, as users left it."""
    file = path / "part-000001.json"
    found = [entry.get("p") if isinstance(entry, dict) else None for entry in _json(file).values()]
    if not all(isinstance(prompt, str) for prompt in found):
        raise DipgoError(f"{file}: a picture has no prompt, p, as DiffusionDB publishes them; fetch it again")
    return found


def _column(file: Path, column: str) -> list[str]:
    """One column of a tab-separated file. Its quotation marks are part of the text."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _broken(file, error) from error
    if not rows or column not in rows[0]:
        raise DipgoError(f"{file} has no column {column!r}; take the published file")
    found = [row[column] for row in rows]
    _filled(file, found)
    return found


def _json(file: Path) -> dict[str, Any]:
    data = read_json(file, "JSON as it was published")
    if not isinstance(data, dict):
        raise DipgoError(f"{file} holds no JSON object; take the published file")
    return data


def _filled(file: Path, found: list[Any]) -> None:
    for row, caption in enumerate(found):
        if not isinstance(caption, str) or not caption.strip():
            raise DipgoError(f"{file}: caption {row} is empty; take the published file")


def _broken(file: Path, error: Exception) -> DipgoError:
    reason = error.strerror if isinstance(error, OSError) else first_line(error)
    return DipgoError(f"{file} cannot be read ({reason}); take the published file")
