"""Kill a grid at random moments, let it go on, and compare it with one that nobody disturbed.

    python tests/kills.py 50
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from seamlib import records

ROOT = Path(__file__).resolve().parent.parent
TIMES = ("seconds", "seconds_of_steps", "search_seconds", "finished")


def start(runs: Path) -> subprocess.Popen[bytes]:
    """A grid of three stages in a process group of its own; what it writes goes to `runs`."""
    command = [sys.executable, ROOT / "notebooks/run.py", "grid", "tiny", "-p", f"runs={runs}", "-p", "device=cpu"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def result(runs: Path) -> dict[str, Any]:
    """All that the records in `runs` say but for times and places, by their names."""
    found = records.read_all(runs)
    return {r.stem: [{k: v for k, v in r.parameters.items() if k not in records.PLACES},
                     {k: v for k, v in r.results.items() if k not in TIMES}, r.sha256] for r in found}


def main(kills: int) -> int:
    """0 if each grid that was killed, as often as it took to have `kills` in all, ended as the undisturbed one."""
    home, draw, wrong, killed, grids = ROOT / "runs" / "kills", random.Random(0), 0, 0, 0
    shutil.rmtree(home, ignore_errors=True)
    began = time.monotonic()
    if start(home / "undisturbed").wait():
        raise SystemExit("the grid that nobody disturbed failed")
    lasts, want = time.monotonic() - began, result(home / "undisturbed")
    while killed < kills:
        runs, ended, grids = home / str(grids), None, grids + 1
        while ended is None:
            process = start(runs)
            try:
                ended = process.wait(draw.uniform(0, lasts) if killed < kills else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
        left = [p.name for p in runs.rglob("*") if p.suffix in (".part", ".unfinished")]
        ok = ended == 0 and result(runs) == want and not left
        wrong += not ok
        print(f"{killed} kills, grid {grids}: {'equal' if ok else f'DIFFERS, or left {left}'}", flush=True)
        if ended != 0:  # by itself: so would the next one
            break
    print(f"{killed} kills, {grids} grids of {len(want)} records and {lasts:.0f} s undisturbed, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
