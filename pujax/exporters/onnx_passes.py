"""ONNX operations made fewer: BatchNorm inside the convolutions, Relu and Clip for maxima, nothing that is not used."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np


@dataclasses.dataclass
class Node:
    """One ONNX operation of one result."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


def folded(nodes: list[Node], constants: dict[str, np.ndarray]) -> list[Node]:
    """Return nodes with what follows a convolution, times or plus a number for every channel, inside its weights."""
    uses = Counter(name for node in nodes for name in node.inputs)
    made: dict[str, Node] = {}
    kept = []
    for node in nodes:
        conv = made.get(node.inputs[0]) if node.op in ("Mul", "Add") else None
        if conv and conv.op == "Conv" and uses[node.inputs[0]] == 1 and node.inputs[1] in constants:
            number = constants[node.inputs[1]]
            channels = len(constants[conv.inputs[1]]) if conv.inputs[1] in constants else 0
            if number.ndim == 4 and number.shape == (1, channels, 1, 1):
                conv.output = node.output
                _fold(node.op, conv, number.reshape(-1), constants)
                made[node.output] = conv
                continue
        made[node.output] = node
        kept.append(node)
    return kept


def _fold(op: str, conv: Node, number: np.ndarray, constants: dict[str, np.ndarray]) -> None:
    """Multiply a convolution's weights by `number` [C], or add it to its bias."""
    kernel, *bias = (constants[name] for name in conv.inputs[1:])
    bias = bias[0] if bias else np.zeros_like(number)
    if op == "Mul":
        kernel, bias = kernel * number[:, None, None, None], bias * number
    else:
        bias = bias + number
    names = [f"{conv.output}.{part}" for part in ("kernel", "bias")]
    constants.update(zip(names, (kernel, bias)))
    conv.inputs = [conv.inputs[0], *names]


def clipped(nodes: list[Node], constants: dict[str, np.ndarray]) -> list[Node]:
    """Return nodes with maxima and minima with one number as the Relu and Clip that runtimes are fast at."""
    uses = Counter(name for node in nodes for name in node.inputs)
    made: dict[str, Node] = {}
    kept = []
    for node in nodes:
        bounds = [name for name in node.inputs if name in constants and constants[name].size == 1]
        others = [name for name in node.inputs if name not in bounds]
        if node.op in ("Max", "Min") and len(bounds) == len(others) == 1:
            low = made.get(others[0], node)
            if node.op == "Max" and constants[bounds[0]] == 0:
                node.op, node.inputs = "Relu", others
            elif node.op == "Min" and low.op == "Relu" and uses[low.output] == 1 and not constants[bounds[0]].shape:
                zero = f"{bounds[0]}.zero"
                constants[zero] = np.zeros((), np.float32)
                node.op, node.inputs = "Clip", [*low.inputs, zero, bounds[0]]
                kept.remove(low)
        made[node.output] = node
        kept.append(node)
    return kept


def without_dead(nodes: list[Node], output: str) -> list[Node]:
    """Return the nodes that the output depends on."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if node.output in wanted:
            wanted |= set(node.inputs)
            kept.append(node)
    return kept[::-1]
