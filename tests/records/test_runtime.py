import os

import pytest
import torch
from conftest import ROOT

from seamlib.records import runtime


def test_devices():
    assert runtime.device("cpu") == torch.device("cpu")
    assert runtime.device().type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu': allowed are auto, cpu, cuda and cuda:N"):
        runtime.device("gpu")
    with pytest.raises(ValueError, match="'cuda:99' is not on this machine"):
        runtime.device("cuda:99")


def test_a_digest_depends_on_names_types_shapes_and_bytes_alone():
    a, b = torch.arange(4.0), torch.ones(2, 2)
    digest = runtime.digest({"a": a, "b": b})
    assert digest == runtime.digest({"b": b.t().contiguous(), "a": a.clone()})
    assert len(digest) == 64
    for other in ({"a": a, "c": b}, {"a": a.double(), "b": b}, {"a": a.view(2, 2), "b": b}, {"a": a + 1, "b": b}):
        assert runtime.digest(other) != digest


def test_an_atomic_write_that_fails_leaves_nothing(tmp_path):
    def half_write():
        with runtime.atomic(tmp_path / "x") as part:
            part.write_text("half")
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        half_write()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_by_the_next_write_and_nothing_else_is(tmp_path):
    path = tmp_path / "a[b].json"
    left = [tmp_path / f".{path.name}.{i}.part" for i in range(3)]
    others = [tmp_path / ".other.json.0.part", tmp_path / ".a[b].json.part2", tmp_path / "a[b].json.0.part"]
    for file in (*left, *others):
        file.touch()
    with runtime.atomic(path) as first:  # is being written while another writes
        with runtime.atomic(path) as second:
            second.write_text("second")
        assert first.is_file()
        first.write_text("first")
    assert path.read_text() == "first"
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_what_is_written_may_be_read_by_whom_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with runtime.atomic(tmp_path / "x") as part:
            part.touch()
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_the_project_is_around_the_working_directory_else_where_the_library_is(tmp_path, monkeypatch):
    other = tmp_path / "other"
    (other / "notebooks").mkdir(parents=True)
    (other / "pyproject.toml").touch()
    assert runtime.project(other / "notebooks") == other
    assert runtime.project(tmp_path) == ROOT
    monkeypatch.setattr(runtime, "__file__", "/site-packages/seamlib/records/runtime.py")  # installed
    assert runtime.project(tmp_path) == tmp_path


def test_seeded_gives_the_generator_back():
    before = torch.get_rng_state()
    with runtime.seeded(3, torch.device("cpu")):
        first = torch.rand(2)
    with runtime.seeded(3, torch.device("cpu")):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_provenance(tmp_path):
    assert runtime.commit(tmp_path) == ("unknown", True)
    assert runtime.versions()["torch"] == torch.__version__.split("+")[0]
    assert runtime.describe(torch.device("cpu"))["kind"] == "cpu"


@pytest.mark.parametrize(("features", "auto"), [
    (["avx2", "fma"], "fp32"), (["avx512f"], "fp32"), (["avx2", "avx512_bf16"], "bf16"), (["amx_bf16"], "bf16"),
    (["asimd"], "fp32"), (["asimd", "bf16"], "bf16")])
def test_auto_is_bf16_where_the_cpu_computes_in_it(monkeypatch, features, auto):
    monkeypatch.setattr(runtime, "cpu_features", lambda: features)
    cpu = torch.device("cpu")
    assert runtime.precision("auto", cpu) == auto
    assert runtime.precision("fp32", cpu) == "fp32"
    assert runtime.describe(cpu, "auto")["precision"] == auto
    if auto == "bf16":
        assert runtime.precision("bf16", cpu) == "bf16"
    else:
        with pytest.raises(ValueError, match=r"no AVX512-BF16, AMX or Arm bf16: emulated, it would be many times "
                                             r"slower than fp32; use precision='auto' \(fp32 here\)"):
            runtime.precision("bf16", cpu)
    with pytest.raises(ValueError, match="unknown precision 'half': allowed are auto, fp32, bf16"):
        runtime.precision("half", cpu)


def test_where_the_system_does_not_say_what_its_cpu_can_bf16_is_for_the_user_to_know(monkeypatch):
    monkeypatch.setattr(runtime, "cpu_features", list)
    assert runtime.precision("auto", torch.device("cpu")) == "fp32"
    assert runtime.precision("bf16", torch.device("cpu")) == "bf16"


def test_auto_on_cuda_goes_by_its_generation(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert runtime.precision("auto", torch.device("cuda")) == "fp32"
    assert runtime.precision("bf16", torch.device("cuda")) == "bf16"  # slow, but not by much
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert runtime.precision("auto", torch.device("cuda")) == "bf16"
