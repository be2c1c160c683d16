from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.quality import score as quality
from benchmarks.quality.features import CLEAN, PAPER, features
from benchmarks.quality.fid import feature_set
from benchmarks.quality.reference import Reference, save_features
from dipgo.errors import DipgoError
from tests.helpers.inceptions import save_noise

METRICS = ("macs", "clip_score", "retrieval_top1", "class_score", "class_top1", "fid_efflite0", "kid_efflite0", "psnr")
NAMES = ["cat", "dog", "cat", "cat", "cat", "dog"]
CENTROIDS = {"cat": torch.tensor([1.0, 0.0]), "dog": torch.tensor([0.0, 1.0])}


class Judge:
    """Its features are known: every picture looks like a cat. It scores a picture by its name's number."""

    def __init__(self) -> None:
        self.looked: list[list[int]] = []

    def image_features(self, paths, progress):
        self.looked.append([int(path.stem) for path in paths])
        return torch.tensor([[0.8, 0.6]] * len(paths))

    def text_features(self, captions):
        return torch.zeros(len(captions), 2)

    def scores(self, images, captions):
        return np.array(self.looked[-1], dtype=np.float32)

    def retrieval(self, images, captions, rows):
        return np.array([captions[row] == "dog" for row in rows])


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for prefix in ("own", "dense"):
        (tmp_path / prefix).mkdir()
        for i in range(len(NAMES)):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / prefix / f"{i:05d}.png")
    save_file(CENTROIDS, tmp_path / "centroids.safetensors")
    save_features(tmp_path / "real.safetensors", random.normal(size=(20, 320)))
    return tmp_path


def score(folder, judge, metrics=METRICS, dense="dense", **changed):
    paths, others = ([folder / name / f"{i:05d}.png" for i in range(len(NAMES))] for name in ("own", dense))
    given = {
        "references": dict.fromkeys(("fid_efflite0", "kid_efflite0"), Reference(folder / "real.safetensors")),
        "centroids": folder / "centroids.safetensors",
        "kept": folder / "own.scores",
    }
    return quality.score(paths, NAMES, others, metrics, judge, **(given | changed))


def test_every_asked_quality_metric_has_a_cell_and_pictures_are_encoded_once(folder):
    judge = Judge()
    cells, samples = score(folder, judge)
    assert set(cells) == set(METRICS) - {"macs"} and all(cell["n"] == len(NAMES) for cell in cells.values())
    assert judge.looked == [[0, 1, 2, 3, 4, 5]]
    assert samples["clip_score"] == [0, 1, 2, 3, 4, 5] and cells["clip_score"]["value"] == 2.5
    assert cells["retrieval_top1"]["value"] == pytest.approx(1 / 3)
    assert set(samples) == {"clip_score", "class_score", "psnr"}  # one value a picture; of hits only the share


def test_classes_are_judged_by_their_centroids(folder):
    cells, samples = score(folder, Judge(), ("class_score", "class_top1"))
    assert samples["class_score"] == pytest.approx([80, 60, 80, 80, 80, 60])
    assert cells["class_top1"]["value"] == pytest.approx(2 / 3)


def test_a_run_has_no_distance_to_itself_and_no_judge_is_asked_in_vain(folder):
    cells, _ = score(folder, None, ("psnr", "fid_efflite0"), dense="own", centroids=None)
    assert set(cells) == {"fid_efflite0"} and not (folder / "own.scores").exists()


def test_each_picture_has_a_file_of_its_scores(folder):
    _, samples = score(folder, Judge(), ("clip_score", "psnr", "class_top1"))
    files = sorted((folder / "own.scores").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.json" for i in range(len(NAMES))]
    expected = {"clip_score": 1.0, "psnr": samples["psnr"][1], "class_top1": False}
    assert json.loads(files[1].read_text()) == expected


def test_a_run_that_was_killed_in_scoring_scores_no_finished_picture_again(folder, monkeypatch):
    class Killed(Judge):
        def image_features(self, paths, progress):
            if self.looked:
                raise KeyboardInterrupt
            return super().image_features(paths, progress)

    whole = score(folder, Judge(), kept=folder / "other")
    monkeypatch.setattr(quality, "CHUNK", 2)
    killed = Killed()
    with pytest.raises(KeyboardInterrupt):
        score(folder, killed)
    assert killed.looked == [[0, 1]]
    kept = folder / "own.scores"
    (kept / "00000.json").unlink()
    (kept / "00004.json").write_text('{"clip_sc')  # half a file
    (kept / "00005.json").write_text('{"clip_score": 5.0}')  # of fewer metrics
    judge = Judge()
    assert score(folder, judge) == whole
    assert judge.looked == [[0, 2], [3, 4], [5]]
    judge = Judge()
    assert score(folder, judge) == whole and not judge.looked
    assert not [path for path in kept.iterdir() if path.suffix != ".json"]


def test_fids_of_both_protocols_are_those_of_their_features(folder, inceptions, monkeypatch):
    def distance_of_means(a, b):  # the whole distance takes seconds at 2048 features
        return float(np.square(feature_set(a).moments[0] - b.moments[0]).sum())

    monkeypatch.setattr(quality, "fid", distance_of_means)
    save_noise(folder / "real", ["a.jpg", "b.png", "c.png"], size=48)
    metrics = ("fid_clean", "fid_paper")
    references = {
        f"fid_{name}": Reference(folder / "real", inceptions[name], folder / "cache") for name in ("clean", "paper")
    }
    cells, _ = score(folder, None, metrics, references=references)
    for protocol in (CLEAN, PAPER):
        network = inceptions[protocol.name]
        made = features(folder / "own", protocol, network, progress=False)
        real = features(folder / "real", protocol, network, real=True, progress=False)
        assert cells[f"fid_{protocol.name}"] == {
            "value": pytest.approx(distance_of_means(made, feature_set(real)), rel=1e-4),
            "n": len(NAMES),
        }
    assert cells["fid_clean"]["value"] != pytest.approx(cells["fid_paper"]["value"], rel=0.1)


def test_what_is_missing_is_named_before_anything_is_scored(folder):
    judge = Judge()
    with pytest.raises(DipgoError, match=r"fid_efflite0 needs real pictures .*references\['fid_efflite0'\]"):
        score(folder, judge, references={})
    with pytest.raises(DipgoError, match="unknown distance 'fid_claen'; did you mean fid_clean"):
        score(folder, judge, ("fid_claen",))
    with pytest.raises(DipgoError, match="no judge for clip_score"):
        score(folder, None, ("clip_score",))
    with pytest.raises(DipgoError, match="no class centroids for class_score"):
        score(folder, judge, ("class_score",), centroids=None)
    with pytest.raises(DipgoError, match="1 pictures, 0 captions and 2 dense pictures"):
        quality.score(["a"], [], ["b", "c"], ("psnr",), None, {}, None, folder / "kept")
    assert not judge.looked


def test_pictures_that_cannot_be_compared_are_named(folder):
    wrong = folder / "own" / "00002.png"
    Image.new("RGB", (16, 32)).save(wrong)
    with pytest.raises(DipgoError, match="00002.png is 16 x 32, but .*00000.png is 32 x 32"):
        score(folder, None, ("psnr",))
    for i in range(len(NAMES)):
        Image.new("RGB", (16, 32)).save(folder / "own" / f"{i:05d}.png")
    with pytest.raises(DipgoError, match="16 x 32 against 32 x 32 .*own/00000.png against .*dense/00000.png"):
        score(folder, None, ("ssim",))
    wrong.write_bytes(b"")
    with pytest.raises(DipgoError, match="cannot read picture .*00002.png.*generate it again"):
        score(folder, None, ("psnr",))
    assert not (folder / "own.scores").exists()


def test_a_score_that_is_no_number_is_named_and_not_kept(folder, monkeypatch):
    monkeypatch.setattr(Judge, "scores", lambda self, images, captions: np.full(len(captions), np.nan))
    with pytest.raises(DipgoError, match="00000.png: its clip_score is nan"):
        score(folder, Judge(), ("clip_score",))
    assert not (folder / "own.scores").exists()
