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
from benchmarks.quality.real import save_features
from benchmarks.quality.score import Inputs
from benchmarks.specs.real import RealPictures
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


def score(folder, judge, metrics=METRICS, dense="dense", kept="own.scores", **changed):
    def files(name):
        return [folder / name / f"{i:05d}.png" for i in range(len(NAMES))]

    given = {
        "dense": dense and files(dense),
        "judge": judge,
        "real": {"efflite0": RealPictures(folder / "real.safetensors", protocol="efflite0")},
        "centroids": folder / "centroids.safetensors",
    }
    return quality.score(Inputs(files("own"), NAMES, **(given | changed)), metrics, folder / kept)


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
    cells, _ = score(folder, None, ("psnr", "fid_efflite0"), dense=None, centroids=None)
    assert set(cells) == {"fid_efflite0"} and not (folder / "own.scores").exists()


def test_each_picture_has_a_file_of_its_scores(folder):
    _, samples = score(folder, Judge(), ("clip_score", "psnr", "class_top1"))
    files = sorted((folder / "own.scores").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.json" for i in range(len(NAMES))]
    found = json.loads(files[1].read_text())
    assert found.pop("source") != json.loads(files[2].read_text())["source"]
    assert found == {"clip_score": 1.0, "psnr": samples["psnr"][1], "class_top1": False}


def test_a_run_that_was_killed_in_scoring_scores_no_finished_picture_again(folder, monkeypatch):
    class Killed(Judge):
        def image_features(self, paths, progress):
            if self.looked:
                raise KeyboardInterrupt
            return super().image_features(paths, progress)

    whole = score(folder, Judge(), kept="other")
    monkeypatch.setattr(quality, "CHUNK", 2)
    killed = Killed()
    with pytest.raises(KeyboardInterrupt):
        score(folder, killed)
    assert killed.looked == [[0, 1]]
    kept = folder / "own.scores"
    (kept / "00000.json").unlink()
    (kept / "00004.json").write_text('{"clip_sc')  # half a file
    source = json.loads((kept / "00001.json").read_text())["source"]
    (kept / "00005.json").write_text(json.dumps({"source": source, "clip_score": 5.0}))  # of fewer metrics
    judge = Judge()
    assert score(folder, judge) == whole
    assert judge.looked == [[0, 2], [3, 4], [5]]
    judge = Judge()
    assert score(folder, judge) == whole and not judge.looked
    assert not [path for path in kept.iterdir() if path.suffix != ".json"]


def test_fids_of_both_protocols_are_those_of_their_features(folder, inceptions, monkeypatch):
    def distance_of_means(a, b):  # the whole distance takes seconds at 2048 features
        return float(np.square(a.moments[0] - b.moments[0]).sum())

    monkeypatch.setattr("benchmarks.quality.fid.fid", distance_of_means)
    save_noise(folder / "real", ["a.jpg", "b.png", "c.png"], size=48)
    metrics = ("fid_clean", "fid_paper")
    real = {name: RealPictures(folder / "real", inceptions[name], folder / "cache") for name in ("clean", "paper")}
    cells, _ = score(folder, None, metrics, real=real)
    for protocol in (CLEAN, PAPER):
        network = inceptions[protocol.name]
        made = features(folder / "own", protocol, network, progress=False)
        real = features(folder / "real", protocol, network, real=True, progress=False)
        assert cells[f"fid_{protocol.name}"] == {
            "value": pytest.approx(distance_of_means(feature_set(made), feature_set(real)), rel=1e-4),
            "n": len(NAMES),
        }
    assert cells["fid_clean"]["value"] != pytest.approx(cells["fid_paper"]["value"], rel=0.1)


def test_what_is_missing_is_named_before_anything_is_scored(folder):
    judge = Judge()
    with pytest.raises(DipgoError, match="fid_efflite0 takes real pictures in 'efflite0'; pass them"):
        score(folder, judge, real={})
    with pytest.raises(DipgoError, match="fid_efflite0 takes 'real', which is missing"):
        score(folder, judge, real=None)
    with pytest.raises(DipgoError, match="clip_score takes 'judge', which is missing"):
        score(folder, None, ("clip_score",))
    with pytest.raises(DipgoError, match="class_score takes 'centroids', which is missing"):
        score(folder, judge, ("class_score",), centroids=None)
    with pytest.raises(DipgoError, match="1 pictures, 0 captions and 2 dense pictures"):
        quality.score(Inputs(["a"], [], ["b", "c"]), ("psnr",), folder / "kept")
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


def picture(path, random):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("names", [("a/0.png", "b/0.png"), ("0.png", "0.bmp"), ("a/0.png", "a/0.x.png")])
def test_pictures_of_one_name_keep_a_score_each(tmp_path, names):
    random = np.random.default_rng(0)
    ours, dense = ([picture(tmp_path / part / name, random) for name in names] for part in ("ours", "dense"))
    given = Inputs(ours, ["x", "y"], dense)
    first = quality.score(given, ["psnr"], tmp_path / "kept")
    assert len({*first[1]["psnr"]}) == 2
    assert quality.score(given, ["psnr"], tmp_path / "kept") == first


@pytest.mark.parametrize("changed", ["picture", "dense picture", "caption", "order"])
def test_a_kept_score_is_of_the_same_picture_dense_picture_and_captions(tmp_path, changed):
    random, captions = np.random.default_rng(0), ["cat", "dog"]
    ours, dense = ([picture(tmp_path / part / f"{i}.png", random) for i in range(2)] for part in ("ours", "dense"))
    judge, metrics = Judge(), ("psnr", "retrieval_top1")
    quality.score(Inputs(ours, captions, dense, judge=judge), metrics, tmp_path / "kept")
    if changed == "caption":
        captions[0] = "dog"
    elif changed == "order":
        ours.reverse()
    else:
        picture((ours if changed == "picture" else dense)[0], random)
    given = Inputs(ours, captions, dense, judge=judge)
    found = quality.score(given, metrics, tmp_path / "kept")
    assert len(judge.looked) == 2 and found == quality.score(given, metrics, tmp_path / "other")
