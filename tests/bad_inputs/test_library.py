"""What the library is given and cannot use: one ValueError that names the value and the cure, before any long work."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import seamlib
from seamlib.evaluate import probe
from seamlib.masks import drawn
from seamlib.search import reengineer_many

NAN, INF = math.nan, math.inf
SEARCH = seamlib.Search(epochs=1, head_only_every=0)
X, Y = torch.rand(4, 3, 6, 6), torch.arange(4) % 2
DATA = [(X, Y)] * 2


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def head():
    return seamlib.new_head(5, 2)


def search(model=None, top=None, train=DATA, val=DATA, setting=SEARCH, **given):
    return seamlib.reengineer(model or net(), top or head(), train, val, setting, **given)


def finetune(model=None, train=DATA, setting=None, val=None, **given):
    return seamlib.finetune(model or net(), train, setting or seamlib.Training(epochs=1), val, **given)


def attacked(x, model=None):
    return seamlib.pgd(model or net(), x, seamlib.attack("pixel", 1), F.cross_entropy, Y)


class Wrap(nn.Module):
    """A network in a module that does something to what it is given or returns."""

    def __init__(self, forward):
        super().__init__()
        self.net, self.how = net(), forward

    def forward(self, x):
        return self.how(self, x)


class Fails(nn.Linear):
    """A head that takes nothing."""

    def __init__(self, error):
        super().__init__(5, 2)
        self.error = error

    def forward(self, z):
        raise self.error


def made(change):
    model = net()
    change(model)
    return model


def cached(model):
    model.last = 2 * model[0].weight


COMPUTED = {  # a weight that is not the layer's own -> words of the refusal
    "weight norm": (lambda m: parametrizations.weight_norm(m[0]), r"0 \(.*remove_parametrizations\(layer, 'weight'\)"),
    "spectral norm": (lambda m: parametrizations.spectral_norm(m[4]), r"4 \(.*remove_parametrizations\(layer"),
    "orthogonal": (lambda m: parametrizations.orthogonal(m[4]), r"4 \(.*remove_parametrizations\(layer"),
    "weight norm by hook": (lambda m: nn.utils.weight_norm(m[0]), r"0 \(Conv2d\) .*remove_weight_norm\(layer"),
    "spectral norm by hook": (lambda m: nn.utils.spectral_norm(m[4]), r"4 \(Linear\) .*remove_spectral_norm\(layer"),
    "pruned weight": (lambda m: prune.l1_unstructured(m[0], "weight", 0.5), r"prune.remove\(layer, 'weight'\)"),
    "pruned bias": (lambda m: prune.random_unstructured(m[4], "bias", 0.5), r"prune.remove\(layer, 'bias'\)"),
    "pruned channels": (lambda m: prune.ln_structured(m[0], "weight", 0.5, 2, 0), r"prune.remove\(layer, 'weight'\)"),
    "lazy": (lambda m: m.append(nn.LazyLinear(3)), "5.weight has no values yet .*call the model once"),
    "meta": (lambda m: m.append(nn.Linear(5, 5, device="meta")), "5.weight has no values yet .*on meta"),
}
DOORS = {
    "maskable": seamlib.maskable,
    "masked_call": lambda m: seamlib.masked_call(m, {}, X),
    "apply_masks": lambda m: seamlib.apply_masks(m, {}),
    "drawn": lambda m: drawn(m, 0.5, 0),
    "reengineer": search,
    "reengineer_many": lambda m: reengineer_many(m, [head()], [DATA], [DATA], SEARCH),
    "finetune": finetune,
    "pgd": lambda m: attacked(X, m),
    "split": seamlib.split,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", COMPUTED)
def test_a_weight_that_is_not_the_layers_own_is_refused_by_name_at_every_door(fault, door):
    change, words = COMPUTED[fault]
    model = made(change)
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(ValueError, match=words):
        DOORS[door](model)
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks


@pytest.mark.parametrize("door", ["reengineer", "reengineer_many", "finetune", "pgd", "split"])
def test_a_tensor_with_a_graph_is_refused_where_the_model_is_copied(door):
    with pytest.raises(ValueError, match="holds 'last', a tensor that was computed from others .*detach it"):
        DOORS[door](made(cached))


def test_names_that_look_like_those_of_a_computed_weight_are_no_reason_to_refuse():
    model = net()
    for name in ("attn", "attn_mask", "grid", "grid_orig", "mean", "mean_g"):
        model[0].register_buffer(name, torch.ones(2))
    assert seamlib.maskable(model) == seamlib.maskable(net())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("build", "words"), [
    (lambda: torch.jit.script(net()), "the model .*is scripted or traced, .*give the model that it was made from"),
    (lambda: nn.Sequential(torch.jit.trace(net(), X)), "0 .*is scripted or traced"),
    (lambda: torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}), r"4 \(Linear\) is quantised"),
    (lambda: lambda x: x, "the model is of type function: it must be a torch.nn.Module"),
], ids=["scripted", "traced inside", "quantised", "function"])
def test_what_is_no_plain_module_is_refused_at_every_door(build, words, door):
    with pytest.raises(ValueError, match=words):
        DOORS[door](build())


def cast(dtype):
    return lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.data.to(dtype), requires_grad=False))


def fill(value):
    return lambda m: m[4].weight.data[0].fill_(value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", [search, finetune], ids=["reengineer", "finetune"])
@pytest.mark.parametrize(("change", "words"), [
    (fill(NAN), "the weight 4.weight has 64 of 320 values that are NaN or infinite"),
    (fill(INF), "the weight 4.weight has 64 of 320 values that are NaN or infinite"),
    (fill(-INF), "the weight 4.weight has 64 of 320"),
    (lambda m: m[0].bias.data[:1].fill_(NAN), "the weight 0.bias has 1 of 4"),
    (lambda m: m[1].running_mean[:2].fill_(NAN), "the buffer 1.running_mean has 2 of 4 values that are NaN"),
    (lambda m: m[1].running_var.fill_(-1.0), "the model returns NaN: look for it in .*running averages"),
    (cast(torch.complex64), "the weight 0.weight is complex64: it must be a dense tensor of float16"),
    (cast(torch.int8), "the weight 0.weight is int8: .*convert it"),
    (cast(torch.uint8), "the weight 0.weight is uint8"),
    (cast(torch.float8_e4m3fn), "the weight 0.weight is float8_e4m3fn"),
    (lambda m: setattr(m[4], "weight", nn.Parameter(m[4].weight.data.to_sparse())), "4.weight is sparse_coo"),
])
def test_weights_that_are_no_finite_real_numbers(change, words, door):
    with pytest.raises(ValueError, match=words):
        door(made(change))


def no_grad(module, x):
    with torch.no_grad():
        return module.net(x)


OTHER = net()


@pytest.mark.parametrize(("model", "words"), [
    (nn.Flatten(), "Flatten has no weights: there is nothing to mask or to train"),
    (Wrap(lambda m, x: {"logits": m.net(x)}), "the model returns a dict: it must return one tensor"),
    (Wrap(lambda m, x: (m.net(x), x)), "the model returns a tuple: .*wrap it in a module that does"),
    (Wrap(lambda m, x: None), "the model returns a NoneType"),
    (Wrap(lambda m, x: m.net(x)[0]), r"the model returns \[5\] for 2 images: it must be \[B, outputs\]"),
    (Wrap(lambda m, x: m.net[0](x)), r"the model returns \[2, 4, 4, 4\] for 2 images"),
    (Wrap(lambda m, x: m.net(x).mean(0, keepdim=True)), r"the model returns \[1, 5\] for 2 images"),
    (Wrap(lambda m, x: m.net(x["image"])), r"Wrap does not take float32 images of shape \[2, 3, 6, 6\]"),
    (Wrap(lambda m, x: m.net(x / 0 * 0)), "the model returns NaN"),
    (Wrap(lambda m, x: m.net(x.repeat(1, 2, 1, 1))), "Wrap does not take float32 images"),
    (Wrap(no_grad), "no gradient of what Wrap returns reaches the weights that are to be masked: is it computed under"),
    (Wrap(lambda m, x: OTHER(x)), "Wrap answers by weights that are not among its parameters"),
    (Wrap(lambda m, x: m.net(x).detach()), "no gradient of what Wrap returns reaches"),
])
def test_models_that_a_search_cannot_use(model, words):
    with pytest.raises(ValueError, match=words):
        search(model.eval())


@pytest.mark.parametrize(("train", "words"), [
    ([{"image": X, "label": Y}], r"a batch is a dict: it must be a pair, \(images, labels\)"),
    ([(X, Y, Y)], "a batch is a tuple of 3"),
    ([[X]], "a batch is a list of 1"),
    ([X], "a batch is a Tensor"),
    ([({"a": X}, Y)], "the images of a batch are a dict: they must be one tensor"),
    ([((X, X), Y)], "the images of a batch are a tuple"),
    ([(X, Y.tolist())], "the labels of a batch are a list"),
    ([(X, Y[:, None])], r"labels of shape \[4, 1\] for images of shape \[4, 3, 6, 6\]: .* labels.flatten"),
    ([(X, Y[:1])], r"labels of shape \[1\] for images of shape \[4,"),
    ([(X, Y[0])], r"labels of shape \[\] for images"),
    ([(X, F.one_hot(Y))], r"labels of shape \[4, 2\]"),
    ([(X, Y.float())], "labels are float32: they must be whole numbers from 0 on; convert them by labels.long"),
    ([(X, Y == 1)], "labels are bool"),
    ([(X, Y - 1)], "label"),
    ([(X, Y + 7)], "label"),
])
def test_batches(train, words):
    classifier = nn.Sequential(net(), head()).eval()
    for door in (lambda: search(train=train), lambda: search(val=train), lambda: finetune(classifier, train),
                 lambda: finetune(val=train, model=classifier), lambda: seamlib.accuracy(classifier, train),
                 lambda: seamlib.inheritance(classifier, train, [X])):
        with pytest.raises(ValueError, match=words):
            door()


class Endless:
    def __iter__(self):
        return iter(DATA)


class Once:
    """Batches with a length, which a first pass uses up."""

    def __init__(self):
        self.left = iter(DATA)

    def __len__(self):
        return len(DATA)

    def __iter__(self):
        return self.left


class Iterates(Once):
    def __next__(self):
        return next(self.left)


@pytest.mark.parametrize(("door", "epoch"), [
    (lambda train: search(train=train, setting=dataclasses.replace(SEARCH, epochs=2)), 1),
    (lambda train: search(train=train, setting=dataclasses.replace(SEARCH, epochs=2, norms="affine")), 0),
    (lambda train: search(train=train, setting=dataclasses.replace(SEARCH, epochs=2), names=()), 1),
    (lambda train: reengineer_many(net(), [head()], [train], [DATA], dataclasses.replace(SEARCH, epochs=2)), 1),
    (lambda train: finetune(train=train, setting=seamlib.Training(epochs=2)), 1),
], ids=["search", "search, norms adapt", "search, head alone", "many", "finetune"])
def test_batches_that_can_be_passed_over_only_once(door, epoch):
    with pytest.raises(ValueError, match="train is a Iterates, which can be passed over only once: give a list or a D"):
        door(Iterates())
    words = f"train gave no image in epoch {epoch}: it must give its batches in each pass"
    with pytest.raises(ValueError, match=words):
        door(Once())


@pytest.mark.parametrize(("call", "words"), [
    (lambda: search(train=iter(DATA)), "train is a list_iterator without a length"),
    (lambda: search(train=(b for b in DATA)), "train is a generator without a length: give a list or a DataLoader"),
    (lambda: search(train=Endless()), "train is a Endless without a length"),
    (lambda: search(train=[]), "train has no batch"),
    (lambda: search(val=iter(DATA)), "val is a list_iterator, which can be passed over only once"),
    (lambda: search(val={"a": DATA, "b": (b for b in DATA)}), "val 'b' is a generator"),
    (lambda: search(val={"a": DATA, "b": []}), "val 'b' has no sample"),
    (lambda: search(val={}), "val has no part"),
    (lambda: finetune(train=iter(DATA)), "train is a list_iterator without a length"),
    (lambda: finetune(train=[]), "train has no batch"),
    (lambda: finetune(val=iter(DATA)), "val is a list_iterator"),
    (lambda: reengineer_many(net(), [head()], [[]], [DATA], SEARCH), "train has no batch"),
    (lambda: seamlib.accuracy(net(), []), "no sample to measure accuracy on"),
    (lambda: seamlib.inheritance(net(), [(X, Y)], [X[:1]]), "changed has a batch of 1 for one of 4 images"),
    (lambda: finetune(train=[(X[:, :2], Y)]), r"Sequential does not take float32 images of shape \[2, 2, 6, 6\]"),
    (lambda: finetune(train=[(X * NAN, Y)]), "the model returns NaN: look for it in the images"),
    (lambda: search(val=[(X * INF, Y)]), "the model returns NaN"),
    (lambda: finetune(Wrap(lambda m, x: {"logits": m.net(x)})), "the model returns a dict"),
    (lambda: search(top=nn.Linear(7, 2)), r"the head does not take what Sequential returns, \[1, 5\]"),
    (lambda: search(top=Fails(AssertionError())), "the head does not take what .*: AssertionError; give one"),
    (lambda: search(top=Fails(KeyError("logits"))), "the head does not take what Sequential .*: 'logits'; give one"),
    (lambda: search(top=Fails(RuntimeError())), "the head does not take what Sequential .*: RuntimeError; give one"),
    (lambda: search(top=nn.Linear(5, 1)), "train has an image of label 1, and the head has 1 output"),
    (lambda: search(top=nn.Unflatten(1, (5, 1))), r"the model returns \[1, 5, 1\] for 1 image"),
    (lambda: search(top=nn.ReLU(), setting=seamlib.Search(epochs=1)), "the head has no weight that can be trained"),
    (lambda: search(top=head().requires_grad_(False), names=()), "the head has no weight that can be trained"),
    (lambda: search(names=["nope"]), "no parameter called 'nope' in Sequential"),
    (lambda: search(targets={"paper": NAN}), "targets have nan: a target must be an accuracy"),
    (lambda: search(targets={"paper": -0.5}), "targets have -0.5"),
    (lambda: finetune(net().requires_grad_(False)), "there is no weight to train: all .* have requires_grad=False"),
    (lambda: finetune(hold={"0.weight": torch.ones(4, 3, 3, 3)}), "the mask of '0.weight' is float32: it must be bool"),
    (lambda: finetune(hold={"9.weight": torch.ones(2) > 0}), "the masks cover '9.weight'"),
    (lambda: finetune(hold={"0.bias": torch.ones(1) > 0}), r"the mask of '0.bias' has shape \(1,\)"),
    (lambda: seamlib.apply_masks(net(), {"0.bias": torch.ones(4)}), "the mask of '0.bias' is float32"),
    (lambda: seamlib.apply_masks(net(), {"0.bias": torch.ones(4, dtype=torch.uint8)}), "the mask of '0.bias' is uint8"),
    (lambda: seamlib.apply_masks(net(), {"0.bias": torch.ones(1) > 0}), r"has shape \(1,\), the model's weight \(4,\)"),
    (lambda: seamlib.masked_call(net(), {"0.bias": torch.ones(1)}, X), r"has shape \(1,\), the model's weight \(4,\)"),
    (lambda: seamlib.masked_call(net(), {"0.weight": torch.ones(3, 3)}, X), "the mask of '0.weight' has shape"),
    (lambda: seamlib.masked_call(net(), {"7": torch.ones(1)}, X), "the masks cover '7'"),
    (lambda: drawn(net(), NAN, 0), r"removed is nan: it must be in \[0, 1\]"),
    (lambda: drawn(net(), 1.5, 0), "removed is 1.5"),
    (lambda: seamlib.new_head(5, 2, [3]), r"classes are \[3\]: there must be 2, one a label, from 0 to 4"),
    (lambda: seamlib.new_head(5, 2, [0, -1]), r"classes are \[0, -1\]"),
    (lambda: seamlib.new_head(5, 2, [0, 5]), r"classes are \[0, 5\]"),
    (lambda: seamlib.restrict(net(), [-1, 0]), r"classes are \[-1, 0\]: they must be one or more whole numbers from 0"),
    (lambda: seamlib.restrict(net(), [1, 1]), r"classes are \[1, 1\]: .* each once"),
    (lambda: seamlib.restrict(net(), []), r"classes are \[\]"),
    (lambda: seamlib.restrict(net(), [0.5]), r"classes are \[0.5\]"),
    (lambda: seamlib.one_vs_rest(net(), -1, True), "target is -1: it must be a whole number from 0 on"),
    (lambda: seamlib.one_vs_rest(net(), 1.5, False), "target is 1.5"),
    (lambda: seamlib.restrict(net(), torch.tensor([1, 1])), r"classes are tensor\(\[1, 1\]\): .* each once"),
    (lambda: seamlib.restrict(net(), [True, False]), r"classes are \[True, False\]"),
    (lambda: seamlib.restrict(net(), "12"), "classes are '12'"),
    (lambda: seamlib.restrict(net(), 3), "classes are 3"),
    (lambda: seamlib.restrict(net(), [1, 70])(X), r"the model returns \[4, 5\], no output for class 70"),
    (lambda: seamlib.restrict(torch.nn.Flatten(0), [1])(X), r"the model returns \[432\], no output for class 1"),
    (lambda: seamlib.one_vs_rest(net(), 70, True)(X), r"the model returns \[4, 5\], no output for class 70"),
    (lambda: seamlib.one_vs_rest(net(), True, True), "target is True"),
    (lambda: seamlib.one_vs_rest(net(), "3", True), "target is '3'"),
    (lambda: seamlib.RestrictedHead(seamlib.Restrict([1, 2]), 3), "a head of 3 labels is to begin as"),
    (lambda: seamlib.RestrictedHead(seamlib.Restrict([3]), 1), "one class against all others give OneVsRest"),
    (lambda: seamlib.RestrictedHead(seamlib.OneVsRest(3), 1), "a head of 1 labels is to begin as the answer among 2"),
    (lambda: seamlib.accuracy(net().train(), DATA), "is in train mode: call model.eval"),
    (lambda: seamlib.accuracy(seamlib.restrict(net().train(), [1, 2]), DATA), "is in train mode: call model.eval"),
    (lambda: probe(net().train(), DATA, DATA), "is in train mode: call model.eval"),
    (lambda: seamlib.reengineer(net(), lambda z: z, DATA, DATA, SEARCH), "the head is a function: it must be a"),
    (lambda: seamlib.reengineer(net(), seamlib.new_head(5, 2), DATA, DATA, SEARCH, targets=0.9), "targets are 0.9"),
    (lambda: seamlib.reengineer(net(), seamlib.new_head(5, 2), DATA, DATA, SEARCH, targets={"paper": 93.0}),
     "targets have 93.0"),
    (lambda: seamlib.reengineer(net(), seamlib.new_head(5, 2), DATA, {"paper": DATA, "b": DATA}, SEARCH),
     "val has a part called 'paper'"),
    (lambda: attacked(255 * X), r"images are float32 .* in \[0, 1\]; divide bytes by 255"),
    (lambda: attacked(X - 1), "images are float32 from -"),
    (lambda: attacked(X * NAN), "images are float32 from nan"),
    (lambda: attacked((255 * X).byte()), "images are uint8"),
    (lambda: seamlib.accuracy(lambda x: x.mean((2, 3)) * NAN, DATA), "the model returns NaN"),
    (lambda: seamlib.accuracy(lambda x: x, DATA), r"the model returns \[4, 3, 6, 6\] for 4 images"),
    (lambda: seamlib.accuracy(lambda x: x.mean((1, 2, 3)), DATA), r"the model returns \[4\] for 4 images"),
    (lambda: seamlib.accuracy(lambda x: [x], DATA), "the model returns a list"),
])
def test_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


FLOATS = {
    seamlib.Search: ("lr_mask", "lr_head", "alpha", "structure", "target_accuracy", "margin", "max_removed", "lr_norms",
                     "temperature"),
    seamlib.Training: ("lr", "lr_output", "momentum", "weight_decay"),
    seamlib.Reuse: ("lr_s1_output_layer", "lr_s2_output_layer", "lr_mask", "alpha", "prune_threshold", "dropout",
                    "lr_s3_output_layer", "lr_s3_hidden_layer", "momentum", "weight_decay"),
    seamlib.Attack: ("eps", "step", "low", "high"),
}
WHOLE = {
    seamlib.Search: ("epochs", "batch_size", "head_only_every", "patience", "seed"),
    seamlib.Training: ("epochs", "batch_size", "patience", "seed"),
    seamlib.Reuse: ("epochs_s1", "epochs_s2", "epochs_s3", "patience", "batch_size", "seed"),
    seamlib.Attack: ("iterations",),
}
PIXEL = dict(normalised=False, eps=0.1, step=0.01, low=0.0, high=1.0)


def settings(kind, **given):
    return kind(**({**PIXEL, **given} if kind is seamlib.Attack else given))


@pytest.mark.parametrize("value", [NAN, INF, -INF, "0.1", True, [0.1]], ids=repr)
@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in FLOATS.items() for field in fields])
def test_a_number_is_finite_in_every_setting(kind, field, value):
    with pytest.raises(ValueError, match=f"{field} is .*: it must be a finite number"):
        settings(kind, **{field: value})


@pytest.mark.parametrize("value", [NAN, INF, 2.5, "3", True, None], ids=repr)
@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in WHOLE.items() for field in fields])
def test_a_count_is_whole_in_every_setting(kind, field, value):
    with pytest.raises(ValueError, match=f"{field} is .*: it must be a whole number"):
        settings(kind, **{field: value})


@pytest.mark.parametrize(("call", "words"), [
    (lambda: seamlib.Search(path=(1.0, INF)), "path is .*inf.*: it must be a tuple of finite"),
    (lambda: seamlib.Search(path=(NAN,)), "path is .*nan.*: it must be a tuple of finite"),
    (lambda: seamlib.Search(path=("1",)), "path is .*'1'"),
    (lambda: seamlib.Search(path=3.0), "path is 3.0: it must be a tuple of finite numbers, or None"),
    (lambda: seamlib.Search(norms=None), "norms is None: it must be a text"),
    (lambda: seamlib.Search(schedule=1), "schedule is 1: it must be a text"),
    (lambda: seamlib.Training(precision=16), "precision is 16: it must be a text"),
    (lambda: settings(seamlib.Attack, normalised=1), "normalised is 1: it must be True or False"),
    (lambda: settings(seamlib.Attack, eps=0.0), "eps is 0.0: it must be above 0"),
    (lambda: settings(seamlib.Attack, eps=-1.0), "eps is -1.0"),
    (lambda: settings(seamlib.Attack, step=0), "step is 0.0: it must be above 0"),
    (lambda: settings(seamlib.Attack, low=1.0), "high is 1.0: it must be above low, 1.0"),
    (lambda: settings(seamlib.Attack, iterations=0), "iterations is 0: it must be 1 or more"),
    (lambda: seamlib.attack("pixel", eps=INF), "eps is inf: it must be a finite number"),
    (lambda: seamlib.attack("pixel", eps=NAN), "eps is nan"),
    (lambda: seamlib.attack("pixel", iterations=2.5), "iterations is 2.5"),
    (lambda: seamlib.attack("fgsm"), "unknown attack 'fgsm': allowed are pixel, paper"),
])
def test_settings(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(("field", "value"), [("lr_mask", 1), ("alpha", 0), ("target_accuracy", None), ("epochs", 3)])
def test_a_whole_number_is_a_number_too(field, value):
    assert getattr(seamlib.Search(**{field: value}), field) == value


def test_numbers_of_numpy_become_pythons_own_so_that_a_checkpoint_or_a_key_can_say_them(tmp_path):
    one, two = np.float32(1), np.int64(2)
    setting = seamlib.Search(alpha=one, epochs=two, path=[one, two], lr_mask=np.float32(2**-7), head_only_every=0)
    assert repr(setting) == repr(seamlib.Search(alpha=1.0, epochs=2, path=(1.0, 2.0), lr_mask=2**-7, head_only_every=0))
    assert len(search(setting=setting, checkpoint=tmp_path / "search").front) == 2
    training = seamlib.Training(lr=np.float32(0.5), lr_output=None, epochs=two, seed=two)
    assert repr(training) == repr(seamlib.Training(lr=0.5, epochs=2, seed=2))
    assert len(finetune(setting=training, checkpoint=tmp_path / "training")[1]) == 2
    assert seamlib.Search(alpha=1) == seamlib.Search(alpha=1.0)
    assert repr(seamlib.Search(alpha=1)) == repr(seamlib.Search(alpha=1.0))


def test_a_bad_argument_leaves_the_callers_random_numbers_and_models_alone():
    model, top = net(), head()
    state = torch.random.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError):
        search(model, top, train=[(X, Y + 9)])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
