"""Which intermediate results of a PyTorch network serve as its features, and a network that returns them, pooled.

A network's stages show in the shapes of what its submodules return: for a convolutional network each spatial
resolution has a last result, for a network of tokens there is a row of equal blocks.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pujax.errors import UserError

_MOST = 5  # features of a convolutional network: the deepest
_BLOCKS = 4  # of a network of tokens


class Result(NamedTuple):
    """What a submodule returned when the network was run."""

    name: str  # path of the submodule
    module: Any
    shape: tuple[int, ...]  # [B, ...]
    adds_to_one: bool  # along its last axis everywhere, as the rows of an attention map do


def run_and_watch(module: Any, images: Any) -> tuple[Any, list[Result]]:
    """Run a network once.

    Args:
        module: a `torch.nn.Module`.
        images: a tensor [B, C, H, W].

    Returns:
        What the network returned, and what each of its submodules returned, in the order in which they ended; of a
        submodule that is used several times, the last.
    """
    import torch

    results: dict[str, Result] = {}

    def watch(name: str) -> Any:
        def hook(own: Any, _: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.is_floating_point():
                results.pop(name, None)
                rows = tensor.sum(-1) if tensor.ndim == 4 and tensor.min() >= 0 else None
                unit = rows is not None and torch.allclose(rows, torch.ones_like(rows), atol=1e-4)
                results[name] = Result(name, own, tuple(tensor.shape), unit)

        return hook

    handles = [own.register_forward_hook(watch(name)) for name, own in module.named_modules() if name]
    try:
        with torch.no_grad():
            output = module(images)
    finally:
        for handle in handles:
            handle.remove()
    return output, list(results.values())


def first_tensor(output: Any) -> Any:
    """Return the tensor that a module returned, or the first of several: a field `logits`, or the first entry."""
    import torch

    if isinstance(output, dict):  # the outputs of transformers among them
        output = output.get("logits", next(iter(output.values()), None))
    while isinstance(output, list | tuple) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def choose_features(results: Sequence[Result], *, batch_size: int, image_size: int) -> list[Result]:
    """Return the results that stand for a network's stages, shallow to deep.

    Args:
        results: of the submodules, in the order in which they ended.
        batch_size: of the run.
        image_size: height and width of the images.

    Returns:
        For a convolutional network, for each resolution of at most half the image the last result that has it, of the
        outermost submodules, at most five; for a network of tokens four of its blocks, evenly spaced, with the last.

    Raises:
        UserError: there is neither.
    """
    whole = [result for result in results if result.shape[0] == batch_size]
    tokens = [result for result in whole if len(result.shape) == 3 and result.shape[1] > 1]
    counts = {result.shape[1] for result in tokens}
    maps = [result for result in whole if _is_map(result, counts)]
    last = max((result for result in (*tokens, *maps)), key=whole.index, default=None)
    if last is None:
        raise UserError("no submodule returns images or tokens; name those whose outputs are features with --features")
    return _stages(maps, image_size) if last in maps else _blocks(tokens)


def _is_map(result: Result, token_counts: set[int]) -> bool:
    """Whether a result is an image of features; an attention map [B, heads, T, T] is none, nor is a single pixel."""
    if len(result.shape) != 4 or result.adds_to_one:
        return False
    height, width = _resolution(result.shape)
    square = result.shape[2] == result.shape[3]
    return height * width > 1 and not (square and result.shape[2] in token_counts)


def _resolution(shape: tuple[int, ...]) -> tuple[int, int]:
    axes = spatial_axes(shape)
    return shape[axes[0]], shape[axes[-1]]


def spatial_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes that hold positions: of [B, T, C], of [B, C, H, W] or, where only H and W can be equal, of
    [B, H, W, C].
    """
    if len(shape) < 4:
        return (1,) * (len(shape) - 2)
    return (1, 2) if shape[1] == shape[2] != shape[3] else (2, 3)


def _stages(maps: list[Result], image_size: int) -> list[Result]:
    small = [result for result in maps if max(_resolution(result.shape)) <= image_size / 2]
    best: dict[tuple[int, int], Result] = {}
    for result in small or maps:
        kept = best.get(_resolution(result.shape), result)
        if result.name.count(".") <= kept.name.count("."):  # deeper inside, it is where the next stage begins
            best[_resolution(result.shape)] = result
    return sorted(best.values(), key=maps.index)[-_MOST:]


def _blocks(tokens: list[Result]) -> list[Result]:
    """Return four of the network's blocks: the siblings of one class that hold most of the parameters."""
    groups: dict[tuple[str, type], list[Result]] = {}
    for result in tokens:
        groups.setdefault((result.name.rpartition(".")[0], type(result.module)), []).append(result)
    rows = [group for group in groups.values() if len(group) > 1]
    if not rows:
        return tokens[-1:]
    blocks = max(rows, key=lambda group: sum(_num_params(result.module) for result in group))
    count = min(_BLOCKS, len(blocks))
    return [blocks[math.ceil((i + 1) * len(blocks) / count) - 1] for i in range(count)]


def _num_params(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def named_features(results: Sequence[Result], names: Sequence[str], *, batch_size: int) -> list[Result]:
    """Return the results of the submodules that the user named.

    Raises:
        UserError: there is none of that name, or it returned nothing that can be pooled.
    """
    by_name = {result.name: result for result in results}
    for name in names:
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {_some(by_name)}"
            raise UserError(f"--features: no submodule {name!r} returns a tensor{hint}")
        shape = by_name[name].shape
        if not 2 <= len(shape) <= 4 or shape[0] != batch_size:
            raise UserError(
                f"--features: {name} returns {list(shape)} for {batch_size} images; [B, C], [B, T, C] or an image of "
                "features is wanted"
            )
    return [by_name[name] for name in names]


def _some(names: Any, most: int = 8) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def with_features(module: Any, features: Sequence[Result]) -> Any:
    """Return a module that runs a network and gives logits [B, K] and one pooled [B, C_i] for each feature, flat.

    Args:
        module: the network, in whose submodules this leaves hooks.
        features: what is collected; a submodule that is used several times gives its last result.
    """
    import torch

    class WithFeatures(torch.nn.Module):
        """The network as `model`."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            """Return (logits, *features) of normalised images [B, C, H, W]."""
            seen: dict[str, torch.Tensor] = {}
            handles = list(_collect(module, features, seen))
            logits = first_tensor(module(images))
            for handle in handles:
                handle.remove()
            return logits, *(seen[feature.name] for feature in features)

    return WithFeatures()


def _collect(module: Any, features: Sequence[Result], seen: dict[str, Any]) -> Iterator[Any]:
    """Hang hooks into a network that leave the pooled features in `seen`; yield what removes them."""
    for feature in features:
        axes = spatial_axes(feature.shape)

        def hook(_: Any, __: Any, output: Any, name: str = feature.name, axes: tuple[int, ...] = axes) -> None:
            tensor = first_tensor(output)
            seen[name] = tensor.mean(axes) if axes else tensor

        yield module.get_submodule(feature.name).register_forward_hook(hook)
