"""A network written as a file, which is run in a process of its own and kept only if it answers as the network does."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from pujax.artifacts import write_atomic
from pujax.data.reading import read_or_fail, spread
from pujax.data.sources import ImageSource
from pujax.errors import UserError
from pujax.exporters.formats import Format
from pujax.exporters.function import NORMALISED, PIXELS
from pujax.exporters.parity import compare, replay
from pujax.inference import map_images
from pujax.networks import Network
from pujax.sharding import replicate

CALIBRATION_IMAGES = 512
_FEWEST_IMAGES, _MOST_IMAGES = 200, 1000
_OPERATIONS = 2e11  # that comparing one file may take on one thread, where that is more than the fewest images


@dataclass(frozen=True)
class Sample:
    """Images that a file is compared on."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N]
    expected: np.ndarray  # the network's logits, float32 [N, K]


def draw_sample(
    network: Network, source: ImageSource, what: str, *, flops_per_image: float, mesh: Mesh, batch_size: int
) -> Sample:
    """Return images spread over a labelled source, as many as can be afforded, and the network's logits on them.

    Raises:
        UserError: one does not decode; the message calls the source `what`.
    """
    affordable = int(_OPERATIONS / flops_per_image)
    rows = spread(len(source), min(max(affordable, _FEWEST_IMAGES), _MOST_IMAGES))
    images = read_or_fail(source, rows, what)
    return Sample(images, source.labels[rows], _logits(network, images, mesh=mesh, batch_size=batch_size))


def export_into(
    folder: epath.Path,
    file: str,
    form: Format,
    network: Network,
    *,
    preprocessing: bool,
    sample: Sample,
    calibration: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write a network into a folder, here or in an object store; return what is to be known of the file.

    The arguments, and what is raised, are those of `export`; `file` is the name in the folder.
    """
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / file
        block = export(form, network, path, preprocessing=preprocessing, sample=sample, calibration=calibration)
        write_atomic(folder / file, path.read_bytes())
    return {"path": file, **block}


def export(
    form: Format,
    network: Network,
    path: Path,
    *,
    preprocessing: bool,
    sample: Sample,
    calibration: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write a network to a local file, run that and compare; return what is to be known of it.

    Args:
        form: how it is written.
        network: what is written.
        path: of the file.
        preprocessing: whether the file takes pixels, or normalised float32.
        sample: what it is compared on.
        calibration: uint8 [n, H, W, C], typical images, for formats that are calibrated.

    Raises:
        UserError: it cannot be written or run, or does not answer as the network does; it is not left.
    """
    options = {"images": calibration} if form.calibrated else {}
    form.write(network, path, preprocessing=preprocessing, **options)
    try:
        given = sample.images if preprocessing else np.asarray(network.preprocessing.prepare(sample.images))
        logits, latency = replay(form.loader, path, given, timed=form.runtime)
        parity = compare(sample.expected, logits, sample.labels, form.limits)
        if wrong := parity.violation(form.limits):
            raise UserError(f"{path.name} does not answer as the network does, and is not kept: {wrong}")
    except UserError:
        path.unlink()
        raise
    block = {name: value for name, value in dataclasses.asdict(parity).items() if name != "original_accuracy"}
    block["takes"] = PIXELS if preprocessing and form.runtime else NORMALISED
    return {"bytes": path.stat().st_size, **block} | ({"latency_ms": latency} if latency else {})


def _logits(network: Network, images: np.ndarray, *, mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return logits float32 [N, K] in full precision; accelerators round sums to fewer digits by default."""

    def predict(variables: Any, batch: jax.Array) -> dict[str, jax.Array]:
        return {"logits": network.logits(variables, batch)}

    variables, read = replicate(mesh, network.variables), images.__getitem__
    with jax.default_matmul_precision("highest"):
        return map_images(predict, variables, read, len(images), batch_size=batch_size, mesh=mesh)["logits"]
