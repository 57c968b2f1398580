import shutil

import pytest
import torch

from seamlib.records import cache


def test_what_was_made_comes_back_and_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": torch.arange(3), "b": torch.ones(2, dtype=torch.bool)}, {"history": [{"loss": 0.1}]}
    for _ in range(2):
        tensors, values = cache.cached(tmp_path, "step", "seamlib.reuse.remos", {"lr": 0.1}, make)
        assert torch.equal(tensors["a"], torch.arange(3))
        assert tensors["b"].dtype == torch.bool
        assert values == {"history": [{"loss": 0.1}]}
    assert len(made) == 1


def test_it_never_answers_for_anything_else(tmp_path, monkeypatch):
    def ask(**about):
        made = cache.cached(tmp_path, "step", "seamlib.reuse.remos", about, lambda: ({}, {"made for": str(about)}))
        return made[1]["made for"]
    first = ask(lr=0.1, epochs=2)
    assert ask(epochs=2, lr=0.1) == first
    assert {ask(lr=0.2, epochs=2), ask(lr=0.1, epochs=3), ask(lr=0.1)}.isdisjoint({first})
    assert cache.key("seamlib.reuse.remos", {"lr": 0.1}) != cache.key("seamlib.search.loop", {"lr": 0.1})


@pytest.mark.parametrize(("by", "below", "beside"), [
    ("seamlib.reuse.defects", ["reuse/defects", "evaluate", "records/runtime", "records/cache"],
     ["figures", "reuse/finetune", "masks/masks", "search/loop"]),
    ("seamlib.reuse.indirect", ["reuse/finetune", "reuse/remos", "search/loop", "search/settings", "search/lowering",
                                "masks/masks", "structure/fold", "structure/nodes", "problems/data", "models"],
     ["figures", "reuse/defects", "ship/export", "restore"]),
    ("seamlib.search", ["search/__init__", "search/many", "search/loop"], ["ship/cost"]),
])
def test_a_key_is_of_the_files_that_made_it_and_of_no_others(tmp_path, monkeypatch, by, below, beside):
    library = shutil.copytree(cache.LIBRARY, tmp_path / "seamlib")
    monkeypatch.setattr(cache, "LIBRARY", library)

    def key():
        cache._code.cache_clear()
        return cache.key(by, {"lr": 0.1})
    before = key()
    for name in below + beside:
        with open(library / f"{name}.py", "a") as f:
            f.write("\n")
        assert (key() == before) == (name in beside), name
        before = key()
    cache._code.cache_clear()


def test_a_damaged_file_is_made_again(tmp_path):
    def ask():
        return cache.cached(tmp_path, "step", "seamlib.reuse.remos", {}, lambda: ({"a": torch.ones(2)}, {}))[0]["a"]
    ask()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert ask().tolist() == [1, 1]
    assert cache.read(tmp_path / "nothing") is None


def test_a_key_is_never_made_of_less_than_there_is():
    with pytest.raises(FileNotFoundError, match=r"no module at .*robustness: a key is made of all sources"):
        cache.key("seamlib.robustness", {})


def test_a_parser_that_is_disturbed_by_another_thread_is_asked_again(monkeypatch):
    failures, parse = [SystemError("AST constructor recursion depth mismatch")] * 3, cache.ast.parse

    def disturbed(source):
        if failures:
            raise failures.pop()
        return parse(source)
    before = cache.key("seamlib.search", {})
    cache._code.cache_clear()
    monkeypatch.setattr(cache.ast, "parse", disturbed)
    assert cache.key("seamlib.search", {}) == before
    assert failures == []
