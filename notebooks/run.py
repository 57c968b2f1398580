"""Run the notebooks: one cell or a grid of them, each once; keep and recompute their records.

    python notebooks/run.py cell direct_binary -p target_class=5
    python notebooks/run.py grid quick --jobs 2
    python notebooks/run.py grid paper -p target_class=0
    python notebooks/run.py keep runs/direct_binary/*.json
    python notebooks/run.py verify book/results/direct_binary/*.json
    python notebooks/run.py pages

A cell is a notebook with parameters. It is run by papermill into runs/<notebook>/<hash>.ipynb, with a log beside it,
and writes a record; a cell whose record is there is skipped, so a grid that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import contextlib
import fcntl
import itertools
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import invitation
import papermill
import yaml

from seamlib import models, records
from seamlib.records import runtime

ROOT = Path(__file__).resolve().parent.parent
REPORT = "runs/report"  # what `make report` computes for the book, each time anew
KEPT = ROOT / "book" / "results"
STARTS = 3  # of a kernel, before it is given up
TYPES = {"str": str, "int": int, "float": float, "bool": bool}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what, text in (("cell", "notebook", "run one notebook"), ("grid", "preset", "run a preset of grid.yml")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument(what)
        sub.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", dest="given")
        sub.add_argument("--jobs", type=int, default=1, help="cells at a time")
    for verb, text in (("keep", "copy records and masks to book/results"), ("verify", "recompute records from masks")):
        verbs.add_parser(verb, help=text).add_argument("records", nargs="+", type=Path)
    sub = verbs.add_parser("pages", help="execute the book's pages and walkthroughs; add the quick notebooks")
    sub.add_argument("--jobs", type=int, default=1, help="pages at a time")
    args = parser.parse_args(argv)
    try:
        if args.verb == "cell":
            return run_cell(args.notebook, split_given(args.given))
        if args.verb == "grid":
            return run_grid(args.preset, split_given(args.given), args.jobs)
        if args.verb == "pages":
            return pages(args.jobs)
        return sum((keep if args.verb == "keep" else verify)(path) for path in args.records) and 1
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def split_given(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a dict; values stay text until the notebook's types are known."""
    for text in given:
        if "=" not in text:
            raise ValueError(f"-p {text!r} is no NAME=VALUE")
    return dict(text.split("=", 1) for text in given)


def declared(notebook: str) -> dict[str, tuple[str, Any]]:
    """Name -> (type name, default) of the parameters of `notebook`, in the order of its parameters cell."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        there = sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb"))
        raise ValueError(f"unknown notebook {notebook!r}: allowed are {', '.join(there)}")
    found = papermill.inspect_notebook(path)
    return {name: (p["inferred_type_name"], ast.literal_eval(p["default"])) for name, p in found.items()}


def checked(notebook: str, given: dict[str, Any]) -> dict[str, Any]:
    """All parameters of the cell: `given` (values, or text of any) over the defaults; ValueError if one is wrong."""
    known = declared(notebook)
    parameters = {name: default for name, (_, default) in known.items()}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{notebook} has no parameter {name!r}: allowed are {', '.join(known)}")
        kind = known[name][0]
        if isinstance(value, str) and kind != "str":
            value = yaml.safe_load(value)
        if kind == "float" and isinstance(value, str | int) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                value = float(value)
        if type(value) is not TYPES[kind]:
            raise ValueError(f"parameter {name!r} of {notebook} is {value!r}: it must be of type {kind}")
        parameters[name] = value
    return parameters


def command(record: records.Record) -> str:
    """What to type to run again what made `record`; parameters at their defaults are left out."""
    if record.experiment == "speed":
        return "make bench"
    defaults = {name: default for name, (_, default) in declared(record.experiment).items()}
    parameters = {name: record.precision if name == "precision" else value for name, value in record.parameters.items()}
    given = [f"-p {shlex.quote(f'{name}={value}')}" for name, value in parameters.items()
             if value != defaults.get(name) and name not in ("runs", "commit", "device")]
    return " ".join(["python notebooks/run.py cell", record.experiment, *given])


def finished(notebook: str, parameters: dict[str, Any]) -> Path | None:
    """The record of this cell, if there is a whole one from the same weights file and, if one was asked for by name,
    in the same precision."""
    folder = ROOT / parameters["runs"] / notebook
    kind = runtime.device(parameters["device"]).type
    wanted = parameters.get("precision", "auto")
    for path in folder.glob(f"*-{kind}-{records.key(parameters)}.json"):
        with contextlib.suppress(ValueError, OSError):
            record = records.read(path)
            same = wanted in ("auto", record.precision)
            if same and record.parameters.get("weights") == parameters.get("weights"):
                for file in files_of(record, path):  # raises if the weights it made are another run's
                    file.stat()
                return path
    return None


def files_of(record: records.Record, path: Path) -> list[Path]:
    """What belongs to the record at `path`: its masks or student, the weights that it trained, or nothing."""
    if "masks" in record.sha256 or record.experiment == "indirect_reuse":
        return [path.with_suffix(".safetensors")]
    if record.experiment != "train_source":
        return []
    weights = models.trained_path(path.parent.parent, f"{record.parameters['model']}-{record.parameters['dataset']}")
    if runtime.digest(models.read_weights(weights)) != record.sha256["weights"]:
        raise ValueError(f"{weights} is not what {path.name} made: run its cell again")
    return [weights]


def execute(notebook: Path, output: Path, **how: Any) -> None:
    """Run a notebook by papermill. Kernels that start at one time may choose the same port: one of them starts anew."""
    for attempt in reversed(range(STARTS)):
        try:
            papermill.execute_notebook(notebook, output, kernel_name="python3", cwd=ROOT, progress_bar=False,
                                       extra_arguments=["--log-level=CRITICAL"], **how)
            return
        except RuntimeError as e:
            if attempt == 0 or "before replying" not in str(e):
                raise


def run_cell(notebook: str, given: dict[str, Any]) -> int:
    """Run one cell unless its record is there. 0 if the record is there at the end."""
    parameters = checked(notebook, given)
    stem = ROOT / parameters["runs"] / notebook / records.key(parameters)
    stem.parent.mkdir(parents=True, exist_ok=True)
    with open(stem.with_suffix(".lock"), "w") as lock, open(stem.with_suffix(".log"), "a") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{notebook} {stem.name}: is being run by another process", file=sys.stderr)
            return 1
        if done := finished(notebook, parameters):
            print(f"{notebook} {stem.name}: has a record, {done}")
            return 0
        print(f"{notebook} {stem.name}: running, log in {stem.with_suffix('.log')}\n", end="", flush=True)
        try:
            execute(ROOT / "notebooks" / f"{notebook}.ipynb", stem.with_suffix(".ipynb"), parameters=parameters,
                    log_output=True, stdout_file=log, stderr_file=log)
        except papermill.PapermillExecutionError as e:
            print(f"{notebook} {stem.name}: failed at cell {e.exec_count}, log in {stem.with_suffix('.log')}\n"
                  f"{e.ename}: {e.evalue}", file=sys.stderr)
            return 1
        done = finished(notebook, parameters)
        if done is None:
            print(f"{notebook} {stem.name}: ended without a record", file=sys.stderr)
            return 1
        print(f"{notebook} {stem.name}: wrote {done}\n", end="", flush=True)
        return 0


def cells(preset: str, given: dict[str, Any]) -> list[list[tuple[str, dict[str, Any]]]]:
    """The stages of a preset, each a list of cells that do not depend on one another; every cell is checked."""
    grid = yaml.safe_load((ROOT / "notebooks" / "grid.yml").read_text())
    runtime.check_choice("preset", preset, tuple(grid))
    used: set[str] = set()
    stages: list[list[tuple[str, dict[str, Any]]]] = []
    for stage in grid[preset]:
        stages.append([])
        for entry in stage if isinstance(stage, list) else [stage]:
            known = declared(entry["notebook"])
            mine = {name: value for name, value in given.items() if name in known}
            used |= set(mine)
            axes = {**entry.get("parameters", {}), **mine}
            lists = [_values(value) for value in axes.values()]
            stages[-1] += [(entry["notebook"], checked(entry["notebook"], dict(zip(axes, values, strict=True))))
                           for values in itertools.product(*lists)]
    if unused := set(given) - used:
        raise ValueError(f"no notebook of preset {preset!r} has a parameter {sorted(unused)[0]!r}")
    return stages


def _values(value: Any) -> list[Any]:
    """The values of one axis: a list as it is; for "records:PATTERN", the stems of the records that match.

    Those that are kept and those in runs/.
    """
    if isinstance(value, str) and value.startswith("records:"):
        pattern = value.removeprefix("records:")
        return sorted({p.relative_to(folder).with_suffix("").as_posix() for folder in (KEPT, ROOT / "runs")
                       for p in folder.glob(f"{pattern}.json")})
    return value if isinstance(value, list) else [value]


def run_grid(preset: str, given: dict[str, Any], jobs: int) -> int:
    """Run the cells of a preset, `jobs` at a time, each in a kernel of its own. 0 if all have records at the end."""
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}: it must be 1 or more")
    os.environ |= _share(jobs)  # kernels inherit it
    gpus = _gpus() if jobs > 1 else 0
    for stage in cells(preset, given):
        for number, (_, parameters) in enumerate(stage):
            if gpus and parameters["device"] in ("auto", "cuda"):
                parameters["device"] = f"cuda:{number % gpus}"
        pool = concurrent.futures.ThreadPoolExecutor(jobs)
        try:
            if any([*pool.map(_tried, stage)]):
                return 1
        finally:  # after Ctrl-C nobody waits for what still runs
            pool.shutdown(wait=False, cancel_futures=True)
    return 0


def _tried(cell: tuple[str, dict[str, Any]]) -> int:
    """`run_cell`; what stops it is said, and stops no other cell."""
    try:
        return run_cell(*cell)
    except (ValueError, OSError, RuntimeError) as e:  # the last: a kernel that died
        print(f"{cell[0]} {records.key(cell[1])}: {type(e).__name__}: {e}\n", end="", file=sys.stderr)
        return 1


def _gpus() -> int:
    """GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()


def _share(jobs: int) -> dict[str, str]:
    """The environment in which `jobs` processes at a time share the cores; what is set already stays."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    return {} if jobs == 1 else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}


def pages(jobs: int = 1) -> int:
    """Put executed notebooks where the book renders them: report pages, walkthroughs, a run of each quick notebook."""
    target = ROOT / "book" / "runs"
    target.mkdir(parents=True, exist_ok=True)
    firsts: dict[str, dict[str, Any]] = {}  # of each quick notebook: the first cell
    for notebook, parameters in itertools.chain(*cells("quick", {"runs": REPORT})):
        firsts.setdefault(notebook, parameters)
    for notebook, parameters in firsts.items():
        shutil.copyfile(ROOT / parameters["runs"] / notebook / f"{records.key(parameters)}.ipynb",
                        target / f"{notebook}.ipynb")
        invitation.invite(target / f"{notebook}.ipynb", f"notebooks/{notebook}.ipynb", ROOT)
    found = [*sorted((ROOT / "book/walkthroughs").glob("*.ipynb")), *sorted((ROOT / "book/pages").glob("*.ipynb"))]
    timing = [page for page in found if "latencies(" in page.read_text()]  # these need the machine to themselves
    others = [page for page in found if page not in timing]
    os.environ |= _share(jobs)  # kernels inherit it; threads that wait for each other stall where others have the cores
    errors = [_page(page, target) for page in timing]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        errors += pool.map(_page, others, itertools.repeat(target))
    print("".join(errors), end="", file=sys.stderr)
    return int(any(errors))


def _page(page: Path, target: Path) -> str:
    """Execute one page; what went wrong."""
    try:
        execute(page, target / page.name)
        invitation.invite(target / page.name, page.relative_to(ROOT).as_posix(), ROOT)
    except papermill.PapermillExecutionError as e:
        return f"{page.relative_to(ROOT)}: failed at cell {e.exec_count}\n{e.ename}: {e.evalue}\n"
    return ""


def keep(path: Path) -> int:
    """Copy a record, and the masks, weights or picture that go with it, to book/results. 0."""
    record = records.read(path)
    target = KEPT / f"{record.stem}.json"
    if target.is_file() and (there := records.read(target).precision) != record.precision:
        raise ValueError(f"{path} was made in {record.precision}, what is kept under its name in {there}: remove "
                         f"{target.relative_to(ROOT)} first, or run its cell with precision={there}")
    target.parent.mkdir(parents=True, exist_ok=True)
    for source in [*files_of(record, path), *path.parent.glob(f"{path.stem}.png"), path]:
        with runtime.atomic(target.parent / source.name) as part:
            shutil.copyfile(source, part)
    print(f"kept {target.relative_to(ROOT)}")
    return 0


def verify(path: Path) -> int:
    """Recompute the accuracies and kept fractions of a record from its masks and its source model. 0 if they agree."""
    from verify import recompute  # needs torch

    record = records.read(path)
    try:
        pairs = recompute(record, path, ROOT)
    except (OSError, ValueError) as e:
        needs = ", ".join(f"{what} {digest[:12]}..." for what, digest in record.sha256.items())
        print(f"{path.name}: cannot be recomputed here: needs {needs}: {e}", file=sys.stderr)
        return 1
    wrong = 0
    for name, (stated, found, tolerance) in pairs.items():
        ok = abs(stated - found) <= tolerance
        wrong += not ok
        print(f"{path.name}: {name:24} stated {stated:.6f}  recomputed {found:.6f}  {'ok' if ok else 'DIFFERS'}")
    return int(wrong > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; what has a record is kept, the same command goes on", file=sys.stderr, flush=True)
        os._exit(130)  # threads that wait for a cell are not waited for; kernels end with this process
