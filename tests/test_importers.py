"""PyTorch's files and names: what is read equals PyTorch's own reading, and nothing in a file ever runs."""

import argparse
import builtins
import collections
import functools
import os
import pickle
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference import torch_models, torchvision_models
from safetensors.torch import save_file

from pujax.errors import UserError
from pujax.importers.naming import to_flax
from pujax.importers.state_dict import read_state_dict
from pujax.models import create_classifier
from pujax.models.layers import plain_convolutions

BASE = torch.arange(24.0).reshape(4, 6)
STATE = {
    "transposed": BASE.t()[1:],
    "strided": BASE[1:, ::2],
    "whole": BASE,
    "parameter": torch.nn.Parameter(BASE),
    "double": BASE.double(),
    "half": BASE.half(),
    "bfloat": BASE[1:].bfloat16(),
    "long": torch.arange(5),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "bools": BASE > 3,
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 3),
}
FORMATS = [pytest.param({}, id="zip"), pytest.param({"_use_new_zipfile_serialization": False}, id="legacy")]


def check_equal(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        wide = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
        assert state[name].dtype == wide.numpy().dtype
        np.testing.assert_array_equal(state[name], wide.numpy())


@pytest.mark.parametrize("options", FORMATS)
def test_torch_files_are_read_as_pytorch_reads_them(options, tmp_path):
    torch.save(collections.OrderedDict(STATE), tmp_path / "a.pth", **options)
    check_equal(read_state_dict(tmp_path / "a.pth"), STATE)


def test_safetensors_are_read_as_pytorch_reads_them(tmp_path):
    state = {name: tensor.detach().contiguous().clone() for name, tensor in STATE.items()}
    save_file(state, tmp_path / "a.safetensors")
    check_equal(read_state_dict(tmp_path / "a.safetensors"), state)


@pytest.mark.parametrize("first", [b"\x80", b"<"], ids=["pickle", "web_page"])
def test_safetensors_may_begin_as_other_formats_do(first, tmp_path):
    path, state = tmp_path / "a.bin", {"weight": torch.arange(6.0)}
    save_file(state, path)
    content = path.read_bytes()
    stop = 8 + int.from_bytes(content[:8], "little")
    header = content[8:stop] + b" " * ((first[0] - stop + 8) % 256)  # the file begins with the header's length
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[stop:])
    assert path.read_bytes().startswith(first)
    check_equal(read_state_dict(path), state)


@pytest.mark.parametrize("options", FORMATS)
def test_a_checkpoint_is_unwrapped_whatever_lies_beside_the_weights(options, tmp_path):
    state = torch.nn.Linear(2, 3).state_dict()
    optimizer = {"state": {0: {"momentum_buffer": BASE}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    beside = {"args": argparse.Namespace(lr=0.1, path=tmp_path), "best": np.float64(3), "optimizer": optimizer}
    averaged = {name: value + 1 for name, value in state.items()}
    nested = {"epoch": 3, "model": {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}, **beside}
    torch.save({**nested, "state_dict_ema": averaged}, tmp_path / "a.pth", **options)
    check_equal(read_state_dict(tmp_path / "a.pth"), state)
    check_equal(read_state_dict(tmp_path / "a.pth", ema=True), averaged)
    torch.save({"model_ema": averaged, **beside}, tmp_path / "b.pth", **options)
    check_equal(read_state_dict(tmp_path / "b.pth"), averaged)
    torch.save({"model": state, **beside}, tmp_path / "c.pth", **options)
    with pytest.raises(UserError, match="has no moving average"):
        read_state_dict(tmp_path / "c.pth", ema=True)


class Runs:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Sets:
    """Pickles as an object of a known class with attributes."""

    def __reduce__(self):
        return collections.OrderedDict, (), {"items": "mine", "__class__": "mine"}


@pytest.mark.parametrize("options", FORMATS)
@pytest.mark.parametrize("place", ["beside", "entry", "whole", "inside"])
def test_nothing_in_a_file_runs(options, place, tmp_path):
    trace = tmp_path / "trace"
    traps = [
        Runs(os.system, f"touch {trace}"),
        Runs(builtins.eval, f"open({str(trace)!r}, 'w')"),
        Runs(getattr, Runs(__import__, "os"), "system"),
        Runs(Runs, print),
        Sets(),
    ]
    weights = {"a": BASE}
    content = {
        "beside": {"state_dict": weights, "traps": traps},
        "entry": {"a": BASE, "trap": traps[0]},
        "whole": traps[0],
        "inside": {"a": Runs(torch._utils._rebuild_parameter, traps[1], False, None)},
    }[place]
    torch.save(content, tmp_path / "a.pth", **options)
    if place == "beside":
        check_equal(read_state_dict(tmp_path / "a.pth"), weights)
    else:
        with pytest.raises(UserError, match=r"a\.pth.* is|holds an object of (posix|nt|builtins)\.(system|eval)"):
            read_state_dict(tmp_path / "a.pth")
    assert not trace.exists()


def zipped(path, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"a/{name}", content)


PICKLE = pickle.dumps({"a": 1}, 2)
BROKEN = {
    "web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "is a web page"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "text": (lambda path: path.write_text("hello"), "neither safetensors nor"),
    "missing": (lambda path: None, "no weights file at"),
    "other zip": (lambda path: zipped(path, readme="a"), "a zip file, but not one of torch.save"),
    "other pickle": (lambda path: path.write_bytes(PICKLE), "a pickle, but not one of torch.save"),
    "TorchScript": (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path), "TorchScript"),
    "module": (
        lambda path: torch.save(torch.nn.Linear(1, 1), path),
        r"an object of torch\.nn\.modules\.linear\.Linear",
    ),
    "legacy module": (
        lambda path: torch.save(torch.nn.Linear(1, 1), path, _use_new_zipfile_serialization=False),
        r"an object of torch\.nn\.modules\.linear\.Linear",
    ),
    "list": (lambda path: torch.save([BASE], path), "holds a list, not a state dict"),
    "nested": (lambda path: torch.save({"a": {"b": BASE}}, path), "a: is|a is a dict of tensors"),
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "holds no tensors"),
    "bad codes": (
        lambda path: zipped(path, **{"data.pkl": b"\x80\x02K\x01r\xff\xff\xff\xff."}),
        "damaged or cut short",
    ),
    "bytearray": (lambda path: zipped(path, **{"data.pkl": b"\x80\x05\x96" + b"\xff" * 6 + b"\0\0."}), "damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_is_no_state_dict_is_refused_in_one_line(case, tmp_path):
    write, message = BROKEN[case]
    path = tmp_path / "a.pth"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", FORMATS)
def test_a_damaged_file_is_refused_wherever_it_is_cut(options, tmp_path):
    torch.save({f"a{i}": torch.randn(7, 5) for i in range(3)}, tmp_path / "a.pth", **options)
    data = (tmp_path / "a.pth").read_bytes()
    for length in [*range(5, len(data), len(data) // 23), len(data) - 1]:
        (tmp_path / "b.pth").write_bytes(data[:length])
        with pytest.raises(UserError, match="damaged or cut short"):
            read_state_dict(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((10**6, 10**6), (0, 0), 0), ((5, 5), (5, 1), 0), ((24,), (1,), 1), ((2, 2), (-1, 1), 3), ((2,), (1,), -1)],
)
def test_a_tensor_that_leaves_its_storage_is_refused(shape, strides, offset, tmp_path):
    storage = BASE.clone().untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    trap = Runs(torch._utils._rebuild_tensor_v2, typed, offset, shape, strides, False, collections.OrderedDict())
    torch.save({"a": trap}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="damaged"):
        read_state_dict(tmp_path / "a.pth")


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**5)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_state_dict(tmp_path / "b.pth")


def abstract(model, num_classes=10, size=64):
    module = create_classifier(model, num_classes)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return module, jax.eval_shape(lambda rng, x: module.init(rng, x, train=False), jax.random.key(0), image)


def arrays(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def check_same_logits(reference, model, size=64):
    """Compare logits, which must differ between the images, with those of a PyTorch module under its weights."""
    module, template = abstract(model, size=size)
    variables = to_flax(arrays(reference), model, template, "a.pth")
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    with plain_convolutions():  # which compile faster; others are compared with them in test_models.py
        options = {"xla_backend_optimization_level": 0}
        logits, _ = jax.jit(lambda v, x: module.apply(v, x, train=False), compiler_options=options)(variables, images)
    scale = np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * scale
    assert np.abs(logits - expected).max() <= 1e-4 * scale


FAST = ("mobilenet_v2_x0.35", "mobilenet_v3_small", "efficientnet_b0_x0.5", "vgg16_bn_x0.125", "convnext_tiny_x0.25")
FAST += ("vit_s16",)


@pytest.mark.parametrize(
    "model",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in torchvision_models.NETWORKS],
)
def test_a_network_under_torchvisions_names_computes_as_in_pytorch(model):
    check_same_logits(torchvision_models.randomize(torchvision_models.NETWORKS[model](10)), model)


TORCHVISION = ("resnet18", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
TORCHVISION += ("efficientnet_b0", "convnext_tiny", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn")
TIMM = {
    "resnet18": "resnet18",
    "resnet101": "resnet101",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v2_x0.5": "mobilenetv2_050",
    "timm_mobilenet_v3_small": "mobilenetv3_small_100",
    "timm_mobilenet_v3_large": "mobilenetv3_large_100",
    "tf_mobilenet_v3_small": "tf_mobilenetv3_small_100",
    "tf_mobilenet_v3_large": "tf_mobilenetv3_large_100",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_lite0": "efficientnet_lite0",
    "tf_efficientnet_b0": "tf_efficientnet_b0",
    "tf_efficientnet_lite0": "tf_efficientnet_lite0",
    "convnext_tiny": "convnext_tiny",
    "vit_s16": "vit_small_patch16_224",
    "vit_b16": "deit_base_patch16_224",
    "timm_vgg11": "vgg11",
    "timm_vgg16_bn": "vgg16_bn",
}


@pytest.mark.slow
@pytest.mark.parametrize("model", [*TORCHVISION, "vit_b16"])
def test_torchvisions_own_network_computes_the_same(model):
    networks = pytest.importorskip("torchvision.models")
    name, size = ("vit_b_16", 224) if model == "vit_b16" else (model, 64)
    check_same_logits(torchvision_models.randomize(getattr(networks, name)(num_classes=10)), model, size)


@pytest.mark.slow
@pytest.mark.parametrize("model", TIMM)
def test_timms_own_network_computes_the_same(model):
    timm = pytest.importorskip("timm")
    size = 224 if model.startswith("vit") else 288 if model == "timm_vgg11" else 65  # odd: sides are padded unequally
    check_same_logits(torchvision_models.randomize(timm.create_model(TIMM[model], num_classes=10)), model, size)


@pytest.fixture(scope="module")
def resnet():
    """A small CIFAR ResNet as (PyTorch's state dict under kuangliu's names, its Flax variables)."""
    reference = torch_models.randomize(torch_models.NETWORKS["cifar_resnet10_w8"](10), 0)
    shorter = (("shortcut_conv", "shortcut.0"), ("shortcut_bn", "shortcut.1"))
    state = {re.sub(r"layer(\d)_(\d)", r"layer\1.\2", name): value for name, value in arrays(reference).items()}
    state = {functools.reduce(lambda name, pair: name.replace(*pair), shorter, name): state[name] for name in state}
    return state, torch_models.flax_variables(reference)


def test_names_of_cifar_resnets_are_known(resnet):
    state, expected = resnet
    variables = to_flax(state, "cifar_resnet10_w8", expected, "a.pth")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("conv1.weight"),
            r"1 of the model's \d+ are missing \(conv1.weight \[8, 3, 3, 3\]\); check that",
        ),
        (lambda s: s.update(neck=np.zeros(3)), r"1 of its \d+ tensors have no place \(neck \[3\]\); check that"),
        (
            lambda s: s.update({"conv1.weight": np.zeros((4, 3, 7, 7))}),
            r"conv1.weight has shape \(4, 3, 7, 7\), .* needs",
        ),
        (
            lambda s: s.update({"linear.weight": np.zeros((1000, 64)), "linear.bias": np.zeros(1000)}),
            r"linear.weight has 1000 rows, data.num_classes is 10; set data.num_classes to 1000",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_what_differs(resnet, change, message):
    state, template = resnet
    state = dict(state)
    change(state)
    with pytest.raises(UserError, match=message):
        to_flax(state, "cifar_resnet10_w8", template, "a.pth")


def test_another_model_that_fits_is_named():
    state = arrays(torchvision_models.VisionTransformer(7, 96))
    with pytest.raises(UserError, match=r"vit_b16 needs .* more differ; it fits vit_s16, take that model"):
        to_flax(state, "vit_b16", abstract("vit_b16")[1], "a.pth")


def test_positions_of_another_image_size_name_it():
    state = arrays(torchvision_models.VisionTransformer(10, 96))
    with pytest.raises(UserError, match=r"images of 96x96 pixels; set data\.image_size to 96"):
        to_flax(state, "vit_s16", abstract("vit_s16")[1], "a.pth")
