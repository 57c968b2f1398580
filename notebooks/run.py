"""Run the notebooks: one cell or a grid of them, each once; keep and recompute their records.

    python notebooks/run.py cell direct_binary -p target_class=5
    python notebooks/run.py grid quick --jobs 2
    python notebooks/run.py grid paper -p target_class=0
    python notebooks/run.py status cifar10
    python notebooks/run.py keep runs/direct_binary/*.json
    python notebooks/run.py verify book/results/direct_binary/*.json
    python notebooks/run.py pages

A cell is a notebook with parameters. It is run by papermill into runs/<notebook>/<hash>.ipynb, with a log beside it,
and writes a record; a cell whose record is there is skipped, so a grid that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import cluster
import invitation
import papermill
import psutil
import status
from cells import KEPT, ROOT, Cell, cells, check, checked, command as command, declared as declared, presets as presets
from verify import KINDS, recompute

from seamlib import models, records
from seamlib.records import runtime
from seamlib.restore import loaded, source, source_model

REPORT = "runs/report"  # what `make report` computes for the book, each time anew
LARGEST = 3_000_000  # bytes of a student that is kept: a larger one can be made again
STARTS = 3  # of a kernel, before it is given up


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what, text in (("cell", "notebook", "run one notebook"), ("grid", "preset", "run a preset of grid.yml"),
                             ("status", "preset", "say which cells of a preset are done, run, failed or are missing")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument(what)
        sub.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", dest="given")
        if verb == "cell":
            sub.add_argument("--gpu", action="store_true", help="wait for a GPU that no other such cell has")
            sub.add_argument("--link", type=Path, help="put a link to the record here")
        if verb == "grid":
            sub.add_argument("--jobs", default=1, help="cells at a time")
    for verb, text in (("keep", "copy records and masks to book/results"), ("verify", "recompute records from masks")):
        verbs.add_parser(verb, help=text).add_argument("records", nargs="+", type=Path)
    sub = verbs.add_parser("pages", help="execute the book's pages and walkthroughs; add the quick notebooks")
    sub.add_argument("--jobs", default=1, help="pages at a time")
    args = parser.parse_args(argv)
    loaded.cache_clear()  # what it holds may be another on disk by now
    try:
        jobs = records.typed("--jobs", getattr(args, "jobs", 1), "int")
        records.check_least(1, **{"--jobs": jobs})
        if args.verb == "cell":
            return one(args.notebook, checked(args.notebook, split_given(args.given)), args.gpu, args.link)
        if args.verb == "grid":
            return run_stages(cells(args.preset, split_given(args.given)), jobs)
        if args.verb == "status":
            return status.told(cells(args.preset, split_given(args.given)), recorded, compare)
        if args.verb == "pages":
            return pages(jobs)
    except (ValueError, OSError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return int(any([_tried(keep if args.verb == "keep" else verify, path) for path in args.records]))


def _tried(do: Callable[[Path], int], path: Path) -> int:
    """`do(path)`; what is wrong with this record is said, and stops no other."""
    try:
        return do(path)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
    except (KeyError, TypeError, AttributeError) as e:  # it was edited, or is of an early version
        print(f"error: {path} has no {e}, or something else there than its experiment writes: run its cell again",
              file=sys.stderr)
    return 1


def split_given(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a dict; values stay text until the notebook's types are known."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name in found:
            raise ValueError(f"-p {text!r} " + (f"gives {name!r} again: give each once" if equals else
                                                "is no NAME=VALUE: such as -p target_class=5"))
        found[name] = value
    return found


def one(notebook: str, parameters: dict[str, Any], gpu: bool = False, link: Path | None = None) -> int:
    """Run one cell; with `gpu`, on a GPU that it shares with no other such cell. 0 if its record is there."""
    with cluster.own_gpu(_gpus()) if gpu else contextlib.nullcontext() as number:
        if number is not None and parameters["device"] in ("auto", "cuda"):
            parameters["device"] = f"cuda:{number}"
        failed = run_stages([[(notebook, parameters)]], 1)
    path = recorded(notebook, parameters)
    if link is not None and not failed and path:
        cluster.make_link(link, path)
    return failed


def finished(notebook: str, parameters: dict[str, Any], anywhere: bool = False) -> Path | None:
    """The record of this cell, if it was made from what is there now; if that has changed or is missing, it is said."""
    if path := recorded(notebook, parameters, anywhere):
        try:
            compare(records.read(path), parameters)
        except (ValueError, OSError, KeyError) as e:
            what = "is of other things" if isinstance(e, ValueError) else "cannot be compared with what is there"
            print(f"{notebook} {records.key(parameters)}: runs again, its record {what}: {e}\n", end="")
            return None
    return path


def recorded(notebook: str, parameters: dict[str, Any], anywhere: bool = False) -> Path | None:
    """The record of this cell, if there is a whole one with its files and, if one was asked for by name, in the same
    precision. With `anywhere`, that of any machine: on device "auto" of any kind, on "cuda" though there is none here.
    """
    folder = records.place(parameters["runs"], ROOT) / notebook
    asked = parameters["device"]
    kind = asked.replace("auto", "*").partition(":")[0] if anywhere else runtime.device(asked).type
    wanted = parameters.get("precision", "auto")
    for path in folder.glob(f"*-{kind}-{records.key(parameters)}.json"):
        with contextlib.suppress(ValueError, OSError, KeyError):
            record = records.read(path)
            files_of(record, path)
            if wanted in ("auto", record.precision):
                return path
    return None


def compare(record: records.Record, parameters: dict[str, Any]) -> None:
    """Raise ValueError or OSError unless the data, the weights and the masks or student that `record` was made from are
    those that a run with `parameters` would read now."""
    of = dataclasses.replace(record, parameters=parameters)
    if "record" in parameters:
        of = records.read(records.find(parameters["record"], [records.place(parameters["runs"], ROOT), KEPT]))
        theirs, ours = ("student", "student") if "student" in record.sha256 else ("masks", "masks of the record")
        if of.sha256.get(theirs) != record.sha256[ours]:
            raise ValueError(f"{of.stem} has another {theirs} now")
    for pattern in parameters["binaries"].split(",") if "binaries" in parameters else ():
        part = records.read(records.find(pattern.strip(), [records.place(parameters["runs"], ROOT), KEPT]))
        masks = f"masks of class {part.parameters['target_class']}"
        if record.sha256.get(masks, part.sha256["masks"]) != part.sha256["masks"]:
            raise ValueError(f"{part.stem} has other masks now")
    now = source if record.experiment in ("train_source", "retrain") else source_model
    now(of, ROOT)


def files_of(record: records.Record, path: Path) -> dict[str, Path]:
    """What belongs to the record at `path`, by its name when it is kept: masks, student, or weights that it trained.

    Raises FileNotFoundError where it is not there, ValueError for weights that another run has made since.
    """
    if "masks" in record.sha256 or record.experiment in ("indirect_reuse", "planted_defect", "largest_weights"):
        return {f"{Path(record.stem).name}.safetensors": records.tensors_of(record, path)}
    if record.experiment != "train_source":
        return {}
    weights = models.trained_path(path.parent.parent, f"{record.parameters['model']}-{record.parameters['dataset']}")
    if runtime.digest(models.read_weights(weights)) != record.sha256["weights"]:
        raise ValueError(f"{weights} is not what {path.name} made: run its cell again")
    return {weights.name: weights}


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


def run_cell(notebook: str, parameters: dict[str, Any]) -> int:
    """Run one cell unless its record is there. 0 if the record is there at the end."""
    stem = records.place(parameters["runs"], ROOT) / notebook / records.key(parameters)
    what, where = f"{notebook} {stem.name}", f"log in {stem.with_suffix('.log')}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    with open(stem.with_suffix(".lock"), "a+") as lock, open(stem.with_suffix(".log"), "a") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{what}: is being run by another process, waits for it\n", end="", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system gives it up when that process ends, however it ends
        if done := finished(notebook, parameters):
            print(f"{what}: has a record, {done}\n", end="", flush=True)
            return 0
        print(f"{what}: running, {where}\n", end="", flush=True)
        status.begin(lock)
        try:
            execute(ROOT / "notebooks" / f"{notebook}.ipynb", stem.with_suffix(".ipynb"), parameters=parameters,
                    log_output=True, stdout_file=log, stderr_file=log)
        except papermill.PapermillExecutionError as e:
            return _failed(lock, f"{what}: failed at cell {e.exec_count}, {where}", f"{e.ename}: {e.evalue}")
        except RuntimeError as e:  # a kernel that died: by the system's hand, most often, for want of memory
            return _failed(lock, f"{what}: {e}, {where}", str(e))
        except OSError as e:  # a full disk, most often
            return _failed(lock, f"{what}: {type(e).__name__}: {e}", f"{type(e).__name__}: {e}")
        done = recorded(notebook, parameters)
        if done is None:
            return _failed(lock, f"{what}: ended without a record, {where}", "ended without a record")
        status.done(lock)
        print(f"{what}: wrote {done}\n", end="", flush=True)
        return 0


def _failed(lock: IO[str], said: str, error: str) -> int:
    """Say on stderr what happened to a cell, and in its lock file the error. 1."""
    print(f"{said}\n{error}\n" if error not in said else f"{said}\n", end="", file=sys.stderr)
    with contextlib.suppress(OSError):  # of a disk that is full
        status.failed(lock, error)
    return 1


def check_all(stages: Iterable[Iterable[Cell]]) -> None:
    """Every cell's own checks; ValueError, with the cell's name, for the first that does not pass."""
    for notebook, parameters in itertools.chain(*stages):
        try:
            check(notebook, parameters)
        except (ValueError, OSError) as e:
            raise ValueError(f"{notebook} {records.key(parameters)}: {e}") from e


def run_stages(stages: list[list[Cell]], jobs: int) -> int:
    """Run cells, `jobs` at a time, each in a kernel of its own, stage by stage. 0 if all have records at the end.

    Every cell's own checks come before the first cell.
    """
    check_all(stages)
    os.environ |= _share(jobs)  # kernels inherit it
    gpus = _gpus() if jobs > 1 else 0
    for stage in stages:
        for number, (_, parameters) in enumerate(stage):
            if gpus and parameters["device"] in ("auto", "cuda"):
                parameters["device"] = f"cuda:{number % gpus}"
        pool = concurrent.futures.ThreadPoolExecutor(jobs)
        try:
            if any([*pool.map(_run, stage)]):
                return 1
        finally:  # after Ctrl-C nobody waits for what still runs
            pool.shutdown(wait=False, cancel_futures=True)
    return 0


def _run(cell: Cell) -> int:
    """`run_cell`; what stops it is said, and stops no other cell."""
    try:
        return run_cell(*cell)
    except (ValueError, OSError) as e:
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
        executed = ROOT / parameters["runs"] / notebook / f"{records.key(parameters)}.ipynb"
        if not executed.is_file():
            raise FileNotFoundError(f"{executed} is not there: run `grid quick -p runs={REPORT}` first")
        shutil.copyfile(executed, target / f"{notebook}.ipynb")
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


def read(path: Path) -> records.Record:
    """The record at `path`; ValueError if it is none of an experiment of this project."""
    record = records.read(path)
    records.check_choice(f"experiment of {path}:", record.experiment, tuple(KINDS))
    return record


def keep(path: Path) -> int:
    """Copy a record, and the masks, weights or picture that go with it, to book/results under its own name. 0.

    Not a student of more than LARGEST bytes: without it the record is kept and cannot be recomputed, which is said.
    """
    record = read(path)
    target = KEPT / f"{record.stem}.json"
    if target.is_file() and (there := records.read(target).precision) != record.precision:
        raise ValueError(f"{path} was made in {record.precision}, what is kept under its name in {there}: remove "
                         f"{target.relative_to(ROOT)} first, or run its cell with precision={there}")
    files = {**files_of(record, path), target.with_suffix(".png").name: path.with_suffix(".png"), target.name: path}
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        if file.suffix == ".png" and not file.is_file():
            continue
        if record.experiment == "indirect_reuse" and (size := file.stat().st_size) > LARGEST:
            print(f"left out {name}: {size / 1e6:.1f} MB of a student, more than the {LARGEST / 1e6:g} MB that are "
                  "kept; verify needs it beside the record")
            continue
        with runtime.atomic(target.parent / name) as part:
            shutil.copyfile(file, part)
    changed = ", made with files that differ from its commit's: commit them and run its cell again" * record.dirty
    print(f"kept {target.relative_to(ROOT)}{changed}")
    return 0


def verify(path: Path) -> int:
    """Recompute the accuracies and kept fractions of a record from its masks and its source model. 0 if they agree."""
    record = read(path)
    try:
        pairs = recompute(record, path, ROOT)
    except (OSError, ValueError) as e:
        needs = ", ".join(f"{what} {digest[:12]}..." for what, digest in record.sha256.items())
        print(f"{path.name}: cannot be recomputed here: needs {needs}: {e}", file=sys.stderr)
        return 1
    wrong = 0
    for name, (stated, found, tolerance) in pairs.items():
        ok = stated is not None and abs(stated - found) <= tolerance
        wrong += not ok
        said = f"{stated:.6f}" if stated is not None else "nothing "
        print(f"{path.name}: {name:24} stated {said}  recomputed {found:.6f}  {'ok' if ok else 'DIFFERS'}")
    return int(wrong > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        for kernel in psutil.Process().children(recursive=True):
            kernel.kill()
        print("stopped; what has a record is kept, the same command goes on", file=sys.stderr, flush=True)
        os._exit(130)  # threads that wait for a cell are not waited for
