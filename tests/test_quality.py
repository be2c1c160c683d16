from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import fid, quality

METRICS = ("macs", "clip_score", "class_score", "class_top1", "fid_efflite0", "kid_efflite0", "psnr")
NAMES = ["cat", "dog", "cat", "cat", "cat", "dog"]
CENTROIDS = {"cat": torch.tensor([1.0, 0.0]), "dog": torch.tensor([0.0, 1.0])}


class Judge:
    """Its features are known: every picture looks like a cat."""

    def __init__(self) -> None:
        self.looked = 0

    def image_features(self, paths, progress):
        self.looked += 1
        return torch.tensor([[0.8, 0.6]] * len(paths))

    def scores(self, images, captions):
        return np.arange(len(captions), dtype=np.float32)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in [f"{prefix}{i}" for prefix in ("", "dense") for i in range(len(NAMES))]:
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    save_file(CENTROIDS, tmp_path / "centroids.safetensors")
    fid.save_features(tmp_path / "real.safetensors", random.normal(size=(20, 320)))
    return tmp_path


def score(folder, judge, metrics=METRICS, dense="dense"):
    paths, others = ([folder / f"{prefix}{i}.png" for i in range(len(NAMES))] for prefix in ("", dense))
    files = folder / "real.safetensors", folder / "centroids.safetensors"
    return quality.score(paths, NAMES, others, metrics, judge, *files)


def test_every_asked_quality_metric_has_a_cell_and_pictures_are_encoded_once(folder):
    judge = Judge()
    cells, samples = score(folder, judge)
    assert set(cells) == set(METRICS) - {"macs"} and all(cell["n"] == len(NAMES) for cell in cells.values())
    assert judge.looked == 1
    assert samples["clip_score"] == [0, 1, 2, 3, 4, 5] and cells["clip_score"]["value"] == 2.5


def test_classes_are_judged_by_their_centroids(folder):
    cells, samples = score(folder, Judge(), ("class_score", "class_top1"))
    assert samples["class_score"] == pytest.approx([80, 60, 80, 80, 80, 60])
    assert cells["class_top1"]["value"] == pytest.approx(2 / 3)


def test_a_run_has_no_distance_to_itself_and_no_judge_is_asked_in_vain(folder):
    judge = Judge()
    cells, _ = score(folder, judge, ("psnr", "fid_efflite0"), dense="")
    assert set(cells) == {"fid_efflite0"} and not judge.looked
