"""The ledger of claims, on records that are synthetic: their means are given, their noise is seeded."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.specs import record
from benchmarks.specs.record import Record
from benchmarks.specs.suite import load_suite
from dipgo.errors import DipgoError
from tables.__main__ import main
from tables.claims.claims import SUITES, Claim, Controls, checks, load_claims
from tables.claims.ledger import render_claims
from tables.claims.verdicts import Evidence, Verdict, decide, verdict_of
from tables.load import load_table
from tables.spec import CONTROL

IMAGES = 40
CLAIM = '[[claim]]\nnumber = "1"\ntext = "It works"\nsource = "Table 1"\n\n'
BETTER = {"table": "table1", "ours": "ours-0.80", "theirs": ["deepcache-5"], "metrics": ["clip_score"]}
MARGIN = BETTER | {"theirs": ["plms-50"], "expect": "not worse", "bound": 0.01, "why": "one per cent"}
COLLAPSE = MARGIN | {"ours": "plms-skip2-omit", "expect": "collapses", "bound": 0.3}
FEWER = BETTER | {"metrics": ["macs_full"], "expect": "at most", "bound": 0.5, "why": "half"}
SEEDS = BETTER | {"table": "table5", "theirs": ["loss-l1-seed0"]}


def toml(*items: dict, kind: str = "check") -> str:
    def value(item: object) -> str:
        return str(item).lower() if isinstance(item, bool) else repr(item)

    return "\n".join(f"[[claim.{kind}]]\n" + "\n".join(f"{k} = {value(v)}" for k, v in item.items()) for item in items)


def write(folder: Path, run: str, table: str = "table1", profile: str = "embedded", **values) -> None:
    """A record of a run: `clip_score` and `psnr` are means of samples, the rest prompt-independent cells."""
    suite = load_suite(SUITES / f"{table}.toml", lambda row: "a" * 64, profile)
    spec = next(each for each in suite if each.id == run)
    noise = np.random.default_rng(7).normal(0, 1, IMAGES)  # what the rows share: the prompts
    wobble = np.random.default_rng(list(run.encode())).normal(0, 0.1, IMAGES)
    per_image = {
        key: value + noise - noise.mean() + wobble - wobble.mean()
        for key, value in values.items()
        if key in ("clip_score", "psnr")
    }
    samples = {dataset: {key: list(each) for key, each in per_image.items()} for dataset in spec.prompts}
    metrics: dict = {
        d: {k: {"value": float(np.mean(v)), "n": IMAGES} for k, v in s.items()} for d, s in samples.items()
    }
    cells = {key: value if isinstance(value, dict) else {"value": value} for key, value in values.items()}
    metrics["all"] = {key: cell for key, cell in cells.items() if key not in per_image}
    absent = {metric: "not measured here" for metric in spec.metrics if metric not in values}
    record.write(Record(spec.id, spec.digest, spec.to_json(), metrics, samples, absent=absent), folder, replace=True)


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Dense 60, ours 59.9 at a fifth of the MACs, DeepCache 59, the sampler that leaves steps out 30."""
    path = tmp_path / "records"
    rows = {"plms-50": (60, 5.0), "ours-0.80": (59.9, 1.0), "deepcache-5": (59, 2.5), "plms-skip2-omit": (30, 2.5)}
    for run, (score, macs) in rows.items():
        write(path, run, clip_score=score, macs_full=macs)
    return path


def verdict(folder: Path, *items: dict, kind: str = "check", profile: str = "embedded") -> Verdict:
    path = folder.parent / "claims.toml"
    path.write_text(CLAIM + toml(*items, kind=kind), "utf-8")
    return verdict_of(Evidence(folder, profile), load_claims(path)[0])


def words(found: Verdict) -> set[str]:
    return {each.word for each in found.results}


@pytest.mark.parametrize(
    ("score", "text", "word"),
    [
        (59.9, "holds", "better"),
        (58.0, "contradicted", "worse"),
        (59.0, "undecided", "no difference"),
    ],
)
def test_better_needs_an_interval_above_zero(folder, score, text, word):
    write(folder, "ours-0.80", clip_score=score)
    found = verdict(folder, BETTER)
    assert (found.text, words(found)) == (text, {word})
    assert found.decisive.value == pytest.approx(score - 59, abs=1e-3)


@pytest.mark.parametrize(
    ("loss", "text", "word"),
    [
        (0.3, "holds", "within the margin"),
        (0.9, "contradicted", "beyond the margin"),
        (0.6, "undecided", "the interval includes the bound"),
    ],
)
def test_no_worse_needs_an_interval_within_the_margin(folder, loss, text, word):
    write(folder, "ours-0.80", clip_score=60 - loss)  # the margin is 0.6
    found = verdict(folder, MARGIN)
    assert (found.text, words(found)) == (text, {word})


@pytest.mark.parametrize(
    ("score", "text"),
    [(30, "holds"), (50, "contradicted"), (42, "undecided"), (61, "contradicted")],
)
def test_a_collapse_loses_at_least_the_stated_share(folder, score, text):
    write(folder, "plms-skip2-omit", clip_score=score)
    assert verdict(folder, COLLAPSE).text == text


def test_a_ratio_is_held_against_its_bound_and_flips_with_the_record(folder):
    found = verdict(folder, FEWER)
    assert found.text == "holds" and len(found.results) == 1  # once, not for each prompt set
    assert (found.decisive.value, found.decisive.prompts, found.decisive.effect) == (0.4, "all", None)
    assert verdict(folder, FEWER | {"expect": "at least"}).text == "contradicted"
    write(folder, "ours-0.80", clip_score=59.9, macs_full=1.5)
    assert verdict(folder, FEWER).text == "contradicted"


def test_quartiles_across_the_bound_leave_a_ratio_open(folder):
    dense = {"value": 1.0, "low": 1.0, "high": 1.0}
    write(folder, "plms-50", clip_score=60, speedup_end_to_end=dense)
    check = MARGIN | {"metrics": ["speedup_end_to_end"], "expect": "at most", "bound": 1.1}
    for high, text in ((1.08, "holds"), (1.2, "undecided")):
        write(folder, "ours-0.80", speedup_end_to_end={"value": 1.01, "low": 0.9, "high": high})
        found = verdict(folder, check)
        assert (found.text, found.decisive.high) == (text, pytest.approx(high))


def test_the_side_of_a_bound_counts_with_its_ends():
    assert [decide(0.1, 0.2, 0.1, True), decide(0.0, 0.2, 0.1, True), decide(0.0, 0.09, 0.1, True)] == [
        "holds",
        "undecided",
        "contradicted",
    ]
    assert [decide(0.0, 0.1, 0.1, False), decide(0.0, 0.2, 0.1, False), decide(0.11, 0.2, 0.1, False)] == [
        "holds",
        "undecided",
        "contradicted",
    ]


def test_a_claim_needs_all_its_checks_and_a_check_beside_decides_nothing(folder):
    assert verdict(folder, BETTER, MARGIN, FEWER).text == "holds"
    wrong = FEWER | {"bound": 0.1}
    found = verdict(folder, BETTER, MARGIN, wrong)
    assert found.text == "contradicted" and found.decisive.column.key == "macs_full"
    assert (found.count("holds"), found.count()) == (4, 5)
    assert verdict(folder, BETTER, wrong | {"beside": True}).text == "holds"


def test_one_failure_outweighs_an_open_margin(folder):
    write(folder, "ours-0.80", clip_score=59.4)
    assert verdict(folder, MARGIN).text == "undecided"
    assert verdict(folder, MARGIN, BETTER | {"theirs": ["plms-50"]}).text == "contradicted"


def test_the_comparison_that_decides_is_the_one_nearest_to_failing_or_farthest_out(folder):
    write(folder, "plms-15", clip_score=59.5)
    found = verdict(folder, BETTER | {"theirs": ["deepcache-5", "plms-15"]})
    assert found.text == "holds" and found.decisive.theirs.run == "plms-15"
    write(folder, "ours-0.80", clip_score=55)
    found = verdict(folder, BETTER | {"theirs": ["deepcache-5", "plms-15"]})
    assert found.text == "contradicted" and found.decisive.theirs.run == "plms-15"


def test_a_missing_record_is_named_with_the_session_that_makes_it(folder):
    next(folder.glob("deepcache-5-*")).unlink()
    found = verdict(folder, BETTER, MARGIN)
    assert (found.text, found.decisive) == ("cannot be tested here", None)
    assert found.reason == "no record of deepcache-5: not measured yet, run `nox -s reproduce-table1`"
    assert verdict(folder, MARGIN, BETTER | {"beside": True}).text == "holds"  # it decides nothing


def test_a_metric_that_a_record_does_not_hold_is_missing(folder):
    found = verdict(folder, BETTER | {"metrics": ["psnr"]})
    assert found.text == "cannot be tested here" and found.reason == "psnr of ours-0.80: not measured here"


def test_rows_of_several_seeds_are_compared_over_their_means(folder):
    ours = ["ours-0.80", "ours-0.80-seed1", "ours-0.80-seed2"]
    theirs = [f"loss-l1-seed{seed}" for seed in range(3)]
    write(folder, "plms-50", "table5", clip_score=60)

    def scores(one: list[float], other: list[float]) -> Verdict:
        for run, score in zip([*ours, *theirs], [*one, *other], strict=True):
            write(folder, run, "table5", clip_score=score)
        return verdict(folder, SEEDS)

    found = scores([59.0, 59.1, 59.2], [57.0, 57.1, 57.2])
    assert found.text == "holds"
    assert (found.decisive.n, found.decisive.over) == (3, "seeds")
    assert found.decisive.ours_value == pytest.approx(59.1, abs=1e-3)
    # The same mean difference inside the spread of the seeds is none.
    spread = scores([55.0, 59.1, 63.2], [53.0, 57.1, 61.2])
    assert spread.decisive.value == pytest.approx(found.decisive.value, abs=1e-3)
    assert (spread.text, words(spread)) == ("undecided", {"no difference"})
    next(folder.glob("loss-l1-seed2-*")).unlink()
    partial = verdict(folder, SEEDS)
    assert partial.text == "cannot be tested here" and "no record of loss-l1-seed2: not measured" in partial.reason


def test_controls_stand_for_every_pruned_row_and_a_pair_of_two_tables_comes_once():
    claim = Claim("1", "", "", controls=(Controls(("table2", "table4"), ("same sampler",)),))
    pairs = [(check.ours, check.theirs[0], check.metrics[0]) for check in checks(claim)]
    assert len(pairs) == len(set(pairs))
    assert {pair[:2] for pair in pairs} == {
        ("sd2-ours-0.70", "sd2-dpm-15"),
        ("sd2-ours-0.80", "sd2-dpm-10"),
        ("sd-ours-0.80", "sd-ddim-10"),
        ("sd2-ours25-0.50", "sd2-dpm-13"),
        ("xl-ours-0.031", "xl-lcm-3"),
    }
    assert {pair[2] for pair in pairs} == {"psnr", "clip_score"}


def test_the_three_kinds_of_controls_cover_every_control_of_a_table():
    kinds = (("same sampler",), ("own timesteps",), ("another sampler", "uniform skip"))
    found = [checks(Claim("1", "", "", controls=(Controls(("table1",), each),))) for each in kinds]
    pairs = [(check.ours, check.theirs[0]) for each in found for check in each if check.metrics == ("psnr",)]
    table = load_table("table1")
    controls = [(row.run, control) for row in table.rows for control in row.controls.get(CONTROL, ())]
    assert sorted(pairs) == sorted(controls)


def test_a_group_of_controls_stands_for_its_runs(folder):
    for run, score in (("plus-0.95", 25), ("ddim-3", 20), ("dpm-3", 21), ("unipc-3", 19), ("plms-3", 10)):
        write(folder, run, psnr=score)
    check = BETTER | {"ours": "plus-0.95", "group": "few steps", "metrics": ["psnr"]}
    del check["theirs"]
    found = verdict(folder, check)
    assert (found.text, found.count(), found.decisive.theirs.run) == ("holds", 8, "dpm-3")
    with pytest.raises(DipgoError, match="unknown group of controls 'fewer steps'; did you mean few steps"):
        verdict(folder, check | {"group": "fewer steps"})
    with pytest.raises(DipgoError, match="claim 1: a check names runs in `theirs` or a `group`"):
        verdict(folder, check | {"theirs": ["ddim-3"]})


def test_a_check_over_a_sweep_stands_for_one_of_each_of_its_values(folder):
    path, sweep = folder.parent / "claims.toml", '[sweep.s]\nratio = ["0.80", "0.85"]\nsteps = [10, 8]\n'
    check = BETTER | {"over": "s", "ours": "ours-{ratio}", "theirs": ["plms-{steps}"]}
    path.write_text(sweep + CLAIM + toml(check), "utf-8")
    checks = load_claims(path)[0].check
    assert [(each.ours, *each.theirs) for each in checks] == [("ours-0.80", "plms-10"), ("ours-0.85", "plms-8")]
    path.write_text(sweep + CLAIM + toml(check | {"ours": "ours-{ration}"}), "utf-8")
    with pytest.raises(DipgoError, match="claims.toml: claim 1 over 's': ours: unknown placeholder 'ration'; did you"):
        load_claims(path)


def test_what_goes_beyond_the_paper_stands_below_its_claims(folder):
    path = folder.parent / "claims.toml"
    path.write_text(CLAIM + toml(BETTER) + "\n" + CLAIM.replace("1", "2") + "beyond = true\n" + toml(MARGIN), "utf-8")
    text = render_claims(folder, path)["claims.md"]
    first, second = text.split("## Claims of this project")
    assert "1 claims: **holds 1**" in first and "\n| 1 " in first and "\n| 2 " not in first
    assert "\n| 2 " in second


def test_records_of_the_paper_profile_have_a_verdict_of_their_own(folder):
    assert verdict(folder, BETTER, profile="paper").reason.endswith("none in the paper profile")
    claims, heading = folder.parent / "claims.toml", "## Claim by claim, paper profile"
    assert heading not in render_claims(folder, claims)["claims_evidence.md"]
    for run, score in (("plms-50", 30.0), ("ours-0.80", 29.0), ("deepcache-5", 30.0)):
        write(folder / "paper", run, profile="paper", clip_score=score)
    found = [verdict(folder, BETTER, profile=profile) for profile in ("embedded", "paper")]
    assert [each.text for each in found] == ["holds", "contradicted"]
    assert [[result.prompts for result in each.results] for each in found] == [
        ["seen", "held-out"],
        ["parti", "coco"],
    ]
    files = render_claims(folder, claims)
    assert heading in files["claims_evidence.md"] and "## Claims of the paper, paper profile" in files["claims.md"]


def test_the_ledger_shows_both_values_the_interval_and_what_the_paper_prints(folder):
    verdict(folder, BETTER, MARGIN)
    files = render_claims(folder, folder.parent / "claims.toml")
    row = next(line for line in files["claims.md"].split("\n") if line.startswith("| 1 "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1].startswith("It works (") and cells[2:4] == ["**holds**", "4 of 4"]
    assert re.fullmatch(
        r"CLIP score −0\.10 \[−0\.1\d, −0\.0\d\]: Ours \(w/ Pruned-0\.80\) against PLMS - 50 steps \(Table 1, seen\)",
        cells[4],
    )
    section = files["claims_evidence.md"].split("### 1. ")[1]
    assert "| 59.90 / 60.00 |" in section and "*CLIP 29.51 / 29.51*" in section
    claims = pd.read_csv(io.StringIO(files["claims.csv"]))
    assert list(claims["profile"]) == ["embedded"] and list(claims["holds"]) == [4]
    rows = pd.read_csv(io.StringIO(files["claims_comparisons.csv"]))
    here = rows.set_index(["theirs", "dataset"]).sort_index()
    assert len(here) == 4 and set(rows["outcome"]) == {"holds"}
    cell = here.loc[("deepcache-5", "held-out")]
    assert (cell["paper_ours"], cell["paper_theirs"], cell["n"], cell["macs_ratio"]) == (30.29, 30.23, IMAGES, 0.4)
    assert cell["low"] < cell["value"] < cell["high"] and cell["value"] == pytest.approx(0.9, abs=1e-3)


def test_the_same_records_give_the_same_bytes_and_a_check_names_a_stale_line(folder, tmp_path, caplog):
    assert render_claims(folder) == render_claims(folder)
    arguments = ["render", "claims", "--records", str(folder), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0 and main([*arguments, "--check"]) == 0
    path = tmp_path / "out" / "claims.csv"
    path.write_text(path.read_text("utf-8").replace("embedded", "embeded", 1), "utf-8")
    assert main([*arguments, "--check"]) == 1 and "claims.csv:2: has" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ours": "ours-0.8"}, "unknown run 'ours-0.8'; did you mean ours-0.8"),
        ({"theirs": ["deepcache"]}, "unknown run 'deepcache'; did you mean deepcache-5"),
        ({"metrics": ["clip"]}, "unknown metric 'clip'"),
        ({"metrics": ["macs_full"]}, "macs_full has no better end"),
        ({"metrics": []}, "needs runs in `theirs` and names in `metrics`"),
        ({"table": "table99"}, "unknown table 'table99'"),
        ({"expect": "worst"}, "unknown expectation 'worst'"),
        ({"expect": "at most", "bound": 1.0}, "needs a bound above 0 and its reason"),
        ({"expect": "at most", "why": "because"}, "needs a bound above 0 and its reason"),
        ({"printed": "fid"}, "unknown paper metric 'fid'"),
        ({"verdict": "holds"}, "unknown field 'verdict'"),
    ],
)
def test_a_bad_check_is_named_with_its_claim(folder, change, message):
    with pytest.raises(DipgoError, match="claim 1: ") as error:
        verdict(folder, BETTER | change)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_bad_claim_is_named(folder):
    path = folder.parent / "claims.toml"
    with pytest.raises(DipgoError, match="unknown kind of control 'uniform'; did you mean uniform skip"):
        verdict(folder, {"tables": ["table1"], "kinds": ["uniform"]}, kind="controls")
    with pytest.raises(DipgoError, match="claim 1: nothing decides; add"):
        verdict(folder, BETTER | {"beside": True})
    path.write_text((CLAIM + toml(BETTER) + "\n") * 2, "utf-8")
    with pytest.raises(DipgoError, match="two claims have this number"):
        load_claims(path)


def test_the_papers_thirteen_claims_and_ours_are_there_and_their_runs_are_in_the_suites():
    claims = load_claims()
    for beyond, numbers in ((False, range(1, 14)), (True, range(14, 20))):
        found = {claim.number.rstrip("abc") for claim in claims if claim.beyond == beyond}
        assert found == {str(number) for number in numbers}
    for check in (check for claim in claims for check in checks(claim)):
        table = load_table(check.table)
        suite = {spec.id for spec in load_suite(SUITES / f"{check.table}.toml", lambda row: "any")}
        assert {run for row in (check.ours, *check.theirs) for run in table.find_row(row).runs} <= suite
