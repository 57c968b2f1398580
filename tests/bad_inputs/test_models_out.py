"""Bad inputs of what leaves the library: compaction, counts, ONNX files, latency. Each error says what would do."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import seamlib
from seamlib.ship import latencies
from seamlib.structure import channel_groups

IMAGES = torch.zeros(2, 3, 8, 8)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def old_weight_norm():
    model = net()
    model[3] = nn.utils.weight_norm(model[3])
    return model


def spectral():
    model = net()
    model[0] = nn.utils.spectral_norm(model[0])
    return model.eval()


def pruned():
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def pruned_bias():
    model = net()
    prune.random_unstructured(model[3], "bias", 0.5)
    return model


def parametrized(name):
    def build():
        model = net()
        getattr(parametrizations, name)(model[3], "weight")
        return model.eval()
    return build


def quantised():
    with pytest.warns():
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}).eval()


MODELS = {  # what is no plain model, and what its error says
    "weight_norm": (old_weight_norm, "weight that is computed.*remove_weight_norm"),
    "spectral_norm": (spectral, "weight that is computed.*remove_spectral_norm"),
    "prune": (pruned, "weight that is computed.*prune.remove"),
    "prune_bias": (pruned_bias, "bias that is computed.*prune.remove"),
    "parametrized_weight_norm": (parametrized("weight_norm"), "weight.*remove_parametrizations"),
    "parametrized_spectral_norm": (parametrized("spectral_norm"), "weight.*remove_parametrizations"),
    "parametrized_orthogonal": (parametrized("orthogonal"), "weight.*remove_parametrizations"),
    "scripted": (lambda: torch.jit.script(net()), "is scripted or traced"),
    "traced": (lambda: torch.jit.trace(net(), IMAGES), "is scripted or traced"),
    "script_inside": (lambda: nn.Sequential(torch.jit.script(net()), nn.Linear(5, 2)).eval(), "is scripted or traced"),
    "quantised": (quantised, "is quantised"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).eval(), "has no values yet"),
    "meta": (lambda: net().to("meta"), "has no values yet"),
    "function": (lambda: torch.relu, "must be a torch.nn.Module"),
    "state": (lambda: net().state_dict(), "must be a torch.nn.Module"),
}
CALLS = {
    "compact": lambda model, x, path: seamlib.compact(model, x),
    "channel_groups": lambda model, x, path: channel_groups(model, x),
    "export_onnx": lambda model, x, path: seamlib.export_onnx(model, x, path / "model.onnx"),
    "flops": lambda model, x, path: seamlib.flops(model, x),
    "weights": lambda model, x, path: seamlib.weights(model),
}
pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore")  # torch's own, that some of these have new names
def test_a_model_that_is_not_plain(model, call, tmp_path):
    build, words = MODELS[model]
    with pytest.raises(ValueError, match=f"(?s){words}"):
        CALLS[call](build(), IMAGES, tmp_path)
    assert not list(tmp_path.iterdir())


class Says(nn.Module):
    """What `how` makes of the logits."""

    def __init__(self, how):
        super().__init__()
        self.net, self.how = net(), how

    def forward(self, x):
        return self.how(self.net(x))


def fails(z):
    raise KeyError("labels")


EXAMPLES = {  # (model, example) -> what the error says
    "dict": (net, {"images": IMAGES}, "the example is a dict: it must be one tensor"),
    "tuple": (net, (IMAGES, IMAGES), "the example is a tuple: it must be one tensor"),
    "list": (net, [IMAGES], "the example is a list: it must be one tensor"),
    "none": (net, None, "the example is a NoneType: it must be one tensor"),
    "array": (net, IMAGES.numpy(), "the example is a ndarray: it must be one tensor"),
    "no_image": (net, IMAGES[:0], r"the example is a \(0, 3, 8, 8\): .* at least one image"),
    "number": (net, torch.tensor(1.0), r"the example is a \(\): it must be one tensor"),
    "one_channel": (net, IMAGES[:, :1], r"does not take float32 images of shape \[2, 1, 8, 8\]"),
    "small": (net, IMAGES[:, :, :2, :2], r"does not take float32 images of shape \[2, 3, 2, 2\]"),
    "large": (net, torch.zeros(2, 3, 9, 9), r"does not take float32 images of shape \[2, 3, 9, 9\]"),
    "double": (net, IMAGES.double(), "does not take float64 images of shape"),
    "bytes": (net, IMAGES.byte(), "does not take uint8 images of shape"),
    "logits_in_a_dict": (lambda: Says(lambda z: {"logits": z}).eval(), IMAGES, "returns a dict, not a tensor"),
    "logits_in_a_tuple": (lambda: Says(lambda z: (z, z)).eval(), IMAGES, "returns a tuple, not a tensor"),
    "nothing": (lambda: Says(lambda z: None).eval(), IMAGES, "returns a NoneType, not a tensor"),
    "forward_fails": (lambda: Says(fails).eval(), IMAGES, "does not take float32 images .*labels"),
}


@pytest.mark.parametrize("call", [c for c in CALLS if c != "weights"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_that_does_not_fit(example, call, tmp_path):
    build, x, words = EXAMPLES[example]
    model = build()
    with pytest.raises(ValueError, match=words):
        CALLS[call](model, x, tmp_path)
    assert not list(tmp_path.iterdir())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("part", [slice(None), slice(1, 2)])
def test_train_mode_of_all_or_a_part(part):
    model = net()
    for m in [model, model[0]][part]:
        m.train()
    for call in (seamlib.flops, seamlib.compact):
        with pytest.raises(ValueError, match="or a part of it, is in train mode: call model.eval"):
            call(model, IMAGES)
    for time in (lambda engine: seamlib.latency({"m": model}, IMAGES, engine, expected={"m": net()(IMAGES)}),
                 lambda engine: latencies({"m": model}, [IMAGES], [engine])):
        with pytest.raises(ValueError, match="'m', or a part of it, is in train mode: call model.eval"):
            time("torch")


def test_a_model_in_train_mode_keeps_its_averages_when_its_latency_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())
    with pytest.raises(ValueError, match="'m', or a part of it, is in train mode: call model.eval"):
        latencies({"good": net(), "m": model}, [IMAGES + 1], ["onnxruntime"])
    assert model[0].num_batches_tracked == 0
    assert not model[0].running_mean.any()


@pytest.mark.parametrize("multiple", [0, -16, 2.5, 16.0, "16", None, True])
def test_multiples_that_are_no_whole_numbers(multiple):
    with pytest.raises(ValueError, match="multiple is .*: it must be 1 .* or more, such as 16"):
        seamlib.compact(net(), IMAGES, multiple=multiple)


@pytest.mark.parametrize("classes", ["abcde", ["cat"], list("abcdef"), ("cat", "dog")])
def test_names_of_other_classes_than_there_are_outputs(classes, tmp_path):
    with pytest.raises(ValueError, match="classes are .*: they must be a list of 5 names, one for each output"):
        seamlib.export_onnx(net(), IMAGES, tmp_path / "model.onnx", classes=classes)


class Exponential(nn.Module):
    def forward(self, x):
        return torch.linalg.matrix_exp(x[:, 0])


@pytest.mark.parametrize(("build", "dtype", "words"), [
    (net, torch.bfloat16, "Sequential computes in bfloat16, which onnxruntime does not: export model.float()"),
    (net, torch.float64, "onnxruntime cannot run Sequential .* of torch.float64 .*: export model.float()"),
    (Exponential, torch.float32, "Exponential cannot be written as ONNX, opset 20 .*matrix_exp.*other operators"),
])
def test_what_onnx_has_no_words_for(build, dtype, words, tmp_path, capfd):
    with pytest.raises(ValueError, match=f"^{words}[^\n]*$"):
        seamlib.export_onnx(build().to(dtype).eval(), IMAGES.to(dtype), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("content", "words"), [
    (None, "'m' has no file at .*nowhere.onnx: write it with seamlib.export_onnx"),
    (b"no model", "engine 'onnxruntime' cannot run 'm' on images of shape .2, 3, 8, 8. and torch.float32: "),
    (b"", "engine 'onnxruntime' cannot run 'm'"),
])
def test_files_that_no_engine_reads(content, words, tmp_path):
    path = tmp_path / ("nowhere.onnx" if content is None else "m.onnx")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileNotFoundError if content is None else ValueError, match=words):
        seamlib.latency({"m": path}, IMAGES, "onnxruntime", expected={"m": torch.zeros(2, 5)}, rounds=1)


@pytest.mark.parametrize(("build", "words"), [
    (lambda: Says(lambda z: {"logits": z}).eval(), "engine 'torch' cannot run 'm' on images of shape"),
    (lambda: nn.Linear(9, 5).eval(), "engine 'torch' cannot run 'm' on images of shape"),
    (lambda: Says(lambda z: z + 1).eval(), "engine 'torch' gives another output for 'm' than torch"),
    (lambda: Says(lambda z: z / 0).eval(), "engine 'torch' gives another output for 'm' than torch"),
    (lambda: Says(lambda z: z[:, :2]).eval(), r"gives another output for 'm' than torch \(shape \(2, 2\)\)"),
])
def test_latency_of_what_cannot_be_compared(build, words):
    model = build()
    with torch.no_grad():
        expected = model.net(IMAGES) if isinstance(model, Says) else torch.zeros(2, 5)
    with pytest.raises(ValueError, match=words):
        seamlib.latency({"m": model}, IMAGES, "torch", expected={"m": expected}, rounds=1)
