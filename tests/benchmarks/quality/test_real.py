from __future__ import annotations

import os

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from benchmarks.quality import real as module
from benchmarks.quality.features import CLEAN, EFFLITE0, PAPER, features
from benchmarks.quality.fid import feature_set, fid, kid
from benchmarks.quality.real import load, save_features
from benchmarks.specs.real import RealPictures
from dipgo.errors import DipgoError
from tests.helpers.inceptions import save_noise


def spread(n: int, d: int = 12, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) @ random.normal(size=(d, d))


def write_moments(path, values, **more):
    np.savez(path, mu=values.mean(axis=0), sigma=np.cov(values, rowvar=False), **more)
    return path


def test_a_stored_reference_is_float16_and_gives_nearly_the_same_distances(tmp_path):
    a, b = spread(100), spread(120, seed=1)
    path = tmp_path / "reference.safetensors"
    save_features(path, b)
    assert path.stat().st_size < b.size * 2 + 200
    assert list(tmp_path.iterdir()) == [path]
    stored = load(RealPictures(path), EFFLITE0)
    assert fid(feature_set(a), stored) == pytest.approx(fid(feature_set(a), feature_set(b)), rel=1e-3)
    assert kid(feature_set(a), stored).value == pytest.approx(kid(feature_set(a), feature_set(b)).value, rel=1e-3)


def test_published_moments_are_taken_in_the_protocol_that_the_caller_names(tmp_path):
    a, b = spread(100), spread(120, seed=1)
    path = write_moments(tmp_path / "imagenet.npz", b)
    for place in (path, tmp_path):  # a file, and the folder of one
        for protocol in (CLEAN, PAPER):
            found = load(RealPictures(place, protocol=protocol.name), protocol)
            assert fid(feature_set(a), found) == pytest.approx(fid(feature_set(a), feature_set(b)))
        with pytest.raises(DipgoError, match="is of the protocol 'clean', not 'paper'"):
            load(RealPictures(place, protocol="clean"), PAPER)


@pytest.mark.parametrize("protocol", [CLEAN, PAPER, EFFLITE0], ids=lambda protocol: protocol.name)
def test_statistics_that_name_no_protocol_are_taken_for_none(tmp_path, protocol):
    moments = write_moments(tmp_path / "mine_clean_custom_na.npz", spread(9))  # as clean-fid names and writes it
    safetensors.numpy.save_file({"features": spread(9)}, tmp_path / "real.safetensors")
    for path in (moments, tmp_path / "real.safetensors"):
        with pytest.raises(DipgoError, match=f"{path.name} does not say of which protocol.*protocol='{protocol.name}'"):
            load(RealPictures(path), protocol)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_a_file_that_was_replaced_is_read_again(tmp_path, name):
    """What is kept goes by the content."""

    def write(values):
        if name.endswith("npz"):
            write_moments(tmp_path / name, values)
        else:
            safetensors.numpy.save_file({"features": values}, tmp_path / name)
        return load(RealPictures(tmp_path / name, protocol="clean"), CLEAN)

    one, other = spread(9), spread(9, seed=1)
    for values in (one, other, one):
        np.testing.assert_allclose(write(values).moments[0], values.mean(axis=0))
    place = RealPictures(tmp_path / name, protocol="clean")
    assert load(place, CLEAN) is load(place, CLEAN)


@pytest.mark.parametrize("protocol", [CLEAN, PAPER], ids=lambda protocol: protocol.name)
def test_a_folders_moments_are_worked_out_once(tmp_path, inceptions, monkeypatch, protocol):
    save_noise(tmp_path / "real", ["a.jpg", "b.png", "c.png"])
    reference = RealPictures(tmp_path / "real", inceptions[protocol.name], tmp_path / "cache")
    found = load(reference, protocol)
    values = features(tmp_path / "real", protocol, inceptions[protocol.name], real=True, progress=False)
    mu, sigma = found.moments
    np.testing.assert_allclose(mu, values.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(sigma, np.cov(values, rowvar=False), atol=1e-6)
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name.startswith(protocol.name)

    def again(*_, **__):
        raise AssertionError("worked out again")

    module._kept.clear()
    monkeypatch.setattr(module, "features", again)
    np.testing.assert_array_equal(load(reference, protocol).moments[0], mu)
    save_noise(tmp_path / "real", ["c.png"], seed=1)  # another picture of the old name
    with pytest.raises(AssertionError, match="worked out again"):
        load(reference, protocol)


def test_protocols_differ_and_do_not_mix(tmp_path, inceptions):
    save_noise(tmp_path / "real", ["a.png", "b.png", "c.png"])
    for protocol in (CLEAN, PAPER):
        load(RealPictures(tmp_path / "real", inceptions[protocol.name], tmp_path / "cache"), protocol)
    clean, paper = sorted((tmp_path / "cache").iterdir())
    assert fid(load(RealPictures(clean), CLEAN), load(RealPictures(paper), PAPER)) > 1
    with pytest.raises(DipgoError, match="is of the protocol 'clean', not 'paper'"):
        load(RealPictures(clean), PAPER)
    with pytest.raises(DipgoError, match="is of the protocol 'paper', not 'clean'"):
        load(RealPictures(write_moments(tmp_path / "published.npz", spread(9)), protocol="paper"), CLEAN)
    save_features(tmp_path / "features.safetensors", spread(9), CLEAN)
    with pytest.raises(DipgoError, match="is of the protocol 'clean', not 'efflite0'"):
        load(RealPictures(tmp_path / "features.safetensors"), EFFLITE0)


def test_bad_input_is_named(tmp_path, inceptions):
    with pytest.raises(DipgoError, match="cannot read feature file .*nowhere"):
        load(RealPictures(tmp_path / "nowhere.safetensors"), EFFLITE0)
    with pytest.raises(DipgoError, match="cannot read feature file .*nowhere.npz"):
        load(RealPictures(tmp_path / "nowhere.npz"), PAPER)
    whole = write_moments(tmp_path / "whole.npz", spread(9)).read_bytes()
    cut = tmp_path / "cut.npz"
    for part in (whole[: len(whole) // 2], b""):
        cut.write_bytes(part)
        with pytest.raises(DipgoError, match="cannot read feature file .*cut.npz"):
            load(RealPictures(cut), PAPER)
    lacking = tmp_path / "lacking.npz"
    np.savez(lacking, mu=np.zeros(3))
    with pytest.raises(DipgoError, match="lacking.npz: .*sigma"):
        load(RealPictures(lacking), PAPER)
    np.savez(lacking.with_stem("other"), mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(DipgoError, match=r"other.npz: mu \[3\] and sigma \[2, 2\] are no finite moments"):
        load(RealPictures(tmp_path / "other.npz"), PAPER)
    write_moments(lacking.with_stem("nan"), np.full((3, 2), np.nan))
    with pytest.raises(DipgoError, match="nan.npz"):
        load(RealPictures(tmp_path / "nan.npz"), PAPER)
    np.savez(lacking.with_stem("pickled"), mu=np.array([{}]), sigma=np.zeros((1, 1)))
    with pytest.raises(DipgoError, match="pickled.npz"):
        load(RealPictures(tmp_path / "pickled.npz"), PAPER)
    (tmp_path / "real").mkdir()
    with pytest.raises(DipgoError, match="real is a folder of pictures; say where"):
        load(RealPictures(tmp_path / "real", inceptions["clean"]), CLEAN)
    with pytest.raises(DipgoError, match="real holds no picture"):
        load(RealPictures(tmp_path / "real", inceptions["clean"], tmp_path / "cache"), CLEAN)
    Image.new("RGB", (20, 20)).save(tmp_path / "real" / "only.png")
    with pytest.raises(DipgoError, match="at least 2 pictures"):
        load(RealPictures(tmp_path / "real", inceptions["clean"], tmp_path / "cache"), CLEAN)


def test_a_full_disk_leaves_nothing_behind(tmp_path, inceptions, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    save_noise(tmp_path / "real", ["a.png", "b.png"])
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DipgoError, match="not written, nothing left behind: No space left"):
        load(RealPictures(tmp_path / "real", inceptions["clean"], tmp_path / "cache"), CLEAN)
    assert not list((tmp_path / "cache").iterdir())
