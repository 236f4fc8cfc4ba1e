"""Each ATen operation against PyTorch, at settings that are not its defaults; and what is said of unknown ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pujax.errors import UserError
from pujax.importers import aten
from pujax.importers.aten_operations import OPERATIONS, operation

GENERATOR = torch.Generator().manual_seed(0)


def x(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def ints(high, *shape):
    return torch.randint(0, high, shape, generator=GENERATOR)


IMAGE, TOKENS, BOOL = x(2, 6, 9, 8), x(2, 5, 12), x(2, 5, 12) > 0
POSITIVE = IMAGE.abs() + 0.5
WHERE = torch.full((2, 2, 5, 5), -torch.inf).triu(1)
CLIPPED = [-2.5, -1.0, -0.2, 0.0, 0.3, 1.0, 3.5]
EDGES = torch.tensor([*CLIPPED, -7.0, 7.0, 25.0])

CASES = [
    # elementwise
    ("add.Tensor", (IMAGE, x(9, 1)), {"alpha": 3}),
    ("add.Scalar", (ints(9, 4), 0.5), {}),
    ("sub.Tensor", (TOKENS, x(12)), {"alpha": 0.5}),
    ("rsub.Scalar", (TOKENS, 2.0, 3.0), {}),
    ("mul.Tensor", (IMAGE, x(1, 6, 1, 1)), {}),
    ("div.Tensor", (ints(9, 4), ints(9, 4) + 1), {}),
    ("div.Tensor_mode", (ints(99, 4) - 50, ints(9, 4) + 1), {"rounding_mode": "floor"}),
    ("div.Tensor_mode", (x(50) * 9, x(50)), {"rounding_mode": "trunc"}),
    ("floor_divide.default", (ints(99, 4) - 50, torch.tensor(7)), {}),
    ("fmod.Scalar", (ints(99, 20) - 50, 7), {}),
    ("remainder.Scalar", (ints(99, 20) - 50, 7), {}),
    ("pow.Tensor_Scalar", (POSITIVE, 0.7), {}),
    ("pow.Scalar", (2.0, IMAGE), {}),
    ("maximum.default", (IMAGE, x(8)), {}),
    ("minimum.default", (IMAGE, x(8)), {}),
    *((f"{name}.Tensor", (ints(3, 4, 9), ints(3, 9)), {}) for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    ("eq.Scalar", (WHERE, -torch.inf), {}),
    *((f"logical_{name}.default", (BOOL, BOOL[0]), {}) for name in ("and", "or", "xor")),
    *((f"bitwise_{name}.Tensor", (ints(9, 6), ints(9, 6)), {}) for name in ("and", "or")),
    ("where.self", (BOOL, TOKENS, torch.tensor(0.5)), {}),
    ("masked_fill.Scalar", (TOKENS, BOOL[0], -1.5), {}),
    ("logical_not.default", (TOKENS.round(),), {}),
    ("bitwise_not.default", (BOOL,), {}),
    *((f"{name}.default", (TOKENS,), {}) for name in
      ("abs", "neg", "sign", "exp", "expm1", "square", "reciprocal", "sin", "cos", "erf", "floor", "ceil", "trunc")),
    *((f"{name}.default", (POSITIVE,), {}) for name in ("log", "log1p", "sqrt", "rsqrt")),
    ("round.default", (torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.4]),), {}),
    *((f"{name}.default", (torch.tensor([1.0, torch.nan, torch.inf]),), {}) for name in ("isnan", "isinf")),
    ("clamp.default", (IMAGE, -0.5, 0.25), {}),
    ("clamp.default", (IMAGE, None, 0.25), {}),
    ("clamp.Tensor", (IMAGE, x(8), None), {}),
    ("clamp_min.default", (IMAGE, 0.1), {}),
    ("clamp_max.default", (IMAGE, 0.1), {}),
    ("hardtanh.default", (EDGES, -0.5, 6.0), {}),
    *((f"{name}.default", (EDGES,), {}) for name in
      ("relu", "relu6", "hardsigmoid", "hardswish", "sigmoid", "silu", "mish", "tanh", "gelu", "hardtanh")),
    ("gelu.default", (EDGES,), {"approximate": "tanh"}),
    ("elu.default", (EDGES, 1.7, 1.1, 0.6), {}),
    ("leaky_relu.default", (EDGES, 0.2), {}),
    ("prelu.default", (IMAGE, x(6)), {}),
    ("_prelu_kernel.default", (IMAGE, x(1, 6, 1, 1)), {}),
    ("softplus.default", (EDGES, 2.0, 5.0), {}),
    ("glu.default", (IMAGE, 1), {}),
    ("softmax.int", (TOKENS, 1, torch.float32), {}),
    ("_softmax.default", (TOKENS, -2, False), {}),
    ("_safe_softmax.default", (torch.cat([torch.full((1, 5), -torch.inf), x(2, 5)]), -1), {}),
    ("log_softmax.int", (TOKENS, 1), {}),
    ("_log_softmax.default", (TOKENS, 1, False), {}),
    ("_to_copy.default", (TOKENS * 9,), {"dtype": torch.int64, "device": "cpu"}),
    ("clone.default", (TOKENS,), {"memory_format": torch.contiguous_format}),
    ("contiguous.default", (TOKENS,), {}),
    ("alias.default", (TOKENS,), {}),
    ("detach.default", (TOKENS,), {}),
    ("dropout.default", (TOKENS, 0.5, False), {}),
    ("lift_fresh_copy.default", (TOKENS,), {}),
    # reductions
    ("sum.dim_IntList", (IMAGE, [1, -1], True), {}),
    ("sum.default", (BOOL,), {}),
    ("mean.dim", (IMAGE, [-1, -2], True), {}),
    ("mean.default", (ints(9, 7),), {"dtype": torch.float32}),
    ("amax.default", (IMAGE, [2, 3]), {}),
    ("amin.default", (IMAGE, [], True), {}),
    ("any.dim", (BOOL, 1, True), {}),
    ("all.dim", (BOOL, -1), {}),
    ("var.dim", (IMAGE, [2, 3], False, True), {}),
    ("var.correction", (IMAGE, [1]), {"correction": 0}),
    ("std.correction", (IMAGE, [1]), {"keepdim": True}),
    ("var_mean.correction", (IMAGE, [1]), {"correction": 1, "keepdim": True}),
    ("argmax.default", (IMAGE, 1, True), {}),
    ("max.dim", (IMAGE, 1, True), {}),
    ("max.default", (IMAGE,), {}),
    *(("linalg_vector_norm.default", (IMAGE, order, [1], True), {}) for order in (2, 3, torch.inf)),
    ("cumsum.default", (TOKENS, 1), {}),
    ("topk.default", (TOKENS, 3, 1), {}),
    ("topk.default", (TOKENS, 3, -1, False), {}),
    # shapes
    ("view.default", (IMAGE, [2, -1, 4]), {}),
    ("_unsafe_view.default", (IMAGE, [12, 72]), {}),
    ("reshape.default", (IMAGE, [2, 72, 6]), {}),
    ("flatten.using_ints", (IMAGE, 1, -2), {}),
    ("unflatten.int", (TOKENS, -1, [3, 4]), {}),
    ("as_strided.default", (x(2, 6, 1, 1), [2, 6, 1, 1], [6, 1, 6, 6]), {}),
    ("permute.default", (IMAGE, [0, 2, -1, 1]), {}),
    ("transpose.int", (IMAGE, -1, 1), {}),
    ("t.default", (x(3, 4),), {}),
    ("unsqueeze.default", (TOKENS, -2), {}),
    ("squeeze.default", (x(1, 3, 1),), {}),
    ("squeeze.dim", (x(1, 3, 1), -1), {}),
    ("squeeze.dims", (x(1, 3, 1), [0, 1]), {}),
    ("expand.default", (x(1, 6, 1), [2, -1, -1, 5]), {}),
    ("expand.default", (torch.tensor(2.0), [2, 3]), {}),
    ("repeat.default", (x(2, 3), [2, 1, 3]), {}),
    ("cat.default", ([TOKENS, x(2, 1, 12)], 1), {}),
    ("cat.default", ([TOKENS, x(0)], -1), {}),
    ("stack.default", ([TOKENS, TOKENS], -1), {}),
    ("split.Tensor", (TOKENS, 5, -1), {}),
    ("split_with_sizes.default", (TOKENS, [3, 8, 1], 2), {}),
    ("chunk.default", (TOKENS, 5, 2), {}),
    ("unbind.int", (TOKENS, 1), {}),
    ("slice.Tensor", (IMAGE, 2, -7, 9223372036854775807, 3), {}),
    ("slice.Tensor", (IMAGE, 2, 5, 2), {}),
    ("slice_scatter.default", (IMAGE, x(2, 6, 2, 8), 2, 1, 5, 2), {}),
    ("select.int", (IMAGE, -1, -2), {}),
    ("select_scatter.default", (IMAGE, x(2, 9, 8), 1, -1), {}),
    ("index.Tensor", (IMAGE, [None, ints(6, 3, 1), ints(9, 4)]), {}),
    ("index.Tensor", (x(7, 3), [ints(7, 2, 2) - 7]), {}),
    ("index_select.default", (IMAGE, 2, ints(9, 5)), {}),
    ("embedding.default", (x(7, 3), ints(7, 2, 4)), {}),
    ("gather.default", (TOKENS, 1, ints(5, 2, 3, 7)), {}),
    ("roll.default", (IMAGE, [2, -3], [2, 3]), {}),
    ("roll.default", (TOKENS, [7]), {}),
    ("flip.default", (IMAGE, [1, -1]), {}),
    ("tril.default", (TOKENS, -1), {}),
    ("triu.default", (TOKENS, 2), {}),
    ("constant_pad_nd.default", (IMAGE, [1, 2, -1, 3], 0.5), {}),
    ("reflection_pad1d.default", (TOKENS, [2, 1]), {}),
    ("reflection_pad2d.default", (IMAGE, [1, 2, 3, 0]), {}),
    ("replication_pad2d.default", (IMAGE, [1, 2, 3, 0]), {}),
    *(("pad.default", (IMAGE, [1, 2, 3, 0], mode), {}) for mode in ("constant", "reflect", "replicate", "circular")),
    ("pixel_shuffle.default", (x(2, 12, 3, 4), 2), {}),
    ("pixel_unshuffle.default", (x(2, 3, 6, 4), 2), {}),
    # new arrays
    ("full.default", ([2, 3], 1.5), {}),
    ("full.default", ([2], True), {"dtype": torch.bool}),
    ("full_like.default", (TOKENS, 2), {"pin_memory": False}),
    ("new_full.default", (TOKENS, [3], 2), {"dtype": torch.int64}),
    ("zeros.default", ([2, 3],), {"device": "cpu"}),
    ("ones.default", ([2, 3],), {"dtype": torch.float64}),
    ("zeros_like.default", (TOKENS,), {}),
    ("ones_like.default", (TOKENS,), {"dtype": torch.bool}),
    ("new_zeros.default", (TOKENS, [3]), {}),
    ("new_ones.default", (TOKENS, [3]), {}),
    ("scalar_tensor.default", (3,), {"dtype": torch.float32}),
    ("arange.default", (5,), {}),
    ("arange.start", (2.0, 5), {}),
    ("arange.start_step", (1, 10, 3), {"dtype": torch.float32}),
    # matrix products
    ("mm.default", (x(3, 4), x(4, 5)), {}),
    ("bmm.default", (x(2, 3, 4), x(2, 4, 5)), {}),
    ("matmul.default", (x(2, 1, 3, 4), x(5, 4, 2)), {}),
    ("matmul.default", (x(2, 3, 4), x(4)), {}),
    ("addmm.default", (x(5), x(3, 4), x(4, 5)), {"beta": 0.5, "alpha": 2.0}),
    ("baddbmm.default", (x(2, 3, 5), x(2, 3, 4), x(2, 4, 5)), {}),
    ("linear.default", (TOKENS, x(7, 12), x(7)), {}),
    ("scaled_dot_product_attention.default", (x(2, 2, 5, 4), x(2, 2, 5, 4), x(2, 2, 5, 3)), {"scale": 0.3}),
    ("scaled_dot_product_attention.default", (*(x(2, 2, 5, 4) for _ in "qkv"), None, 0.0, True), {}),
    ("scaled_dot_product_attention.default", (*(x(2, 2, 5, 4) for _ in "qkv"), x(5, 5) > -1), {}),
    ("scaled_dot_product_attention.default", (*(x(2, 2, 5, 4) for _ in "qkv"), WHERE), {}),
    ("scaled_dot_product_attention.default", (x(2, 4, 5, 4), x(2, 2, 5, 4), x(2, 2, 5, 4)), {"enable_gqa": True}),
    # convolution, normalisation
    ("convolution.default", (IMAGE, x(8, 6, 3, 2), x(8), [2, 1], [1, 0], [1, 2], False, [0, 0], 1), {}),
    ("convolution.default", (IMAGE, x(9, 2, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 3), {}),
    ("convolution.default", (IMAGE, x(6, 1, 3, 3), x(6), [2, 1], [2, 1], [2, 1], False, [0, 0], 6), {}),
    ("convolution.default", (IMAGE, x(12, 1, 3, 3), x(12), [2], [1], [1], False, [0], 6), {}),
    ("convolution.default", (TOKENS, x(4, 5, 3), x(4), [2], [1], [1], False, [0], 1), {}),
    ("_native_batch_norm_legit_no_training.default", (IMAGE, x(6), x(6), x(6), x(6).abs(), 0.1, 1e-3), {}),
    ("_native_batch_norm_legit_no_training.default", (x(4, 6), None, None, x(6), x(6).abs(), 0.1, 1e-3), {}),
    ("_native_batch_norm_legit.no_stats", (IMAGE, x(6), x(6), True, 0.1, 1e-3), {}),
    ("native_layer_norm.default", (IMAGE, [9, 8], x(9, 8), x(9, 8), 1e-2), {}),
    ("native_layer_norm.default", (TOKENS, [12], None, None, 1e-6), {}),
    ("native_group_norm.default", (IMAGE, x(6), x(6), 2, 6, 72, 3, 1e-2), {}),
    # pooling, resizing
    ("max_pool2d.default", (IMAGE, [3, 2], [2, 3], [1, 1], [2, 1], False), {}),
    ("max_pool2d_with_indices.default", (IMAGE, [3], [2], [1], [1], True), {}),
    ("max_pool2d_with_indices.default", (x(1, 2, 7, 7), [2, 2], [3, 3], [1, 1], [1, 1], True), {}),
    ("max_pool2d.default", (IMAGE, [2]), {}),
    ("avg_pool1d.default", (TOKENS, [3], [2], [1]), {}),
    ("avg_pool2d.default", (IMAGE, [3, 2], [2, 3], [1, 1], True, False), {}),
    ("avg_pool2d.default", (IMAGE, [3, 3], [2, 2], [1, 1], True, True), {}),
    ("avg_pool2d.default", (IMAGE, [3, 3], [], [1, 1], False, True, 5), {}),
    ("adaptive_avg_pool1d.default", (TOKENS, [5]), {}),
    ("adaptive_avg_pool2d.default", (IMAGE, [4, 3]), {}),
    ("_adaptive_avg_pool2d.default", (IMAGE, [1, 1]), {}),
    ("adaptive_max_pool2d.default", (IMAGE, [4, 3]), {}),
    ("upsample_bilinear2d.default", (IMAGE, [13, 5], False), {}),
    ("upsample_bilinear2d.default", (IMAGE, [13, 5], True), {}),
    ("upsample_bilinear2d.vec", (IMAGE, None, False, [1.5, 2.0]), {}),
    ("upsample_bicubic2d.default", (IMAGE, [13, 5], False), {}),
    ("upsample_bicubic2d.default", (IMAGE, [13, 5], True, 1.5, None), {}),
    ("upsample_nearest2d.default", (IMAGE, [13, 5]), {}),
    ("upsample_nearest2d.vec", (IMAGE, None, [2.0, 1.5]), {}),
    ("sym_size.int", (IMAGE, 2), {}),
]  # fmt: skip
IDS = [f"{i}-{name}" for i, (name, _, _) in enumerate(CASES)]


def overload(name):
    packet, _, kind = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), kind)


def arrays(tree):
    """Tensors as NumPy arrays, integers of 32 bits; the rest as it is."""
    return jax.tree.map(lambda leaf: aten._as_array(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


@pytest.fixture(scope="module")
def results():
    """What every case gives, or the exception it raises: traced and compiled in one program."""
    failed = {}

    def tensors(arguments):
        return {i: leaf for i, leaf in enumerate(jax.tree.leaves(arguments)) if isinstance(leaf, np.ndarray)}

    given = {key: arrays(list(arguments)) for key, (_, arguments, _) in zip(IDS, CASES)}

    def everything(inputs):
        outputs = {}
        for key, (name, _, options) in zip(IDS, CASES):
            leaves, tree = jax.tree.flatten(given[key], is_leaf=lambda leaf: leaf is None)
            spots = iter(inputs[key].values())
            filled = [next(spots) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
            try:
                outputs[key] = aten.call(operation(f"aten.{name}"), jax.tree.unflatten(tree, filled), options)
            except Exception as error:
                failed[key] = error
        return outputs

    fast = {"xla_backend_optimization_level": 0}  # to compile
    outputs = jax.jit(everything, compiler_options=fast)({key: tensors(arguments) for key, arguments in given.items()})
    return outputs, failed


@pytest.mark.parametrize("key", IDS)
def test_operation(results, key):
    outputs, failed = results
    if key in failed:
        raise failed[key]
    name, arguments, options = CASES[IDS.index(key)]
    expected = overload(name)(*arguments, **options)
    several = isinstance(expected, list | tuple)
    pairs = list(zip(expected, outputs[key], strict=True)) if several else [(expected, outputs[key])]
    for one, own in pairs:
        if own is None:  # what no classifier looks at: statistics, indices
            continue
        one = arrays(torch.as_tensor(one))
        assert own.dtype == one.dtype and own.shape == one.shape
        np.testing.assert_allclose(own, one, rtol=1e-5, atol=2e-6)


def test_every_operation_has_a_case():
    covered = {f"aten.{name}" for name, _, _ in CASES} | {f"aten.{name.partition('.')[0]}" for name, _, _ in CASES}
    without = {name for name in OPERATIONS if name.startswith("aten.")} - covered
    assert without == {"aten._assert_scalar", "aten._assert_tensor_metadata", "aten.empty"}


def test_new_memory_has_a_shape():
    assert OPERATIONS["aten.empty"]([2, 3], dtype=jnp.int32).shape == (2, 3)


def exported(forward, *shape):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, images):
            return self.inner(images)

    class Inner(torch.nn.Module):
        def forward(self, images):
            return forward(images)

    return torch.export.export(Net(), (x(*shape),), strict=False).run_decompositions()


def test_depthwise_convolution_is_the_same_on_every_platform():
    """What is written for CPUs against XLA's own convolution, which the other platforms take."""
    from pujax.importers import aten_operations as own

    options = {"stride": [2, 1], "padding": [2, 1], "dilation": [2, 1]}
    image, kernel = IMAGE.numpy(), x(6, 1, 3, 3).numpy()
    plain = own._plain_convolution(image, kernel, groups=6, **options)
    np.testing.assert_allclose(own._depthwise(image, kernel, **options), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda images: torch.fft.rfft(images).abs(), r"does not know: aten._fft_r2c.default \(in inner, a Inner\)"),
        (lambda images: torch.histc(images), r"aten.histc.default \(in inner, a Inner\)"),
    ],
)
def test_unknown_operations_are_named_with_their_module(forward, message):
    with pytest.raises(UserError, match=message):
        aten.check_known(exported(forward, 2, 8))


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_a_form_that_is_not_known_is_named_with_its_module():
    program = exported(lambda images: torch.nn.functional.conv_transpose2d(images, torch.ones(3, 2, 2, 2)), 1, 3, 4, 4)
    places, variables = aten.tensors_of(program)
    message = "aten.convolution.default in inner, a Inner cannot be converted: a transposed convolution"
    with pytest.raises(UserError, match=re.escape(message)):
        aten.evaluate(program, places, variables, jnp.zeros((1, 3, 4, 4)))
