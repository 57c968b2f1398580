import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import SHARED
from PIL import Image

from seamlib import evaluate, models
from seamlib.problems import data
from seamlib.records import runtime


@pytest.mark.parametrize(("name", "weights", "shape"), [
    ("resnet20-cifar10", 272_474, (3, 32, 32)),
    ("resnet20-cifar100", 278_324, (3, 32, 32)),
    ("resnet56-cifar10", 855_770, (3, 32, 32)),
    ("vgg16_bn-cifar10", 15_253_578, (3, 32, 32)),
    ("lenet-mnist5k", 65_162, (1, 28, 28)),
])
def test_named_models(name, weights, shape):
    model = models.build(name)
    assert sum(p.numel() for p in model.parameters()) == weights
    assert model(torch.rand(2, *shape)).shape == (2, 100 if name.endswith("cifar100") else 10)
    assert not any("normalise" in key for key in model.state_dict())


def test_a_folder_data_set_takes_any_number_of_classes():
    assert models.build("resnet20-folder:x", 3)(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match="n_classes is needed"):
        models.build("resnet20-folder:x")


def test_normalisation_is_inside_the_model():
    constants = ((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    x = torch.tensor([1.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert models.Normalise(constants)(x).flatten().tolist() == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(("name", "text"), [
    ("resnet21-cifar10", "unknown model 'resnet21': allowed are lenet, resnet20, resnet32"),
    ("resnet20-cifar", "unknown data set 'cifar': allowed are mnist5k, .*cifar100, imagenet, tinyimagenet, drawn, fo"),
    ("lenet-cifar10", "model 'lenet' is not defined for cifar10: allowed are mnist5k"),
])
def test_unknown_names(name, text):
    with pytest.raises(ValueError, match=text):
        models.build(name)


@pytest.mark.parametrize("wrap", [
    lambda state: state, lambda state: {"state_dict": state, "epoch": 3, "optimiser": {"lr": 0.1}},
    lambda state: {f"module.{name}": t for name, t in state.items()},
    lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}},
])
def test_weights_may_be_wrapped_as_training_loops_do(wrap, tmp_path):
    state = models.build("lenet-mnist5k").state_dict()
    torch.save(wrap(state), tmp_path / "weights.pt")
    found = models.pretrained("lenet-mnist5k", tmp_path, tmp_path / "weights.pt").state_dict()
    assert runtime.digest(found) == runtime.digest(state)


def test_weights_of_another_architecture(tmp_path):
    torch.save(models.build("resnet32-cifar10").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"have an unknown 'layer1.3.* another architecture than ResNet"):
        models.pretrained("resnet20-cifar10", tmp_path, tmp_path / "w.pt")


def test_weights_for_another_data_set(tmp_path):
    torch.save(models.build("resnet20-cifar100").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"'fc.bias' has shape \(100,\), ResNet needs \(10,\)"):
        models.pretrained("resnet20-cifar10", tmp_path, tmp_path / "w.pt")


def test_a_truncated_file_and_one_that_would_run_code(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(models.build("lenet-mnist5k").state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="w.pt is not a whole file of weights"):
        models.read_weights(path)
    torch.save({"x": runtime.PACKAGES, "f": models.build}, path)
    with pytest.raises(ValueError, match="Unpickl"):
        models.read_weights(path)


def test_a_download_with_the_wrong_hash(tmp_path):
    path = tmp_path / "cifar10_resnet20-4118986f.pt"
    torch.save(models.build("resnet20-cifar10").state_dict(), path)
    with pytest.raises(ValueError, match="its name states 4118986f: delete it and load it again"):
        models.pretrained("resnet20-cifar10", tmp_path)


def test_no_weights_says_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="train it with notebooks/train_source.ipynb"):
        models.pretrained("lenet-mnist5k", tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        models.pretrained("lenet-mnist5k", tmp_path, tmp_path / "none.pt")


def test_weights_that_were_trained_here_are_found(tmp_path):
    model = models.build("lenet-mnist5k")
    path = models.trained_path(tmp_path, "lenet-mnist5k")
    path.parent.mkdir()
    safetensors.torch.save_file(model.state_dict(), path)
    found = models.pretrained("lenet-mnist5k", tmp_path, trained=[tmp_path / "empty", tmp_path])
    assert runtime.digest(found.state_dict()) == runtime.digest(model.state_dict())
    assert not found.training


@pytest.mark.skipif(not (SHARED / "data/cifar10-test.npz").is_file(), reason="the real images are not at hand")
def test_the_papers_source_model_reaches_its_published_accuracy(tmp_path):
    model = models.pretrained("resnet20-cifar10", tmp_path, SHARED / "weights/cifar10_resnet20.pt")
    archive = np.load(SHARED / "data/cifar10-test.npz")
    stream, offsets, labels = archive["webp"], archive["offsets"], archive["labels"]
    import io

    images = np.stack([np.asarray(Image.open(io.BytesIO(stream[offsets[i]:offsets[i + 1]].tobytes())).convert("RGB"))
                       for i in range(len(labels))]).transpose(0, 3, 1, 2)
    batches = data.batches(data.canonical(images, labels), 500)
    assert evaluate.accuracy(model, batches) == 0.9260
