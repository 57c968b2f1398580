"""Records: one JSON file a run, with everything that produced it and every number that came out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import runtime

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "seamlib-record-1"
PLACES = ("device", "data", "runs", "weights", "commit")  # parameters that say where, not what

# Parameters that were added since, and the value at which nothing changes.
LATER = {"structure": 0.0, "path": "", "head": "linear", "norms": "frozen", "lr_norms": 0.01,
         "labels": "hard", "temperature": 2.0, "others": "once", "size": 0, "planted": "",
         "repeats": 1, "pick": "paper"}


@dataclass(frozen=True)
class Record:
    """One finished run. `results` holds numbers (or None, lists and mappings of them), never text."""

    experiment: str  #: name of the notebook
    task: str  #: the target problem, e.g. "binary3"
    parameters: Mapping[str, Any]  #: every parameter of the notebook
    results: Mapping[str, Any]
    seed: int
    commit: str
    dirty: bool  #: whether tracked files differed from the commit
    device: Mapping[str, Any]  #: kind, name, threads, features, and the precision of training steps
    seconds: float
    sha256: Mapping[str, str]  #: digests of weights, data and (where there are some) masks
    versions: Mapping[str, str] = field(default_factory=runtime.versions)
    finished: str = field(default_factory=runtime.now)  #: UTC, to the second
    schema: str = SCHEMA

    @property
    def precision(self) -> str:
        """What training steps ran in: "fp32" or "bf16"; empty where there were none."""
        return str(self.device.get("precision", self.parameters.get("precision", "")))

    @property
    def stem(self) -> str:
        """Path of the record without its suffix: <experiment>/<model>-<dataset>-<task>-<device kind>-<hash8>."""
        parts = [self.parameters.get("model", ""), self.parameters.get("dataset", ""), self.task, self.device["kind"]]
        clean = [re.sub(r"[^A-Za-z0-9]+", "_", str(p)).strip("_") for p in parts if p]
        return f"{self.experiment}/{'-'.join([*clean, key(self.parameters)])}"


def key(parameters: Mapping[str, Any]) -> str:
    """Eight hex digits over all parameters but those that say where things are (device, folders, files, commit).

    A parameter of LATER at its neutral value counts as not given, so that records from before it keep their names. So
    does the precision "auto" as what it was then, "bf16"; what it came to is in a record's `device`.
    """
    what = {k: v for k, v in parameters.items() if k not in PLACES and not (k in LATER and v == LATER[k])}
    what |= {"precision": "bf16"} if what.get("precision") == "auto" else {}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def write(record: Record, root: Path | str) -> Path:
    """Write `record` below `root` and return its path. A crash while writing leaves no file that reads as a record.

    Raises ValueError for a result that is not a finite number.
    """
    _check_numbers(record.results, "results")
    path = Path(root) / f"{record.stem}.json"
    with runtime.atomic(path) as part:
        part.write_text(json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n")
    return path


def read(path: Path | str) -> Record:
    """The record at `path`; ValueError if the file is no whole record of this schema, with all that one must have."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no record at {path}: give the .json file that a run wrote")
    try:
        content = json.loads(path.read_text())
        schema = content.get("schema", SCHEMA)
        record = Record(**content) if schema == SCHEMA else None
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path} is not a whole record ({e}): delete it and run its notebook again") from e
    if record is None:
        raise ValueError(f"{path} has record format {schema!r}: this version reads {SCHEMA}")
    for name, value, ok, what in (
        ("experiment", record.experiment, _text(record.experiment) and bool(re.fullmatch(r"\w+", record.experiment)),
         "the name of a notebook"),
        ("parameters", record.parameters, isinstance(record.parameters, dict), "a mapping"),
        ("results", record.results, isinstance(record.results, dict), "a mapping"),
        ("device", record.device, isinstance(record.device, dict) and "kind" in record.device, "a mapping with kind"),
        ("sha256", record.sha256, isinstance(record.sha256, dict) and all(map(_text, record.sha256.values())),
         "a mapping of texts"),
    ):
        if not ok:
            raise ValueError(f"{path} is not a whole record: {name} is {str(value)[:80]!r}, it must be {what}")
    _check_numbers(record.results, f"{path}: results")
    return record


def _text(value: Any) -> bool:
    return isinstance(value, str)


def tensors_of(record: Record, path: Path | str) -> Path:
    """The file of masks, or of a student, beside the `record` at `path`: under its name, or under the record's own.

    Raises FileNotFoundError where there is neither.
    """
    places = [Path(path).with_suffix(".safetensors"), Path(path).with_name(f"{Path(record.stem).name}.safetensors")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"the masks or student of {path} are not beside it: put {places[-1].name} there, or "
                                "run its cell again")
    return found


def find(pattern: str, roots: Iterable[Path | str]) -> Path:
    """The first record whose stem matches `pattern` (a name, or with *), by root, then by name.

    Raises FileNotFoundError, with the roots, where there is none.
    """
    roots = list(roots)
    found = next((path for root in roots for path in sorted(Path(root).glob(f"{pattern}.json"))), None)
    if found is None:
        raise FileNotFoundError(f"no record {pattern} in {' or '.join(map(str, roots))}: run its notebook first, or "
                                "give another (<experiment>/<name>, without its suffix)")
    return found


def read_all(roots: Path | str | Iterable[Path | str], experiment: str = "*") -> list[Record]:
    """All records of `experiment` (default: of every one) below `roots`, in order of path; a later root wins."""
    roots = [roots] if isinstance(roots, str | Path) else list(roots)
    found = {path.relative_to(root): path for root in map(Path, roots) for path in root.glob(f"{experiment}/*.json")}
    return [read(found[name]) for name in sorted(found)]


def table(records: Iterable[Record], columns: Mapping[str, str]) -> pd.DataFrame:
    """One row a record. `columns` maps a heading to a dotted path, e.g. {"kept": "results.kept_fraction.paper"}.

    Raises KeyError, with what there is instead, for a path that a record does not have.
    """
    import pandas as pd  # a second to import

    return pd.DataFrame([{heading: _at(record, path) for heading, path in columns.items()} for record in records],
                        columns=list(columns))


def _at(record: Record, path: str) -> Any:
    value: Any = dataclasses.asdict(record)
    for part in path.split("."):
        if part not in value:
            raise KeyError(f"no {part!r} of {path!r} in {record.stem}: there is {', '.join(map(str, value))}")
        value = value[part]
    return value


def _check_numbers(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for k, v in value.items():
            _check_numbers(v, f"{where}.{k}")
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            _check_numbers(v, f"{where}[{i}]")
    elif value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
        raise ValueError(f"{where} is {value!r}: a result must be a finite number, or None where there is none")
