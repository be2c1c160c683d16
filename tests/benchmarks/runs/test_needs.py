"""What runs need, told before anything is there."""

from __future__ import annotations

import pytest

from benchmarks import ROOT
from benchmarks.commands.macs import count_run
from benchmarks.prepare import kept
from benchmarks.runs import needs
from benchmarks.specs import record
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from benchmarks.supply.profiles import source
from dipgo.errors import DipgoError

SUITES = ROOT / "benchmarks" / "suites"
TABLE1 = ("plms-50", "ddim-10", "deepcache-5", "ours-0.80", "ours-0.85", "own-0.80")


@pytest.fixture(autouse=True)
def no_asset_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "assets"))


def suite(name: str = "table1", profile: str = "paper", *ids: str) -> list[RunSpec]:
    specs = load_suite(SUITES / f"{name}.toml", source(profile).revision, profile)
    return [spec for spec in specs if spec.id in (ids or TABLE1)]


@pytest.fixture(scope="module")
def counted() -> dict[str, float]:
    """MACs of a picture of SD-1.5 by sampler, all operations and branches."""
    return {name: count_run("sd15", name, steps)["dense_full"] for name, steps in (("plms", 50), ("ddim", 10))}


def by_id(found: list[needs.Need]) -> dict[str, needs.Need]:
    return {need.spec.id: need for need in found}


def test_runs_that_need_no_pictures_have_their_exact_macs_and_the_others_their_targets(tmp_path, counted):
    found = by_id(needs.needs(suite(), tmp_path))
    dense, few, cached, ours, own = (found[name] for name in ("plms-50", "ddim-10", "deepcache-5", *TABLE1[3::2]))
    assert (dense.macs, few.macs, dense.about, dense.calls) == (counted["plms"], counted["ddim"], False, 51)
    assert 0.2 * dense.macs < cached.macs < 0.4 * dense.macs and not cached.about
    assert ours.macs == pytest.approx(0.2 * dense.macs) and ours.about
    assert own.macs == pytest.approx(10 / 51 * dense.macs) and own.about  # 10 DDIM calls of 51 of PLMS
    assert dense.pictures == 1632 + 5000 and dense.made == 0
    assert dense.assets == ("sd15", "clip-vit-g-14", "parti", "coco", "diffusiondb")


def test_a_training_counts_once_and_not_when_it_is_through(tmp_path):
    found = by_id(needs.needs(suite(), tmp_path))
    # 1000 pictures: the dense run, forward, backward and a forward again for the checkpoints.
    assert found["ours-0.80"].preparing == pytest.approx(4000 * found["plms-50"].macs)
    assert found["ours-0.85"].preparing == 0
    spec = found["ours-0.80"].spec
    (path,) = kept.preparations(spec, tmp_path)
    path.parent.mkdir()
    path.write_text("{}")
    assert by_id(needs.needs(suite(), tmp_path))["ours-0.80"].preparing == 0


def test_a_search_counts_its_evaluations(tmp_path):
    (search,) = needs.needs(suite("table6", "paper", "search-random-0.80"), tmp_path)
    dense = search.macs / (1 - 0.8)
    assert search.preparing == pytest.approx(500 * dense * (1 + 1000 * 0.2))


def test_a_learning_and_a_step_search_count_what_they_may_try(tmp_path):
    found = by_id(needs.needs(suite("table1", "paper", "plms-50", "plus-0.90", "step-search-0.90"), tmp_path))
    dense, learned, searched = (found[name] for name in ("plms-50", "plus-0.90", "step-search-0.90"))
    share = 5 / 51
    assert learned.about and learned.macs == pytest.approx(share * dense.macs) == searched.macs
    evaluations, images = (
        searched.spec.params[table][key] for table, key in (("search", "evaluations"), ("fitness", "images"))
    )
    assert searched.preparing == pytest.approx(images * dense.macs * (1 + evaluations * share))
    tried = 3 * (5 * 3 * 2 + 4 + 5 * 4 + 4)  # rounds of: changes, dampings, moves one by one, moves together
    assert learned.preparing == pytest.approx(32 * dense.macs * (1 + tried * share))
    (path,) = kept.preparations(learned.spec, tmp_path)
    path.parent.mkdir()
    path.write_text("{}")
    (again,) = needs.needs([learned.spec], tmp_path)
    assert again.preparing == 0


def test_pictures_that_are_there_are_not_made_again_and_two_names_of_a_run_share_them(tmp_path):
    (dense,) = suite("table1", "paper", "plms-50")
    twin = RunSpec.from_json({**dense.to_json(), "id": "twin"})
    folder = tmp_path / dense.digest / "coco"
    folder.mkdir(parents=True)
    for index in range(3):
        (folder / f"{index:05d}.png").touch()
    (folder / "09999.png").touch()  # beyond the prompt set
    first, second = needs.needs([dense, twin], tmp_path)
    assert (first.made, first.pictures - first.made) == (3, 6629)
    assert first.total == first.macs * 6629 and second.total == 0


def test_the_embedded_profile_is_counted_as_its_records_are(tmp_path):
    specs = suite("table1", "embedded", "plms-50", "deepcache-5")
    for need in needs.needs(specs, tmp_path):
        published = record.find(ROOT / "tables" / "records", need.spec.id)
        assert need.macs == published.cell(record.ALL, "macs_full")["value"] and need.assets == ()


def test_the_listing_has_a_line_a_run_and_the_totals(tmp_path):
    found = needs.needs(suite(), tmp_path)
    text = needs.listing(found).split("\n")
    assert [line.split()[0] for line in text[1 : 1 + len(found)]] == [need.spec.id for need in found]
    ours = next(line for line in text if line.startswith("ours-0.80"))
    assert "~8.193" in ours and "plms 50" in ours and "diffusiondb" in ours
    total = sum(need.total for need in found) / 1e15
    assert f"6 runs, 39,792 pictures to make, {total:.4g} PMACs, 163.9 of them for trainings and searches" in text


def test_a_listing_makes_nothing(tmp_path):
    needs.listing(needs.needs(suite(), tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_set_that_nobody_has_is_named(tmp_path):
    (dense,) = suite("table1", "paper", "plms-50")
    odd = RunSpec.from_json({**dense.to_json(), "prompts": ["cocoa"]})
    with pytest.raises(DipgoError, match="run 'plms-50': unknown prompt set 'cocoa'; did you mean coco"):
        needs.size(odd, "cocoa")


def test_numbers_are_short():
    assert [needs.short(value) for value in (21610.4, 999.96, 0.0012345)] == ["21,610", "1000", "0.001234"]
