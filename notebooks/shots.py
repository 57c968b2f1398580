"""Tables of how few images a search needs: the records of two presets, each with its controls."""

from __future__ import annotations

import itertools
import math
from typing import Any

import direct
import pandas as pd
import report
from pandas.io.formats.style import Styler

ALL = 500  # training images that there are of each label of CIFAR-100
LEVELS = (5, 20, 100, 200, ALL)
PROBLEMS = {("shots", "direct_multiclass"): "five classes", ("shots", "direct_binary"): "one class",
            ("shots-photos", "direct_multiclass"): "ten classes of photos"}  # preset, notebook -> what tables say
WAYS = {("soft", "affine", "once"): "no labels", ("soft", "affine", "anew"): "no labels, many others",
        ("hard", "affine", "once"): "labels", ("soft", "frozen", "once"): "no labels, norms frozen"}
AT = f"at {direct.SHARE:.2%}: points"
VALUES = {AT: "at", "restricted: kept": "kept", "restricted: points": "points", "norms only: points": "norms",
          "from scratch: points": "scratch"}  # column -> what the text calls it
OF = ["problem", "search", "images"]  # of each label


def searches() -> pd.DataFrame:
    """A row a record: OF, class, record, the restricted original's accuracy in [0, 1], and VALUES: kept in [0, 1],
    differences to the restricted original in points, NaN where there is no such record."""
    columns, tables = [*OF, "class", "record", "restricted", *VALUES], []
    for (preset, notebook), problem in PROBLEMS.items():
        found = {r.stem: r for r in report.of_preset(preset, notebook)}
        if not found:
            continue
        table = direct.rows(preset, notebook).merge(direct.front_rows(found.values()).drop(columns="class"))
        of = [found[stem].parameters for stem in table["record"]]
        tables.append(table.assign(
            problem=problem, search=[WAYS[p["labels"], p["norms"], p.get("others", "once")] for p in of],
            images=[p["shots"] or ALL for p in of],
            **{f"{c}: points": 100 * (table[c].astype(float) - table["restricted"])
               for c in ("norms only", "from scratch")}))
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each of OF: `n` problems, and of VALUES mean and, as "<column>, se", standard error: NaN of one."""
    groups = rows.groupby(OF, sort=False)
    return pd.concat([groups.size().rename("n"), groups[list(VALUES)].mean(),
                      groups[list(VALUES)].sem().add_suffix(", se")], axis="columns").reset_index()


def told(rows: pd.DataFrame) -> dict[str, str]:
    """What the text says of each of OF, "five-no-labels-20-at" for example: the mean and, in brackets, its standard
    error; of what has no record, that it was not run."""
    found = {tuple(row[c] for c in OF): row for row in means(rows).to_dict("records")}
    words: dict[str, str] = {}
    for problem, way, images in itertools.product(PROBLEMS.values(), WAYS.values(), LEVELS):
        row: dict[Any, Any] = found.get((problem, way, images), {})
        name = f"{problem.split()[0]}-{way.replace(',', '').replace(' ', '-')}-{images}"
        values = {c: (row.get(c, math.nan), row.get(f"{c}, se", math.nan)) for c in VALUES}
        words |= {f"{name}-{short}": direct.with_error(c, *values[c]) or "not run" for c, short in VALUES.items()}
    return words


def styled(rows: pd.DataFrame) -> Styler:
    """The `means` of each problem under its fair control, which needs no image; in brackets the standard error."""
    lines = []
    for problem, mine in rows.groupby("problem", sort=False):
        lines.append({"problem": problem, "search": "none: restricted original", "images": 0,
                      "n": mine["class"].nunique(), AT: "+0.00", "restricted: kept": "100.0%",
                      "restricted: points": "+0.00"})
        order = [list(WAYS.values()).index(way) for way in mine["search"]]
        mine = means(mine.assign(order=order).sort_values(["images", "order"]))
        lines += [{**{c: row[c] for c in [*OF, "n"]},
                   **{c: direct.with_error(c, row[c], row[f"{c}, se"]) for c in VALUES}}
                  for row in mine.to_dict("records")]
    return report.neat(pd.DataFrame(lines, columns=[*OF, "n", *VALUES]).fillna("").style)
