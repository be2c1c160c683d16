"""The tables of the paper's own models, on records that are synthetic."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.specs import record
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from dipgo.errors import DipgoError
from tables.__main__ import main
from tables.cells import paper_verdict
from tables.load import SUITES, load_table, names
from tables.render import CSV_COLUMNS, render
from tables.spec import Dataset
from tests.tables.test_tables import line

OURS, DENSE = "Ours (w/ Pruned-0.80)", "PLMS - 50 steps"
SIZES = {"parti": 1632, "coco": 5000, "imagenet": 50000}


def suite(name: str = "table1", profile: str = "paper", **settings) -> dict[str, RunSpec]:
    return {spec.id: spec for spec in load_suite(SUITES / f"{name}.toml", lambda row: "5a17e71c", profile, settings)}


def synthetic(spec: RunSpec, images: int | None = None, **cells: float) -> Record:
    """Every number is invented, and every picture of a prompt set scores nearly the same."""
    scored = spec.profile == "paper"
    samples, metrics = {}, {"all": {"macs_paper": {"value": 16.94e12}, "macs_full": {"value": 40.97e12}}}
    metrics["all"] |= {"speedup_end_to_end": {"value": 4.0, "n": 5, "low": 3.9, "high": 4.1}}
    metrics["all"] |= {name: {"value": value} for name, value in cells.items()}
    for prompts in spec.prompts if scored else ():
        n = images or SIZES[prompts]
        wobble = np.random.default_rng(len(spec.id)).normal(0, 0.01, n)
        values = {"clip_score": 29.5 + wobble - wobble.mean()} | ({"psnr": 20 + wobble} if spec.reference else {})
        values = {name: each for name, each in values.items() if name in spec.metrics}
        samples[prompts] = {name: list(each) for name, each in values.items()}
        metrics[prompts] = {name: {"value": float(each.mean()), "n": n} for name, each in values.items()}
        metrics[prompts] |= {
            name: {"value": 27.0, "n": n} for name in ("fid_paper", "fid_clean") if name in spec.metrics
        }
    absent = {} if scored else {"clip_score": "synthetic reason: not scored"}
    stamp = {"commit": "0123456789abcdef", "date": "2001-01-01T00:00:00Z", "device": "no device"}
    return Record(spec.id, spec.digest, spec.to_json(), metrics, samples, absent, stamp)


def write(
    folder: Path, *runs: str, name: str = "table1", profile: str = "paper", images: int | None = None, **settings
):
    specs = suite(name, profile, **settings)
    for run in runs or specs:
        record.write(synthetic(specs[run], images), folder / profile)
    return folder


def rendered(name: str, folder: Path, profile: str = "paper") -> tuple[str, pd.DataFrame]:
    files = render(name, folder, profile)
    cells = pd.read_csv(io.StringIO(files[f"{name}.csv"]))
    return files[f"{name}_full.md"], cells.set_index(CSV_COLUMNS[:3]).sort_index()


@pytest.mark.parametrize("profile", ["paper", "random-weights"])
@pytest.mark.parametrize("name", names())
def test_a_profiles_table_has_the_models_and_prompts_of_its_suite_and_no_word_of_the_zoo(name, profile):
    table, specs = load_table(name, profile=profile), suite(name, profile).values()
    assert set(table.models) == {spec.model for spec in specs}
    assert {dataset.key for dataset in table.dataset} == {prompts for spec in specs for prompts in spec.prompts}
    shown = [table.title, *table.notes, *(item.title for item in (*table.group, *table.compare))]
    shown += [contest.text for contest in table.compare]
    shown += [item.title for item in (*table.dataset, *table.fact, *table.column)]
    assert not any("emoji" in text or "MACs G" in text for text in shown)
    for dataset in table.dataset:
        assert dataset.size == SIZES[dataset.key] <= max(spec.limit for spec in specs)


@pytest.mark.parametrize("name", names())
def test_a_paper_table_shows_the_scores_that_its_runs_take(name):
    table, taken = load_table(name, profile="paper"), set(next(iter(suite(name).values())).metrics)
    scores = {"clip_score", "fid_clean", "fid_paper", "psnr", "ssim"}
    assert {column.key for column in table.shown} & scores == taken & scores
    compared = {key for contest in table.compare for key in (*contest.metrics, *contest.beside)}
    assert {table.difference, *compared} - {"", "macs_full"} <= taken


def test_a_verdict_needs_two_values_of_one_thing():
    columns = {column.key: column for column in load_table("table1", profile="paper").column}
    coco, dense, ours = Dataset("coco", "", size=5000), suite()["plms-50"].to_json(), suite()["ours-0.80"].to_json()

    def verdict(key: str, value: float, spec=dense, n: int = 5000) -> str:
        return paper_verdict({"value": value, "n": n}, 30.0, columns[key], coco, spec)

    assert [verdict("clip_score", value) for value in (29.8, 30.2, 29.6)] == ["agrees", "agrees", "differs"]
    assert verdict("clip_score", 30.0, n=100) == "another number of pictures"
    assert verdict("clip_score", 30.0, dense | {"profile": "embedded"}) == "another model"
    assert verdict("speedup_end_to_end", 30.0) == "another device"
    assert (verdict("macs_paper", 30.1), verdict("macs_paper", 30.03)) == ("differs", "agrees")
    assert verdict("macs_paper", 30.0, ours) == "another schedule"


def test_a_measured_cell_has_the_papers_value_behind_it_and_a_mark_where_they_compare(tmp_path):
    markdown, cells = rendered("table1", write(tmp_path, "plms-50", "ours-0.80"))
    ours, dense = line(markdown, OURS, -2), line(markdown, DENSE, -2)
    headers = [cell.strip() for cell in markdown.split("## PartiPrompts")[1].split("\n")[2].strip("|").split("|")]
    ours, dense = (dict(zip(headers, row, strict=True)) for row in (ours, dense))
    assert ours["CLIP score ↑"] == dense["CLIP score ↑"] == "29.50 (29.51) ✓"
    assert dense["MACs T"] == "16.94 (16.94) ✓" and ours["MACs T"] == "16.94 (3.38)"
    assert ours["Speedup, end to end ↑"] == "4.00 [3.90, 4.10] (4.43)"
    assert line(markdown, OURS)[5] == "29.50 (30.29) ≠"  # on COCO2017
    assert "n = 1632 a run" in markdown and "n = 5000 a run" in markdown and "In italics" not in markdown
    assert cells.loc[OURS, "parti", "macs_paper"]["verdict"] == "another schedule"
    assert "1.0% (CLIP score)" in markdown


def test_a_row_without_a_record_keeps_the_papers_value_and_says_why(tmp_path):
    markdown, _ = rendered("table1", write(tmp_path, "plms-50", "ours-0.80"))
    mark, paper = line(markdown, "PLMS - 25 steps")[5].split()
    assert paper == "(29.99)"
    assert f"- {mark} not measured yet, run `nox -s reproduce-table1 -- --profile paper`" in markdown


def test_random_weights_have_macs_and_seconds_and_say_so(tmp_path):
    markdown, cells = rendered("table1", write(tmp_path, profile="random-weights"), "random-weights")
    assert "**The weights are random.**" in markdown and "random-weights profile" in markdown
    assert "CLIP" not in markdown and "PSNR" not in markdown and "## Ours against" not in markdown
    assert line(markdown, DENSE)[1] == "16.94 (16.94) ✓"
    assert not {"clip_score", "psnr", "fid_paper"} & set(cells.index.get_level_values("metric"))


def test_settings_that_are_not_the_suites_are_named_and_compare_with_nothing(tmp_path):
    folder = write(tmp_path, "plms-50", "ours-0.80", images=4, limit=4, steps=6, **{"params.train.steps": 2})
    markdown, cells = rendered("table1", folder)
    assert "**Not the suite's settings**, in 2 runs: params.train.steps = 2, steps = 6." in markdown
    printed = cells[cells["paper"].notna() & cells["value"].notna()]
    assert len(printed) and set(printed["verdict"]) == {"other settings"}


def test_models_of_several_sizes_stand_in_one_table(tmp_path):
    runs = ("sd-ddim-50", "sd2-dpm-50", "sd2-dpm-25", "xl-lcm-4")
    markdown, cells = rendered("table4", write(tmp_path, *runs, name="table4"))
    assert "at 512, 768, 1024 px" in markdown and "**DPM-Solver++, 25 steps: SD-2.1**" in markdown
    assert set(cells.xs("fid_paper", level="metric")["value"].dropna()) == {27.0}


def test_fid_is_held_against_the_papers_of_equally_many_pictures(tmp_path):
    markdown, cells = rendered("table2", write(tmp_path, "sd2-dpm-50", name="table2"))
    assert "27.00 (27.29) ✓" in line(markdown, "DPM-Solver++ 2M - 50 steps")
    assert cells.loc["DPM-Solver++ 2M - 50 steps", "coco", "fid_clean"].isna()["paper"]


def test_only_profiles_with_records_are_rendered(tmp_path, caplog):
    folders = ["--records", str(write(tmp_path / "records", "plms-25")), "--out", str(tmp_path / "out")]
    assert main(["render", *folders]) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "paper").iterdir())
    assert names == ["table1.csv", "table1.md", "table1_controls.md", "table1_full.md"]
    assert not (tmp_path / "out" / "random-weights").exists() and (tmp_path / "out" / "table2.md").is_file()
    assert main(["render", *folders, "--check"]) == 0
    assert main(["render", "table2", "--profile", "paper", *folders]) == 2
    assert f"{tmp_path / 'records' / 'paper'}: no record of table2; measure it first" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[profile.paper.group]", '[profile.paper.group]\nx = "y"', "unknown group 'x'"),
        ("profile.paper", "profile.other", "nothing for the paper profile"),
        ('  "macs_paper",', '  { key = "macs_papr" },', "unknown column 'macs_papr'; did you mean macs_paper"),
        ('  "macs_paper",', '  { key = "macs_paper", tittle = "x" },', "unknown field 'tittle'; did you mean title"),
    ],
)
def test_a_bad_overlay_is_named(tmp_path, old, new, words):
    text = (SUITES.parent.parent / "tables" / "specs" / "table4.toml").read_text("utf-8")
    head, mark, tail = text.partition("# The paper's own models")
    assert old in tail
    path, every = tmp_path / "table4.toml", "other" in new
    path.write_text(head + mark + tail.replace(old, new, -1 if every else 1), "utf-8")
    with pytest.raises(DipgoError) as error:
        load_table("table4", tmp_path, "paper")
    assert words in str(error.value) and "table4.toml" in str(error.value)
