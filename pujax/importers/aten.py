"""A PyTorch program, a functional `torch.export.ExportedProgram` of ATen operations, evaluated in JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pujax.errors import UserError
from pujax.importers.aten_operations import operation

_MEANINGLESS = {"device", "layout", "memory_format", "pin_memory", "non_blocking", "generator"}  # in JAX
_NARROWED = {"int64": "int32", "float64": "float32", "bool": "bool"}  # other dtypes keep their names


def tensors_of(
    program: Any, *, prefix: str = ""
) -> tuple[dict[str, tuple[str, str]], dict[str, dict[str, np.ndarray]]]:
    """Return where a program's inputs come from, and what is there.

    Args:
        program: a `torch.export.ExportedProgram`.
        prefix: what to leave out at the beginning of the names.

    Returns:
        (collection, name) for each input of the graph that is a tensor of the module and is used, and these tensors,
        NumPy arrays by collection and name: "params" and, for buffers and literals, "constants"; no collection is
        empty.
    """
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    places: dict[str, tuple[str, str]] = {}
    variables: dict[str, dict[str, np.ndarray]] = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is None or spec.arg.name not in used:  # None: an input of the module itself
            continue
        tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
        collection = "params" if spec.kind.name == "PARAMETER" else "constants"
        places[spec.arg.name] = collection, spec.target.removeprefix(prefix)
        variables.setdefault(collection, {})[spec.target.removeprefix(prefix)] = _as_array(tensor)
    return places, variables


def _as_array(tensor: Any) -> np.ndarray:
    """Return a tensor as an array that JAX takes as it is: with 32 bits at most."""
    array = tensor.detach().cpu()
    array = array.float().numpy() if array.is_floating_point() else array.numpy()
    return array.astype(np.int32) if array.dtype == np.int64 else array


def check_known(program: Any) -> None:
    """Raise UserError that names the operations of a program that have no form in JAX, and where they stand."""
    unknown: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and operation(_name(node)) is None):
            unknown.setdefault(_name(node), _module(node))
    if unknown:
        listed = ", ".join(f"{name} (in {module})" for name, module in unknown.items())
        raise UserError(f"the network uses operations that pujax does not know: {listed}")


def evaluate(program: Any, places: dict[str, tuple[str, str]], variables: Any, *inputs: jax.Array) -> Any:
    """Run a program.

    Args:
        program: a `torch.export.ExportedProgram` after `run_decompositions`.
        places: as from `tensors_of`.
        variables: the tensors, arrays by collection and name.
        *inputs: of the module; their first axis may be of symbolic size.

    Returns:
        A list of the module's outputs in PyTorch's order, flat.

    Raises:
        UserError: an operation has no form in JAX.
    """
    values: dict[str, Any] = {name: jnp.asarray(variables[kind][key]) for name, (kind, key) in places.items()}
    values |= dict(zip(program.graph_signature.user_inputs, inputs))
    for node in program.graph.nodes:
        if node.op == "call_function":
            values[node.name] = _call(node, values)
    return [values[name] for name in program.graph_signature.user_outputs]


def _call(node: Any, values: dict[str, Any]) -> Any:
    fn = operation(_name(node))
    arguments, options = (_resolve(part, values) for part in (list(node.args), dict(node.kwargs)))
    try:
        return call(fn, arguments, options)
    except Exception as error:  # whatever an unforeseen form of an operation makes JAX raise
        reason = " ".join(str(error).split())
        raise UserError(f"{_name(node)} in {_module(node)} cannot be converted: {reason}") from error


def call(fn: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> Any:
    """Apply a JAX form to PyTorch's arguments, of which dtypes are PyTorch's and memory layouts mean nothing."""
    options = {name: _dtype(value) for name, value in options.items() if name not in _MEANINGLESS}
    return fn(*map(_dtype, arguments), **options)


def _dtype(value: Any) -> Any:
    """Return the JAX dtype for a PyTorch one, and everything else as it is."""
    if type(value).__module__ != "torch" or type(value).__name__ != "dtype":
        return value
    name = str(value).removeprefix("torch.")
    return jnp.dtype(_NARROWED.get(name, name))


def _resolve(value: Any, values: dict[str, Any]) -> Any:
    """Replace the nodes in an argument by what they gave."""
    if isinstance(value, dict):
        return {name: _resolve(entry, values) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(entry, values) for entry in value]
    if isinstance(value, slice):
        return slice(*(_resolve(entry, values) for entry in (value.start, value.stop, value.step)))
    return values[value.name] if hasattr(value, "all_input_nodes") else value


def _name(node: Any) -> str:
    """Return "aten.add.Tensor", "_operator.mul"."""
    target = node.target
    if node.op == "get_attr" or hasattr(target, "overloadpacket"):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"


def _module(node: Any) -> str:
    """Return the path and class of the innermost module that a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "the network itself"
    path, kind = stack[-1]
    return f"{path or 'the network itself'}, a {getattr(kind, '__name__', str(kind)).rsplit('.', 1)[-1]}"
