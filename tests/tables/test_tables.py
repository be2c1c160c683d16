"""The tables, on records that are synthetic: made here, by arithmetic and a seeded generator."""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import ROOT
from benchmarks.specs import record
from benchmarks.specs.record import Record
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from dipgo.errors import DipgoError
from tables.__main__ import main
from tables.cells import difference
from tables.format import deviation, number
from tables.load import load_paper, load_records, load_table, paper_value
from tables.render import CSV_COLUMNS, render
from tables.spec import Row, Table
from tables.stats import paired_difference, seed_difference, unpaired_difference

SUITES = ROOT / "benchmarks" / "suites"
MODELS = ("emoji-sd", "emoji-bk-base", "emoji-bk-small", "emoji-sd2", "emoji-xl-lcm")
IMAGES = 40


def suite(name: str = "table1", digest: str = "5a17e71c") -> dict[str, RunSpec]:
    return {spec.id: spec for spec in load_suite(SUITES / f"{name}.toml", lambda row: digest * 8)}


def synthetic(spec: RunSpec, images: int = IMAGES) -> Record:
    """Quality falls with the calls that a run computes; every number is invented."""
    share = spec.params.get("calls", spec.steps * (1 - spec.params.get("ratio", 0))) / 50
    rng = np.random.default_rng(zlib.crc32(spec.id.encode()))
    prompts = np.random.default_rng(7).normal(28, 3, images)  # what the rows share: the prompts
    samples, metrics = {}, {}
    for dataset in spec.prompts:
        values = {
            "clip_score": prompts - 2 * (1 - share) ** 4 + rng.normal(0, 0.3, images),
            "psnr": 20 + 20 * share + 2 * (spec.method == "dipgo") + rng.normal(0, 1, images),
            "ssim": 0.5 + 0.5 * share * np.ones(images),
        }
        if spec.reference is None:
            del values["psnr"], values["ssim"]
        samples[dataset] = {name: list(value) for name, value in values.items()}
        metrics[dataset] = {n: {"value": float(v.mean()), "n": images} for n, v in values.items()}
        metrics[dataset] |= {
            "fid_efflite0": {"value": 10 + 30 * (1 - share), "n": images},
            "kid_efflite0": {"value": 0.01 * (1.1 - share), "n": images, "low": 0.0, "high": 0.02},
            "retrieval_top1": {"value": 0.61, "n": images},
        }
    speedup = {"value": 0.9 / share, "n": 5, "low": 0.85 / share, "high": 0.95 / share}
    metrics["all"] = {
        "macs_paper": {"value": 12.3e9 * share},
        "macs_full": {"value": 29.9e9 * share},
        "speedup_denoiser": speedup,
        "speedup_end_to_end": speedup,
        "seconds_end_to_end": {"value": 0.21 * share},
    }
    absent = {"step_skip_share": "synthetic reason: no schedule"}
    if spec.method == "dipgo":
        metrics["all"] |= {"step_skip_share": {"value": 1 - share / 2}, "training_seconds": {"value": 301.2}}
        absent = {}
    if "search" in spec.metrics:
        metrics["all"] |= {"search_seconds": {"value": 90.0}, "fitness": {"value": 0.012}}
        if spec.method == "dipgo":
            absent = {"evaluations": "synthetic reason: trained, not searched"}
        else:
            metrics["all"] |= {"evaluations": {"value": 400}}
    stamp = {
        "commit": "0123456789abcdef",
        "dirty": False,
        "date": "2001-01-01T00:00:00Z",
        "device": "no device",
    }
    return Record(spec.id, spec.digest, spec.to_json(), metrics, samples, absent, stamp)


def write_all(folder: Path, name: str = "table1") -> Path:
    for spec in suite(name).values():
        record.write(synthetic(spec), folder)
    return folder


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "records")


def render_frame(name: str, folder: Path) -> tuple[str, pd.DataFrame]:
    files = render(name, folder)
    cells = pd.read_csv(io.StringIO(files[f"{name}.csv"]))
    pages = (files.get(f"{name}_{page}.md", "") for page in ("full", "controls"))
    return "\n".join(pages), cells.set_index(CSV_COLUMNS[:3]).sort_index()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> tuple[str, pd.DataFrame]:
    """The markdown and the CSV of the untouched synthetic records."""
    return render_frame("table1", write_all(tmp_path_factory.mktemp("records")))


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> tuple[str, pd.DataFrame]:
    """The same of Table 5, whose rows have three training seeds."""
    return render_frame("table5", write_all(tmp_path_factory.mktemp("records"), "table5"))


def rewrite(folder: Path, name: str, table: str = "table1", **changes) -> None:
    """Replaces a synthetic record by one with other contents."""
    spec = suite(table)[name]
    data = synthetic(spec, changes.pop("images", IMAGES))
    record.write(Record(**{**vars(data), **changes}), folder, replace=True)


def line(markdown: str, label: str, section: int = -1) -> list[str]:
    """The cells of a row; section -2 is the first prompt set, -1 the last."""
    rows = [row for row in markdown.split("\n") if re.match(rf"\| {re.escape(label)} +\|", row)]
    return [cell.strip() for cell in rows[section].strip("|").split("|")]


def test_paper_values_are_found_by_row_and_data_set_in_base_units():
    paper, rows = load_paper(), {row.label: row for row in load_table("table1").rows}
    ours = rows["Ours (w/ Pruned-0.80)"]
    assert paper_value(paper, ours, "PartiPrompts", "clip_score") == 29.51
    assert paper_value(paper, ours, "COCO2017", "speedup") == 4.40
    assert paper_value(paper, ours, "COCO2017", "macs") == pytest.approx(3.38e12)
    assert paper_value(paper, rows["Ours (w/ Pruned-0.90)"], "COCO2017", "clip_score") == 28.72
    assert paper_value(paper, rows["PLMS - 10 steps"], "COCO2017", "clip_score") is None
    with pytest.raises(DipgoError, match="name its group"):
        paper_value(paper, Row("x", paper={"table": "6", "method": "Ours"}), "COCO2017", "macs")


def test_paired_interval_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(3)
    base = rng.normal(30, 5, 400)
    shift = rng.normal(0.2, 1.0, 400)
    difference = paired_difference(base + shift, base, "test")
    half = 1.96 * shift.std() / 20
    assert difference.value == pytest.approx(shift.mean())
    assert (difference.low, difference.high) == pytest.approx((shift.mean() - half, shift.mean() + half), abs=0.02)
    assert difference == paired_difference(base + shift, base, "test")  # seeded


def test_a_difference_has_a_direction_and_needs_an_interval_without_zero():
    up, down, none = (paired_difference(np.array(x), np.zeros(3), "t") for x in ([1, 1, 1], [-1, -1, -1], [-1, 0, 1]))
    assert [d.verdict() for d in (up, down, none)] == ["better", "worse", "no difference"]
    assert [d.verdict("down") for d in (up, down, none)] == ["worse", "better", "no difference"]


def test_the_effect_of_a_paired_difference_is_its_mean_in_standard_deviations():
    assert paired_difference([2, 3, 4], [0, 0, 0], "t").effect == pytest.approx(3)
    assert paired_difference([2, 2, 2], [1, 1, 1], "t").effect is None


def test_the_interval_over_seeds_is_students_and_welchs():
    t2, t4 = 4.302653, 2.776445  # 97.5 % points of t with 2 and 4 degrees of freedom
    one = seed_difference([1, 2, 3], [1])
    assert (one.value, one.n, one.over) == (1, 3, "seeds")
    assert (one.low, one.high) == pytest.approx((1 - t2 / 3**0.5, 1 + t2 / 3**0.5), rel=1e-5)
    two = seed_difference([11, 12, 13], [1, 2, 3])  # equal variances: Welch's degrees of freedom are 4
    assert (two.low, two.high) == pytest.approx((10 - t4 * (2 / 3) ** 0.5, 10 + t4 * (2 / 3) ** 0.5), rel=1e-5)
    assert (one.effect, two.effect) == (pytest.approx(1), pytest.approx(10))
    back = seed_difference([1], [1, 2, 3])
    assert (back.value, back.low, back.high) == pytest.approx((-one.value, -one.high, -one.low))
    assert (one.verdict(), two.verdict(), two.verdict("down")) == ("no difference", "better", "worse")


@pytest.mark.parametrize("counts", [(3, 3), (3, 1), (1, 3), (3, 2)])
def test_seeds_that_agree_to_the_last_bit_give_an_interval_without_width(counts):
    same, above = (seed_difference([30.1 + d] * counts[0], [30.1] * counts[1]) for d in (0, 0.5))
    assert (same.value, same.low, same.high, same.effect) == (0, 0, 0, None) and same.verdict() == "no difference"
    assert above.low == above.high == above.value == pytest.approx(0.5) and above.verdict() == "better"


def test_runs_differ_over_prompts_and_rows_of_several_seeds_over_the_seeds():
    one, other, *rest = (synthetic(spec) for spec in suite("table5").values() if spec.method == "dipgo")
    assert difference([one], [other], "seen", "psnr").over == "prompts"
    gap = difference([one, rest[0]], [other], "seen", "psnr")
    means = [each.metrics["seen"]["psnr"]["value"] for each in (one, rest[0], other)]
    assert (gap.over, gap.n) == ("seeds", 2)
    assert gap.value == pytest.approx((means[0] + means[1]) / 2 - means[2])
    assert difference([one], [other], "seen", "kid_efflite0").over == "pictures"  # it has an interval and no samples
    assert difference([one, rest[0]], [other], "seen", "kid_efflite0") is None
    assert difference([one], [other], "seen", "fid_efflite0") is None  # it has neither
    assert difference([one], [other], "seen", "speedup_denoiser") is None  # its quartiles are no interval
    assert difference([one], [], "seen", "psnr") is None


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert [number(v, 2, signed=True) for v in (-0.004, -1.5, 0.25)] == ["+0.00", "−1.50", "+0.25"]


def test_a_deviation_shows_where_it_does_not_round_to_zero():
    assert [deviation(sd, 2, 1.0) for sd in (0.314, 0.006, 0.004, None)] == [" ± 0.31", " ± 0.01", "", ""]


def test_csv_is_tidy_and_names_the_record_of_every_value(rendered, folder):
    _, cells = rendered
    assert [*cells.index.names, *cells.columns] == CSV_COLUMNS
    assert cells.index.is_unique
    measured = cells[cells["value"].notna()]
    assert all((folder / run).is_file() for run in measured["run"])
    assert set(cells.loc[cells["value"].isna(), "verdict"]) == {"not measured", "reference"}


def test_csv_repeats_the_record_and_the_papers_value_beside_it(rendered):
    _, cells = rendered
    expected = synthetic(suite()["ours-0.85"]).metrics
    cell = cells.loc["Ours (w/ Pruned-0.85)", "held-out", "clip_score"]
    assert cell["value"] == pytest.approx(expected["held-out"]["clip_score"]["value"], rel=1e-5)
    assert (cell["paper"], cell["n"], cell["verdict"]) == (29.84, IMAGES, "another model")
    speedup = cells.loc["Ours (w/ Pruned-0.85)", "seen", "speedup_end_to_end"]
    assert (speedup["paper"], speedup["low"], speedup["n"]) == (5.52, pytest.approx(5.66667), 5)


def test_differences_to_dense_come_from_samples_of_the_same_prompts(rendered):
    _, cells = rendered
    one, base = (synthetic(suite()[name]).samples["seen"]["clip_score"] for name in ("plms-5", "plms-50"))
    cell = cells.loc["PLMS - 5 steps", "seen", "clip_score_diff"]
    assert cell["value"] == pytest.approx(np.mean(np.subtract(one, base)), rel=1e-4)
    assert cell["low"] < cell["value"] < cell["high"] < 0 and cell["verdict"] == "worse"
    assert cells.loc["PLMS - 50 steps", "seen", "clip_score_diff"]["verdict"] == "reference"


def test_pruned_rows_are_held_against_the_best_of_their_controls(rendered):
    markdown, cells = rendered
    controls = ["plms-10", "ddim-10", "dpm-10", "uniform-0.80", "own-0.80"]
    means = {name: np.mean(synthetic(suite()[name]).samples["seen"]["psnr"]) for name in controls}
    ours = cells.loc["Ours (w/ Pruned-0.80)", "seen"]
    best = max(means, key=means.get)
    assert ours.loc["psnr_vs_control", "value"] == ours.loc[f"psnr_vs_{best}", "value"]
    assert ours.loc["psnr_vs_control", "value"] == min(ours.loc[f"psnr_vs_{name}", "value"] for name in controls)
    assert ours.loc["psnr_vs_control", "verdict"] == "better"  # the synthetic 2 dB
    assert "Against the best control, 8 comparisons: **8 better, 0 no difference, 0 worse**" in markdown
    assert "| **better** " in markdown


def test_a_row_is_held_against_the_best_of_each_group_of_its_controls(rendered):
    markdown, cells = rendered
    groups = {
        "few steps": ["plms-10", "ddim-10", "dpm-10", "unipc-10"],
        "uniform calls": ["uniform-0.80", "forecast1-0.80", "forecast2-0.80"],
        "step search": ["step-search-0.80"],
    }
    ours = cells.loc["Ours+ (w/ Pruned-0.80)", "seen"]["value"]
    for group, runs in groups.items():
        best = min(ours[f"psnr_vs_{run}"] for run in runs)
        assert ours[f"psnr_vs_{group.replace(' ', '_')}"] == best
    section = markdown.split("## Ours+ against")[1].split("\n## ")[0]
    assert section.count("Against few steps, 16 comparisons: **") == section.count("Against a part of it, 2 comp") == 3
    shown = [cell.strip() for cell in next(row for row in section.split("\n") if "| step search" in row).split("|")]
    assert shown[1:4] == ["step search", "seen", "Ours+ (w/ Pruned-0.80)"] and shown[-2] == "34.00 / 34.00"  # FID


def test_a_difference_of_two_intervals_takes_them_as_independent():
    one, other = ({"value": v, "low": v - h, "high": v + h, "n": 9} for v, h in ((5.0, 3.0), (1.0, 4.0)))
    gap = unpaired_difference(one, other)
    assert (gap.value, gap.low, gap.high, gap.n, gap.over) == (4, -1, 9, 9, "pictures")
    assert gap.verdict("down") == "no difference" and unpaired_difference(other, {**one, "high": 2}).effect is None


def test_measured_values_and_their_origin_are_in_the_markdown(rendered):
    markdown, _ = rendered
    for words in (
        "emoji-sd (weights 5a17e71c5a17), emoji-bk",
        "at 64 px",
        "no device",
        "2001-01-01",
        "commit 0123456789",
    ):
        assert words in markdown.split("## Provenance")[1].split("\n")[2]
    assert line(markdown, "Ours (w/ Pruned-0.80)")[1] == "2.46"
    assert "61.0 % (seen), 61.0 % (held-out)" in markdown and ": 301 s\n" in markdown


def test_missing_cells_say_why(rendered, tmp_path):
    markdown, _ = rendered
    footnote = line(markdown, "PLMS - 25 steps")[-1]
    assert f"- {footnote} synthetic reason: no schedule" in markdown
    empty, label = render("table3", tmp_path)["table3_full.md"], "DiT's own report, 250 steps"
    assert f"- {line(empty, label)[1]} a number that the paper quotes from DiT's authors" in empty
    assert f"- {line(empty, 'DDIM - 250 steps')[1]} not measured yet, run `nox -s reproduce-table3`" in empty


def test_groups_of_several_models_are_measured_against_their_own_dense_rows(tmp_path):
    files = render("table4", write_all(tmp_path, "table4"))
    cells = pd.read_csv(io.StringIO(files["table4.csv"])).set_index(CSV_COLUMNS[:3]).sort_index()
    dense = {"DDIM - 50 steps", "DPM-Solver++ 2M - 50 steps", "DPM-Solver++ 2M - 25 steps", "LCM - 4 steps"}
    differences = cells.xs("clip_score_diff", level="metric")["verdict"].droplevel("dataset")
    assert set(differences.index[differences == "reference"]) == dense
    one, base = (
        synthetic(suite("table4")[name]).samples["held-out"]["clip_score"] for name in ("sd2-dpm-13", "sd2-dpm-25")
    )
    cell = cells.loc["DPM-Solver++ 2M - 13 steps", "held-out", "clip_score_diff"]
    assert cell["value"] == pytest.approx(np.mean(np.subtract(one, base)), rel=1e-3)  # samples have 5 digits
    markdown = files["table4_full.md"] + files["table4_controls.md"]
    for words in ("emoji-sd2 (weights", "emoji-xl-lcm (weights", "Against the best control, 4 comparisons"):
        assert words in markdown
    assert "| Prompts " not in markdown  # there is one prompt set


def test_a_row_of_several_seeds_shows_mean_and_deviation_over_its_runs(seeded):
    markdown, cells = seeded
    runs = [synthetic(suite("table5")[f"loss-l1-seed{seed}"]) for seed in range(3)]
    means = [each.metrics["held-out"]["psnr"]["value"] for each in runs]
    cell = cells.loc["L1", "held-out", "psnr"]
    assert cell["value"] == pytest.approx(np.mean(means), rel=1e-5)
    assert cell["sd"] == pytest.approx(np.std(means, ddof=1), rel=1e-5)
    assert (cell["seeds"], cell["n"], cell["run"]) == (3, IMAGES, " ".join(each.file for each in runs))
    assert line(markdown, "L1")[5] == f"{np.mean(means):.2f} ± {np.std(means, ddof=1):.2f}"
    assert line(markdown, "L1")[1] == "2.46"  # equal MACs: no deviation to show
    assert cells.loc["L1", "held-out", "macs_full"]["sd"] == 0
    assert "±: the row was trained 3 times, with 3 seeds" in markdown
    single = cells.loc["PLMS - 10 steps", "held-out", "psnr"]
    assert np.isnan(single["sd"]) and np.isnan(single["seeds"])


def test_differences_of_a_row_of_several_seeds_run_over_the_seeds(seeded):
    _, cells = seeded
    dense, *runs = (
        synthetic(suite("table5")[name]).metrics["seen"]["clip_score"]["value"]
        for name in ("plms-50", "loss-l2-seed0", "loss-l2-seed1", "loss-l2-seed2")
    )
    cell = cells.loc["L2", "seen", "clip_score_diff"]
    half = 4.302653 * np.std(runs, ddof=1) / 3**0.5
    gap = np.mean(runs) - dense
    assert (cell["value"], cell["low"], cell["high"]) == pytest.approx((gap, gap - half, gap + half), abs=1e-3)
    assert (cell["n"], cell["seeds"]) == (3, 3)


def test_an_ablation_is_counted_against_the_row_it_varies(seeded):
    markdown, cells = seeded
    assert markdown.count("Against SSIM, 6 comparisons: **") == markdown.count("Against the best control, 2 comp") == 2
    gaps = cells.loc["L1", "seen"]["value"]
    assert gaps["psnr_vs_control"] == gaps["psnr_vs_ours-0.80"]


def test_a_row_that_lacks_a_seed_is_not_measured_and_names_it(tmp_path, seeded):
    next(write_all(tmp_path, "table5").glob("loss-l2-seed1-*")).unlink()
    markdown, cells = render_frame("table5", tmp_path)
    assert cells.loc["L2"]["value"].isna().all()
    reason = "not measured yet, run `nox -s reproduce-table5`; without a record: loss-l2-seed1"
    assert f"- {line(markdown, 'L2')[1]} {reason}\n" in markdown
    others = cells.drop("L2").index
    pd.testing.assert_frame_equal(cells.loc[others], seeded[1].loc[others])


def test_a_metric_that_one_seed_lacks_is_absent_and_names_the_run(tmp_path):
    write_all(tmp_path, "table5")
    held = synthetic(suite("table5")["loss-l1-seed2"]).metrics
    rewrite(tmp_path, "loss-l1-seed2", "table5", metrics={**held, "all": {"macs_full": {"value": 1.0}}})
    markdown, cells = render_frame("table5", tmp_path)
    assert np.isnan(cells.loc["L1", "seen", "macs_paper"]["value"]) and cells.loc["L1", "seen", "macs_full"]["sd"] > 0
    assert f"- {line(markdown, 'L1')[1]} the record has no macs_paper (loss-l1-seed2)" in markdown


def test_searches_show_minutes_evaluations_and_the_papers_hours(tmp_path):
    markdown, cells = render_frame("table6", write_all(tmp_path, "table6"))
    genetic, ours = (line(markdown, label) for label in ("Genetic search, 0.80", "Ours, 0.80"))
    assert genetic[1:4] == ["1.5", "400", "0.0120"]
    assert f"- {ours[2]} synthetic reason: trained, not searched\n" in markdown
    assert cells.loc["Genetic search, 0.80", "held-out", "search_seconds"]["paper"] == 25 * 3600


def test_the_table_renders_without_any_record(tmp_path):
    files = render("table1", tmp_path)
    assert "Nothing measured: not measured yet, run `nox -s reproduce-table1`." in files["table1.md"]
    assert "Nothing measured: " in files["table1_full.md"]
    cells = pd.read_csv(io.StringIO(files["table1.csv"]))
    assert cells["value"].isna().all() and cells["paper"].notna().any()


def test_a_row_without_a_record_leaves_the_others_as_they_are(folder, rendered):
    markdown, _ = rendered
    next(folder.glob("deepcache-5-*")).unlink()
    files = render("table1", folder)
    without = files["table1_full.md"] + "\n" + files["table1_controls.md"]
    lost = set(markdown.split("\n")) - set(without.split("\n"))
    assert len(lost) == 2 and all(row.startswith("| DeepCache") for row in lost)
    footnote = line(without, "DeepCache (N = 5, branch 0)")[1]
    assert f"- {footnote} not measured yet, run `nox -s reproduce-table1`" in without


def test_rendering_is_deterministic(folder):
    assert render("table1", folder) == render("table1", folder)


def test_unequal_numbers_of_samples_are_refused(folder):
    rewrite(folder, "plms-25", images=IMAGES - 1)
    with pytest.raises(DipgoError, match=f"{IMAGES - 1} samples in plms-25-.*, {IMAGES} in plms-50-"):
        render("table1", folder)


def test_fid_at_unequal_n_is_refused(folder):
    metrics = {"seen": {"fid_efflite0": {"value": 3.0, "n": IMAGES - 1}}}
    absent = dict.fromkeys(suite()["plms-25"].metrics, "not measured here")
    rewrite(folder, "plms-25", metrics=metrics, samples={}, absent=absent)
    with pytest.raises(DipgoError, match="fid_efflite0 on seen: n = 40 in plms-50-.* 39 in plms-25-"):
        render("table1", folder)


def test_records_of_other_weights_cannot_share_a_table(folder):
    record.write(synthetic(suite(digest="other")["plms-25"]), folder, replace=True)
    with pytest.raises(DipgoError, match="revision .* cannot stand in one table"):
        load_records(load_table("table1"), folder)


def test_records_of_a_model_that_is_not_the_tables_are_refused(folder):
    stranger = RunSpec.from_json({**suite()["plms-25"].to_json(), "model": "emoji-sd2"})
    record.write(synthetic(stranger), folder, replace=True)
    with pytest.raises(DipgoError, match="plms-25-.* cannot stand in table1: unknown model 'emoji-sd2'"):
        load_records(load_table("table1"), folder)


def test_a_record_measured_against_an_older_reference_is_refused(folder):
    spec = suite()["plms-50"]
    newer = RunSpec.from_json({**spec.to_json(), "guidance": 5.0})
    record.write(synthetic(newer), folder, replace=True)
    with pytest.raises(DipgoError, match="was measured against another run than plms-50-"):
        render("table1", folder)


def test_check_passes_after_rendering_and_names_the_first_stale_line(folder, tmp_path, caplog):
    arguments = ["render", "table1", "--records", str(folder), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--check"]) == 1 and "table1.md: missing" in caplog.text
    assert main(arguments) == 0 and main([*arguments, "--check"]) == 0
    path = tmp_path / "out" / "table1.csv"
    text = path.read_text()
    path.write_text(text.replace("29.51", "29.52", 1))
    stale = 1 + next(number for number, row in enumerate(text.split("\n")) if "29.51" in row)
    caplog.clear()
    assert main([*arguments, "--check"]) == 1 and f"table1.csv:{stale}: has" in caplog.text
    assert "29.52" in path.read_text()  # a check writes nothing


def test_an_unknown_table_gets_one_line_and_a_non_zero_exit(tmp_path, caplog):
    assert main(["render", "tabel1", "--records", str(tmp_path)]) == 2
    assert caplog.text.count("unknown table 'tabel1'; did you mean table1") == len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('metrics = ["psnr"', 'metrics = ["psrn"', "unknown column 'psrn'; did you mean psnr"),
        ('beside = ["macs_full"', 'beside = ["macs_ful"', "unknown column 'macs_ful'; did you mean macs_full"),
        (
            'groups = ["few steps"',
            'groups = ["fewer steps"',
            "unknown group of controls 'few steps'; did you mean fewer",
        ),
        ("difference =", "differense =", "unknown field 'differense'; did you mean difference"),
        ("[compare.", '[compare.X]\ntext = ""\n[compare.', "compare 'X': field 'metrics' is missing"),
        ('  "macs_paper",', '  "macs_papr",', "unknown column 'macs_papr'; did you mean macs_paper"),
        ('paper_column = ["macs"', 'paper_column = ["macz"', "unknown paper column 'macz'; did you mean macs"),
        ('paper_column = ["macs"', 'paper_column = ["fid_5k"', "unknown paper metric 'fid_5k'"),
        ("[fact.plms-50]", "[fact.plms-51]", "unknown run 'plms-51'; did you mean plms-5 or plms-50"),
        ("[fact.plms-50]", '[dataset.sene]\ntitle = ""\n[fact.plms-50]', "unknown dataset 'sene'; did you mean seen"),
        ("[fact.plms-50]", '[[missing]]\nlabel = "X"\n[fact.plms-50]', "row 'X' is missing; say why in `missing`"),
        ("[fact.plms-50]", '[[missing]]\nlabl = "X"\n[fact.plms-50]', "unknown field 'labl'; did you mean label"),
    ],
)
def test_a_bad_table_spec_is_named(tmp_path, old, new, words):
    text = (ROOT / "tables" / "specs" / "table1.toml").read_text("utf-8")
    assert old in text
    (tmp_path / "table1.toml").write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(DipgoError, match="table1.toml") as error:
        load_table("table1", tmp_path)
    assert words in str(error.value)


def of_suite(folder: Path, text: str, spec: str = "") -> Table:
    """The table of a suite of a few runs, whose spec says next to nothing."""
    (folder / "specs").mkdir(exist_ok=True)
    (folder / "specs" / "own.toml").write_text(
        'title = "Own"\ndifference = ""\npaper_model = ""\nnotes = []\nshown = ["macs_full", "psnr"]\n' + spec
    )
    (folder / "own.toml").write_text(
        '[defaults]\nmodel = "m"\nmethod = "dense"\nscheduler = "plms"\nsteps = 50\nprompts = ["mine"]\n'
        'reference = "dense"\nparams = {}\n' + text
    )
    return load_table("own", folder / "specs", suites=folder)


def test_every_run_of_a_suite_is_a_row_whose_label_and_group_have_defaults(tmp_path):
    table = of_suite(
        tmp_path,
        '[[run]]\nid = "dense"\n[[run]]\nid = "few"\nscheduler = "dpm"\nsteps = 4\n'
        '[[run]]\nid = "strange"\nmethod = "of-tomorrow"\n'
        '[[run]]\nid = "half"\nmethod = "dipgo"\nparams = { ratio = 0.5 }\ngroup = "Pruned"\n'
        '[[run]]\nid = "held"\nmethod = "step_skip"\nparams = { interval = 2, mode = "hold" }\n',
    )
    assert {group.title: [row.label for row in group.row] for group in table.group} == {
        "Further runs": ["PLMS - 50 steps", "DPM-Solver++ 2M - 4 steps", "strange", "held"],
        "Pruned": ["Ours (w/ Pruned-0.50)"],
    }
    assert all(row.added and row.baseline == "dense" for row in table.rows)
    assert (table.models, table.baseline, [each.title for each in table.dataset]) == (("m",), "dense", ["mine"])


def test_trainings_of_one_run_with_other_seeds_are_one_row(tmp_path):
    trained = (
        '[[run]]\nid = "{}"\nmethod = "dipgo"\nmetrics = ["{}"]\nparams = {{ ratio = 0.5, train = {{ seed = {} }} }}\n'
    )
    dense = '[[run]]\nid = "dense"\n'
    table = of_suite(tmp_path, dense + trained.format("a", "psnr", 0) + trained.format("b", "ssim", 7))
    assert [row.runs for row in table.rows] == [("dense",), ("a", "b")]
    with pytest.raises(DipgoError, match="own.toml: runs 'a' and 'b' are one training with one seed; drop one"):
        of_suite(tmp_path, dense + trained.format("a", "psnr", 0) + trained.format("b", "ssim", 0))
    other = trained.format("b", "psnr", 1).replace("0.5", "0.6")
    assert len(of_suite(tmp_path, dense + trained.format("a", "psnr", 0) + other).rows) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[run]]\nid = "a"\n[[run]]\nid = "b"\nseed = 1\n', "two rows are called 'PLMS - 50 steps'; give one of them"),
        ('[[run]]\nid = "a"\nsteps = 9\nreference = "densy"\n', "row 'PLMS - 9 steps': unknown run 'densy'; did you"),
        ('[[run]]\nid = "a"\nsteps = 9\ncontrols = ["b"]\n', "row 'PLMS - 9 steps': unknown run 'b'"),
        ('[[run]]\nid = "a"\nsteps = 9\ncontrols = ["dense", "dense"]\n', "names a control twice; drop one"),
        ('[[run]]\nid = "a"\nsteps = 9\ncontrols = { some = ["dense"] }\n', "unknown group of controls 'some'"),
    ],
)
def test_a_suite_whose_rows_do_not_fit_each_other_is_named(tmp_path, text, words):
    contest = '[compare.C]\nmetrics = ["psnr"]\ntext = ""\n'
    with pytest.raises(DipgoError, match=f"{tmp_path}/own.toml: ") as error:
        of_suite(tmp_path, '[[run]]\nid = "dense"\nlabel = "Dense"\n' + text, contest)
    assert words in str(error.value)
