"""What `python -m benchmarks gpu-pack` measured, beside the paper's speedups: its records into `gpu.md` and `gpu.csv`.
Runs no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.specs import record
from benchmarks.specs.record import ALL, Record
from tables.format import Footnotes, grid, number, spread
from tables.load import RANDOM, load_paper, load_table, paper_value
from tables.notes import origin
from tables.spec import Row, Table

GPU = "gpu"
TABLES = ("table1", "table2", "table3", "table8")
PAPER_DEVICE = "AMD MI250"  # section 4.1
NOT_TIMED = "not in the pack"
HEADERS = (
    "Row",
    "MACs T, full",
    "Denoiser s",
    "Speedup [quartiles]",
    "Efficiency",
    "End to end s",
    "Speedup",
    "Compiled: denoiser s",
    "Speedup [quartiles]",
    "Efficiency",
    "End to end s",
    "Speedup",
)
KINDS = (("latency", ""), ("latency_compiled", "_compiled"))  # what a record is absent in, and its cells' ending
EAGER = 7  # as many of HEADERS are without compiled blocks
NOTES = (
    "*Efficiency*: the denoiser's speedup / that of the MACs, all operations counted. At 1 no time is lost to what "
    "is not MACs.",
    "*Compiled*: the denoiser's blocks by torch.compile, one by one; text encoder and decoder as they are. A compiled "
    "row is compared with the compiled dense run.",
    "Batch 1 with both guidance branches, in float16, the decoder in float32; medians of rounds in which all rows of a "
    "part take turns.",
    "‡ the schedule was found on the zoo's model of the same blocks and calls, as random weights have none to learn; "
    "the paper's own schedules are not published.",
)
CSV_COLUMNS = ("run", "model", "metric", "value", "n", "low", "high", "device")


def efficiency(own: Record, dense: Record, suffix: str = "") -> float | None:
    """The denoiser's measured speedup / that of its full MACs; None where it was not timed."""
    speedup, macs, whole = (
        own.cell(ALL, f"speedup_denoiser{suffix}"),
        own.cell(ALL, "macs_full"),
        dense.cell(ALL, "macs_full"),
    )
    return speedup["value"] * macs["value"] / whole["value"] if speedup and macs and whole else None


def _timed(own: Record, dense: Record, marks: Footnotes, kinds: Sequence[tuple[str, str]]) -> list[str]:
    """The cells of HEADERS behind the label, eager ones or compiled ones as well."""

    def show(metric: str, missing: str, digits: int = 2, scale: float = 1.0, quartiles: bool = False) -> str:
        cell = own.cell(ALL, metric)
        if cell is None:
            return marks.mark(own.absent.get(missing, NOT_TIMED))
        low, high = (cell.get("low"), cell.get("high")) if quartiles else (None, None)
        return spread(cell["value"], low, high, digits, scale, False)

    shown = [show("macs_full", "latency", scale=1e-12)]
    for missing, suffix in kinds:
        found = efficiency(own, dense, suffix)
        shown += [
            show(f"seconds_denoiser{suffix}", missing, 3),
            show(f"speedup_denoiser{suffix}", missing, quartiles=True),
            marks.mark(own.absent.get(missing, NOT_TIMED)) if found is None else number(found, 2),
            show(f"seconds_end_to_end{suffix}", missing, 3),
            show(f"speedup_end_to_end{suffix}", missing),
        ]
    return shown


def _printed(table: Table, row: Row, paper: pd.DataFrame) -> str:
    """The paper's speedups of a row, of each prompt set where they are several."""
    found = [paper_value(paper, row, dataset.paper, "speedup") for dataset in table.dataset if dataset.paper]
    return " / ".join(dict.fromkeys(f"*{number(value, 2)}*" for value in found if value is not None))


def _lines(
    rows: Sequence[tuple[str, str]],
    records: Mapping[str, Record],
    marks: Footnotes,
    kinds: Sequence[tuple[str, str]] = KINDS,
) -> Iterator[tuple[str, list[str]]]:
    """Run and cells of the rows (run, label) that have a record."""
    for run, label in rows:
        if run in records:
            own = records[run]
            learned = " ‡" if own.spec["method"] == "stored_schedule" else ""
            yield run, [label + learned, *_timed(own, records.get(own.spec["reference"], own), marks, kinds)]


def _table_section(table: Table, records: Mapping[str, Record], marks: Footnotes) -> str:
    paper, by_run = load_paper(), {row.run: row for row in table.rows if row.run}
    rows = [(run, f"† {row.label}" if row.own else row.label) for run, row in by_run.items()]
    lines = [[*cells, _printed(table, by_run[run], paper)] for run, cells in _lines(rows, records, marks)]
    headers = (*HEADERS, f"Paper's speedup, {PAPER_DEVICE}")
    return f"## {table.title}\n\n{grid(lines, headers, headers[:1])}\n" if lines else ""


def _ratio_section(records: Mapping[str, Record], marks: Footnotes) -> str:
    pruned = sorted(run for run, own in records.items() if own.spec["method"] == "random_scores")
    if not pruned:
        return ""
    dense = records[pruned[0]].spec["reference"]
    rows = [(dense, "dense"), *((run, f"{records[run].spec['params']['ratio']:.1f} pruned") for run in pruned)]
    text = (
        "Fig. 3's seconds. The blocks of each ratio are Algorithm 1's on random scores, of which a call's share most."
    )
    lines = [cells for _, cells in _lines(rows, records, marks, KINDS[:1])]
    return f"## Seconds by pruned ratio\n\n{text}\n\n{grid(lines, HEADERS[:EAGER], HEADERS[:1])}\n"


def _training_section(records: Mapping[str, Record], marks: Footnotes) -> str:
    lines = []
    for own in records.values():
        seconds, memory = own.cell(ALL, "training_step_seconds"), own.cell(ALL, "training_peak_memory")
        if seconds and memory:
            lines.append([own.spec["model"], number(seconds["value"], 2), number(memory["value"], 1, 1e-9)])
        elif reason := own.absent.get("training_step"):
            lines.append([own.spec["model"], marks.mark(reason), marks.mark(reason)])
    text = "The paper's settings: one picture, gradient checkpoints, its dense picture made as part of the step."
    headers = ("Model", "Seconds a step", "Peak memory GB")
    return f"## A training step of the pruner\n\n{text}\n\n{grid(lines, headers, headers[:1])}\n" if lines else ""


def _measured_on(records: Mapping[str, Record]) -> str:
    known = "; ".join(filter(None, origin(records.values())))
    return f"Measured on {known}. The paper's speedups are of its own: {PAPER_DEVICE}."


def markdown(records: Mapping[str, Record]) -> str:
    """The page of all records, by run id."""
    marks = Footnotes()
    sections = [_table_section(load_table(name, profile=RANDOM), records, marks) for name in TABLES]
    sections += [_ratio_section(records, marks), _training_section(records, marks)]
    title = "# What a GPU shows: seconds of the paper's models, with random weights"
    notes = "\n".join(["## Notes\n", *(f"- {line}" for line in (*NOTES, "† a row of our own.", *marks.lines))]) + "\n"
    return "\n".join([f"{title}\n\n{_measured_on(records)}\n", *filter(None, sections), notes])


def csv_text(records: Mapping[str, Record]) -> str:
    """One value a line, in base units (MACs, seconds, bytes)."""
    lines = []
    for run, own in records.items():
        dense = records.get(own.spec["reference"], own)
        cells = {metric: dict(cell) for metric, cell in own.metrics.get(ALL, {}).items()}
        for _, suffix in KINDS:
            if (found := efficiency(own, dense, suffix)) is not None:
                cells[f"efficiency_denoiser{suffix}"] = {"value": found}
        common = {"run": run, "model": own.spec["model"], "device": own.provenance.get("device", "")}
        lines += [{**common, "metric": metric, **cell} for metric, cell in cells.items()]
    frame = pd.DataFrame(lines, columns=CSV_COLUMNS)
    frame["n"] = frame["n"].astype("Int64")
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def render_gpu(folder: Path) -> dict[str, str]:
    """File name -> text of both outputs, from the records in `folder`/gpu; nothing where there are none."""
    found = [record.read(path) for path in sorted((folder / GPU).glob("*.json"))]
    records = {own.id: own for own in found}
    return {f"{GPU}.md": markdown(records), f"{GPU}.csv": csv_text(records)} if records else {}
