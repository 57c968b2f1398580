import copy
import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from seamlib import evaluate, masks, models
from seamlib.ship import export, timing
from seamlib.structure import compact

onnx = pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.fixture
def small():
    """A ResNet20 with half of its weights masked away, and a head."""
    body = models.build("resnet20-cifar10")
    for module in body.modules():  # statistics of a trained model: batch norm must be folded exactly
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2), module.running_var.uniform_(0.5, 2)
    mask = {n: torch.rand_like(p) > 0.5 for n, p in body.named_parameters() if n in masks.maskable(body)}
    return torch.nn.Sequential(masks.apply_masks(body, mask), models.new_head(10, 2)).eval()


def test_zeros_survive_and_the_model_is_unchanged(small, tmp_path):
    before = copy.deepcopy(small.state_dict())
    path = export.export_onnx(small.train(), torch.rand(2, 3, 32, 32), tmp_path / "model.onnx")
    assert small.training
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    graph = onnx.load(str(path)).graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    kernels = [arrays[node.input[1]] for node in graph.node if node.op_type in ("Conv", "Gemm")]
    expected = [m.weight for m in small.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)  # it is folded into the convolutions
    assert sorted(int(np.count_nonzero(k)) for k in kernels) == sorted(int(w.count_nonzero()) for w in expected)
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [2, 3, 32, 32]


@pytest.mark.parametrize("engine", ["onnxruntime", "deepsparse"])
def test_a_masked_model_with_its_head_gives_torchs_output(small, engine, tmp_path):
    if engine not in timing.installed():
        pytest.skip(f"{engine} is not installed")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = {"small": small(x)}
    path = export.export_onnx(small, x, tmp_path / "model.onnx")
    found = timing.latency({"small": path}, x, engine, expected=expected, rounds=1, threads=1)
    assert found.by_model["small"]["error"] < 1e-4


def test_any_number_of_images_names_and_provenance(small, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    path = export.export_onnx(small, torch.rand(2, 3, 32, 32), tmp_path / "model.onnx", any_batch=True,
                              classes=["other", "cat"], about={"source": "resnet20-cifar10"})
    session = runtime.InferenceSession(str(path))
    assert session.get_modelmeta().custom_metadata_map == {"classes": '["other", "cat"]', "source": "resnet20-cifar10"}
    for n in (1, 5):
        x = torch.rand(n, 3, 32, 32)
        (found,) = session.run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), small(x), rtol=1e-3, atol=1e-4)


def test_a_file_that_answers_differently_is_not_written(tmp_path):
    class Counts(torch.nn.Module):
        """Its answer depends on the number of images, which tracing takes for a constant."""

        def forward(self, x):
            return x.flatten(1) * len(x)
    with pytest.raises(ValueError, match=r"onnxruntime's logits, for 4 images, differ from torch's by .* of the l"):
        export.export_onnx(Counts().eval(), torch.rand(2, 3), tmp_path / "model.onnx", any_batch=True)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_what_was_there(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no")
    path = tmp_path / "model.onnx"
    path.write_text("before")
    with pytest.raises(ValueError, match="Odd does not take float32 images of shape .*: no$"):
        export.export_onnx(Odd(), torch.rand(1, 2), path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_without_onnx_the_error_says_how_to_get_it(small, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package onnx: pip install onnx"):
        export.export_onnx(small, torch.rand(1, 3, 32, 32), tmp_path / "model.onnx")


@pytest.mark.parametrize("answer", [
    lambda body: evaluate.restrict(body, [3, 0, 7]), lambda body: evaluate.one_vs_rest(body, 2, corrected=True),
    lambda body: evaluate.one_vs_rest(body, 2, corrected=False),
    lambda body: evaluate.then(body, evaluate.RestrictedHead(evaluate.Restrict([4, 1]), 2)),
    lambda body: evaluate.then(body, evaluate.RestrictedHead(evaluate.OneVsRest(9), 2)),
])
def test_the_restricted_original_is_compacted_and_exported_like_any_model(small, answer, tmp_path):
    model, x = answer(small[0]), torch.rand(2, 3, 32, 32)
    compacted, _ = compact(model, x)
    with torch.no_grad():
        torch.testing.assert_close(compacted(x), model(x), atol=1e-4, rtol=1e-4)
    assert export.export_onnx(compacted, x, tmp_path / "model.onnx", any_batch=True).is_file()  # it compares the logits


class Attends(torch.nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention, self.need = torch.nn.MultiheadAttention(8, 2, batch_first=True), need_weights
        self.out = torch.nn.Linear(8, 3)

    def forward(self, x, scale=1.0):  # an argument that images do not fill
        return self.out(scale * self.attention(x, x, x, need_weights=self.need)[0].mean(1))


def encoder(**options):
    return torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)


def test_one_class_against_the_rest_is_written_without_the_operator_that_openvino_gets_wrong(small, tmp_path):
    head = evaluate.RestrictedHead(evaluate.OneVsRest(9), 2)
    path = export.export_onnx(evaluate.then(small[0], head).eval(), torch.rand(2, 3, 32, 32), tmp_path / "model.onnx")
    file = onnx.load(str(path))
    assert "ReduceLogSumExp" not in {node.op_type for node in file.graph.node}
    assert file.opset_import[0].version == 13  # DeepSparse's


def test_an_operator_that_openvino_reads_otherwise_is_written_as_it_reads_it_rightly(tmp_path):
    class LogSumExp(torch.nn.Module):
        def forward(self, x):
            return x.flatten(2).logsumexp(2)
    file = onnx.load(str(export.export_onnx(LogSumExp().eval(), torch.rand(2, 3, 4, 4), tmp_path / "model.onnx")))
    (node,) = [node for node in file.graph.node if node.op_type == "ReduceLogSumExp"]
    assert file.opset_import[0].version == 18
    assert len(node.input) == 2  # the axes


@given(logits=arrays(np.float32, (3, 5), elements=st.one_of(
    st.floats(-200, 200, width=32), st.sampled_from([-math.inf, math.inf]))), target=st.integers(0, 4))
def test_what_stands_for_all_others_is_torchs_logsumexp(logits, target):
    others = torch.from_numpy(logits).index_fill(1, torch.tensor([target]), -math.inf)
    torch.testing.assert_close(evaluate.OneVsRest(target).rest(others), torch.logsumexp(others, 1, True) - math.log(4))


@pytest.mark.parametrize(("build", "shape"), [
    (lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5), (3, 16, 16)),
    (encoder, (5, 8)), (lambda: encoder(norm_first=True, activation="gelu"), (5, 8)),
    (lambda: torch.nn.TransformerEncoder(encoder(), 2), (5, 8)),
    (lambda: Attends(False), (5, 8)), (lambda: Attends(True), (5, 8)),
])
def test_attention_is_exported_with_the_opset_that_it_needs(build, shape, tmp_path, capfd):
    path = export.export_onnx(build().eval(), torch.rand(2, *shape), tmp_path / "model.onnx", any_batch=True)
    assert onnx.load(str(path)).opset_import[0].version in (13, 14)
    assert capfd.readouterr() == ("", "")  # of the attempt with another


def test_what_needs_no_other_opset_has_deepsparses(small, tmp_path):
    path = export.export_onnx(small, torch.rand(1, 3, 32, 32), tmp_path / "model.onnx")
    assert onnx.load(str(path)).opset_import[0].version == 13


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_number_of_dimensions_in_float_and_half(n, dtype, tmp_path):
    conv, norm = (getattr(torch.nn, f"{kind}{n}d") for kind in ("Conv", "BatchNorm"))
    model = torch.nn.Sequential(conv(2, 4, 3, padding=1), norm(4), torch.nn.ReLU(), torch.nn.Flatten(),
                                torch.nn.Linear(4 * 5**n, 3)).eval().to(dtype)
    if n == 2:
        model = model.to(memory_format=torch.channels_last)
    assert export.export_onnx(model, torch.rand(2, 2, *[5] * n, dtype=dtype), tmp_path / "m", any_batch=True).is_file()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_tolerance_follows_the_precision(dtype):
    want, step = torch.tensor([[1.0, -0.5]], dtype=dtype), torch.finfo(dtype).eps
    export._compare(want + 2 * step, want, "it")
    for wrong in (want + max(2e-4, 20 * step), want * math.nan, want[:, :1]):
        with pytest.raises(ValueError, match="it differ from torch's by .* of the largest"):
            export._compare(wrong, want, "it")


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_wrapped_model_is_exported_as_the_one_inside(tiny, wrap, tmp_path):
    paths = [export.export_onnx(m, torch.rand(1, 1, 6, 6), tmp_path / "m") for m in (tiny, wrap(tiny))]
    assert len({p.read_bytes() for p in paths}) == 1
