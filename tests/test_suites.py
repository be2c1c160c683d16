"""The suites and the tables' specs fit each other: rows, controls, references, and runs that two tables share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.spec import RunSpec, load_suite
from tables.load import HERE, Table, load_paper, load_table, names

SUITES = Path(record.__file__).parent / "suites"
RECORDS = HERE / "records"
MODELS = ("sd", "sd2", "xl-lcm", "dit", "pixart", "bk-base", "bk-small")
REVISIONS = {f"emoji-{name}": name * 8 for name in MODELS}
TABLES = names()


@cache
def suite(name: str) -> dict[str, RunSpec]:
    return {spec.id: spec for spec in load_suite(SUITES / f"{name}.toml", REVISIONS)}


@cache
def table(name: str) -> Table:
    return load_table(name)


def pruned(name: str) -> list[RunSpec]:
    return [spec for spec in suite(name).values() if spec.method == "dipgo"]


def test_every_table_has_a_suite_and_every_suite_a_table():
    assert {path.stem for path in SUITES.glob("*.toml")} == set(TABLES) >= {f"table{n}" for n in (1, 2, 3, 4, 8)}


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_table_is_a_run_of_its_suite_and_every_run_a_row(name):
    assert {row.run for row in table(name).rows if row.run} == set(suite(name))
    assert {spec.model for spec in suite(name).values()} == set(table(name).models)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_the_papers_table_stands_in_ours(name):
    paper = load_paper()
    printed = paper.loc[paper["table"] == name.removeprefix("table"), ["group", "method"]]
    picks = [row.paper for row in table(name).rows if row.paper]
    for group, method in printed.itertuples(index=False):
        assert any(pick["method"] == method and pick.get("group", group) == group for pick in picks), (group, method)
    for pick in picks:
        hits = paper[(paper[list(pick)] == list(pick.values())).all(axis=1)]
        assert len(hits), f"{dict(pick)} picks nothing"


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_measured_against_its_groups_dense_row(name):
    for row in table(name).rows:
        if row.run:
            baseline = table(name).baseline_of(row)
            assert suite(name)[row.run].reference == (None if row.run == baseline else baseline)
            assert {table(name).baseline_of(other) for other in table(name).rows if other.run in row.controls} <= {
                baseline
            }


@pytest.mark.parametrize("name", TABLES)
def test_every_pruned_row_has_its_controls_at_equal_macs(name):
    rows = {row.run: row for row in table(name).rows}
    for ours in pruned(name):
        controls = [suite(name)[control] for control in rows[ours.id].controls]
        assert controls and rows[ours.id].ratio
        if ours.scheduler == "lcm":  # a step is a quarter of its run
            assert [(c.method, c.scheduler, c.steps) for c in controls] == [("dense", "lcm", ours.steps - 1)]
            continue
        own = next(c for c in controls if c.method == "kept_timesteps")
        uniform = next(c for c in controls if c.method == "step_skip")
        fewer = {c.scheduler: c.steps for c in controls if c.method == "dense"}
        calls = uniform.params["calls"]
        assert abs(calls - (1 - ours.params["ratio"]) * ours.steps) <= 0.5 + 1e-9
        assert (own.params["of"], own.params["calls"], own.scheduler) == (ours.id, calls, "ddim")
        assert uniform.params["mode"] == "hold"
        assert (uniform.scheduler, uniform.steps, own.steps) == (ours.scheduler, ours.steps, ours.steps)
        assert fewer == dict.fromkeys({"ddim", "dpm", ours.scheduler}, calls)


def test_an_id_is_one_run_in_all_suites_so_that_shared_rows_are_measured_once():
    runs: dict[str, set[str]] = {}
    for name in TABLES:
        for spec in suite(name).values():
            runs.setdefault(spec.id, set()).add(spec.digest)
    assert all(len(digests) == 1 for digests in runs.values())
    shared = {"sd2-dpm-50", "sd2-ours-0.70", "sd2-dpm-15", "sd2-ddim-15", "sd2-uniform-0.70", "sd2-own-0.70"}
    assert set(suite("table2")) & set(suite("table4")) == shared


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_a_table_compare_at_equal_n_by_the_same_metrics(name):
    assert len({(spec.limit, spec.prompts, spec.seed, spec.metrics) for spec in suite(name).values()}) == 1
    assert {dataset.key for dataset in table(name).dataset} == set(next(iter(suite(name).values())).prompts)


def test_published_records_are_of_the_suites_as_they_are():
    records = [record.read(path) for path in sorted(RECORDS.glob("*.json"))]
    assert len(records) >= 30  # Table 1's, which also keep their digests so
    revisions = REVISIONS | {found.spec["model"]: found.spec["revision"] for found in records}
    digests = {s.id: s.digest for name in TABLES for s in load_suite(SUITES / f"{name}.toml", revisions)}
    assert {found.id: found.digest for found in records}.items() <= digests.items()
