"""A traced program as ONNX operations, one by one.

What depends on weights alone is computed here and now. A tensor may lie in another order of axes than in the program:
images stay as [B, C, H, W] from the first convolution to the last. Broadcasts are left to the operations after them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend.core import Literal

from pujax.errors import UserError
from pujax.exporters.onnx_passes import Node
from pujax.models.layers import plain_convolutions


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """What is computed at run time: its k-th axis is axis `order[k]` of the program's."""

    name: str
    order: tuple[int, ...]
    broadcast: bool = False  # whether axes of length 1 stand for longer ones


class Graph:
    """The operations and constants written so far."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append an operation; return the name of its result."""
        self.nodes.append(Node(op, list(inputs), f"t{len(self.nodes)}", attributes))
        return self.nodes[-1].output

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant; return its name."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.array(value, dtype, order="C")
        return name

    def place(self, value: Any, order: tuple[int, ...]) -> str:
        """Return the name of a value, tensor or constant, with its axes in the given order."""
        if not isinstance(value, _Tensor):
            return self.constant(np.transpose(value, order) if np.ndim(value) else value)
        if value.order == order:
            return value.name
        if value.name in self.constants:
            return self.constant(np.transpose(self.constants[value.name], [value.order.index(axis) for axis in order]))
        return self.add("Transpose", value.name, perm=[value.order.index(axis) for axis in order])

    def whole(self, value: Any, shape: tuple[Any, ...]) -> str:
        """Return the name of a value with all axes as long as, and in the order that, the program has them."""
        name = self.place(value, tuple(range(len(shape))))
        if not (isinstance(value, _Tensor) and value.broadcast):
            return name
        batch = self.add("Slice", self.add("Shape", "images"), *(self.constant([n], np.int64) for n in (0, 1)))
        lengths = [batch if not isinstance(n, int) else self.constant([n], np.int64) for n in shape]
        return self.add("Expand", name, self.add("Concat", *lengths, axis=0))


def trace(function: Callable[[jax.Array], jax.Array], image_shape: tuple[int, ...], dtype: str) -> tuple[Graph, str]:
    """Return (graph, name of its output) of a function of images [B, H, W, C], for every B.

    Raises:
        UserError: there is an operation in it that is not known here.
    """
    (batch,) = export.symbolic_shape("b")
    with plain_convolutions():
        program = jax.jit(function).trace(jax.ShapeDtypeStruct((batch, *image_shape), np.dtype(dtype))).jaxpr
    graph = Graph()
    images = _Tensor("images", tuple(range(1 + len(image_shape))))
    (logits,) = _run(graph, program, [images])
    return graph, graph.add("Identity", graph.whole(logits, program.out_avals[0].shape))


def _run(graph: Graph, program: Any, arguments: list[Any]) -> list[Any]:
    """Write the operations of a closed jaxpr; return its results, tensors or constants."""
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, map(np.asarray, program.consts))) | dict(zip(jaxpr.invars, arguments))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        name, given = equation.primitive.name, [read(atom) for atom in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None and name in ("jit", "custom_jvp_call", "custom_vjp_call"):
            results = _run(graph, inner, given)
        elif _is_constant(equation, given):
            results = [_compute(equation, *given)]
        elif name in _WRITERS:
            results = [_WRITERS[name](graph, equation, *given)]
        else:
            raise UserError(f"the network has an operation {name!r} that pujax cannot write as ONNX")
        values |= zip(equation.outvars, results)
    return [read(atom) for atom in jaxpr.outvars]


def _is_constant(equation: Any, given: list[Any]) -> bool:
    """Whether an operation is one on constants, and its result not as large as the batch."""
    known = all(isinstance(n, int) for n in equation.outvars[0].aval.shape)
    return known and not any(isinstance(value, _Tensor) for value in given)


_ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "div": np.true_divide,
}


def _compute(equation: Any, *given: np.ndarray) -> np.ndarray:
    """Compute an operation on constants, with NumPy where that knows it: JAX would compile every one."""
    name, result = equation.primitive.name, equation.outvars[0].aval
    if name in ("reshape", "squeeze"):
        return given[0].reshape(result.shape)
    if name in _ARITHMETIC and result.dtype == np.float32:
        return _ARITHMETIC[name](*given).astype(np.float32)
    return np.asarray(equation.primitive.bind(*given, **equation.params))


def _elementwise(op: str) -> Callable[..., _Tensor]:
    def write(graph: Graph, equation: Any, *given: Any) -> _Tensor:
        shape = equation.outvars[0].aval.shape
        orders = [value.order for value in given if isinstance(value, _Tensor)]
        order = next((order for order in orders if order != tuple(range(len(shape)))), orders[0])
        names = [graph.place(value, order) for value in given]
        short = [
            atom.aval.shape != shape or (isinstance(value, _Tensor) and value.broadcast)
            for value, atom in zip(given, equation.invars)
        ]
        return _Tensor(graph.add(op, *names), order, broadcast=all(short))

    return write


def _same(graph: Graph, equation: Any, x: Any) -> Any:
    return x


def _convert(graph: Graph, equation: Any, x: _Tensor) -> _Tensor:
    source, target = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    if source == target:
        return x
    if target != np.float32:
        raise UserError(f"the network converts {source} to {target}, which pujax cannot write as ONNX")
    return dataclasses.replace(x, name=graph.add("Cast", x.name, to=1))  # TensorProto.FLOAT


def _rsqrt(graph: Graph, equation: Any, x: _Tensor) -> _Tensor:
    return dataclasses.replace(x, name=graph.add("Reciprocal", graph.add("Sqrt", x.name)))


def _square(graph: Graph, equation: Any, x: _Tensor) -> _Tensor:
    return dataclasses.replace(x, name=graph.add("Mul", x.name, x.name))


def _erfc(graph: Graph, equation: Any, x: _Tensor) -> _Tensor:
    return dataclasses.replace(x, name=graph.add("Sub", graph.constant(1, np.float32), graph.add("Erf", x.name)))


def _convolution(graph: Graph, equation: Any, x: Any, kernel: Any) -> _Tensor:
    p = equation.params
    if math.prod(p["lhs_dilation"]) * p["batch_group_count"] != 1:
        raise UserError("the network has a transposed or batch-grouped convolution, which pujax cannot write as ONNX")
    numbers, (before, after) = p["dimension_numbers"], zip(*p["padding"])
    name = graph.add(
        "Conv",
        graph.place(x, tuple(numbers.lhs_spec)),
        graph.place(kernel, tuple(numbers.rhs_spec)),
        strides=p["window_strides"],
        pads=[*before, *after],
        dilations=p["rhs_dilation"],
        group=p["feature_group_count"],
    )
    return _Tensor(name, tuple(numbers.out_spec))


def _max_pool(graph: Graph, equation: Any, x: _Tensor) -> _Tensor:
    p, order = equation.params, (0, 3, 1, 2)
    window, strides = tuple(p["window_dimensions"]), tuple(p["window_strides"])
    if len(window) != 4 or (window[0], window[3], strides[0], strides[3]) != (1, 1, 1, 1):
        raise UserError("the network has a maximum over windows other than of pixels, which pujax cannot write as ONNX")
    before, after = zip(*p["padding"][1:3])
    name = graph.add(
        "MaxPool", graph.place(x, order), kernel_shape=window[1:3], strides=strides[1:3], pads=[*before, *after]
    )
    return _Tensor(name, order)


def _reduce(op: str) -> Callable[..., _Tensor]:
    def write(graph: Graph, equation: Any, x: _Tensor) -> _Tensor:
        axes = equation.params["axes"]
        if x.broadcast:
            x = _Tensor(graph.whole(x, equation.invars[0].aval.shape), tuple(range(len(x.order))))
        places = graph.constant([x.order.index(axis) for axis in axes], np.int64)
        left = [axis for axis in x.order if axis not in axes]
        return _Tensor(graph.add(op, x.name, places, keepdims=0), tuple(sorted(left).index(axis) for axis in left))

    return write


def _reshape(graph: Graph, equation: Any, x: Any, *_: Any) -> _Tensor:
    shape = equation.outvars[0].aval.shape
    return _reshaped(graph, graph.whole(x, equation.invars[0].aval.shape), shape)


def _reshaped(graph: Graph, name: str, shape: tuple[Any, ...], *, broadcast: bool = False) -> _Tensor:
    lengths = graph.constant([n if isinstance(n, int) else -1 for n in shape], np.int64)
    return _Tensor(graph.add("Reshape", name, lengths), tuple(range(len(shape))), broadcast)


def _broadcast(graph: Graph, equation: Any, x: Any, *_: Any) -> Any:
    source, target = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    shape = [1] * len(target)
    for length, axis in zip(source, equation.params["broadcast_dimensions"]):
        shape[axis] = length
    if not isinstance(x, _Tensor):
        return _Tensor(graph.constant(np.reshape(x, shape)), tuple(range(len(shape))), broadcast=True)
    return _reshaped(graph, graph.whole(x, source), tuple(shape), broadcast=tuple(shape) != tuple(target))


def _transpose(graph: Graph, equation: Any, x: _Tensor) -> _Tensor:
    permutation = equation.params["permutation"]
    return dataclasses.replace(x, order=tuple(permutation.index(axis) for axis in x.order))


def _slice(graph: Graph, equation: Any, x: _Tensor) -> _Tensor:
    p, shape = equation.params, equation.invars[0].aval.shape
    limits = list(zip(p["start_indices"], p["limit_indices"], p["strides"] or [1] * len(shape)))
    cut = [i for i, n in enumerate(shape) if limits[i] != (0, n, 1)]
    starts, stops, steps = (graph.constant([limits[i][k] for i in cut], np.int64) for k in range(3))
    name = graph.add("Slice", graph.whole(x, shape), starts, stops, graph.constant(cut, np.int64), steps)
    return _Tensor(name, tuple(range(len(shape))))


def _concatenate(graph: Graph, equation: Any, *given: Any) -> _Tensor:
    names = [graph.whole(value, atom.aval.shape) for value, atom in zip(given, equation.invars)]
    rank = len(equation.outvars[0].aval.shape)
    return _Tensor(graph.add("Concat", *names, axis=equation.params["dimension"]), tuple(range(rank)))


def _dot(graph: Graph, equation: Any, x: Any, y: Any) -> _Tensor:
    """A matrix product where it is one with a constant matrix, else a sum over named axes."""
    (over_x, over_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in equation.invars]
    names = [graph.whole(value, shape) for value, shape in zip((x, y), shapes)]
    order = tuple(range(len(equation.outvars[0].aval.shape)))
    if not batch_x and over_x == (len(shapes[0]) - 1,) and over_y == (0,) and len(shapes[1]) == 2:
        return _Tensor(graph.add("MatMul", *names), order)
    axes_x = [chr(ord("a") + i) for i in range(len(shapes[0]))]
    axes_y = [chr(ord("A") + i) for i in range(len(shapes[1]))]
    for i, j in zip((*over_x, *batch_x), (*over_y, *batch_y)):
        axes_y[j] = axes_x[i]
    free_x = [axis for i, axis in enumerate(axes_x) if i not in (*over_x, *batch_x)]
    free_y = [axis for j, axis in enumerate(axes_y) if j not in (*over_y, *batch_y)]
    result = [axes_x[i] for i in batch_x] + free_x + free_y
    equation = f"{''.join(axes_x)},{''.join(axes_y)}->{''.join(result)}"
    return _Tensor(graph.add("Einsum", *names, equation=equation), order)


_WRITERS = {
    "add": _elementwise("Add"),
    "sub": _elementwise("Sub"),
    "mul": _elementwise("Mul"),
    "div": _elementwise("Div"),
    "max": _elementwise("Max"),
    "min": _elementwise("Min"),
    "neg": _elementwise("Neg"),
    "exp": _elementwise("Exp"),
    "logistic": _elementwise("Sigmoid"),
    "rsqrt": _rsqrt,
    "square": _square,
    "erfc": _erfc,
    "copy": _same,
    "stop_gradient": _same,
    "convert_element_type": _convert,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "concatenate": _concatenate,
    "dot_general": _dot,
}
