"""A PyTorch network as a pujax network: traced once, for every batch size and platform."""

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from pujax.errors import UserError
from pujax.importers.aten import check_known, evaluate, tensors_of
from pujax.importers.aten_operations import operation
from pujax.importers.features import choose_features, first_tensor, named_features, run_and_watch, with_features
from pujax.metrics import flops_per_image
from pujax.models.exported import EXPORTED, Graph
from pujax.networks import Network, Preprocessing

_PLATFORMS = ("cpu", "cuda", "tpu")
_BATCH_SIZE = 2  # of the images that PyTorch traces with; the traced program serves any


class Traced:
    """A traced PyTorch network, called as a Flax module is."""

    def __init__(self, program: Any, places: dict[str, tuple[str, str]]):
        self._program, self._places = program, places

    def apply(self, variables: Any, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return (logits, features), all float32, of normalised images [B, H, W, C]; `train` must be False."""
        assert not train
        outputs = evaluate(self._program, self._places, variables, jnp.transpose(x, (0, 3, 1, 2)))
        logits, *features = (output.astype(jnp.float32) for output in outputs)
        return logits, tuple(features)


@dataclasses.dataclass(frozen=True)
class Converted:
    """What became of a PyTorch network."""

    network: Network
    features: tuple[str, ...]  # where each feature comes from: "layer1 [64, 56, 56]"


def convert(
    module: Any,
    preprocessing: Preprocessing,
    *,
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    features: Sequence[str] = (),
) -> Converted:
    """Convert a PyTorch network.

    Args:
        module: a `torch.nn.Module` that takes normalised images [B, C, H, W] and returns logits [B, K]; it is put in
            evaluation mode, in float32 on the CPU.
        preprocessing: what it wants to see.
        num_classes: K, where it is known and to be checked.
        class_names: K names.
        features: paths of the submodules whose outputs are features; chosen by shape where there are none.

    Raises:
        UserError: it does not run, is no classifier of so many classes, cannot be traced, or has an operation that
            pujax does not know.
    """
    import torch

    module = module.float().cpu().eval()
    size, channels = preprocessing.image_size, preprocessing.channels
    images = torch.rand(_BATCH_SIZE, channels, size, size, generator=torch.Generator().manual_seed(0))
    with _plain_torch():
        output, results = _run(module, images)
        found = _count_classes(output, num_classes, class_names)
        if features:
            chosen = named_features(results, features, batch_size=_BATCH_SIZE)
        else:
            chosen = choose_features(results, batch_size=_BATCH_SIZE, image_size=size)
        program = _trace(with_features(module, chosen), images)
    check_known(program)
    places, variables = tensors_of(program, prefix="model.")
    traced = Traced(program, places)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    graph = Graph(_export(traced, shapes, preprocessing), flops_per_image(traced, shapes, preprocessing.image_shape))
    network = Network(EXPORTED, found, class_names, preprocessing, variables, graph=graph)
    return Converted(network, tuple(f"{result.name} {list(result.shape[1:])}" for result in chosen))


@contextlib.contextmanager
def _plain_torch() -> Iterator[None]:
    """Keep PyTorch from telling the user what it traces, and from attention in one opaque operation."""
    import torch

    fast, level = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logging.disable(level)


def _run(module: Any, images: Any) -> Any:
    try:
        return run_and_watch(module, images)
    except Exception as error:  # whatever a user's module raises
        raise UserError(f"the network fails on images {list(images.shape)}: {_line(error)}") from error


def _count_classes(output: Any, num_classes: int | None, class_names: tuple[str, ...] | None) -> int:
    """Return K; raise UserError unless the output is logits [B, K] for as many classes as are known."""
    logits = first_tensor(output)
    if logits is None or logits.ndim != 2 or len(logits) != _BATCH_SIZE:
        what = type(output).__name__ if logits is None else list(logits.shape)
        raise UserError(f"the network must return logits [B, classes]; for {_BATCH_SIZE} images it returns {what}")
    found = logits.shape[1]
    for name, expected in (("--num_classes is", num_classes), ("class names:", class_names and len(class_names))):
        if expected not in (None, found):
            raise UserError(f"the network returns {found} logits, but {name} {expected}")
    return found


def _trace(module: Any, images: Any) -> Any:
    """Return the program of a module, with a batch of any size; what is not known is taken apart as far as it goes."""
    import torch

    try:
        with torch.no_grad():
            program = torch.export.export(
                module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
            )
            decompositions = torch.export.default_decompositions()
            for known in [name for name in decompositions if operation(str(name))]:
                decompositions.pop(known)  # attention, say, is shorter and faster whole
            return program.run_decompositions(decompositions)
    except Exception as error:  # of many kinds
        remedy = ""
        if "Constraints violated (batch)" in str(error):
            remedy = "the network fixes the size of its batch; in its code write x.shape[0] for len(x). "
        raise UserError(f"torch.export cannot trace the network: {remedy}{_line(error)}") from error


def _line(error: BaseException) -> str:
    """Return kind and message of an error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _export(traced: Traced, shapes: Any, preprocessing: Preprocessing) -> bytes:
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *preprocessing.image_shape), np.float32)
    exported = jax.export.export(jax.jit(traced.apply), platforms=_PLATFORMS)(shapes, images)
    return bytes(exported.serialize())
