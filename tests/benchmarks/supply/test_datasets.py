from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.supply import datasets
from benchmarks.supply.datasets import captions, class_names
from dipgo.errors import DipgoError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The published layouts at a size that a test can write."""
    monkeypatch.setattr(datasets, "LENGTHS", {"parti": 3, "coco": 2, "diffusiondb": 2})
    monkeypatch.setattr(datasets, "CLASSES", 4)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def parti(folder: Path, *prompts: str, column: str = "Prompt") -> Path:
    rows = [f"{column}\tCategory\tChallenge\tNote", *(f"{prompt}\tAbstract\tBasic\t" for prompt in prompts)]
    return write(folder / "PartiPrompts.tsv", "\n".join(rows) + "\n")


def coco(folder: Path, **changes: object) -> Path:
    images = [{"id": number, "file_name": f"{number:012d}.jpg", "license": 4} for number in (397133, 37777)]
    texts = [
        (37777, "The table near the kitchen \n"),
        (397133, "A man  is in a kitchen"),
        (37777, "A later one."),
    ]
    annotations = [{"image_id": image, "id": i, "caption": caption} for i, (image, caption) in enumerate(texts)]
    data = {"info": {}, "images": images, "licenses": [], "annotations": annotations}
    return write(folder / datasets.COCO, data | changes)


def diffusiondb(folder: Path, *prompts: object) -> Path:
    entries = {f"{i}.png": {"p": p, "se": 38753269, "c": 12.0, "st": 50, "sa": "k_lms"} for i, p in enumerate(prompts)}
    return write(folder / "part-000001.json", entries)


def dit(folder: Path, *names: str) -> Path:
    index = {"_class_name": "DiTPipeline", "id2label": {str(i): name for i, name in enumerate(names)}}
    return write(folder / "model_index.json", index)


NAMES = ("tench, Tinca tinca", "crane", "maillot", "crane")


def test_parti_is_the_prompt_column_with_its_quotation_marks(tmp_path):
    parti(tmp_path, "bond", '"G I G G L E" painted on a wall', "yin-yang ☯")
    assert captions("parti", tmp_path) == ["bond", '"G I G G L E" painted on a wall', "yin-yang ☯"]


def test_coco_is_each_pictures_first_caption_in_the_order_of_the_pictures(tmp_path):
    coco(tmp_path)
    assert captions("coco", tmp_path) == ["A man is in a kitchen", "The table near the kitchen"]


def test_coco_reads_a_table_of_first_captions_alike(tmp_path):
    table = "image_id\tcaption\n397133\tA man is in a kitchen\n37777\tThe table near the kitchen\n"
    write(tmp_path / "table/coco2017_val_first_captions.tsv", table)
    coco(tmp_path / "published")
    assert captions("coco", tmp_path / "table") == captions("coco", tmp_path / "published")


def test_diffusiondb_is_one_prompt_a_picture_even_an_empty_one(tmp_path):
    diffusiondb(tmp_path, "a portrait, 4 k, ", "")
    assert captions("diffusiondb", tmp_path) == ["a portrait, 4 k, ", ""]


def test_imagenet_gives_every_class_fifty_times_in_turn(tmp_path):
    dit(tmp_path, *NAMES)
    found = captions("imagenet", tmp_path)
    assert found[:4] == found[4:8] == class_names(tmp_path)
    assert {found.count(name) for name in found} == {50} and len(found) == 200


def test_classes_of_one_name_are_told_apart_by_their_label(tmp_path):
    dit(tmp_path, *NAMES)
    assert class_names(tmp_path) == ["tench, Tinca tinca", "crane (1)", "maillot", "crane (3)"]


BROKEN = {
    "another number": ("parti", lambda path: parti(path, "a", "b"), "holds 2 captions instead of parti's 3"),
    "no column": ("parti", lambda path: parti(path, "a", "b", "c", column="Text"), "has no column 'Prompt'"),
    "an empty caption": ("parti", lambda path: parti(path, "a", " ", "c"), "caption 1 is empty"),
    "an empty file": ("parti", lambda path: write(path / "PartiPrompts.tsv", ""), "has no column 'Prompt'"),
    "no text": ("parti", lambda path: parti(path).write_bytes(b"Prompt\n\xff\xfe"), "cannot be read .*utf-8"),
    "no file": ("parti", lambda path: None, "PartiPrompts.tsv cannot be read .No such file"),
    "no captions": ("coco", lambda path: None, "holds neither annotations/captions_val2017.json nor one"),
    "a cut file": (
        "coco",
        lambda path: write(path / datasets.COCO, '{"images": [{"id": 3'),
        "not JSON as it was published: Expecting",
    ),
    "a picture without": ("coco", lambda path: coco(path, annotations=[]), "no captions .* no 397133"),
    "another layout": ("coco", lambda path: coco(path, images=3), "no captions as COCO publishes them"),
    "fewer pictures": ("coco", lambda path: coco(path, images=[{"id": 37777}]), "holds 1 captions instead of coco's 2"),
    "a list": ("diffusiondb", lambda path: write(path / "part-000001.json", [1]), "holds no JSON object"),
    "half a character": (
        "diffusiondb",
        lambda path: write(path / "part-000001.json", '{"0.webp": {"p": "a \\ud83d"}}'),
        "part-000001.json: not JSON as it was published: .* half a character",
    ),
    "a number without end": (
        "coco",
        lambda path: write(path / datasets.COCO, '{"images": ' + "9" * 5000 + "}"),
        "captions_val2017.json: not JSON .* digits",
    ),
    "brackets without end": (
        "imagenet",
        lambda path: write(path / "model_index.json", "[" * 100_000),
        "model_index.json: not JSON .* nested too deeply",
    ),
    "another encoding": (
        "diffusiondb",
        lambda path: diffusiondb(path, "a", "b").write_text("{}", encoding="utf-16"),
        "part-000001.json: not JSON .* no text in UTF-8",
    ),
    "no prompt": ("diffusiondb", lambda path: diffusiondb(path, "a", None), "a picture has no prompt"),
    "no part": ("diffusiondb", lambda path: None, "part-000001.json: No such file"),
    "no classes": ("imagenet", lambda path: write(path / "model_index.json", {}), "names no classes in id2label"),
    "a gap": ("imagenet", lambda path: write(path / "model_index.json", {"id2label": {"1": "a"}}), "labels from 0 on"),
    "fewer classes": ("imagenet", lambda path: dit(path, "a", "b"), "holds 2 classes instead of imagenet's 4"),
    "another set": ("laion", lambda path: None, "unknown prompt set 'laion'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_set_is_refused_by_one_line(tmp_path, case):
    name, make, message = BROKEN[case]
    make(tmp_path)
    with pytest.raises(DipgoError, match=message) as caught:
        captions(name, tmp_path)
    assert "\n" not in str(caught.value)
