import math
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from seamlib import records
from seamlib.records import typed

INTS = st.integers(-2**32 + 1, 2**32 - 1)


@given(INTS, st.integers(0, 5))
def test_a_whole_number_is_what_its_digits_say_however_many_zeros_begin_it(n, zeros):
    text = f"{'-' * (n < 0)}{'0' * zeros}{abs(n)}"
    assert typed("x", text, "int") == typed("x", n, "int") == n
    assert typed("x", n, "str") == str(n)


@given(st.floats())
def test_a_number_is_as_good_as_its_text_if_it_is_finite(value):
    if math.isfinite(value):
        assert typed("x", str(value), "float") == typed("x", value, "float") == value
        assert typed("x", value, "str") == str(value)
    else:
        for given in (value, str(value), str(value).upper()):
            with pytest.raises(ValueError, match="x is .*: it must be of type float, a finite number"):
                typed("x", given, "float")


@given(st.text(), st.sampled_from(["int", "float"]))
def test_any_text_is_a_finite_number_or_refused_in_our_words(text, kind):
    try:
        found = typed("x", text, kind)
    except ValueError as e:
        found, said = 0, str(e)
        assert said.startswith(f"x is {text!r}: it must be of type {kind}, ")
    assert math.isfinite(found)


@pytest.mark.parametrize(("value", "kind", "want"), [
    ("010", "int", 10), ("+5", "int", 5), (" 7 ", "int", 7), ("-0", "int", 0), (3, "float", 3.0),
    ("1e3", "float", 1000.0), (".5", "float", 0.5), ("010", "float", 10.0), (16, "str", "16"), (0.5, "str", "0.5"),
    ("", "str", ""),
    ("010", "str", "010"), ("yes", "str", "yes"), ("~", "str", "~"),
])
def test_values(value, kind, want):
    assert typed("x", value, kind) == want
    assert type(typed("x", value, kind)) is type(want)


@pytest.mark.parametrize(("value", "kind"), [
    ("1:30", "int"), ("1:30", "float"), ("0x10", "int"), ("0o17", "int"), ("1.0", "int"), (1.0, "int"), (2**32, "int"),
    ("1e3", "int"), (10**400, "float"), (True, "int"), (True, "float"), (False, "str"), (None, "str"), ([1], "str"),
    ({}, "float"), (1j, "float"), (b"1", "int"), ("", "float"), ("5%", "float"), ("0,5", "float"), ("1/2", "float"),
])
def test_values_that_are_refused(value, kind):
    with pytest.raises(ValueError, match=f"it must be of type {kind}, "):
        typed("x", value, kind)


def test_a_notebooks_parameters_are_of_the_types_that_it_annotates():
    names = {"__annotations__": {"sizes": str, "n": int, "rate": float}, "sizes": 16, "n": 3, "rate": 1, "other": "o"}
    assert records.given(names) == {"sizes": "16", "n": 3, "rate": 1.0}
    with pytest.raises(ValueError, match="parameter 'n' is 3.5: it must be of type int"):
        records.given({**names, "n": 3.5})


def test_least():
    records.check_least(0, a=0, b=3)
    with pytest.raises(ValueError, match="b is -1: it must be 0 or more"):
        records.check_least(0, a=0, b=-1)


def test_lists():
    assert records.listed("sizes", "16, 01", "int") == [16, 1]
    with pytest.raises(ValueError, match=r"a value of sizes \('16,'\) is '': it must be of type int"):
        records.listed("sizes", "16,", "int")


def test_a_place_is_relative_to_the_project_or_to_a_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert records.place("runs", "/project") == Path("/project/runs")
    assert records.place("~/runs", "/project") == Path("/home/me/runs")
    assert records.place("/runs", "/project") == Path("/runs")
    for nowhere in ("", "~no-such-user", "~no-such-user/runs"):
        with pytest.raises(ValueError, match=f"the path '{nowhere}' names no place: give one relative to the project"):
            records.place(nowhere, "/project")
