"""The suites and the tables' specs fit each other: rows, controls, references, and runs that two tables share."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest

from baselines import method as method_of
from baselines.preparation import NOISE_SEED
from benchmarks import ROOT
from benchmarks.prepare import kept
from benchmarks.prepare.search import NOISE_SEED as SEARCH_SEED
from benchmarks.specs import record
from benchmarks.specs.files import read_toml
from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite, printed_runs
from dipgo.errors import DipgoError
from tables.load import HERE, load_paper, load_table, names
from tables.spec import CONTROL, Row, Table

SUITES = ROOT / "benchmarks" / "suites"
RECORDS = HERE / "records"
MODELS = ("sd", "sd2", "xl-lcm", "dit", "pixart", "bk-base", "bk-small")
REVISIONS = {f"emoji-{name}": name * 8 for name in MODELS}
TABLES = names()


@cache
def suite(name: str) -> dict[str, RunSpec]:
    return {spec.id: spec for spec in load_suite(SUITES / f"{name}.toml", lambda row: REVISIONS[row["model"]])}


@cache
def table(name: str) -> Table:
    return load_table(name)


def row_of(name: str) -> dict[str, Row]:
    return {run: row for row in table(name).rows for run in row.runs}


def pruned(name: str) -> list[RunSpec]:
    return [spec for spec in suite(name).values() if spec.method == "dipgo" and "learn" not in spec.params]


def test_every_table_has_a_suite_and_every_suite_a_table_but_the_one_that_is_only_prepared():
    suites = {path.stem for path in SUITES.glob("*.toml")}
    assert suites - {"frontier"} == set(TABLES) == {f"table{n}" for n in range(1, 9)}


def test_the_frontier_holds_every_contestant_at_every_ratio_and_its_settings_never_saw_its_test_set():
    specs = load_suite(SUITES / "frontier.toml", lambda row: REVISIONS[row["model"]])
    contestants = {"tuned", "gits", "learned", "uniform", "forecast1", "deepcache", "plus", "ours"}
    # SmoothCache at 0.90, where TaylorSeer does not come; TeaCache and MagCache at 0.95, where a first block in every
    # call leaves nothing.
    more = {"pixart": 1, "dit": 2}
    dynamic = {"firstblock", "dbcache", "dbtaylor", "teacache", "magcache"}
    # Those of the layers within blocks; not every ratio is within their reach.
    within = {"fora", "taylor1", "taylor2", "smoothcache", "ecad"}
    for model, ratios, reached in (("sd", 4, 1), ("sd2", 4, 1), ("dit", 4, 3), ("pixart", 3, 2)):
        rivals = within | (dynamic if model in ("dit", "pixart") else set())
        rows = [spec for spec in specs if spec.id.startswith(f"frontier-{model}-")]
        assert len(rows) == ratios * len(contestants) + reached * len(rivals) + more.get(model, 0) + 1
        assert len({spec.setting for spec in rows}) == 2
        assert {spec.id.split("-")[2] for spec in rows} == contestants | rivals | {"converged"}
        assert {spec.converged for spec in rows} == {f"frontier-{model}-converged", None}
    assert len({spec.seed for spec in specs}) == 1
    used = {spec.seed for name in TABLES for spec in suite(name).values()}
    for spec in specs:
        assert spec.seed not in used | {NOISE_SEED, SEARCH_SEED}
        assert spec.prompts == (("classes",) if spec.model == "emoji-dit" else ("fresh",))
        assert '"fresh"' not in json.dumps(spec.to_json()["params"])
        method_of(spec.method).prepares(spec.params)
        if spec.method == "tuned_steps":
            plus = next(other for other in specs if other.id == spec.id.replace("tuned", "plus"))
            forecast, tuning = kept.preparations(spec, ROOT)
            assert [forecast] == [*kept.preparations(plus, ROOT)]
            learned = next(other for other in specs if other.id == spec.id.replace("tuned", "learned"))
            assert [*kept.preparations(learned, ROOT)][:2] == [forecast, tuning]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_table_is_a_run_of_its_suite_and_every_run_a_row(name):
    runs = [run for row in table(name).rows for run in row.runs]
    assert sorted(runs) == sorted(suite(name))
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
def test_a_row_is_held_against_rows_that_have_its_dense_row(name):
    for run, row in row_of(name).items():
        assert suite(name)[run].reference == (None if run == row.baseline else row.baseline)
        controls = [control for names in row.controls.values() for control in names]
        assert {table(name).find_row(control).baseline for control in controls} <= {row.baseline}


@pytest.mark.parametrize("name", TABLES)
def test_every_pruned_row_has_its_controls_at_equal_macs(name):
    for ours in pruned(name):
        row = row_of(name)[ours.id]
        controls = [suite(name)[control] for control in row.controls[CONTROL]]
        assert controls
        if controls[0].method == "dipgo":  # an ablation is held against the row that it varies
            varied = table(name).find_row(controls[0].id)
            assert len(controls) == 1 and len(varied.runs) == len(row.runs) and not varied.added
            assert suite(name)[varied.run].params["ratio"] == ours.params["ratio"]
            assert all(suite(name)[control].method != "dipgo" for control in varied.controls[CONTROL])
            continue
        if ours.scheduler == "lcm":  # a step is a quarter of its run
            assert [(c.method, c.scheduler, c.steps) for c in controls] == [("dense", "lcm", ours.steps - 1)]
            continue
        own = next((c for c in controls if c.method == "kept_timesteps"), None)
        uniform = next(c for c in controls if c.method == "step_skip")
        fewer = {c.scheduler: c.steps for c in controls if c.method == "dense"}
        calls = uniform.params["calls"]
        assert abs(calls - (1 - ours.params["ratio"]) * ours.steps) <= 0.5 + 1e-9
        assert (uniform.params["mode"], uniform.scheduler, uniform.steps) == ("hold", ours.scheduler, ours.steps)
        assert own is not None or name == "table6"  # its schedules are compared with searches; Table 1 has that control
        if own is not None:
            assert (own.params["of"], own.params["calls"]) == (row.run, calls)
            assert (own.scheduler, own.steps) == ("ddim", ours.steps)
        assert fewer == dict.fromkeys({"ddim", "dpm", ours.scheduler}, calls)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table8"])
def test_every_learned_forecast_has_its_controls_at_as_many_calls(name):
    learned = [spec for spec in suite(name).values() if spec.method == "learned_forecast"]
    held = [spec for spec in learned if row_of(name)[spec.id].controls]
    assert len(held) == len(learned) - 2 * (name == "table1")  # less the two that leave a part of the learning out
    for ours in held:
        groups = {group: [suite(name)[run] for run in runs] for group, runs in row_of(name)[ours.id].controls.items()}
        calls = ours.params["calls"]
        few = {spec.scheduler: spec.steps for spec in groups["few steps"]}
        plms = few.pop("plms", None)  # it makes a call more than its steps
        assert few == dict.fromkeys(("ddim", "dpm", "unipc"), calls)
        assert plms == calls if name == "table1" else plms is None if calls == 2 else calls - 3 < plms < calls
        uniform = [spec.params for spec in groups["uniform calls"]]
        assert [params.get("order", 0) for params in uniform] == [0, 1, 2][: max(2, min(calls, 3))]
        searched = groups.get("step search", [])
        assert searched or calls > 50
        same = [*groups["uniform calls"], *searched, *groups.get("a part of it", [])]
        assert {(spec.params["calls"], spec.scheduler, spec.steps) for spec in same} == {
            (calls, ours.scheduler, ours.steps)
        }


def test_an_id_is_one_run_in_all_suites_so_that_shared_rows_are_measured_once():
    runs: dict[str, set[str]] = {}
    for name in TABLES:
        for spec in suite(name).values():
            runs.setdefault(spec.id, set()).add(spec.digest)
    assert all(len(digests) == 1 for digests in runs.values())
    shared = {"sd2-dpm-50", "sd2-ours-0.70", "sd2-dpm-15", "sd2-ddim-15", "sd2-uniform-0.70", "sd2-own-0.70"}
    assert set(suite("table2")) & set(suite("table4")) == shared
    few = {"plms-50", "plms-10", "ddim-10", "dpm-10", "uniform-0.80"}
    ours = {"ours-0.80", "own-0.80"}
    assert set(suite("table5")) & set(suite("table7")) == few | ours | {"ours-0.80-seed1", "ours-0.80-seed2"}
    assert set(suite("table1")) & set(suite("table5")) == few | ours
    assert set(suite("table1")) & set(suite("table6")) > few and not set(suite("table6")) & ours


def test_runs_that_need_the_same_pruner_share_its_training():
    def trainings(name: str) -> dict[str, Path]:
        return {spec.id: next(iter(kept.preparations(spec, Path()))) for spec in pruned(name)}

    one, five, six, seven = (trainings(name) for name in ("table1", "table5", "table6", "table7"))
    assert len(set(one.values())) == 1  # once for all ratios
    assert one["ours-0.80"] == five["ours-0.80"] == six["search-ours-0.80"] == six["search-ours-0.90"]
    for seed in (1, 2):
        assert five[f"ours-0.80-seed{seed}"] == six[f"search-ours-0.80-seed{seed}"] == seven[f"ours-0.80-seed{seed}"]
    for found in (five, seven):
        assert len(set(found.values())) == len(found)  # every other run of an ablation is a training of its own
    assert len({path for run, path in six.items() if run.startswith("encoder")}) == 6


@pytest.mark.parametrize("name", TABLES)
def test_the_runs_of_a_row_differ_in_their_training_seed_alone(name):
    def settings(spec: RunSpec) -> dict:
        data = spec.to_json()
        train = {key: value for key, value in data["params"]["train"].items() if key != "seed"}
        # A first run may be another table's, too, with that table's metrics.
        return {**data, "params": {**data["params"], "train": train}, "id": None, "metrics": None}

    for row in table(name).rows:
        runs = [suite(name)[run] for run in row.runs] if row.seeds else []
        assert not runs or [spec.params["train"]["seed"] for spec in runs] == list(range(len(runs))) and len(runs) >= 3
        assert all(settings(spec) == settings(runs[0]) for spec in runs)


@pytest.mark.parametrize("name", ["table5", "table6", "table7"])
def test_an_ablation_changes_one_training_setting_of_the_row_it_is_held_against(name):
    changed = set()
    for row in table(name).rows:
        control = row.controls.get(CONTROL, ("",))[0]
        if row.seeds and control and suite(name)[control].method == "dipgo":
            one, other = (suite(name)[run].params for run in (row.run, control))
            assert {key: one[key] for key in one if key != "train"} == {
                key: other[key] for key in other if key != "train"
            }
            differ = {key for key in one["train"] if one["train"][key] != other["train"][key]}
            assert len(differ) == 1
            changed |= differ
    assert changed == {"table5": {"loss"}, "table6": {"encoder"}, "table7": {"alpha", "gamma"}}[name]


def test_searches_and_ours_share_calibration_and_the_searches_their_budget():
    searches = [spec for spec in suite("table6").values() if "search" in spec.metrics]
    assert {spec.method for spec in searches} == {"random_search", "genetic_search", "dipgo"}
    assert len({tuple(sorted(spec.params["fitness"].items())) for spec in searches}) == 1
    assert len({spec.params["search"]["evaluations"] for spec in searches if "search" in spec.params}) == 1


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_a_table_compare_at_equal_n_by_the_same_metrics(name):
    assert len({(spec.limit, spec.prompts, spec.seed) for spec in suite(name).values()}) == 1
    for spec in suite(name).values():
        assert {"macs", table(name).difference, *table(name).compared} <= set(spec.metrics)
    if not any(row.seeds for row in table(name).rows):
        assert len({spec.metrics for spec in suite(name).values()}) == 1
    assert {dataset.key for dataset in table(name).dataset} == set(next(iter(suite(name).values())).prompts)


@pytest.mark.parametrize("profile", PROFILES)
def test_no_run_that_was_there_before_sweeps_is_gone_or_changed(profile):
    before = read_toml(Path(__file__).with_name("runs_before_sweeps.toml"))
    digests = {
        spec.id: spec.digest
        for name in TABLES
        for spec in load_suite(SUITES / f"{name}.toml", lambda row: row["model"], profile)
    }
    ids = before["ids"].split()
    assert len(ids) == 245 and set(ids) <= digests.keys()
    text = " ".join(f"{run}:{digests[run]}" for run in sorted(ids))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == before[profile]


def test_published_records_are_of_the_suites_as_they_are():
    records = [record.read(path) for path in sorted(RECORDS.glob("*.json"))]
    assert len(records) >= 245
    revisions = REVISIONS | {found.spec["model"]: found.spec["revision"] for found in records}
    digests = {
        s.id: s.digest
        for name in TABLES
        for s in load_suite(SUITES / f"{name}.toml", lambda row: revisions[row["model"]])
    }
    assert {found.id: found.digest for found in records}.items() <= digests.items()


def test_printed_runs_are_those_of_the_papers_table():
    assert printed_runs(SUITES / "table8.toml") == ["pixart-dpm-20", "pixart-ours-0.40"]
    assert "plms-50" not in printed_runs(SUITES / "table5.toml")  # the paper prints it in its Table 1
    with pytest.raises(DipgoError, match="frontier.toml: --printed: no run of this suite stands in the paper"):
        printed_runs(SUITES / "frontier.toml")
