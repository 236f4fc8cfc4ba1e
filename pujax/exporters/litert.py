"""LiteRT, the `.tflite` files of phones, for one image: float32, float16 weights, or int8 throughout.

TensorFlow is not needed.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax import export

from pujax.exporters.function import input_dtype, make_function
from pujax.models.layers import plain_convolutions
from pujax.networks import Network

_SIGNATURE = "serving_default"
_CALM = 0.95  # of the images; with 0.9 or 0.99 a hard ResNet-18 agrees less, LeNet-5 does not tell them apart
LOADER = """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(path, num_threads=threads)
interpreter.allocate_tensors()
given, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
def run(images):
    out = []
    for image in images:
        scale, zero = given["quantization"]
        if scale:  # an int8 file; for pixels it is pixel - 128
            image = np.clip(np.round(image / scale) + zero, -128, 127)
        interpreter.set_tensor(given["index"], image[None].astype(given["dtype"]))
        interpreter.invoke()
        scale, zero = answer["quantization"]
        logits = interpreter.get_tensor(answer["index"])[0].astype(np.float32)
        out.append((logits - zero) * scale if scale else logits)
    return np.array(out, np.float32)
"""


def export_litert(
    network: Network,
    path: Path,
    *,
    preprocessing: bool = True,
    precision: str = "float32",
    images: np.ndarray | None = None,
) -> None:
    """Write a network for LiteRT.

    Args:
        network: what is written; its weights are arrays.
        path: of the file.
        preprocessing: True takes images uint8 [1, H, W, C], or for int8, int8 of pixel - 128; False takes them float32
            and normalised, for int8 quantised as the file says.
        precision: "float32"; "float16", of the weights; or "int8", of weights, inputs, outputs and all between.
        images: uint8 [n, H, W, C], typical ones, whose ranges int8 is made for.
    """
    content = convert(network, preprocessing=preprocessing, pixels="float32" if precision == "int8" else "uint8")
    if precision == "float16":
        content = _with_float16_weights(content)
    elif precision == "int8":
        given = images if preprocessing else np.asarray(network.preprocessing.prepare(images))
        content = _as_int8(content, given, (0, 255) if preprocessing else None)
    path.write_bytes(content)


def convert(network: Network, *, preprocessing: bool, pixels: str) -> bytes:
    """Return the float32 `.tflite` file of a network, for one image; `pixels` is the dtype of not normalised images."""
    from litert_converter import converter_api_ext as api
    from litert_converter.mlir import ir, passmanager

    function = make_function(network, preprocessing=preprocessing)
    dtype = np.dtype(pixels if preprocessing else input_dtype(preprocessing))
    image = jax.ShapeDtypeStruct((1, *network.preprocessing.image_shape), dtype)
    with plain_convolutions():
        program = export.export(jax.jit(function), platforms=["cpu"])(image).mlir_module()
    with ir.Context() as context:
        api.prepare_mlir_context(context)
        module = ir.Module.parse(program)
        api.set_signature(module.operation, _SIGNATURE, ["images"], ["logits"])
        api.run_convert_to_tfl_passes(module, passmanager.PassManager(), api.ConvertToTFLConfig())
        return api.export_flatbuffer_to_bytes(module.operation)


def _with_float16_weights(content: bytes) -> bytes:
    from ai_edge_quantizer import qtyping, quantizer

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    rewriter = quantizer.Quantizer(content)
    rewriter.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT
        ),
        algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
    )
    with _quiet():
        return bytes(rewriter.quantize(enable_progress_report=False).quantized_model)


def _as_int8(content: bytes, images: np.ndarray, limits: tuple[float, float] | None) -> bytes:
    """Return a file of int8 alone.

    Args:
        content: the float32 file.
        images: float32 or uint8 [n, H, W, C], typical ones as the file takes them.
        limits: what any image lies in, where that is known.

    Note: logits range over the smallest to the largest of all images, what lies between over what `_CALM` of the images
    keep to. The few that a network is surest of reach two or three times as far: their steps were too coarse for all
    others, and cut off they are still told rightly. The quantiser's own moving average cuts logits off, too.
    """
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    samples = [{"images": image[None].astype(np.float32)} for image in images]
    with _quiet():
        seen = calibrator.Calibrator(content, num_threads=1, qsv_update_func=_append)
        seen.calibrate({_SIGNATURE: samples}, manager)
        ranges = {name: _range(name, ends, len(samples)) for name, ends in seen.get_model_qsvs().items()}
        if limits:
            given = ranges[f"{_SIGNATURE}_images"]
            given.update({end: np.full_like(given[end], limit) for end, limit in zip(("min", "max"), limits)})
        rewriter = quantizer.Quantizer(content, manager.get_quantization_recipe())
        return bytes(rewriter.quantize(ranges, enable_progress_report=False).quantized_model)


def _append(ends: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the smallest and largest values of images, "min" and "max" [n], with those of one more."""
    return {end: np.append(ends[end], more[end]) for end in ("min", "max")}


def _range(name: str, ends: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return the range of a tensor from those of so many images; weights have had theirs from the start."""
    if ends["min"].size != count:
        return ends
    share = 1.0 if name.startswith(_SIGNATURE) else _CALM
    return {"min": np.quantile(ends["min"], 1 - share), "max": np.quantile(ends["max"], share)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's warnings and progress bars from the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
