"""The positive-unlabelled scorer as a function of images.

`frozen`: the frozen teacher's multi-scale features under small heads: see `heads`.
`finetune`: the whole backbone, initialised from the teacher, under one head, as released.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from pujax.config import FinetunedScorerConfig, FrozenScorerConfig, ScorerConfig
from pujax.data.styles import STYLES, restyle
from pujax.folding import fold_batch_norms
from pujax.inference import map_images
from pujax.networks import Network
from pujax.progress import Progress
from pujax.pu.heads import Inputs, in_styles, init_heads, make_head, score
from pujax.sharding import is_main_process, replicate
from pujax.weights import load_metadata, load_weights

STYLED = {"styles": "on"}  # metadata of the weights of heads that saw several styles
_MOST_VIEWS = 100_000  # of all labelled images together


class PUNet(nn.Module):
    """A classifier's backbone under a PU head: images in, one logit out; the classifier's own head is unused."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Return pu_logits [B] of normalised images [B, H, W, C]."""
        _, features = self.backbone(images, train=train)
        return self.head(features)


def make_pu_net(config: FinetunedScorerConfig, teacher: Network) -> PUNet:
    """Return the module that fine-tuning trains."""
    return PUNet(teacher.module, make_head(config))


def init_pu_net(net: PUNet, teacher: Network, variables: Any, rng: jax.Array) -> Any:
    """Return the weights of a `PUNet` at step 0: the teacher's backbone, `variables`, under a fresh head."""
    fresh = net.init(rng, jnp.zeros((1, *teacher.preprocessing.image_shape)), train=False)
    return {kind: tree | {"backbone": variables[kind]} for kind, tree in fresh.items()}


def make_score_fn(config: ScorerConfig, teacher: Network, path: epath.Path) -> tuple[Callable[..., Any], Any]:
    """Return (fn, arguments) such that `fn(arguments, uint8 images)` scores a batch with a trained scorer.

    Args:
        config: of the scorer.
        teacher: the network that it was made from.
        path: the scorer's weights.

    Returns:
        `fn` returns score float32 [B], teacher_class int32 [B] and teacher_confidence float32 [B].

    Raises:
        UserError: the weights do not fit.
    """
    styled = load_metadata(path).items() >= STYLED.items()
    config = dataclasses.replace(config, frozen=in_styles(config.frozen)) if styled else config
    weights = load_weights(path, abstract_weights(config, teacher))
    return score_function(config, teacher), frozen_arguments(config, teacher, weights)


def score_function(config: ScorerConfig, teacher: Network) -> Callable[..., Any]:
    """Return the function of `make_score_fn`; `config.frozen` as the heads were trained, `in_styles` or not."""

    def score_images(variables: Any, weights: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the teacher's logits [B, K] and the scores [B]."""
        if config.mode == "frozen":
            logits, seen = frozen_inputs(config.frozen, teacher, variables, images)
            return logits, jnp.mean(score(config.frozen, weights, seen), axis=0)
        prepared = teacher.preprocessing.prepare(images)
        return (
            teacher.module.apply(variables, prepared, train=False)[0],
            make_pu_net(config.finetune, teacher).apply(weights, prepared, train=False),
        )

    def fn(arguments: Any, images: jax.Array) -> dict[str, jax.Array]:
        logits, scores = score_images(*arguments, images)
        return {
            "score": scores,
            "teacher_class": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "teacher_confidence": jnp.max(jax.nn.softmax(logits), axis=-1),
        }

    return fn


def frozen_arguments(config: ScorerConfig, teacher: Network, weights: Any) -> tuple[Any, Any]:
    """Return the arguments of `score_function`'s function, without BatchNorm; arrays on the host."""
    if config.mode == "finetune":
        weights = fold_batch_norms(make_pu_net(config.finetune, teacher), weights, teacher.preprocessing.image_shape)
    return teacher.folded, weights


def abstract_weights(config: ScorerConfig, teacher: Network) -> Any:
    """Return the shapes of the scorer's weights; arguments as for `score_function`."""

    def init(variables: Any, rng: jax.Array) -> Any:
        if config.mode == "finetune":
            return init_pu_net(make_pu_net(config.finetune, teacher), teacher, variables, rng)
        images = jnp.zeros((1, *teacher.preprocessing.image_shape), jnp.uint8)
        _, inputs = frozen_inputs(config.frozen, teacher, variables, images)
        return init_heads(config.frozen, rng, size=inputs["features"].shape[-1], num_classes=teacher.num_classes)

    return jax.eval_shape(init, teacher.variables, jax.random.key(0))


def frozen_inputs(
    config: FrozenScorerConfig, teacher: Network, variables: Any, images: jax.Array
) -> tuple[jax.Array, Inputs]:
    """Return the teacher's logits [B, K] and what the heads see of uint8 images [B, H, W, C].

    With `flip` features and energy are of the mean of the image's and its mirror image's outputs. With
    `quarter_turn` the features of these images turned by 90 degrees follow: things that stand upright lose
    theirs, textures do not.
    """
    images = teacher.preprocessing.prepare(images)
    sides = [images, images[:, :, ::-1]] if config.flip else [images]

    def outputs(views: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        """Return the logits of every view and the features, their mean over the views."""
        logits, features = zip(*(teacher.module.apply(variables, view, train=False) for view in views))
        return logits, sum(jnp.concatenate(scales, axis=-1) for scales in features) / len(views)

    logits, features = outputs(sides)
    if config.quarter_turn:
        _, turned = outputs([jnp.rot90(side, axes=(1, 2)) for side in sides])
        features = jnp.concatenate([features, turned], axis=-1)
    return logits[0], {"features": features, "energy": jax.nn.logsumexp(sum(logits) / len(sides), axis=-1)}


def passes_per_image(config: ScorerConfig) -> int:
    """Return how many forward passes of the teacher it takes to score one image."""
    if config.mode == "finetune":
        return 2  # the scorer's backbone and the teacher
    return (1 + config.frozen.flip) * (1 + config.frozen.quarter_turn)


def extract_inputs(
    config: FrozenScorerConfig,
    teacher: Network,
    read: Callable[[np.ndarray], np.ndarray],
    num_images: int,
    *,
    mesh: Mesh,
    batch_size: int,
    name: str = "",
) -> dict[str, np.ndarray]:
    """Return what the heads see of images: "features" float32 [num_images, D], shallow to deep, and "energy".

    Args:
        config: which views of an image are taken.
        teacher: the frozen network.
        read: `indices [n] -> uint8 [n, H, W, C]`.
        num_images: how many images there are.
        mesh: devices.
        batch_size: of a forward pass.
        name: of the progress bar; empty for none.
    """

    def fn(variables: Any, images: jax.Array) -> Inputs:
        return frozen_inputs(config, teacher, variables, images)[1]

    progress = Progress(name, num_images, "image", enabled=bool(name) and is_main_process())
    variables = replicate(mesh, teacher.folded)
    result = map_images(fn, variables, read, num_images, batch_size=batch_size, mesh=mesh, progress=progress)
    progress.close()
    return result


def styled_views(num_images: int) -> int:
    """Return the number of styles in which each of so many images is taken."""
    return min(len(STYLES), max(2, _MOST_VIEWS // num_images))


def extract_in_styles(
    config: FrozenScorerConfig,
    teacher: Network,
    read: Callable[[np.ndarray], np.ndarray],
    num_images: int,
    *,
    seed: int,
    mesh: Mesh,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Return what the heads see of images in several styles, [views, num_images, ...], the plain ones first.

    Each image is taken in every style, or in fewer, but two at least, where there are very many images; these are dealt
    out in turn.

    Args:
        config: which views of an image are taken.
        teacher: the frozen network.
        read: `indices [n] -> uint8 [n, H, W, C]`.
        num_images: how many images there are.
        seed: of the strength of the styles.
        mesh: devices.
        batch_size: of a forward pass.
    """
    views = styled_views(num_images)

    def read_views(rows: np.ndarray) -> dict[str, np.ndarray]:
        index, view = np.divmod(rows, views)
        style = np.where(view == 0, 0, 1 + (index + view - 1) % (len(STYLES) - 1))
        images, place = np.unique(index, return_inverse=True)
        return {"image": read(images)[place], "index": index.astype(np.int32), "style": style.astype(np.int32)}

    def fn(variables: Any, batch: dict[str, jax.Array]) -> Inputs:
        images = restyle(jax.random.key(seed), batch["image"], batch["index"], batch["style"])
        return frozen_inputs(config, teacher, variables, images)[1]

    variables, count = replicate(mesh, teacher.folded), num_images * views
    seen = map_images(fn, variables, read_views, count, batch_size=batch_size, mesh=mesh)
    return {name: np.moveaxis(x.reshape(num_images, views, *x.shape[1:]), 1, 0) for name, x in seen.items()}
