"""What the report pages show: the records of presets of grid.yml, and the tables' looks."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import pandas as pd
import run
from IPython.display import HTML
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from seamlib import masks, records

ROOTS = [run.KEPT, run.ROOT / "runs", run.ROOT / run.REPORT]  # where the book looks for records; a later one wins


def drawn(figure: Figure, name: str) -> None:
    """Put a figure where pages show it and lecturers find it: book/generated/<name>, as SVG and as PNG."""
    folder = run.ROOT / "book/generated"
    folder.mkdir(exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"{name}.{kind}")


def everything(experiment: str = "*") -> list[records.Record]:
    """All records that the book may show: kept, run here, and computed for this build; of `experiment`, or of all."""
    return records.read_all(ROOTS, experiment)


def of_preset(name: str, notebook: str) -> list[records.Record]:
    """The records of the cells that preset `name` has for `notebook`, and no others.

    One a cell: where several kinds of device have made it, that of the last by name.
    """
    keys = {records.key(parameters) for stage in run.cells(name, {}) for book, parameters in stage if book == notebook}
    found = {records.key(record.parameters): record for record in everything(notebook)}
    return [record for key, record in found.items() if key in keys]


def of_any_preset(notebook: str) -> list[records.Record]:
    """The records of all cells that grid.yml has for `notebook`, and none that was made with settings of its own."""
    return list({r.stem: r for name in run.presets(notebook) for r in of_preset(name, notebook)}.values())


def of_presets(*names: str) -> list[records.Record]:
    """The records of all notebooks of the presets, in their order, each once."""
    books = {(name, book): None for name in names for stage in run.cells(name, {}) for book, _ in stage}
    return list({r.stem: r for name, book in books for r in of_preset(name, book)}.values())


def number(record: records.Record) -> int:
    """That of the record's problem: 3 for binary3; 0 where it has none."""
    return int("".join(filter(str.isdigit, record.task)) or 0)


def masks_of(record: records.Record) -> masks.Masks:
    """The delivered masks of a record of `everything`."""
    path = records.find(record.stem, reversed(ROOTS))
    return masks.load_masks(path.with_suffix(".safetensors")).masks["paper"]


def linked(stem: str, text: str) -> str:
    """`text` as a link to the record in the book as it is built; as it is where the record is not a kept one."""
    return f'<a href="../{stem}.json">{text}</a>' if (run.KEPT / f"{stem}.json").is_file() else text


def sources(found: Iterable[records.Record]) -> HTML:
    """The records that a page is made of, folded: each a link, its command, and the commit at which that made it."""
    lines = [f"<li>{linked(r.stem, r.stem)}<br><code>{html.escape(run.command(r))}</code> "
             f"at <code>{r.commit[:7]}</code></li>" for r in found]
    return HTML(folded("", len(lines), f"<ul>{''.join(lines)}</ul>"))


def folded(what: str, n: int, inside: str) -> str:
    """HTML that is shown when its line, `what` and that it is n records, is clicked; `inside` is HTML, `what` text."""
    return f"<details><summary>{html.escape(what)}{n} record{'s' * (n > 1)}</summary>{inside}</details>"


def neat(table: Styler) -> Styler:
    """The table without its index; columns of words to the left, as prose is read."""
    words = [c for c in table.data if not pd.api.types.is_numeric_dtype(table.data[c])]
    left: list[Any] = [{"selector": "th", "props": "text-align: left"}]
    return table.hide(axis="index").set_properties(subset=words, **{"text-align": "left"}).set_table_styles(
        dict.fromkeys(words, left))


def styled(table: pd.DataFrame, columns: list[str], tuned: Iterable[str] = (), heading: str = "class") -> Styler:
    """A row a problem, then mean, its standard error, median, and the mean without the problems in `tuned`, marked *,
    if there are such.

    Columns that end in "points" are differences in points, all others shares in [0, 1]. Each problem links to its
    record, see `linked`; `heading` says what a problem is.
    """
    tuned = set(tuned)
    others = table[~table["class"].isin(tuned)]
    problems = zip(table["record"], table["class"], strict=True)
    marked = table.assign(**{"class": [linked(stem, c) + "*" * (c in tuned) for stem, c in problems]})
    below = pd.concat([
        table[columns].agg(["mean", "sem", "median"]).rename({"mean": f"mean of {len(table)}", "sem": "st. error"}),
        *([others[columns].agg(["mean"]).rename({"mean": "mean without\u00a0*"})] if tuned else []),
    ]).round(12).rename_axis("class").reset_index()  # as `direct.told` has them
    rows = pd.concat([marked[["class", *columns]], below], ignore_index=True).rename(columns={"class": heading})
    style = points(neat(rows.style), columns).set_properties(
        subset=pd.IndexSlice[len(table):, :], **{"font-weight": "600"})
    differences = [c for c in columns if c.endswith("points")]  # a standard error has no sign
    return style.format("{:.2f}", subset=pd.IndexSlice[[len(table) + 1], differences], na_rep="")


def points(style: Styler, columns: Iterable[str]) -> Styler:
    """Columns that end in "points" with their sign and two places, all others in percent; nothing where NaN."""
    return style.format({c: "{:+.2f}" if c.endswith("points") else "{:.1%}" for c in columns}, na_rep="")


def results_first(trials: pd.DataFrame) -> list[str]:
    """The columns of a table of trials in the order of reading: of what, what came out, with which settings."""
    of = [c for c in trials if c in ("form", "model", "problem", "class")]
    results = [c for c in trials if c in ("kept", "accuracy", "original", "restricted", "loss", "multiply-adds")]
    return [*of, *results, *(c for c in trials if c not in of + results)]


def settings(preset: str, notebook: str) -> dict[str, Any]:
    """The parameters of the first cell that `preset` has for `notebook`."""
    return next(p for stage in run.cells(preset, {}) for book, p in stage if book == notebook)
