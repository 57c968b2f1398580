import torch

from seamlib import cache


def test_what_was_made_comes_back_and_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": torch.arange(3), "b": torch.ones(2, dtype=torch.bool)}, {"history": [{"loss": 0.1}]}
    for _ in range(2):
        tensors, values = cache.cached(tmp_path, "step", {"lr": 0.1}, make)
        assert torch.equal(tensors["a"], torch.arange(3))
        assert tensors["b"].dtype == torch.bool
        assert values == {"history": [{"loss": 0.1}]}
    assert len(made) == 1


def test_it_never_answers_for_anything_else(tmp_path, monkeypatch):
    def ask(**about):
        return cache.cached(tmp_path, "step", about, lambda: ({}, {"made for": str(about)}))[1]["made for"]
    first = ask(lr=0.1, epochs=2)
    assert ask(epochs=2, lr=0.1) == first
    assert {ask(lr=0.2, epochs=2), ask(lr=0.1, epochs=3), ask(lr=0.1)}.isdisjoint({first})
    before = cache.key({"lr": 0.1})
    monkeypatch.setattr(cache, "_code", lambda: "another version of the library")
    assert cache.key({"lr": 0.1}) != before


def test_a_damaged_file_is_made_again(tmp_path):
    def ask():
        return cache.cached(tmp_path, "step", {}, lambda: ({"a": torch.ones(2)}, {}))[0]["a"]
    ask()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert ask().tolist() == [1, 1]
    assert cache.read(tmp_path / "nothing") is None
