"""Renders the records of `python -m benchmarks gpu-pack` as `gpu.md` and `gpu.csv`, beside the paper's speedups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.specs.record import ALL, Record, read
from tables.format import Footnotes, grid, number, spread
from tables.load import load_paper, load_table, paper_value
from tables.notes import origin
from tables.spec import Row, Table

GPU = "gpu"
PROFILE = "random-weights"
"""The profile of the runs that the pack measures."""
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
KINDS = (("latency", ""), ("latency_compiled", "_compiled"))
"""The metrics that a record may lack, eager and compiled, and how the names of their cells end."""
EAGER = 7
"""The number of `HEADERS` before those of compiled blocks."""
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


def efficiency(record: Record, dense: Record, suffix: str = "") -> float | None:
    """The denoiser's measured speedup divided by that of its full MACs; None if it was not timed."""
    speedup, macs, whole = (
        record.cell(ALL, f"speedup_denoiser{suffix}"),
        record.cell(ALL, "macs_full"),
        dense.cell(ALL, "macs_full"),
    )
    return speedup["value"] * macs["value"] / whole["value"] if speedup and macs and whole else None


def _timed(record: Record, dense: Record, marks: Footnotes, kinds: Sequence[tuple[str, str]]) -> list[str]:
    """The cells of a row after its label. `kinds` are those of `KINDS` that are shown."""

    def show(metric: str, missing: str, digits: int = 2, scale: float = 1.0, quartiles: bool = False) -> str:
        cell = record.cell(ALL, metric)
        if cell is None:
            return marks.mark(record.absent.get(missing, NOT_TIMED))
        low, high = (cell.get("low"), cell.get("high")) if quartiles else (None, None)
        return spread(cell["value"], low, high, digits, scale, False)

    shown = [show("macs_full", "latency", scale=1e-12)]
    for missing, suffix in kinds:
        value = efficiency(record, dense, suffix)
        shown += [
            show(f"seconds_denoiser{suffix}", missing, 3),
            show(f"speedup_denoiser{suffix}", missing, quartiles=True),
            marks.mark(record.absent.get(missing, NOT_TIMED)) if value is None else number(value, 2),
            show(f"seconds_end_to_end{suffix}", missing, 3),
            show(f"speedup_end_to_end{suffix}", missing),
        ]
    return shown


def _printed(table: Table, row: Row, paper: pd.DataFrame) -> str:
    """The speedups that the paper prints for a row, one for each prompt set if they differ."""
    values = [paper_value(paper, row, dataset.paper, "speedup") for dataset in table.dataset if dataset.paper]
    return " / ".join(dict.fromkeys(f"*{number(value, 2)}*" for value in values if value is not None))


def _lines(
    rows: Sequence[tuple[str, str]],
    records: Mapping[str, Record],
    marks: Footnotes,
    kinds: Sequence[tuple[str, str]] = KINDS,
) -> Iterator[tuple[str, list[str]]]:
    """Yields the run and the cells of those rows (run, label) that have a record."""
    for run, label in rows:
        if run in records:
            record = records[run]
            learned = " ‡" if record.spec["method"] == "stored_schedule" else ""
            yield run, [label + learned, *_timed(record, records.get(record.spec["reference"], record), marks, kinds)]


def _table_section(table: Table, records: Mapping[str, Record], marks: Footnotes) -> str:
    paper, by_run = load_paper(), {row.run: row for row in table.rows if row.run}
    rows = [(run, f"† {row.label}" if row.added else row.label) for run, row in by_run.items()]
    lines = [[*cells, _printed(table, by_run[run], paper)] for run, cells in _lines(rows, records, marks)]
    headers = (*HEADERS, f"Paper's speedup, {PAPER_DEVICE}")
    return f"## {table.title}\n\n{grid(lines, headers, headers[:1])}\n" if lines else ""


def _ratio_section(records: Mapping[str, Record], marks: Footnotes) -> str:
    pruned = sorted(run for run, record in records.items() if record.spec["method"] == "random_scores")
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
    for record in records.values():
        seconds, memory = record.cell(ALL, "training_step_seconds"), record.cell(ALL, "training_peak_memory")
        if seconds and memory:
            lines.append([record.spec["model"], number(seconds["value"], 2), number(memory["value"], 1, 1e-9)])
        elif reason := record.absent.get("training_step"):
            lines.append([record.spec["model"], marks.mark(reason), marks.mark(reason)])
    text = "The paper's settings: one picture, gradient checkpoints, its dense picture made as part of the step."
    headers = ("Model", "Seconds a step", "Peak memory GB")
    return f"## A training step of the pruner\n\n{text}\n\n{grid(lines, headers, headers[:1])}\n" if lines else ""


def _measured_on(records: Mapping[str, Record]) -> str:
    known = "; ".join(filter(None, origin(records.values())))
    return f"Measured on {known}. The paper's speedups are of its own: {PAPER_DEVICE}."


def markdown(records: Mapping[str, Record]) -> str:
    """The page of the records, which are given by run id."""
    marks = Footnotes()
    sections = [_table_section(load_table(name, profile=PROFILE), records, marks) for name in TABLES]
    sections += [_ratio_section(records, marks), _training_section(records, marks)]
    title = "# What a GPU shows: seconds of the paper's models, with random weights"
    notes = "\n".join(["## Notes\n", *(f"- {line}" for line in (*NOTES, "† a row of our own.", *marks.lines))]) + "\n"
    return "\n".join([f"{title}\n\n{_measured_on(records)}\n", *filter(None, sections), notes])


def csv_text(records: Mapping[str, Record]) -> str:
    """The tidy CSV, one value a line, in base units (MACs, seconds, bytes)."""
    lines = []
    for run, record in records.items():
        dense = records.get(record.spec["reference"], record)
        cells = {metric: dict(cell) for metric, cell in record.metrics.get(ALL, {}).items()}
        for _, suffix in KINDS:
            if (value := efficiency(record, dense, suffix)) is not None:
                cells[f"efficiency_denoiser{suffix}"] = {"value": value}
        common = {"run": run, "model": record.spec["model"], "device": record.provenance.get("device", "")}
        lines += [{**common, "metric": metric, **cell} for metric, cell in cells.items()]
    frame = pd.DataFrame(lines, columns=CSV_COLUMNS)
    frame["n"] = frame["n"].astype("Int64")
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def render_gpu(folder: Path) -> dict[str, str]:
    """The texts of both files by name, from the records in `folder`/gpu; empty if there are none."""
    records = {record.id: record for record in map(read, sorted((folder / GPU).glob("*.json")))}
    return {f"{GPU}.md": markdown(records), f"{GPU}.csv": csv_text(records)} if records else {}
