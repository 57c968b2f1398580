"""The cells of a grid: notebooks with their parameters, checked before any of them runs."""

from __future__ import annotations

import ast
import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import yaml

from seamlib import records
from seamlib.records import cache

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "book" / "results"
Cell = tuple[str, dict[str, Any]]  # notebook, all its parameters
Declared = dict[str, tuple[str, Any]]  # name -> type name, default


class Texts(yaml.SafeLoader):
    """YAML whose values stay text: what 010 or 1:30 means is for the type of the parameter to say."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012  # merges of mappings


def declared(notebook: str) -> Declared:
    """Name -> (type name, default) of the parameters of `notebook`, in the order of its parameters cell."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        there = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
        raise ValueError(f"unknown notebook {notebook!r}: allowed are {', '.join(there)}")
    cell = next(c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", []))
    return {ast.unparse(line.target): (ast.unparse(line.annotation), ast.literal_eval(line.value))
            for line in cache.parsed(cell.source).body if isinstance(line, ast.AnnAssign) and line.value}


def checked(notebook: str, given: dict[str, Any], known: Declared | None = None) -> dict[str, Any]:
    """All parameters of the cell: `given` (values, or text of any) over the defaults; ValueError if one is wrong.

    `known`: what `declared(notebook)` returned, for many cells of one notebook.
    """
    known = known or declared(notebook)
    parameters = {name: default for name, (_, default) in known.items()}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{notebook} has no parameter {name!r}: allowed are {', '.join(known)}")
        parameters[name] = records.typed(f"parameter {name!r} of {notebook}", value, known[name][0])
    return parameters


def check(notebook: str, parameters: dict[str, Any]) -> None:
    """Run the notebook's own checks of its parameters: its code up to the cell tagged `checks`. They read no image."""
    names: dict[str, Any] = {}
    for cell in nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", 4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            exec(compile(cell.source, notebook, "exec", dont_inherit=True), names)
        if "parameters" in tags:
            names.update(parameters)
        if "checks" in tags:
            return


def command(record: records.Record) -> str:
    """What to type to run again what made `record`; parameters at their defaults are left out."""
    if record.experiment == "speed":
        return "make bench"
    parameters = {name: record.precision if name == "precision" else value for name, value in record.parameters.items()
                  if name not in ("runs", "commit", "device")}
    given = arguments(record.experiment, parameters)
    return shlex.join(["python", "notebooks/run.py", "cell", record.experiment, *given])


def arguments(notebook: str, parameters: Mapping[str, Any]) -> list[str]:
    """The -p arguments of `run.py cell` for these parameters; those at their defaults are left out."""
    defaults = {name: default for name, (_, default) in declared(notebook).items()}
    return list(itertools.chain(*(("-p", f"{name}={value}") for name, value in parameters.items()
                                  if value != defaults.get(name))))


def _grid() -> dict[str, Any]:
    """Preset -> its stages, as they are written."""
    try:
        found: dict[str, Any] = yaml.load((ROOT / "notebooks" / "grid.yml").read_text(), Texts)
    except yaml.YAMLError as e:
        raise ValueError(f"notebooks/grid.yml cannot be read: {' '.join(str(e).split())}") from e
    return found


def _entries(stage: Any) -> list[Any]:
    """What a stage is made of: one notebook with its parameters, or several."""
    return stage if isinstance(stage, list) else [stage]


def presets(notebook: str) -> list[str]:
    """The presets that have a cell of `notebook`, in their order."""
    return [preset for preset, stages in _grid().items() if any(
        isinstance(entry, dict) and entry.get("notebook") == notebook for stage in stages for entry in _entries(stage))]


def cells(preset: str, given: dict[str, Any], within: tuple[str, ...] = ()) -> list[list[Cell]]:
    """The stages of a preset, each a list of cells that do not depend on one another; every cell is checked.

    `within`: the presets whose cells are being listed, each for the records of the next.
    """
    grid = _grid()
    records.check_choice("preset", preset, tuple(grid))
    if preset in within:
        raise ValueError(f"preset {preset!r} takes records of its own cells ({' from '.join((*within, preset))}): "
                         "give its \"preset:\" one that does not need it")
    used: set[str] = set()
    stages: list[list[Cell]] = []
    for stage in grid[preset] or [[]]:
        stages.append([])
        for entry in _entries(stage):
            axes = entry.get("parameters") or {} if isinstance(entry, dict) else None
            if not isinstance(axes, dict) or not {"notebook"} <= set(entry) <= {"notebook", "parameters"}:
                raise ValueError(f"preset {preset!r} has {entry!r}: it must be a mapping of notebook and parameters")
            known = declared(entry["notebook"])
            mine = {name: value for name, value in given.items() if name in known}
            used |= set(mine)
            axes = {**axes, **mine}
            lists = [_values(value, (*within, preset)) for value in axes.values()]
            stages[-1] += [(entry["notebook"], checked(entry["notebook"], dict(zip(axes, values, strict=True)), known))
                           for values in itertools.product(*lists)]
    if not all(stages):
        raise ValueError(f"preset {preset!r} has a stage without a cell: give each parameter a value or more")
    if unused := set(given) - used:
        raise ValueError(f"no notebook of preset {preset!r} has a parameter {sorted(unused)[0]!r}")
    return stages


def _values(value: Any, within: tuple[str, ...] = ()) -> list[Any]:
    """The values of one axis: `value`, or all that are listed in it, with the records that `_records` finds."""
    return [v for listed in (value if isinstance(value, list) else [value]) for v in _records(listed, within)]


def _records(value: Any, within: tuple[str, ...]) -> list[Any]:
    """The stems of records: for "records:PATTERN" of all that match, for "preset:NAME/NOTEBOOK" of those that the cells
    of this preset have made; else the value itself."""
    kind, _, what = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in ("records", "preset"):
        return [value]
    pattern, keys = what, None
    if kind == "preset":
        name, _, notebook = what.partition("/")
        pattern = "*/*"
        keys = {(book, records.key(parameters)) for stage in cells(name, {}, within) for book, parameters in stage
                if book == notebook}
    found = sorted({p.relative_to(folder).with_suffix("").as_posix() for folder in (KEPT, ROOT / "runs")
                    for p in folder.glob(f"{pattern}.json")
                    if keys is None or (p.parent.name, p.stem.rpartition("-")[2]) in keys})
    if not found:
        raise ValueError(f"no record matches {what!r} in book/results or runs: run its notebook first, or give "
                         "another (<experiment>/<name>, without its suffix)")
    return found
