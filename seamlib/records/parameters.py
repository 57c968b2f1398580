"""The parameters of a notebook, whoever gives them (a shell, papermill, a preset or a record), and of a dataclass."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ALLOWED = {"str": "text, or a number in its place", "int": "a whole number of at most 32 bits, such as 3",
           "float": "a finite number, such as 0.5"}


def typed(what: str, value: Any, kind: str) -> Any:
    """`value`, or the number that its text says, as `kind`: "str", "int" or "float".

    A number is as good as its text. Texts are read as a person reads them: 010 is ten, and 1:30 is no number. Raises
    ValueError, which begins with `what`, for another type, an int of more than 32 bits, and a float that is not finite.
    """
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    with contextlib.suppress(ValueError, OverflowError):
        if plain and kind == "str":
            return str(value)
        if plain and kind == "int" and not isinstance(value, float) and abs(int(value)) < 2**32:
            return int(value)
        if plain and kind == "float" and math.isfinite(float(value)):
            return float(value)
    raise ValueError(f"{what} is {value!r}: it must be of type {kind}, {ALLOWED[kind]}")


def given(names: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the notebook whose globals are `names`: what it annotates, each of its type. See `typed`."""
    return {name: typed(f"parameter {name!r}", names[name], kind.__name__)
            for name, kind in names["__annotations__"].items()}


def listed(what: str, text: str, kind: str) -> list[Any]:
    """The values of `kind` in `text`, separated by commas; ValueError if one of them is none, see `typed`."""
    return [typed(f"a value of {what} ({text!r})", value.strip(), kind) for value in text.split(",")]


def place(path: Path | str, root: Path | str) -> Path:
    """Where a file or folder that a parameter names is: `~` is the home folder, all else is relative to `root`.

    Raises ValueError for an empty `path`, and for the home of somebody who has none here.
    """
    whole = os.path.expanduser(path)
    if not whole or whole.startswith("~"):
        raise ValueError(f"the path {str(path)!r} names no place: give one relative to the project, from / or from ~/")
    return Path(root) / whole


def check_choice(what: str, value: str, allowed: tuple[str, ...] | list[str]) -> None:
    """Raise ValueError, with the allowed values, unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}: allowed are {', '.join(allowed)}")


def check_types(parameters: Any) -> None:
    """ValueError, by name, for a field of a dataclass that is not of its declared type, or not a finite number.

    Declared are `int`, `float` (a whole number is one too), `bool`, `str`, `tuple[float, ...]`, and each `| None`.
    Numbers of numpy, whole ones for a `float`, and lists become what is declared: what JSON can say, and one key.
    """
    for field in dataclasses.fields(parameters):
        value, (kind, *rest) = getattr(parameters, field.name), str(field.type).split(" | ")
        if value is None and rest:
            continue
        wanted, allowed = {
            "int": (numbers.Integral, "a whole number"), "bool": (bool, "True or False"), "str": (str, "a text"),
        }.get(kind, (numbers.Real, "a tuple of finite numbers" if kind.startswith("tuple") else "a finite number"))
        for v in value if kind.startswith("tuple") and isinstance(value, tuple | list) else [value]:
            number = isinstance(v, numbers.Real) and not isinstance(v, bool) and math.isfinite(v)
            if not isinstance(v, wanted) or (wanted in (numbers.Real, numbers.Integral) and not number) or (
                    kind.startswith("tuple") and v is value):
                raise ValueError(f"{field.name} is {value!r}: it must be {allowed}{', or None' if rest else ''}")
        if wanted in (numbers.Real, numbers.Integral):
            own = int if kind == "int" else float
            value = tuple(map(own, value)) if kind.startswith("tuple") else own(value)
            object.__setattr__(parameters, field.name, value)


def check_least(least: int, **values: int) -> None:
    """Raise ValueError for the first of `values` that is below `least`."""
    for what, value in values.items():
        if value < least:
            raise ValueError(f"{what} is {value}: it must be {least} or more")
