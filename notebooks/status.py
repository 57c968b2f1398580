"""Where a preset stands: which of its cells have their record, are being run, failed or are missing, and for how long.

A cell's lock file says who runs it, since when, and how it failed the last time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from cells import KEPT, ROOT, Cell

from seamlib import records

STATES = ("done", "running", "failed", "stopped", "outdated", "missing")
Recorded = Callable[[str, dict[str, Any], bool], Path | None]
Compare = Callable[[records.Record, dict[str, Any]], None]
SAME = ("model", "dataset", "size", "method", "attack")  # cells that agree on these and all epochs take about as long


def begin(lock: IO[str]) -> None:
    """Say in the lock file, which this process holds, who runs the cell and since when."""
    _say(lock, host=socket.gethostname(), pid=os.getpid(), since=time.time())


def failed(lock: IO[str], error: str) -> None:
    """Say in the lock file how the cell failed: the last line of `error`."""
    _say(lock, error=([line.strip() for line in error.splitlines() if line.strip()] or ["?"])[-1])


def done(lock: IO[str]) -> None:
    """Say in the lock file that nobody runs the cell, and nothing went wrong."""
    _say(lock)


def _say(lock: IO[str], **what: Any) -> None:
    lock.seek(0)
    lock.truncate()
    json.dump(what, lock)
    lock.flush()


def state(lock: Path) -> dict[str, Any]:
    """What the lock file of a cell says, with `running`: whether a process holds it."""
    try:
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                running = False
            except BlockingIOError:
                running = True
            with contextlib.suppress(ValueError):  # of a process that was killed while it wrote
                return {**json.load(file), "running": running}
            return {"running": running}
    except FileNotFoundError:
        return {"running": False}


def rows(stages: list[list[Cell]], recorded: Recorded, compare: Compare) -> list[dict[str, Any]]:
    """One row a cell: `cell`, `state` of STATES, `seconds` so far, `expected` in all (None where no record of its kind
    is there), and `what`: its record, who runs it, the error's last line, or what its record was not made from.

    `recorded(notebook, parameters, True)` is a cell's record, `compare(record, parameters)` raises if that is outdated.
    """
    expected = _expected()
    found = []
    for notebook, parameters in (cell for stage in stages for cell in stage):
        stem = records.place(parameters["runs"], ROOT) / notebook / records.key(parameters)
        row = {"cell": f"{notebook} {stem.name}", "state": "missing", "seconds": 0.0,
               "expected": expected.get(_kind(notebook, parameters)), "what": ""}
        now = state(stem.with_suffix(".lock"))
        if now["running"]:
            row |= {"state": "running", "seconds": time.time() - now.get("since", time.time()),
                    "what": f"process {now.get('pid', '?')} on {now.get('host', '?')}"}
        elif path := recorded(notebook, parameters, True):
            record = records.read(path)
            row |= {"state": "done", "seconds": record.seconds, "expected": record.seconds, "what": path.name}
            try:
                compare(record, parameters)
            except (ValueError, OSError, KeyError) as e:
                row |= {"state": "outdated", "seconds": 0.0, "what": str(e)}
        elif "error" in now:
            row |= {"state": "failed", "what": now["error"]}
        elif "since" in now:
            row |= {"state": "stopped", "what": f"on {now['host']}, to go on"}
        found.append(row)
    return found


def told(stages: list[list[Cell]], recorded: Recorded, compare: Compare) -> int:
    """Print the table, and the sums. 0 if all cells are done."""
    found = rows(stages, recorded, compare)
    width = max(len(row["cell"]) for row in found)
    for row in found:
        print(f"{row['cell']:{width}}  {row['state']:8} {_time(row['seconds']):>9} of {_time(row['expected']):>9}  "
              f"{row['what']}"[:160].rstrip())
    counts = {name: sum(row["state"] == name for row in found) for name in STATES}
    left = [row["expected"] and max(row["expected"] - row["seconds"], 0) for row in found if row["state"] != "done"]
    print(", ".join(f"{n} {name}" for name, n in counts.items() if n) + f"; spent {_time(_sum(found, 'seconds'))}"
          + (f", left about {_time(sum(s or 0 for s in left))} of one cell at a time" if any(left) else "")
          + (f", not counting {left.count(None)} cells of whose kind there is no record" if None in left else ""))
    for line in _mixed(stages, recorded):
        print(line)
    return int(counts["done"] < len(found))


def _mixed(stages: list[list[Cell]], recorded: Recorded) -> list[str]:
    """What the records of these cells do not agree on although they should: weights, data, precision; changed code."""
    seen: dict[tuple[str, ...], dict[str, str]] = {}
    for notebook, parameters in (cell for stage in stages for cell in stage):
        if path := recorded(notebook, parameters, True):
            r = records.read(path)
            of = tuple(str(r.parameters.get(name, "")) for name in ("model", "source", "dataset"))
            if "model" in r.parameters and notebook not in ("train_source", "retrain"):
                for what, value in {**r.sha256, "precision": r.precision}.items():
                    if what in ("weights", "data", "precision"):
                        seen.setdefault((what, "-".join(filter(None, of))), {}).setdefault(value, path.name)
            if r.dirty:
                seen.setdefault(("changed code", r.commit[:8]), {})[path.name] = path.name
    return [f"careful: the {what} of {of} are not the same everywhere: " + ", ".join(
        f"{digest[:12]} in {name}" for digest, name in digests.items()) if what != "changed code" else
        f"careful: {len(digests)} records are of code that differed from commit {of}, such as {min(digests)}"
        for (what, of), digests in seen.items() if len(digests) > 1 or what == "changed code"]


def _expected() -> dict[tuple[Any, ...], float]:
    """Kind of cell -> the median of the seconds of its records, kept and in runs/."""
    times: dict[tuple[Any, ...], list[float]] = {}
    for record in records.read_all([KEPT, ROOT / "runs"]):
        times.setdefault(_kind(record.experiment, record.parameters), []).append(record.seconds)
    return {kind: statistics.median(seconds) for kind, seconds in times.items()}


def _kind(notebook: str, parameters: Any) -> tuple[Any, ...]:
    epochs = tuple(value for name, value in sorted(parameters.items()) if name.startswith("epochs"))
    return notebook, epochs, *(parameters.get(name, records.LATER.get(name)) for name in SAME)


def _sum(found: list[dict[str, Any]], column: str) -> float:
    return sum(row[column] or 0 for row in found)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else (
        f"{seconds:.0f} s")
