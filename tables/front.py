"""The first page of a table: the paper's rows as it prints them, beside what came out here, on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.specs.profiles import PROFILES
from benchmarks.specs.record import Record
from tables.cells import Cell, Comparison
from tables.format import MARKS, Footnotes, grid, number
from tables.load import paper_value
from tables.measured import Measured
from tables.notes import FEW_STEPS_WARNING
from tables.spec import CONTROL, Column, Dataset, Otherwise, PaperColumn, Row, Table

WORDS = ("keeps", "loses", "collapses")
UNDECIDED = "undecided"
JUDGED = "As in the paper?"
CAPTION = (
    "Δ: difference to dense on the same prompts and noises; ▲ better, ▼ worse, = the 95 % interval includes 0. "
    "The last column says in a word what came out here: the row *keeps* the score of dense (within {keeps:g} %), "
    "*loses*, or *collapses* (by more than {collapses:g} %); *undecided* where the interval spans two of these. "
    "Before it stands whether the paper's own values give the same words: *yes*, or *better* or *worse* here{other}."
)


@dataclass(frozen=True)
class Page:
    """What the sections of the page are made of."""

    table: Table
    cells: Mapping[tuple[str, str, str], Cell]
    """The table's cells by row, prompt set and metric."""
    paper: pd.DataFrame
    """The printed values, from `load_paper`."""
    notes: Footnotes

    def printed(self, row: Row, dataset: Dataset, metric: str) -> float | None:
        """The value that the paper prints for a row, in base units."""
        return paper_value(self.paper, row, dataset.paper, metric)

    def cell(self, row: Row, dataset: Dataset, metric: str) -> Cell:
        return self.cells[row.label, dataset.key, metric]

    @property
    def datasets(self) -> list[Dataset]:
        """The prompt sets for which the paper has values."""
        return [dataset for dataset in self.table.dataset if dataset.paper]

    @property
    def difference(self) -> str:
        """The metric of the differences to dense; empty for random weights."""
        return f"{self.table.difference}_diff" if self.table.difference else ""

    @property
    def judge(self) -> Column:
        """The column whose printed values say how a row did in the paper: that of the table's difference where the
        paper prints it, else the last one that has a better end."""
        named = [column for column in self.table.column if column.paper and column.direction]
        printed = {column.metric for column in self.table.paper_column}
        of_difference = [column for column in named if column.key == self.table.difference]
        return next(column for column in (*of_difference, *reversed(named)) if column.paper in printed)


def printed_rows(table: Table, paper: pd.DataFrame) -> list[Row]:
    """The rows that the paper's table prints, in its order, after those that they are measured against.

    Where two of our rows are readings of one printed row, both come.
    """
    here = paper[paper["table"] == table.name.removeprefix("table")]
    keys = here[["table", "group", "method"]].drop_duplicates().to_dict("records")
    rows = [
        row
        for key in keys
        for row in table.rows
        if row.paper is not None and not row.added and row.paper.items() <= key.items()
    ]
    baselines = [row.baseline for row in rows if row.run]
    first = [row for row in table.rows if row.run in baselines and row not in rows]
    return first + rows


def _rows(table: Table, paper: pd.DataFrame) -> list[Row]:
    """The rows of the first page: those that the paper prints, or all of a table of which it prints no value."""
    return printed_rows(table, paper) if table.paper_column else table.rows


def front_runs(table: Table, paper: pd.DataFrame) -> list[str]:
    """The ids of the runs on the first page: the printed rows, and then what the same MACs buy otherwise."""
    runs = [row.run for row in _rows(table, paper) if row.run] + [
        run for block in table.otherwise for run in block.runs
    ]
    return list(dict.fromkeys(runs))


def word(low: float, high: float, dense: float, column: Column) -> str:
    """How a score did that differs from dense's by at least `low` and at most `high`, in one word.

    low, high: the ends of the difference to dense; equal where no interval is known.
    dense: the score of the dense row.
    column: the column of the score, which says what counts as kept and as a collapse.
    """
    ends = (low / dense, high / dense) if column.direction == "up" else (-high / dense, -low / dense)
    low, high = (WORDS[(end < -column.keeps) + (end < -column.collapses)] for end in ends)
    return low if low == high else UNDECIDED


def _paper_word(page: Page, row: Row, dataset: Dataset) -> str:
    """The word for what the paper prints; empty where it prints nothing to compare."""
    dense = page.printed(page.table.find_row(row.baseline), dataset, page.judge.paper)
    value = page.printed(row, dataset, page.judge.paper)
    return "" if None in (dense, value) else word(value - dense, value - dense, dense, page.judge)


def _word_here(page: Page, row: Row, dataset: Dataset) -> str:
    gap = page.cell(row, dataset, page.difference)
    dense = page.cell(page.table.find_row(row.baseline), dataset, page.table.difference).value
    if gap.value is None or not dense:
        return ""
    column = page.table.find_column(page.table.difference)
    low, high = (gap.value if end is None else end for end in (gap.low, gap.high))
    return word(low, high, dense, column)


def as_in_the_paper(page: Page, row: Row) -> str:
    """Whether a row did as in the paper ("yes"), "better" or "worse", or "undecided", and the words for it here.

    "reference" for a dense row, and empty where the paper or we have no value to judge by.
    """
    if row.run and row.run == row.baseline:
        return "reference"
    datasets = page.datasets if page.difference else ()
    pairs = [(_paper_word(page, row, dataset), _word_here(page, row, dataset)) for dataset in datasets]
    if not row.run or not pairs or not all(all(pair) for pair in pairs):
        return ""
    here = " / ".join(dict.fromkeys(ours for _, ours in pairs))
    moved = {WORDS.index(ours) - WORDS.index(theirs) for theirs, ours in pairs if ours != UNDECIDED}
    if moved == {0}:
        return f"yes: {here}" if UNDECIDED not in here else UNDECIDED
    if moved:
        return f"**{'better' if max(moved) <= 0 else 'worse' if min(moved) >= 0 else 'otherwise'}**: {here}"
    return UNDECIDED


def _joined(texts: Iterable[str]) -> str:
    """The texts of the prompt sets, or one text if they are equal."""
    return " / ".join(dict.fromkeys(texts))


def _paper_value(page: Page, row: Row, column: PaperColumn) -> str:
    values = [page.printed(row, dataset, column.metric) for dataset in page.datasets]
    return _joined(number(value, column.digits, column.scale) for value in values if value is not None)


def _value(page: Page, row: Row, column: Column, datasets: Sequence[Dataset]) -> str:
    """A row's value on the prompt sets, with the mark of its verdict if it is a difference.

    A row that is its own reference shows its score instead of a difference.
    """
    cells = [page.cell(row, dataset, column.key) for dataset in datasets]
    if cells[0].verdict == "reference" and column.key == page.difference:
        cells = [page.cell(row, dataset, page.table.difference) for dataset in datasets]
        return " / ".join(number(cell.value, 1) for cell in cells if cell.value is not None)
    if cells[0].verdict == "reference":
        return "ref."
    if cells[0].value is None and row.run and row.run == row.baseline:
        return ""
    if cells[0].value is None:
        return page.notes.mark(cells[0].reason)
    signed = column.key == page.difference
    texts = [
        number(cell.value, _digits(cell.value) if signed else column.digits, column.scale, signed) + _mark(cell)
        for cell in cells
        if cell.value is not None
    ]
    return " / ".join(texts) if signed else _joined(texts)


def _digits(difference: float) -> int:
    """One digit for a difference, and two where one digit would show nothing."""
    return 1 if abs(difference) >= 0.05 else 2


def _mark(cell: Cell) -> str:
    return MARKS.get(cell.verdict, "").replace(" ", "")


def _here_columns(page: Page) -> list[Column]:
    """Our columns of the metrics that the paper prints, where the difference to dense stands for its scores.

    Of a table that the paper lacks: MACs, speedup, the difference and PSNR, as far as the table has them.
    """
    columns = page.table.column
    printed = {column.metric for column in page.table.paper_column}
    if not printed:
        keys = ("macs_full", "speedup_end_to_end", page.difference, "psnr")
        return [column for key in keys for column in columns if column.key == key]
    picked = [column for column in columns if column.paper in printed and not column.scored]
    return picked + [column for column in columns if column.key == page.difference]


def _short(title: str) -> str:
    """A column's title without what the caption says."""
    return title.removesuffix(" to dense [95 %]").replace("Speedup, end to end", "×").replace("speedup", "×")


def _rows_section(page: Page, rows: Sequence[Row]) -> str:
    """The paper's values and ours of the printed rows; of a table that the paper lacks, ours of all rows."""
    theirs, ours = page.table.paper_column, _here_columns(page)
    datasets = page.datasets or page.table.dataset
    pruned = {block.runs[0] for block in page.table.otherwise}
    titles = _titles("Paper", theirs) + _titles("Here" if theirs else "", ours)
    lines = []
    for row in rows:
        label = f"**{row.label}**" if row.run and row.run in pruned else row.label
        values = [_paper_value(page, row, column) for column in theirs]
        values += [_value(page, row, column, datasets) for column in ours]
        lines.append([label, *values] + ([as_in_the_paper(page, row)] if theirs else []))
    return grid(lines, ["Method", *titles] + ([JUDGED] if theirs else []), {"Method", JUDGED})


def _titles(side: str, columns: Sequence[Column | PaperColumn]) -> list[str]:
    """The columns' titles; the first one says whose values they are."""
    titles = [_short(column.title) for column in columns]
    return [f"{side}: {titles[0]}", *titles[1:]] if side and titles else titles


def finding(page: Page, rows: Sequence[Row], comparisons: Iterable[Comparison]) -> str:
    """The sentences on top: how many rows came out as in the paper, and what the best control at equal MACs does."""
    words = [text.partition(":")[0].strip("*") for text in (as_in_the_paper(page, row) for row in rows) if text]
    counted = [name for name in words if name != "reference"]
    sentences = []
    if counted:
        others = ", ".join(f"{counted.count(name)} {name}" for name in dict.fromkeys(counted) if name != "yes")
        what = "row comes" if len(counted) == 1 else "rows come"
        sentence = f"{counted.count('yes')} of {len(counted)} {what} out as in the paper"
        sentences.append(f"{sentence} ({others})." if others else f"{sentence}.")
    last = page.table.dataset[-1].key
    best = [
        c
        for c in comparisons
        if c.best and (c.group, c.metric, c.dataset.key) == (CONTROL, "psnr", last) and c.row in rows
        if not c.control.controls
    ]
    if best:
        nearer = [-c.difference.value for c in best if c.verdict == "worse"]
        by = " to ".join(dict.fromkeys(number(value, 1) for value in (min(nearer), max(nearer)))) if nearer else ""
        sentences.append(
            f"What the same MACs buy otherwise is nearer to the dense pictures than {len(nearer)} of "
            f"{len(best)} pruned rows" + (f", by {by} dB." if by else ".")
        )
    return f"**{' '.join(sentences)}**" if sentences else ""


def _otherwise_section(page: Page, blocks: Sequence[Otherwise]) -> str:
    """What the same MACs buy otherwise: the blocks side by side, on the last prompt set."""
    dataset, table = page.table.dataset[-1], page.table
    keys = ("speedup_end_to_end", page.difference, "psnr")
    columns = [column for key in keys for column in table.column if column.key == key]
    height = max(len(block.runs) for block in blocks)
    lines: list[list[str]] = [[] for _ in range(height)]
    headers: list[str] = []
    for block in blocks:
        headers += [block.title, *(_short(column.title).removesuffix(" dB") for column in columns)]
        rows = [table.find_row(run) for run in block.runs]
        for line, row in zip(lines, rows + [None] * (height - len(rows)), strict=True):
            line += (
                [row.label, *(_value(page, row, c, [dataset]) for c in columns)] if row else [""] * (1 + len(columns))
            )
    left = {block.title for block in blocks}
    return f"### What the same MACs buy otherwise, {dataset.key}\n\n{grid(lines, headers, left)}\n"


def _caption(page: Page, records: Mapping[str, Record]) -> str:
    table = page.table
    sets = " / ".join(dataset.paper for dataset in page.datasets)
    paper = f"Paper: {table.paper_model}, on {sets}. " if table.paper_column else ""
    specs = [record.spec for record in records.values()]
    models = ", ".join(dict.fromkeys(f"`{spec['model']}`" for spec in specs)) or "nothing measured"
    sets = " / ".join(dataset.key for dataset in table.dataset)
    pictures = {spec["limit"] for spec in specs if not PROFILES[table.profile].paper_models}
    n = f", {max(pictures)} pictures a prompt set" if pictures else ""
    text = f"{paper}Here: {models}, on {sets}{n}."
    if not (page.difference and table.paper_column):
        return text
    column, judge = table.find_column(table.difference), page.judge
    other = (
        ""
        if (judge.keeps, judge.collapses) == (column.keeps, column.collapses)
        else (
            f". Of its {judge.title}, {100 * judge.keeps:g} % more counts as kept, over {100 * judge.collapses:g} % "
            "more as collapsed"
        )
    )
    return f"{text} {CAPTION.format(keeps=100 * column.keeps, collapses=100 * column.collapses, other=other)}"


def _page(table: Table, cells: Iterable[Cell], paper: pd.DataFrame) -> tuple[Page, list[Row]]:
    """The parts of the first page and its rows."""
    page = Page(table, {(cell.row, cell.dataset, cell.metric): cell for cell in cells}, paper, Footnotes())
    return page, _rows(table, paper)


def headline(measured: Measured) -> str:
    """The bold sentence on top of a table's first page; empty where there is nothing to say."""
    return _headline(measured, *_page(measured.table, measured.cells, measured.paper))


def _headline(measured: Measured, page: Page, rows: list[Row]) -> str:
    if not measured.records:
        return f"Nothing measured: {measured.table.no_record}."
    return finding(page, rows, measured.comparisons)


def summary(measured: Measured) -> str:
    """The markdown of a table's first page below its title, without the links to its other pages."""
    table, records = measured.table, measured.records
    page, rows = _page(table, measured.cells, measured.paper)
    traits = PROFILES[table.profile]
    parts = [text for text in (traits.note, _headline(measured, page, rows)) if text]
    parts.append(_rows_section(page, rows))
    parts.append(_caption(page, records))
    if table.otherwise:
        parts.append(_otherwise_section(page, table.otherwise).rstrip())
        parts += [FEW_STEPS_WARNING] * (not traits.paper_models)
    if page.notes.lines:
        parts.append("\n".join(f"- {line}" for line in page.notes.lines))
    return "\n\n".join(parts)


def front(measured: Measured) -> str:
    """The markdown of a table's first page."""
    table = measured.table
    name = table.name
    links = [f"[all rows with intervals]({name}_full.md)", f"[CSV]({name}.csv)"]
    if table.compare:
        links.insert(1, f"[pairwise verdicts]({name}_controls.md)")
    links.append(f"[machine, weights, commit]({name}_full.md#provenance)")
    return f"# {table.title}\n\n{summary(measured)}\n\n{' · '.join(links)}\n"
