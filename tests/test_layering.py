"""Arrows between modules point one way (the shape of the library)."""

import ast

import pytest
from conftest import ROOT

MAY_USE = {
    "runtime": set(), "stream": set(), "cache": {"runtime"}, "layouts": {"stream"}, "remos": {"evaluate", "masks"},
    "superclasses": set(), "masks": {"runtime"}, "fold": set(), "lowering": set(), "capture": set(),
    "overlap": set(), "compaction": {"evaluate", "fold"}, "structure": {"compaction"},
    "data": {"runtime", "stream", "superclasses", "layouts"}, "models": {"runtime"}, "evaluate": {"runtime"},
    "cost": {"runtime"}, "timing": {"runtime"}, "export": {"runtime"}, "records": {"runtime"}, "figures": set(),
    "search": {"runtime", "cache", "capture", "masks", "models", "evaluate", "fold", "lowering", "structure"},
    "finetune": {"runtime", "evaluate", "cache"},
    "artefact": {"masks", "models", "search"}, "many": {"runtime", "masks", "evaluate", "search", "structure"},
    "tasks": {"runtime", "data", "evaluate", "superclasses"},
    "robustness": {"runtime", "cache", "evaluate"},
    "indirect": {"runtime", "cache", "data", "stream", "finetune", "models", "remos", "search", "masks", "tasks"},
    "compare": {"runtime", "evaluate", "export", "timing"},
    "restore": {"runtime", "data", "masks", "models", "tasks", "search", "records"},
}
WITHOUT_TORCH = {"records", "figures"}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f".{node.module}"} if node.level and node.module else {
                f".{a.name}" for a in node.names} if node.level else {(node.module or "").partition(".")[0]}
    return found


def test_every_module_is_named_here():
    assert {p.stem for p in (ROOT / "seamlib").glob("*.py")} == MAY_USE.keys() | {"__init__"}


@pytest.mark.parametrize("name", sorted(MAY_USE))
def test_a_module_knows_only_those_below_it(name):
    used = imports(ROOT / "seamlib" / f"{name}.py")
    assert {u.removeprefix(".") for u in used if u.startswith(".")} <= MAY_USE[name]
    assert name not in WITHOUT_TORCH or "torch" not in used


@pytest.mark.parametrize("path", sorted((ROOT / "seamlib").glob("*.py")), ids=lambda p: p.stem)
def test_the_library_never_prints_or_reads_argv_or_environment(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Name) and node.id in ("print", "input"))
        assert not (isinstance(node, ast.Attribute) and node.attr in ("argv", "getenv"))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):  # setting one is not reading it
            assert node.value.attr != "environ" or isinstance(node.ctx, ast.Store)
    uses = sum(isinstance(n, ast.Attribute) and n.attr == "environ" for n in ast.walk(ast.parse(path.read_text())))
    assert uses == (1 if path.stem == "timing" else 0)  # DeepSparse's reports home are switched off
