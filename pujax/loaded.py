"""Any classifier, out of a work directory or a file, ready for images: networks through JAX, exported files in the
runtime of their format.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from pujax.artifacts import Workdir, load_json
from pujax.config import Config, DataConfig, from_json
from pujax.data.class_names import read_names
from pujax.data.decoders import CORES
from pujax.data.embedded import weights_file
from pujax.data.sources import ImageSource, hold_out, open_source
from pujax.errors import UserError
from pujax.exporters.formats import FORMATS
from pujax.exporters.function import NORMALISED
from pujax.importers.network import TORCHVISION, import_network
from pujax.inference import compile_map, read_ahead, resolve_dtype, stream_images
from pujax.model_card import CARD, load_card
from pujax.models import parse_name
from pujax.networks import (
    Network,
    Preprocessing,
    check_class_names,
    describes_itself,
    load_network,
    preprocessing_said,
)
from pujax.progress import Progress
from pujax.sharding import replicate
from pujax.weights import load_metadata

STUDENT = "student"
_FORMS = {".onnx": "onnx", ".stablehlo": "stablehlo", ".tflite": "litert"}  # all that a file's kind changes

Named = TypeVar("Named", "Model", Network)
Read = Callable[[np.ndarray], np.ndarray]  # rows [n] -> uint8 [n, H, W, C]


@dataclass(frozen=True)
class Model:
    """A classifier, whatever computes it."""

    where: str  # its file
    num_classes: int
    class_names: tuple[str, ...] | None  # None where unknown
    preprocessing: Preprocessing
    stream: Callable[[Read, int, int, Progress | None], Iterator[np.ndarray]]  # see `logits`

    def logits(
        self, read: Read, num_images: int, *, batch_size: int, progress: Progress | None = None
    ) -> Iterator[np.ndarray]:
        """Yield logits float32 [n, K] of images 0..num_images-1, in that order, a batch at a time.

        Args:
            read: `rows [n] -> uint8 [n, H, W, C]`; called in another thread, one batch ahead.
            num_images: how many images there are.
            batch_size: the most images of a batch; a multiple of the devices.
            progress: advanced by the images done.

        Raises:
            UserError: a logit is not finite.
        """
        for logits in self.stream(read, num_images, batch_size, progress):
            if not np.isfinite(logits).all():
                raise UserError(f"{self.where} gives logits that are not finite; make or fetch it again")
            yield logits


def open_chosen(options: argparse.Namespace, mesh: Mesh) -> Model:
    """Open the classifier that the arguments of `command_line.add_model` name; see `open_model`."""
    return open_model(
        options.model,
        mesh=mesh,
        unit=options.unit,
        network=options.network,
        class_names=chosen_names(options),
        compute_dtype=options.compute_dtype,
    )


def chosen_names(options: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the names of classes that the arguments of `command_line.add_network` give; None where they give none."""
    return read_names(options.class_names, "--class_names") if options.class_names else None


def open_model(
    text: str,
    *,
    mesh: Mesh,
    unit: str = "",
    network: str = "",
    class_names: tuple[str, ...] | None = None,
    compute_dtype: str = "",
) -> Model:
    """Open a classifier.

    Args:
        text: a work directory, a weights file, "embedded:<file>", or a file that `exporters` wrote.
        mesh: devices of this process.
        unit: of a work directory: "student", "teacher", "baselines/<name>", or a file in `export`.
        network: what network the weights of a file are of, which does not say it.
        class_names: of a network that does not know them, in the order of its outputs.
        compute_dtype: as the option of a job; empty for the work directory's own, or "auto".

    Raises:
        UserError: there is nothing of the kind, it does not describe itself, or an option does not belong to it.
    """
    path, workdir = locate(text, unit)
    if workdir and not is_exported(path):
        compute_dtype = compute_dtype or load_config(workdir).compute_dtype
    if is_exported(path):
        for option, value in (("--network", network), ("--compute_dtype", compute_dtype)):
            if value:
                raise UserError(f"{option} is {value}, but {path} is an exported file, which fixes it; leave it out")
        return with_names(_open_exported(path), class_names, str(path))
    opened = with_names(open_network(path, network, compute_dtype or "auto"), class_names, str(path))
    return as_model(opened, str(path), mesh)


def locate(text: str, unit: str) -> tuple[epath.Path, Workdir | None]:
    """Return the file of a classifier, and the work directory that it is from, where it is from one.

    Args:
        text: a work directory, or a file.
        unit: of a work directory; empty for its student.

    Raises:
        UserError: there is nothing of the kind.
    """
    path = weights_file(text)
    if path.is_dir():
        return unit_file(Workdir(path), unit or STUDENT), Workdir(path)
    if not path.exists():
        raise UserError(f"there is nothing at {text}; give a work directory, or the file of a network")
    if unit:
        raise UserError(f"--unit names a network of a work directory, but {text} is a file; leave it out")
    return path, None


def unit_file(workdir: Workdir, unit: str) -> epath.Path:
    """Return the file of a network of a work directory.

    Raises:
        UserError: it is not there; the message lists those that are.
    """
    found = {STUDENT: workdir.unit("distill").student, "teacher": workdir.teacher}
    found = {name: path for name, path in found.items() if path.exists()}
    for name, kept in (("baselines", "student.safetensors"), ("export", "")):
        folder = workdir.root / name
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if kept and (path / kept).exists():
                found[f"{name}/{path.name}"] = path / kept
            elif not kept and path.suffix in (*_FORMS, ".safetensors"):
                found[f"{name}/{path.name}"] = path
    if unit not in found:
        there = f"it has {', '.join(found)}" if found else "it has none yet"
        raise UserError(f"there is no network {unit!r} in {workdir.root}; {there}")
    return found[unit]


def load_config(workdir: Workdir) -> Config:
    """Return the resolved options of a work directory's last run.

    Raises:
        UserError: it has none, or they are of another version.
    """
    if not workdir.config.exists():
        raise UserError(f"there is no {workdir.config.name} in {workdir.root}; give the work directory of a run")
    return from_json(load_json(workdir.config))


def test_images(workdir: Workdir, data: DataConfig, class_names: tuple[str, ...] | None) -> ImageSource:
    """Open the images that measure the student of a work directory: data.test, or what was kept out for it.

    Args:
        workdir: of a run.
        data: the form of the images.
        class_names: in the order of their labels; None keeps the source's own.

    Raises:
        UserError: they are not there, or of other classes.
    """
    told = load_config(workdir).data
    if told.test.kind:
        return open_source(told.test, data, class_names=class_names)
    return hold_out(open_source(told.labelled, data, class_names=class_names), told.holdout)[1]


def open_network(path: epath.Path, network: str, compute_dtype: str) -> Network:
    """Read a weights file: one that describes itself, or a PyTorch state dict of a network that is named.

    Raises:
        UserError: it cannot be read, it does not say what network it holds and none is named, or it says it.
    """
    dtype = resolve_dtype(compute_dtype)
    if describes_itself(path):
        if network:
            raise UserError(f"{path} says itself what network it holds; leave --network out")
        return load_network(path, dtype=dtype)
    if not network:
        raise UserError(
            f"{path} does not say what network it holds; name it, as in --network resnet18, if it sees images as "
            "torchvision's do, or convert it by pujax import"
        )
    try:
        parse_name(network)
    except ValueError as error:
        raise UserError(f"--network: {error}") from error
    return import_network(path, network, num_classes=0, preprocessing=TORCHVISION, dtype=dtype)


def as_model(network: Network, where: str, mesh: Mesh) -> Model:
    """Return a network as it is run by JAX, split over the devices of a mesh."""
    variables = replicate(mesh, network.folded)

    def predict(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"logits": network.logits(variables, images)}

    compiled = compile_map(predict, mesh)

    def stream(read: Read, num_images: int, batch_size: int, progress: Progress | None) -> Iterator[np.ndarray]:
        for output in stream_images(
            compiled, variables, read, num_images, batch_size=batch_size, mesh=mesh, progress=progress
        ):
            yield output["logits"]

    return Model(where, network.num_classes, network.class_names, network.preprocessing, stream)


def is_exported(path: epath.Path) -> bool:
    """Whether a file is one that `exporters` wrote for other programs."""
    return path.suffix in _FORMS or (path.suffix == ".safetensors" and "network" in load_metadata(path))


def _open_exported(path: epath.Path) -> Model:
    """Return an exported file as its own runtime runs it, on the CPU or, for StableHLO, on JAX's default device.

    Raises:
        UserError: it cannot be loaded, its runtime is not installed, or nothing says what it takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        local.write_bytes(path.read_bytes())  # it may be in an object store
        names = {"path": str(local), "np": np, "uint8": False, "threads": CORES}
        try:
            exec(FORMATS[_FORMS.get(path.suffix, "torch")].loader, names)
        except ImportError as error:
            raise UserError(
                f'{path} needs {error.name}, which is not installed; pip install "pujax[export]"'
            ) from error
        except Exception as error:  # each runtime has errors of its own
            raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    told = names.get("told") or {}
    told = told if "takes" in told else _told_by_card(path)
    preprocessing, run = preprocessing_said(told), names["run"]

    def answer(images: np.ndarray) -> np.ndarray:
        given = np.asarray(preprocessing.prepare(images)) if told["takes"] == NORMALISED else images
        try:
            return np.asarray(run(given))
        except Exception as error:  # each runtime has errors of its own
            raise UserError(f"{path} does not run on images {images.shape}: {error}") from error

    def stream(read: Read, num_images: int, batch_size: int, progress: Progress | None) -> Iterator[np.ndarray]:
        starts = range(0, num_images, batch_size)
        for images in read_ahead(lambda start: read(np.arange(start, min(start + batch_size, num_images))), starts):
            yield answer(images)
            if progress:
                progress.advance(len(images))

    names_of_classes = tuple(told["class_names"]) if told["class_names"] else None
    return Model(str(path), told["num_classes"], names_of_classes, preprocessing, stream)


def _told_by_card(path: epath.Path) -> dict[str, Any]:
    """Return what the model card beside a file says of it: classes, preprocessing, and what it "takes"."""
    card = load_card(path.parent)
    blocks = [] if card is None else [block for block in card["files"].values() if "path" in block]
    block = next((block for block in blocks if block["path"].rsplit("/", 1)[-1] == path.name), {})
    if "takes" not in block:
        missing = f"there is no {CARD}" if card is None else f"{CARD} does not say what the file takes"
        raise UserError(
            f"{path} does not say its classes and preprocessing, and {missing} beside it; keep the two together under "
            "the names that pujax gave them, or export again"
        )
    return card | {"takes": block["takes"]}


def with_names(model: Named, class_names: tuple[str, ...] | None, where: str) -> Named:
    """Return a model or a network that knows the names of its classes, where some are given.

    Raises:
        UserError: they are not as many as its classes, or it knows other ones; the message calls it `where`.
    """
    if not class_names:
        return model
    if len(class_names) != model.num_classes:
        raise UserError(
            f"--class_names gives {len(class_names)} names, but {where} has {model.num_classes} classes; give a name "
            "for each of them"
        )
    check_class_names([(where, model.class_names), ("--class_names", class_names)])
    return dataclasses.replace(model, class_names=class_names)


def data_of(model: "Model | Network") -> DataConfig:
    """Return the form of the images that a model or a network sees, as data sources take it."""
    return DataConfig(num_classes=model.num_classes, **dataclasses.asdict(model.preprocessing))
