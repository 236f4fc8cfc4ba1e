"""A network that describes itself: module, weights, class names, preprocessing; made, written, read."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pujax.config import DataConfig
from pujax.data.decode import ImageSpec
from pujax.data.transforms import normalize
from pujax.errors import UserError
from pujax.folding import fold_batch_norms
from pujax.models import create_classifier
from pujax.models.exported import EXPORTED, ExportedClassifier, Graph
from pujax.weights import load_bytes, load_metadata, load_weights, save_weights

_GRAPH = "graph"  # the tensor of bytes beside the weights


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see: size, channels, and the normalisation of its pixels."""

    image_size: int  # height and width
    channels: int
    mean: tuple[float, ...]  # of the pixels in [0, 1]; one number or one per channel
    std: tuple[float, ...]
    crop: float = 1.0  # share of the short side that the centre crop of an image file keeps
    interpolation: str = "bilinear"  # of image files

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.image_size, self.image_size, self.channels

    @property
    def spec(self) -> ImageSpec:
        """The form that image files are brought to."""
        return ImageSpec(self.image_size, self.channels, self.crop, self.interpolation)

    def prepare(self, images: jax.Array) -> jax.Array:
        """Return uint8 [B, H, W, C] images as the normalised float32 that the module takes."""
        return normalize(images, self.mean, self.std)


@dataclass(frozen=True)
class Network:
    """A classifier. `variables` may be arrays, or `jax.ShapeDtypeStruct`s where only shapes are wanted."""

    model: str  # a key of models.CLASSIFIERS, or "exported"
    num_classes: int
    class_names: tuple[str, ...] | None  # None where unknown
    preprocessing: Preprocessing
    variables: Any
    # Of the computation; a graph keeps to its own.
    dtype: jnp.dtype = dataclasses.field(default_factory=lambda: jnp.dtype(jnp.float32))
    graph: Graph | None = None  # where the model is "exported": what is computed

    @functools.cached_property
    def module(self) -> nn.Module | ExportedClassifier:
        """What computes: `apply(variables, normalised images, train=False) -> (logits, features)`."""
        if self.graph:
            return ExportedClassifier(self.graph)
        return create_classifier(self.model, self.num_classes, dtype=self.dtype)

    @functools.cached_property
    def folded(self) -> Any:
        """Its variables without BatchNorm, for whoever computes with the frozen network; see `fold_batch_norms`.

        A graph's operations are fixed, and its variables are these as they are.
        """
        shape = self.preprocessing.image_shape
        return self.variables if self.graph else fold_batch_norms(self.module, self.variables, shape)

    def with_variables(self, variables: Any) -> "Network":
        """Return the same network with other weights."""
        return dataclasses.replace(self, variables=variables)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return logits float32 [B, K] of uint8 images [B, H, W, C]; compiled once for every batch size."""
        return np.asarray(self._compiled(self.folded, images))

    @functools.cached_property
    def _compiled(self) -> Callable[..., jax.Array]:
        return jax.jit(self.logits)

    def logits(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return logits float32 [B, K] of uint8 images [B, H, W, C]."""
        return self.module.apply(variables, self.preprocessing.prepare(images), train=False)[0]


def preprocessing_of(data: DataConfig) -> Preprocessing:
    """Return the preprocessing that a job's options describe."""
    names = [field.name for field in dataclasses.fields(Preprocessing)]
    return Preprocessing(**{name: _as_tuple(getattr(data, name)) for name in names})


def abstract_network(
    model: str,
    *,
    num_classes: int,
    class_names: tuple[str, ...] | None,
    preprocessing: Preprocessing,
    dtype: jnp.dtype,
) -> Network:
    """Return a network of which only the shapes of the weights are known."""
    network = Network(model, num_classes, class_names, preprocessing, None, dtype)
    image = jax.ShapeDtypeStruct((1, *preprocessing.image_shape), jnp.float32)
    variables = jax.eval_shape(lambda rng, x: network.module.init(rng, x, train=False), jax.random.key(0), image)
    return network.with_variables(variables)


def init_network(network: Network, rng: jax.Array) -> Network:
    """Return the network with fresh weights."""
    # Run once: on a CPU, optimising the random numbers' code takes five times as long as all the rest.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(network.module.init, static_argnames="train", compiler_options=options)
    variables = init(rng, jnp.zeros((1, *network.preprocessing.image_shape)), train=False)
    return network.with_variables(variables)


def describe(network: Network) -> dict[str, Any]:
    """Return the model's name, its classes, and what it wants to see, as JSON takes them."""
    return {
        "model": network.model,
        "num_classes": network.num_classes,
        "class_names": list(network.class_names) if network.class_names else None,
        "preprocessing": dataclasses.asdict(network.preprocessing),
    }


def preprocessing_said(description: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing in what `describe` gave, after it has been through JSON."""
    return Preprocessing(**{key: _as_tuple(value) for key, value in description["preprocessing"].items()})


def save_network(path: epath.Path, network: Network, *, origin: dict[str, Any] | None = None) -> None:
    """Write weights, description and, where there is one, the graph to one safetensors file.

    Args:
        path: the file.
        network: what is written.
        origin: for a network that was made elsewhere: what is to be known of it, for readers of the file's metadata.
    """
    description = describe(network)
    variables = network.variables
    if network.graph:
        description["flops_per_image"] = network.graph.flops_per_image
        variables = {**variables, _GRAPH: np.frombuffer(network.graph.artifact, np.uint8)}
    metadata = {"pujax": json.dumps(description)} | ({"origin": json.dumps(origin)} if origin else {})
    save_weights(path, variables, metadata=metadata)


def load_network(path: epath.Path, *, dtype: jnp.dtype) -> Network:
    """Read a network that `save_network` wrote.

    Args:
        path: the file.
        dtype: to compute in.

    Raises:
        UserError: there is no such file, it is damaged, or it does not describe itself.
    """
    text = load_metadata(path).get("pujax")
    if text is None:
        raise UserError(f"{path} does not say what network it holds; give weights that pujax wrote")
    description = json.loads(text)
    options = {
        "num_classes": description["num_classes"],
        "class_names": _as_tuple(description["class_names"]),
        "preprocessing": preprocessing_said(description),
        "dtype": dtype,
    }
    if description["model"] == EXPORTED:
        return _load_exported(path, description["flops_per_image"], options)
    network = abstract_network(description["model"], **options)
    return network.with_variables(load_weights(path, network.variables))


def describes_itself(path: epath.Path) -> bool:
    """Whether a weights file says what network it holds, as `save_network` writes it.

    Raises:
        UserError: there is no such file, or it is a damaged safetensors file.
    """
    return "pujax" in load_metadata(path) if path.suffix == ".safetensors" or not path.is_file() else False


def _load_exported(path: epath.Path, flops_per_image: float, options: dict[str, Any]) -> Network:
    graph = Graph(load_bytes(path, _GRAPH), flops_per_image)
    try:
        wanted = graph.abstract_variables()
    except Exception as error:  # of any kind: another version's graph, or none at all
        raise UserError(f"{path} holds a graph that this JAX, {jax.__version__}, does not read: {error}") from error
    wanted[_GRAPH] = jax.ShapeDtypeStruct((len(graph.artifact),), jnp.uint8)
    variables = load_weights(path, wanted)
    variables.pop(_GRAPH)
    return Network(EXPORTED, variables=variables, graph=graph, **options)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_fits(network: Network, where: str, *, model: str, data: DataConfig) -> None:
    """Raise UserError, naming what differs, unless a network is the one that a job's options describe.

    Args:
        network: as it was read.
        where: its file, for the message.
        model: the name that is expected; empty where any will do.
        data: number of classes and preprocessing that are expected.
    """
    if model and network.model != model:
        raise UserError(f"{where} holds a {network.model}, but teacher.model is {model}; leave teacher.model empty")
    found = {"num_classes": network.num_classes, **dataclasses.asdict(network.preprocessing)}
    for name, value in found.items():
        expected = getattr(data, name)
        if (tuple(expected) if isinstance(value, tuple) else expected) != value:
            raise UserError(
                f"{where} is a network of {name} {value}, but data.{name} is {expected}; correct one of them"
            )


def check_class_names(named: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
    """Raise UserError unless all class names that are known are the same, in the same order.

    Args:
        named: (where, names or None) of the teacher and of every labelled source.
    """
    known = [(where, names) for where, names in named if names is not None]
    for where, names in known[1:]:
        first_where, first = known[0]
        if names != first:
            k = next((k for k, pair in enumerate(zip(first, names)) if pair[0] != pair[1]), min(len(first), len(names)))
            left, right = (repr(own[k]) if k < len(own) else "none" for own in (first, names))
            raise UserError(
                f"class {k} is {left} in {first_where} but {right} in {where}; they must be the same classes"
            )
