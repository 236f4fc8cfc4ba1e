"""A network that describes itself: module, weights, class names, preprocessing; made, written, read."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from pujax.config import DataConfig
from pujax.data.transforms import normalize
from pujax.errors import UserError
from pujax.models import create_classifier
from pujax.weights import load_metadata, load_weights, save_weights


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

    def prepare(self, images: jax.Array) -> jax.Array:
        """Return uint8 [B, H, W, C] images as the normalised float32 that the module takes."""
        return normalize(images, self.mean, self.std)


@dataclass(frozen=True)
class Network:
    """A classifier. `variables` may be arrays, or `jax.ShapeDtypeStruct`s where only shapes are wanted."""

    model: str  # a key of models.CLASSIFIERS
    num_classes: int
    class_names: tuple[str, ...] | None  # None where unknown
    preprocessing: Preprocessing
    variables: Any
    dtype: jnp.dtype = dataclasses.field(default_factory=lambda: jnp.dtype(jnp.float32))  # of the computation

    @functools.cached_property
    def module(self) -> nn.Module:
        """The Flax module: `apply(variables, normalised images, train=False) -> (logits, features)`."""
        return create_classifier(self.model, self.num_classes, dtype=self.dtype)

    def with_variables(self, variables: Any) -> "Network":
        """Return the same network with other weights."""
        return dataclasses.replace(self, variables=variables)

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


def save_network(path: epath.Path, network: Network) -> None:
    """Write weights and description to one safetensors file."""
    description = {
        "model": network.model,
        "num_classes": network.num_classes,
        "class_names": network.class_names,
        "preprocessing": dataclasses.asdict(network.preprocessing),
    }
    save_weights(path, network.variables, metadata={"pujax": json.dumps(description)})


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
    preprocessing = {key: _as_tuple(value) for key, value in description["preprocessing"].items()}
    network = abstract_network(
        description["model"],
        num_classes=description["num_classes"],
        class_names=_as_tuple(description["class_names"]),
        preprocessing=Preprocessing(**preprocessing),
        dtype=dtype,
    )
    return network.with_variables(load_weights(path, network.variables))


def read_description(path: epath.Path) -> dict[str, Any] | None:
    """Return what a weights file says of its network: model, num_classes, class_names, preprocessing; else None.

    Raises:
        UserError: there is no such file, or it is unreadable.
    """
    text = load_metadata(path).get("pujax")
    return json.loads(text, object_hook=lambda values: {k: _as_tuple(v) for k, v in values.items()}) if text else None


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
