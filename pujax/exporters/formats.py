"""The formats that a student is written in: file, writer, the lines that load it, and what it may differ by."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from pujax.exporters.litert import LOADER as LITERT_LOADER
from pujax.exporters.litert import export_litert
from pujax.exporters.onnx import LOADER as ONNX_LOADER
from pujax.exporters.onnx import export_onnx
from pujax.exporters.parity import Limits
from pujax.exporters.stablehlo import LOADER as STABLEHLO_LOADER
from pujax.exporters.stablehlo import export_stablehlo
from pujax.exporters.torch import LOADER as TORCH_LOADER
from pujax.exporters.torch import export_torch

_ROUNDING = Limits(difference=1e-4, agreement=1.0, ties=True)
_LITERT = ("litert_converter", "ai_edge_litert")


@dataclass(frozen=True)
class Format:
    """One way to write a network down."""

    file: str
    write: Callable[..., None]  # (network, path, *, preprocessing), and `images` uint8 [n, H, W, C] where calibrated
    loader: str
    limits: Limits
    packages: tuple[str, ...] = ()  # to be imported, beyond pujax's own
    calibrated: bool = False
    runtime: bool = True  # whether the loader is what its users run, so that its time tells something

    def missing(self) -> str:
        """Return why the format cannot be written here; empty where it can."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f'{" and ".join(missing)} not installed: pip install "pujax[export]"' if missing else ""


# By the names that config.EXPORT_FORMATS offers.
FORMATS = {
    "stablehlo": Format("student.stablehlo", export_stablehlo, STABLEHLO_LOADER, _ROUNDING),
    "torch": Format("student_torch.safetensors", export_torch, TORCH_LOADER, _ROUNDING, runtime=False),
    "onnx": Format("student.onnx", export_onnx, ONNX_LOADER, _ROUNDING, ("onnx", "onnxruntime")),
    "litert": Format("student.tflite", export_litert, LITERT_LOADER, _ROUNDING, _LITERT),
    "litert_float16": Format(
        "student_float16.tflite",
        functools.partial(export_litert, precision="float16"),
        LITERT_LOADER,
        Limits(difference=1e-2, agreement=0.99),
        (*_LITERT, "ai_edge_quantizer"),
    ),
    "litert_int8": Format(
        "student_int8.tflite",
        functools.partial(export_litert, precision="int8"),
        LITERT_LOADER,
        Limits(difference=float("inf"), agreement=0.99, accuracy=0.005),
        (*_LITERT, "ai_edge_quantizer"),
        calibrated=True,
    ),
}
