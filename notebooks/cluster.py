"""Cells as jobs: what each takes of a machine, a GPU of its own, what it waits for, and the link that is its output."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from cells import ROOT, Cell

from seamlib import records

NEEDS = ("cpus", "memory_mb", "minutes", "gpus")
WAIT = 5.0  # seconds before all GPUs are tried again


def resources() -> dict[str, dict[str, int]]:
    """Notebook -> what a cell of it needs, by the names of NEEDS: the table notebooks/resources.yml.

    Raises ValueError for a notebook that is not there, or a need that is missing or no whole number from 0 on.
    """
    path = ROOT / "notebooks" / "resources.yml"
    try:
        table = yaml.safe_load(path.read_text())
    except yaml.YAMLError as e:
        raise ValueError(f"{path.relative_to(ROOT)} cannot be read: {' '.join(str(e).split())}") from e
    there = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
    if not isinstance(table, dict) or sorted(table) != there:
        raise ValueError(f"notebooks/resources.yml is of {', '.join(map(str, table or ['nothing']))}: it must have a "
                         f"line for each of {', '.join(there)}")
    for notebook, need in table.items():
        if not isinstance(need, dict) or sorted(need) != sorted(NEEDS):
            raise ValueError(f"notebooks/resources.yml has {need!r} for {notebook}: it must give {', '.join(NEEDS)}")
        for name, value in need.items():
            need[name] = records.typed(f"{name} of {notebook} in notebooks/resources.yml", value, "int")
            records.check_least(int(name != "gpus"), **{f"{name} of {notebook} in notebooks/resources.yml": need[name]})
        if need["gpus"] > 1:
            raise ValueError(f"gpus of {notebook} in notebooks/resources.yml is {need['gpus']}: a cell uses one, or 0")
    return table


@contextlib.contextmanager
def own_gpu(gpus: int) -> Iterator[int]:
    """The number of one of the `gpus` that this process sees, which no other process of this user holds by this.

    Waits until there is one. What a scheduler gave to this process alone (CUDA_VISIBLE_DEVICES) it need not wait for.
    It is given up when the process ends, however it ends. Raises ValueError if `gpus` is 0.
    """
    if not gpus:
        raise ValueError("no GPU is visible here: give this cell's notebook gpus: 0 in notebooks/resources.yml, or run "
                         "it where there is one")
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    devices = devices if len(devices) == gpus and all(devices) else [*map(str, range(gpus))]
    for number in itertools.cycle(range(gpus)):
        name = f"seamlib-gpu-{os.getuid()}-{devices[number].replace('/', '_')}.lock"
        with open(Path(tempfile.gettempdir()) / name, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if number == gpus - 1:
                    time.sleep(WAIT)
                continue
            yield number
            return


def anywhere(cell: Cell) -> Cell:
    """The cell, but what only the machine that will run it has, a CUDA device or bf16, is left to that machine."""
    notebook, parameters = cell
    left = {"device": re.fullmatch(r"cuda(:\d+)?", str(parameters.get("device"))),
            "precision": parameters.get("precision") == "bf16"}
    return notebook, {**parameters, **{name: "auto" for name, found in left.items() if found}}


def plan(grids: Iterable[list[list[Cell]]], done: Callable[..., Any]) -> tuple[
        dict[str, Cell], list[str], dict[str, list[str]]]:
    """(Link -> cell, of all; the links of those that are not `done(notebook, parameters)`; what each link waits for).

    A cell waits for those that are not done in the earlier stages of its grid.
    """
    cells: dict[str, Cell] = {}
    wanted: list[str] = []
    before: dict[str, list[str]] = {}
    for grid in grids:
        earlier: list[str] = []
        for stage in grid:
            links = {link(*cell): cell for cell in stage}
            for place in links:
                before[place] = [*dict.fromkeys([*before.get(place, []), *earlier])]
            new = [place for place, cell in links.items() if place not in cells and not done(*cell)]
            cells |= links
            wanted += new
            earlier = [*earlier, *(place for place in links if place in wanted)]
    return cells, wanted, before


def forget(links: Iterable[str]) -> None:
    """Remove these links: of cells whose record is not there, or is of other weights or data than there are now."""
    for place in links:
        Path(place).unlink(missing_ok=True)


def make_link(place: Path, record: Path) -> None:
    """A link to `record` at `place`, in the place of one that is there, in one step."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f"{place.name}.{os.getpid()}.part")
    new.symlink_to(os.path.relpath(record, place.parent))
    os.replace(new, place)


def link(notebook: str, parameters: dict[str, Any]) -> str:
    """Where the link to a cell's record is, as its record's own name is not known before it has run."""
    return str(records.place(parameters["runs"], ROOT) / "cells" / f"{notebook}-{records.key(parameters)}")
