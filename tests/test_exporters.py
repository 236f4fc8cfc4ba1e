"""Exported files give the network's logits, by the lines that load them; what does not is found out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from etils import epath
from reference import torch_models, torchvision_models

from pujax.config import EXPORT_FORMATS
from pujax.data.decode import fit_arrays
from pujax.data.embedded import embedded_path, load_embedded
from pujax.errors import UserError
from pujax.exporters.checked import Sample, export
from pujax.exporters.formats import FORMATS
from pujax.exporters.litert import export_litert
from pujax.exporters.onnx import export_onnx
from pujax.exporters.onnx_graph import trace
from pujax.exporters.parity import Limits, compare, replay
from pujax.exporters.stablehlo import export_stablehlo
from pujax.exporters.torch import export_torch, to_torch
from pujax.importers.naming import to_flax
from pujax.networks import Network, Preprocessing, abstract_network, load_network

FLOAT32 = jnp.dtype(jnp.float32)
ONNX = pytest.mark.skipif(bool(FORMATS["onnx"].missing()), reason="onnx is not installed")
LITERT = pytest.mark.skipif(bool(FORMATS["litert_int8"].missing()), reason="LiteRT is not installed")


@pytest.fixture(scope="module")
def lenet():
    return load_network(epath.Path(embedded_path("teacher_lenet5.safetensors")), dtype=FLOAT32)


@pytest.fixture(scope="module")
def test_set(lenet):
    """The network's images, labels and logits."""
    part = load_embedded("test")
    images = fit_arrays(part["images"][:300], lenet.preprocessing.spec)
    return images, part["labels"][:300], lenet(images)


def run(loader, path, images):
    """Run a file in this process, by the lines that load it."""
    names = {"path": str(path), "np": np, "uint8": images.dtype == np.uint8, "threads": 1}
    exec(loader, names)
    return np.asarray(names["run"](images))


def check_close(logits, expected, tolerance=1e-5):
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()


def test_every_option_is_a_format():
    assert tuple(FORMATS) == EXPORT_FORMATS
    assert len({form.file for form in FORMATS.values()}) == len(FORMATS)
    assert not any(FORMATS[name].missing() for name in ("stablehlo", "torch"))


@pytest.mark.parametrize("preprocessing", [True, False], ids=["pixels", "normalised"])
@pytest.mark.parametrize("name", ["stablehlo", "torch", pytest.param("onnx", marks=ONNX)])
def test_a_float_file_gives_the_logits_for_every_batch_size(lenet, test_set, tmp_path, name, preprocessing):
    images, _, expected = test_set
    given = images if preprocessing else np.asarray(lenet.preprocessing.prepare(images))
    form, path = FORMATS[name], tmp_path / FORMATS[name].file
    form.write(lenet, path, preprocessing=preprocessing)
    for size in (1, 7):
        check_close(run(form.loader, path, given[:size]), expected[:size])


@LITERT
@pytest.mark.parametrize("preprocessing", [True, False], ids=["pixels", "normalised"])
@pytest.mark.parametrize("name", ["litert", "litert_float16", "litert_int8"])
def test_a_litert_file_gives_the_logits(lenet, test_set, tmp_path, name, preprocessing):
    from ai_edge_litert.interpreter import Interpreter

    form, path = FORMATS[name], tmp_path / FORMATS[name].file
    calibration = fit_arrays(load_embedded("labelled")["images"], lenet.preprocessing.spec)
    block = export(form, lenet, path, preprocessing=preprocessing, sample=Sample(*test_set), calibration=calibration)
    assert block["top1_agreement"] >= 0.99 and block["accuracy"] == pytest.approx(0.93, abs=0.02)
    assert block["relative_diff"] < {"litert": 1e-5, "litert_float16": 1e-3, "litert_int8": 0.25}[name]
    assert block["bytes"] < {"litert": 260_000, "litert_float16": 135_000, "litert_int8": 80_000}[name]
    interpreter = Interpreter(str(path))
    kinds = {tensor["dtype"].__name__ for tensor in interpreter.get_tensor_details()}
    assert name != "litert_int8" or "float32" not in kinds
    if name == "litert_int8" and preprocessing:
        assert interpreter.get_input_details()[0]["quantization"] == (1.0, -128)  # of pixel - 128


@LITERT
def test_int8_steps_between_are_those_of_ordinary_images(lenet, test_set, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    images, steps = test_set[0], []
    faint = images[:100] // 8
    for calibration in (faint, np.concatenate([faint, images[100:104]])):  # few reach eight times as far
        export_litert(lenet, tmp_path / "a.tflite", precision="int8", images=calibration)
        tensors = Interpreter(str(tmp_path / "a.tflite")).get_tensor_details()
        steps.append({tensor["name"]: tensor["quantization"][0] for tensor in tensors})
    wider = {name: steps[1][name] / step for name, step in steps[0].items() if step}
    logits = wider.pop(next(name for name in wider if "logits" in name))
    assert len(wider) > 5 and max(wider.values()) < 1.25 and logits > 1.4


def from_torch(reference, model, size=64):
    """A network with a PyTorch module's weights."""
    preprocessing = Preprocessing(size, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    names = {"num_classes": 10, "class_names": None, "preprocessing": preprocessing, "dtype": FLOAT32}
    network = abstract_network(model, **names)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    return network.with_variables(to_flax(state, model, network.variables, "a.pth")), state


FAMILIES = (
    "mobilenet_v2_x0.35",
    "mobilenet_v3_small",
    "efficientnet_b0_x0.5",
    "vgg16_bn_x0.125",
    "convnext_tiny_x0.25",
)
FAMILIES += tuple(
    pytest.param(model, marks=pytest.mark.slow) for model in ("resnet50_x0.25", "vgg11_x0.125", "vit_s16")
)


@functools.cache
def family(model):
    """(PyTorch's module, our network of its weights, its state dict)."""
    reference = torchvision_models.randomize(torchvision_models.NETWORKS[model](10))
    return reference, *from_torch(reference, model)


def torch_logits(reference, images):
    normalised = (images / np.float32(255) - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.4])
    with torch.no_grad():
        logits = reference(torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy()))
    return (logits[0] if isinstance(logits, tuple) else logits).numpy()  # some give their features too


@pytest.mark.parametrize("model", FAMILIES)
def test_pytorch_takes_the_state_dict_strictly(model):
    _, network, state = family(model)
    written = to_torch(network.variables, model)
    fresh = torchvision_models.NETWORKS[model](10)
    fresh.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in written.items()}, strict=True)
    for name, value in fresh.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value.numpy(), state[name], err_msg=name)


def test_pytorch_computes_with_the_file(lenet, test_set, tmp_path):
    from safetensors.torch import load_file

    images, _, expected = test_set
    export_torch(lenet, tmp_path / "a.safetensors")
    module = torch_models.NETWORKS["lenet5"](10).eval()
    module.load_state_dict(load_file(tmp_path / "a.safetensors"), strict=True)
    normalised = np.asarray(lenet.preprocessing.prepare(images)).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        logits, _ = module(torch.from_numpy(normalised))
    check_close(logits.numpy(), expected)


@pytest.mark.parametrize("model", ["timm_mobilenet_v3_small", "timm_vgg11_x0.125", "tf_efficientnet_lite0_x0.5"])
def test_timms_names_are_read_back(model):
    network = abstract_network(
        model, num_classes=10, class_names=None, preprocessing=Preprocessing(64, 3, (0.5,), (0.5,)), dtype=FLOAT32
    )
    numbers = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape).astype(np.float32), network.variables)
    written = to_torch(variables, model)
    jax.tree.map(np.testing.assert_array_equal, to_flax(written, model, network.variables, "a"), variables)
    for name in ("conv_head.weight", "pre_logits.fc1.weight", "pre_logits.fc2.weight"):
        assert name not in written or written[name].ndim == 4, name  # convolutions there


@ONNX
@pytest.mark.parametrize("model", FAMILIES)
def test_onnx_computes_as_pytorch(model, tmp_path):
    import onnx

    reference, network, _ = family(model)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    expected = torch_logits(reference, images)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()
    export_onnx(network, tmp_path / "a.onnx")
    check_close(run(FORMATS["onnx"].loader, tmp_path / "a.onnx", images), expected, 1e-4)
    kinds = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "BatchNormalization" not in kinds and ("Clip" in kinds) == ("mobilenet" in model)


@ONNX
def test_an_operation_that_is_not_known_is_named():
    with pytest.raises(UserError, match=r"the network has an operation 'sort' that pujax cannot write as ONNX"):
        trace(lambda images: jnp.sort(images.astype(jnp.float32), axis=1), (4, 4, 1), "uint8")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mobilenet_v2_x0.35", "resnet50_x0.25", "convnext_tiny_x0.25", "vit_s16"])
def test_stablehlo_computes_as_pytorch(model, tmp_path):
    reference, network, _ = family(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    export_stablehlo(network, tmp_path / "a")
    check_close(run(FORMATS["stablehlo"].loader, tmp_path / "a", images), torch_logits(reference, images), 1e-4)


@pytest.mark.parametrize("name", ["stablehlo", pytest.param("onnx", marks=ONNX)])
def test_batch_norm_is_exported_with_its_statistics(name, tmp_path):
    reference = torch_models.randomize(torch_models.NETWORKS["cifar_resnet10_w8"](10), 0).eval()
    preprocessing = Preprocessing(32, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    variables = torch_models.flax_variables(reference)
    network = Network("cifar_resnet10_w8", 10, None, preprocessing, variables)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    FORMATS[name].write(network, tmp_path / "a")
    check_close(run(FORMATS[name].loader, tmp_path / "a", images), torch_logits(reference, images), 1e-4)


def changed(network, path, change):
    """The network with one leaf of its parameters changed."""
    layer, leaf = path
    params = network.variables["params"]
    params = params | {layer: params[layer] | {leaf: change(np.array(params[layer][leaf]))}}
    return network.with_variables(network.variables | {"params": params})


def flip_bit(kernel):
    bits = kernel.view(np.uint32)
    bits[0, 0] ^= 1 << 29
    return kernel


DAMAGES = {
    "a flipped bit": lambda n: changed(n, ("linear", "kernel"), flip_bit),
    "height and width swapped": lambda n: changed(n, ("conv2", "kernel"), lambda k: k.swapaxes(0, 1)),
    "another order of classes": lambda n: changed(n, ("linear", "bias"), lambda b: b[::-1]),
    "another preprocessing": lambda n: dataclasses.replace(
        n, preprocessing=dataclasses.replace(n.preprocessing, mean=(0.0,), std=(1.0,))
    ),
    "one class less sure": lambda n: changed(n, ("linear", "bias"), lambda b: b - 0.02 * (np.arange(len(b)) == 3)),
}


@ONNX
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_answers_otherwise_is_found_out_and_removed(lenet, test_set, tmp_path, damage):
    def write(network, path, **options):
        export_onnx(DAMAGES[damage](network), path, **options)

    form = dataclasses.replace(FORMATS["onnx"], write=write)
    with pytest.raises(UserError, match=r"a.onnx does not answer as the network.*differ by .* the limit is 0.0001"):
        export(form, lenet, tmp_path / "a.onnx", preprocessing=True, sample=Sample(*test_set))
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_does_not_run(lenet, test_set, tmp_path):
    path = tmp_path / "a.stablehlo"
    export_stablehlo(lenet, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"a.stablehlo does not run: .* \(exit status 1\)"):
        replay(FORMATS["stablehlo"].loader, path, test_set[0])


def test_limits():
    expected, labels = np.float32([[1, 0.99999, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]), np.int32([0, 1, 2, 1])
    strict, lenient = Limits(1e-4, 1.0), Limits(1e-4, 1.0, ties=True)
    same = compare(expected, expected, labels, strict)
    assert (same.top1_agreement, same.accuracy, same.max_abs_diff) == (1, 0.75, 0)
    assert same.violation(strict) == ""
    tie = expected + np.float32([[0, 2e-5, 0], [0] * 3, [0] * 3, [0] * 3])
    assert compare(expected, tie, labels, lenient).violation(lenient) == ""
    assert "top-1 agreement is 0.7500, the limit is 1" in compare(expected, tie, labels, strict).violation(strict)
    broken = np.where(expected == 1, np.nan, expected)
    assert "differ by nan" in compare(expected, broken, labels, lenient).violation(lenient)
    far = expected + np.float32([[0] * 3, [0] * 3, [3, 0, 0], [0] * 3])  # wrong, where the original was right
    int8 = Limits(np.inf, 0.99, accuracy=0.005)
    wrong = compare(expected, far, labels, int8).violation(int8)
    assert "agreement is 0.7500, accuracy changes by -0.2500, the limit is 0.99" in wrong
    better = expected + np.float32([[0] * 3, [0] * 3, [0] * 3, [0, 2, 0]])
    assert compare(expected, better, labels, int8).violation(int8) == ""
    with pytest.raises(UserError, match=r"logits have shape \(4, 2\), the original's \(4, 3\)"):
        compare(expected, expected[:, :2], labels, strict)


def test_a_missing_package_is_named():
    form = dataclasses.replace(FORMATS["onnx"], packages=("numpy", "no_such_package"))
    assert form.missing() == 'no_such_package not installed: pip install "pujax[export]"'


def test_a_fixed_graph_has_no_names_for_pytorch(lenet, tmp_path):
    graph = dataclasses.replace(lenet, model="exported")
    assert isinstance(graph, Network)
    with pytest.raises(UserError, match="a fixed graph cannot be written for PyTorch"):
        export_torch(graph, tmp_path / "a")
