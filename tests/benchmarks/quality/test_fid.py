from __future__ import annotations

import cleanfid.fid
import numpy as np
import pytest

from benchmarks.quality.fid import FeatureSet, feature_set, fid, kid
from dipgo.errors import DipgoError


def spread(n: int, d: int = 12, seed: int = 0, shift: float = 0.0) -> FeatureSet:
    random = np.random.default_rng(seed)
    return feature_set(random.normal(size=(n, d)) @ random.normal(size=(d, d)) + shift)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_frechet_distance_equals_clean_fids(monkeypatch):
    sqrtm = cleanfid.fid.linalg.sqrtm

    def with_disp(matrix, disp=True):  # clean-fid passes it, newer scipy has it no more
        return sqrtm(matrix) if disp else (sqrtm(matrix), 0)

    monkeypatch.setattr(cleanfid.fid.linalg, "sqrtm", with_disp)
    a, b = spread(200), spread(300, seed=1, shift=0.3)
    assert fid(a, b) == pytest.approx(cleanfid.fid.fid_from_feats(a.values, b.values), rel=1e-6)


def test_frechet_distance_of_commuting_covariances_has_the_closed_form():
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(6, 6)))[0]
    s1, s2 = random.uniform(0, 3, (2, 6))
    s1[0] = s2[1] = 0  # deficient rank
    mu1, mu2 = random.normal(size=(2, 6))
    one, other = (FeatureSet(None, (mu, basis * s**2 @ basis.T)) for mu, s in ((mu1, s1), (mu2, s2)))
    assert fid(one, other) == pytest.approx(np.square(mu1 - mu2).sum() + np.square(s1 - s2).sum())


def test_frechet_distance_is_symmetric_and_0_for_equal_sets():
    few, many = spread(8), spread(300, seed=1)  # 8 pictures: a covariance of deficient rank
    assert fid(few, few) == pytest.approx(0, abs=1e-9)
    assert fid(few, many) == pytest.approx(fid(many, few)) and fid(few, many) > 1


def test_kid_equals_clean_fids_kernel_distance(no_network):
    a, b = spread(150), spread(150, seed=1, shift=0.2)
    theirs = cleanfid.fid.kernel_distance(a.values, b.values, num_subsets=1, max_subset_size=150)
    assert kid(a, b).value == pytest.approx(theirs)


def test_kid_is_unbiased_where_both_sets_have_one_source():
    random = np.random.default_rng(0)
    pairs = [[feature_set(random.normal(size=(20, 4))) for _ in range(2)] for _ in range(400)]
    values = [kid(*pair).value for pair in pairs]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_kid_interval_holds_the_true_value_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    real = feature_set(random.normal(size=(100, 4)))
    truth = kid(feature_set(random.normal(size=(1000, 4)) + 0.5), real).value
    intervals = [kid(feature_set(random.normal(size=(80, 4)) + 0.5), real) for _ in range(100)]
    assert 85 <= sum(low <= truth <= high for _, low, high in intervals) <= 99


def test_kid_does_not_depend_on_other_random_numbers():
    a, b = spread(60), spread(80, seed=1)
    first = kid(a, b)
    np.random.seed(3)
    assert kid(a, b) == first and first.low < first.value < first.high


def test_moments_alone_give_the_same_frechet_distance_and_no_kernel_distance():
    a, b = spread(100), spread(120, seed=1, shift=0.3)
    moments = FeatureSet(None, (b.values.mean(axis=0), np.cov(b.values, rowvar=False)))
    assert fid(a, moments) == pytest.approx(fid(a, b))
    with pytest.raises(DipgoError, match="KID needs the features of every picture"):
        kid(a, moments)


def test_bad_input_is_named():
    with pytest.raises(DipgoError, match="at least 2 pictures"):
        spread(1)
    with pytest.raises(DipgoError, match="12 wide, those of the real pictures 4"):
        fid(spread(5), spread(5, d=4))
    with pytest.raises(DipgoError, match="KID takes 4 pictures or more, not 3"):
        kid(spread(3), spread(50))
    with pytest.raises(DipgoError, match="finite"):
        spread(5, shift=np.nan)
