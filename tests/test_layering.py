"""Arrows between modules point one way (the shape of the library)."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

ROOMS = {  # its files, from the ground up: each knows those before it; and the rooms that it knows
    "records": (["parameters", "runtime", "records", "cache"], set()),
    "plain": ([], set()),
    "evaluate": ([], {"records", "plain"}),
    "trial": ([], {"evaluate", "plain"}),
    "figures": (["style", "searches", "costs", "students"], set()),
    "zoo": ([], {"records"}),
    "models": ([], {"zoo", "plain", "records"}),
    "masks": (["masks", "norms", "file", "overlap"], {"plain", "records"}),
    "structure": (["ordinary", "fold", "nodes", "channels", "compaction", "gates"], {"evaluate", "plain", "trial"}),
    "problems": (["superclasses", "drawn", "stream", "layouts", "memory", "data", "tasks"], {"records", "evaluate"}),
    "search": (["settings", "found", "checks", "log", "checkpoints", "capture", "lowering", "loop", "many"],
               {"masks", "structure", "models", "records", "evaluate", "plain", "trial"}),
    "reuse": (["finetune", "remos", "defects", "backdoor", "indirect"],
              {"search", "problems", "masks", "models", "records", "evaluate", "plain"}),
    "ship": (["operators", "cost", "timing", "export", "compare", "import_seam"],
             {"search", "masks", "models", "records", "evaluate", "plain", "trial"}),
    "restore": ([], {"search", "problems", "masks", "models", "records"}),
    "together": ([], {"ship", "search", "problems", "masks", "records", "evaluate"}),
}
LIBRARY = ROOT / "seamlib"
# Parsed before any test runs: CPython up to 3.11.7 fails where another thread parses too (gh-106905).
TREES = {path: ast.parse(path.read_text()) for path in sorted(LIBRARY.rglob("*.py"))}
FILES = sorted(p.relative_to(LIBRARY).with_suffix("").as_posix() for p in LIBRARY.rglob("*.py"))
WITHOUT_TORCH = ("records/records", "figures/")


def imports(name):
    """(Files and rooms of the library that file `name` imports, as paths in it; other packages)."""
    path, inside, outside = LIBRARY / f"{name}.py", set(), set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            outside |= {a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            start = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            files = [start / a.name for a in node.names]
            inside |= {(f if f.with_suffix(".py").is_file() or f.is_dir() else start).relative_to(LIBRARY).as_posix()
                       for f in files}
    return inside, outside


def test_every_file_has_its_room_here_and_rooms_know_only_those_above_them_in_the_list():
    listed = {f"{room}/{file}" if files else room for room, (files, _) in ROOMS.items() for file in files or [""]}
    assert {f for f in FILES if not f.endswith("__init__")} == listed
    for i, (room, (_, known)) in enumerate(ROOMS.items()):
        assert known <= set(list(ROOMS)[:i]), room


@pytest.mark.parametrize("name", [f for f in FILES if not f.endswith("__init__")])
def test_a_file_knows_only_those_below_it(name):
    inside, outside = imports(name)
    room, _, file = name.partition("/")
    files, rooms = ROOMS[room]
    for used in inside:
        other, _, part = used.partition("/")
        if other == room:
            assert part in files[:files.index(file)], f"{name} reaches up, or around, to {used}"
        else:
            assert other in rooms, f"{name} reaches to {used}: {room} may know {', '.join(sorted(rooms)) or 'nothing'}"
            assert used in FILES, f"{name} takes from the room {used}: name the file, whose source caches go by"
    assert not name.startswith(WITHOUT_TORCH) or "torch" not in outside


def test_a_room_hands_on_its_own_names_and_says_what_each_file_is_for():
    for room, (files, _) in ROOMS.items():
        if files:
            inside, outside = imports(f"{room}/__init__")
            assert {used.partition("/")[0] for used in inside} == {room}
            assert not outside
            said = ast.get_docstring(TREES[LIBRARY / room / "__init__.py"])
            assert all(f"`{file}`" in said for file in files), room


def test_no_file_has_outgrown_its_idea():
    lines = {f: len((LIBRARY / f"{f}.py").read_text().splitlines()) for f in FILES}
    assert not {f: n for f, n in lines.items() if n > 320}


@pytest.mark.parametrize("path", TREES, ids=lambda p: p.stem)
def test_the_library_never_prints_or_reads_argv_or_environment(path):
    for node in ast.walk(TREES[path]):
        assert not (isinstance(node, ast.Name) and node.id in ("print", "input"))
        assert not (isinstance(node, ast.Attribute) and node.attr in ("argv", "getenv"))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):  # setting one is not reading it
            assert node.value.attr != "environ" or isinstance(node.ctx, ast.Store)
    uses = sum(isinstance(n, ast.Attribute) and n.attr == "environ" for n in ast.walk(TREES[path]))
    assert uses == (1 if path.stem == "timing" else 0)  # DeepSparse's reports home are switched off


def test_the_library_is_imported_without_torchvision_and_timm_which_take_seconds():
    code = "import sys, seamlib; print({'torchvision', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
