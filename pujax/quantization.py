"""int8 simulated while training: a network's function, with its values rounded where an int8 file rounds them.

Weights are rounded to 255 steps an output channel, symmetric about zero; what depends on the images to 256 steps a
tensor, between its smallest and largest value in the batch. Gradients pass through as if nothing were rounded.
Reference: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018; Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, for the weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from pujax.models.layers import CPU_CONV
from pujax.networks import Network

_BETWEEN_TENSORS = ("add", "sub", "mul", "div", "concatenate")  # of which an int8 file rounds the operands


def simulate_int8(function: Callable[[Any, jax.Array], Any]) -> Callable[[Any, jax.Array], Any]:
    """Return `function(variables, images)`, as an int8 file would compute it, in floating point.

    Rounded are both operands of convolutions and matrix products, the operands of sums, products and concatenations of
    two results (of a residual block, of a gate), and the outputs. BatchNorm with fixed statistics, ReLUs and means are
    part of the operation before them, as in the file.

    Args:
        function: `(variables, images) -> outputs`; what depends on the variables alone counts as weights.
    """

    def simulated(variables: Any, images: jax.Array) -> Any:
        program, shape = jax.make_jaxpr(function, return_shape=True)(variables, images)
        leaves = jax.tree.leaves(variables)
        outputs = _run(program, [*leaves, images], [False] * len(leaves) + [True])
        rounded = [round_tensor(value) if moves else value for value, moves in outputs]
        return jax.tree.unflatten(jax.tree.structure(shape), rounded)

    return simulated


def int8_forward(student: Network, variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    """Return logits float32 [B, K] of normalised images as int8 gives them, and BatchNorm's statistics, unmoved."""

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        return student.module.apply(variables, images, train=False)[0]

    return simulate_int8(logits)(variables, images), variables.get("batch_stats", {})


def round_tensor(x: jax.Array) -> jax.Array:
    """Return x rounded to 256 steps between its smallest and its largest value, zero being one of the steps."""
    wide = x.astype(jnp.float32)
    low, high = jnp.minimum(jnp.min(wide), 0), jnp.maximum(jnp.max(wide), 0)
    scale = jnp.maximum(high - low, 1e-12) / 255
    zero = jnp.round(low / scale)
    rounded = (jnp.clip(jnp.round(wide / scale) - zero, 0, 255) + zero) * scale
    return x + jax.lax.stop_gradient(rounded.astype(x.dtype) - x)


def round_weights(weights: jax.Array, channels: tuple[int, ...]) -> jax.Array:
    """Return weights rounded to 255 steps about zero, with a step of its own for every index of the axes `channels`."""
    wide = weights.astype(jnp.float32)
    others = tuple(axis for axis in range(weights.ndim) if axis not in channels)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=others, keepdims=True), 1e-12) / 127
    rounded = jnp.round(wide / scale) * scale
    return weights + jax.lax.stop_gradient(rounded.astype(weights.dtype) - weights)


def _run(program: ClosedJaxpr, arguments: list[Any], moving: list[bool]) -> list[tuple[Any, bool]]:
    """Compute a program with rounding; return its results, and whether each depends on the images.

    Args:
        program: as it was traced.
        arguments: its inputs.
        moving: whether each depends on the images.
    """
    values: dict[Var, tuple[Any, bool]] = dict(zip(program.jaxpr.constvars, ((x, False) for x in program.consts)))
    values |= dict(zip(program.jaxpr.invars, zip(arguments, moving)))
    rounded: dict[Var, jax.Array] = {}  # a result that several operations read is rounded once

    def read(atom: Any) -> tuple[Any, bool]:
        return (atom.val, False) if isinstance(atom, Literal) else values[atom]

    def read_rounded(atom: Any) -> jax.Array:
        if atom not in rounded:
            rounded[atom] = round_tensor(read(atom)[0])
        return rounded[atom]

    for equation in program.jaxpr.eqns:
        operands, depends = zip(*map(read, equation.invars)) if equation.invars else ((), ())
        channels = _weight_channels(equation)
        if channels is not None and any(depends):
            operands = [
                read_rounded(atom) if moves else round_weights(value, channels[side])
                for side, (atom, value, moves) in enumerate(zip(equation.invars, operands, depends))
            ]
        elif equation.primitive.name in _BETWEEN_TENSORS and all(depends):
            operands = [read_rounded(atom) for atom in equation.invars]
        if channels is None and (inner := _inlined(equation)):
            results = _run(inner, list(operands), list(depends))
        else:
            results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
            results = results if equation.primitive.multiple_results else [results]
            results = [(result, any(depends)) for result in results]
        values |= dict(zip(equation.outvars, results))
    return [read(atom) for atom in program.jaxpr.outvars]


def _inlined(equation: JaxprEqn) -> ClosedJaxpr | None:
    """Return the program that an equation only calls; None where it does something of its own."""
    return equation.params["jaxpr"] if equation.primitive.name in ("jit", "pjit") else None


def _weight_channels(equation: JaxprEqn) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the axes of output channels of both operands of a convolution or matrix product; None for all else."""
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        return (), (params["dimension_numbers"].rhs_spec[0],)
    if _inlined(equation) and params["name"] == CPU_CONV:
        return (), (3,)
    if name == "dot_general":
        contracted, batched = params["dimension_numbers"]
        return tuple(
            tuple(axis for axis in range(atom.aval.ndim) if axis not in (*contracted[side], *batched[side]))
            for side, atom in enumerate(equation.invars)
        )
    return None
