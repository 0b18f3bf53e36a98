"""PixelCNN and MADE: what an output may depend on, and that it is the same one token at a time."""

import math
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.networks.made import MADE
from jaxgen.networks.pixelcnn import PixelCNN, convolve, slide

KEY = jax.random.key(5)
NETWORKS = {
    "pixelcnn": partial(PixelCNN, width=8, depth=2),
    "pixelcnn, large kernels": partial(PixelCNN, width=8, depth=2, first_kernel=3, kernel=5),
    "made": partial(MADE, hidden=(90, 80)),
    "fvsbn": partial(MADE, hidden=(), direct=True),
    "made, direct": partial(MADE, hidden=(7,), direct=True),
}
by_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
by_family = pytest.mark.parametrize("make", [NETWORKS["pixelcnn"], NETWORKS["made, direct"]], ids=["pixelcnn", "made"])
by_channels = pytest.mark.parametrize("channels", [1, 3])


def tokens_of(shape, levels=2, rows=2, seed=0):
    return jax.random.randint(jax.random.key(seed), (rows, math.prod(shape[:-1]), shape[-1]), 0, levels)


def started(network, tokens, condition=None):
    """Random parameters, biases included, without compiling what would draw them."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(network.init, KEY, tokens, condition))
    scales = [math.prod(leaf.shape[:-1]) ** -0.5 for leaf in leaves]
    draws = np.random.default_rng(5)
    return jax.tree.unflatten(
        tree, [jnp.asarray(s * draws.normal(size=a.shape), a.dtype) for s, a in zip(scales, leaves, strict=True)]
    )


def methods(network):
    """`prefill` and `extend`, compiled."""
    return (jax.jit(partial(network.apply, method=name)) for name in ("prefill", "extend"))


def one_by_one(network, variables, tokens, condition=None):
    """Outputs of all tokens and of the one after the last, [B, T + 1, K], in a scan from an empty prompt."""
    output, cache = network.apply(variables, tokens[:, :0], condition, method="prefill")

    def extend(cache, token):
        output, cache = network.apply(variables, token, cache, method="extend")
        return cache, output

    _, outputs = jax.lax.scan(extend, cache, tokens.swapaxes(0, 1))
    return jnp.concatenate([output[None], outputs]).swapaxes(0, 1)


# What an output depends on --------------------------------------------------------------------------------------------


@by_channels
@by_network
def test_an_output_depends_on_all_tokens_before_it_and_on_no_other(make, channels):
    network = make((4, 4, channels), 2)
    tokens = jax.random.normal(KEY, (16, 16, channels))  # many images, so that no ReLU is off in all of them
    variables = started(network, tokens)
    jacobian = jax.jit(jax.jacrev(lambda x: network.apply(variables, x).sum(0)))(tokens)  # [T, K, B, T, C]
    depends = np.abs(jacobian).max(axis=(1, 2))
    below = np.arange(16)[:, None] > np.arange(16)
    assert (depends[~below] == 0).all()
    assert (depends[below] > 0).all(), "a blind spot"


def test_receptive_field_of_the_pixelcnn():
    """3 rows above and 3 columns at each side at first, and with each layer one more."""
    shape, row, column = (13, 15, 1), 9, 7
    network = PixelCNN(shape, 1, width=8, depth=3)
    tokens = tokens_of(shape, rows=4).astype(jnp.float32)
    variables = started(network, tokens)
    gradient = jax.jit(jax.grad(lambda x: network.apply(variables, x)[:, row * 15 + column].sum()))(tokens)
    seen = np.abs(gradient).max(0).reshape(13, 15) > 0
    expected = np.zeros((13, 15), bool)
    expected[row, column - 3 - 2 : column] = True
    for above in range(1, 3 + 2 + 1):
        # What is right of the pixel comes down through the vertical stack, which spreads as it goes.
        expected[row - above, column - 3 - 2 : column + 3 + 2 + 1] = True
    np.testing.assert_array_equal(seen, expected)


@by_network
def test_probabilities_of_all_images_sum_to_1(make):
    network = make((2, 3, 1), 1)
    images = jnp.array(list(product([0, 1], repeat=6)))[:, :, None]
    variables = started(network, images)
    logits = jax.jit(network.apply)(variables, images)
    log_prob = (images * jax.nn.log_sigmoid(logits) + (1 - images) * jax.nn.log_sigmoid(-logits)).sum((1, 2))
    assert np.ptp(log_prob) > 0.1  # not all alike
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-5)


# One token at a time --------------------------------------------------------------------------------------------------


@by_network
def test_one_by_one_is_as_the_whole_from_every_prompt(make):
    shape = (3, 3, 2)
    network = make(shape, 2, levels=5)
    tokens, condition = tokens_of(shape, 5), jax.random.normal(KEY, (2, 3))
    variables = started(network, tokens, condition)
    whole = jax.jit(network.apply)(variables, tokens, condition)
    scanned = jax.jit(partial(one_by_one, network))(variables, tokens, condition)
    np.testing.assert_allclose(scanned[:, :-1], whole, atol=1e-5)
    assert np.isfinite(scanned).all()  # the one after the last token, too
    prefill, extend = methods(network)
    for read in range(9):
        output, cache = prefill(variables, tokens[:, :read], condition)
        for i in range(read, 9):
            np.testing.assert_allclose(output, whole[:, i], atol=1e-5)
            assert cache.position == i
            output, cache = extend(variables, tokens[:, i], cache)


@by_family
def test_one_by_one_without_condition_in_an_image_larger_than_the_kernels(make):
    network = make((11, 9, 1), 1)
    tokens = tokens_of((11, 9, 1), rows=3)
    variables = started(network, tokens)
    whole = jax.jit(network.apply)(variables, tokens)
    outputs = jax.jit(partial(one_by_one, network))(variables, tokens)
    np.testing.assert_allclose(outputs[:, :-1], whole, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 2), (5, 1, 2)])
@by_family
def test_images_of_one_row_or_column(make, shape):
    network = make(shape, 1)
    tokens = tokens_of(shape)
    variables = started(network, tokens)
    whole = jax.jit(network.apply)(variables, tokens)
    outputs = jax.jit(partial(one_by_one, network))(variables, tokens)
    np.testing.assert_allclose(outputs[:, :-1], whole, atol=1e-5)


@by_family
def test_what_a_prompt_leaves(make):
    network = make((2, 3, 1), 1)
    tokens = tokens_of((2, 3, 1))
    variables = started(network, tokens)
    with pytest.raises(ValueError, match="prompt of 6"):
        network.apply(variables, tokens, method="prefill")
    assert (network.given, network.limit) == (0, 6)


def test_cache_of_the_pixelcnn_does_not_grow_with_the_height():
    def shapes(height):
        network, tokens = PixelCNN((height, 5, 1), 1), jnp.zeros((2, 0, 1), int)
        variables = jax.eval_shape(network.init, KEY, jnp.zeros((2, height * 5, 1), int))
        _, cache = jax.eval_shape(partial(network.apply, method="prefill"), variables, tokens)
        return jax.tree.map(lambda a: (a.shape, a.dtype), cache)

    assert shapes(3) == shapes(30)


# Condition, arithmetic, parameters ------------------------------------------------------------------------------------


@by_family
def test_condition_changes_every_output(make):
    network = make((3, 4, 1), 1)
    tokens = jnp.repeat(tokens_of((3, 4, 1), rows=1), 2, axis=0)
    variables = started(network, tokens, jnp.eye(2))
    apply = jax.jit(network.apply)
    one, other = apply(variables, tokens, jnp.eye(2))
    assert (np.abs(one - other) > 1e-6).all()
    # A condition of zeros adds nothing, and without one there are no parameters for it.
    plain = apply(variables, tokens)
    np.testing.assert_allclose(apply(variables, tokens, jnp.zeros((2, 2))), plain, atol=1e-6)
    with_it, without = (
        jax.tree.leaves(jax.eval_shape(network.init, KEY, tokens, condition)) for condition in (jnp.eye(2), None)
    )
    layers = getattr(network, "depth", len(getattr(network, "hidden", ())) + 1)
    assert len(with_it) - len(without) == layers


@by_family
def test_bfloat16_is_of_the_arithmetic_alone(make):
    network = make((3, 4, 1), 2)
    half = network.clone(dtype="bfloat16")
    tokens, condition = tokens_of((3, 4, 1)), jnp.eye(2)
    variables = started(network, tokens, condition)
    assert {a.dtype for a in jax.tree.leaves(jax.eval_shape(half.init, KEY, tokens, condition))} == {
        jnp.dtype("float32")
    }
    exact = jax.jit(network.apply)(variables, tokens, condition)
    rough = jax.jit(half.apply)(variables, tokens, condition)
    assert rough.dtype == jnp.float32
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, rtol=0.05, atol=0.05 * np.abs(exact).max())
    outputs = jax.jit(partial(one_by_one, half))(variables, tokens, condition)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs[:, :-1], exact, rtol=0.05, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize("name", ["pixelcnn", "made"])
def test_dropout_is_for_training(name):
    network = NETWORKS[name]((3, 4, 1), 1, dropout=0.5)
    tokens = tokens_of((3, 4, 1))
    variables = started(network, tokens)
    plain = network.apply(variables, tokens)
    np.testing.assert_array_equal(plain, network.clone(dropout=0.0).apply(variables, tokens))
    one, again, other = (network.apply(variables, tokens, rngs={"dropout": jax.random.key(i)}) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, plain)


def test_pixelcnn_has_the_parameters_it_should_have():
    """Per layer: two gated kernels with biases, the joint of the stacks, a skip and, but in the last, a residual.

    And once a shift of the first gates for each pixel.
    """
    network = PixelCNN((28, 28, 1), 1, width=32, depth=8)
    params = jax.eval_shape(network.init, KEY, jnp.zeros((1, 784, 1), int))["params"]
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["layers_0"]["down"] == {"kernel": (3, 7, 1, 64), "bias": (64,)}
    assert shapes["layers_0"]["right"] == {"kernel": (1, 3, 1, 64), "bias": (64,)}
    assert shapes["layers_3"]["down"] == {"kernel": (2, 3, 32, 64), "bias": (64,)}
    assert shapes["layers_3"]["right"] == {"kernel": (1, 2, 32, 64), "bias": (64,)}
    assert shapes["layers_3"]["join"] == {"kernel": (1, 1, 64, 64)}
    first, later = (21 + 3) * 64, (6 + 2) * 32 * 64
    layer = 2 * 64 + 64 * 64 + 32 * 32
    total = first + 7 * later + 8 * layer + 7 * (32 * 32 + 32) + (32 * 32 + 32) + (32 + 1)
    assert shapes["place"] == (28, 28, 128)
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(params)) == total + 28 * 28 * 128 == 267_041


def test_made_has_the_weights_it_should_have():
    """Every weight matters that connects a degree with one that may see it, and no other does."""
    network = MADE((2, 2, 1), 2, hidden=(6,), direct=True)
    tokens = 6 * jax.random.normal(KEY, (64, 4, 1))  # every ReLU is on for some
    variables = started(network, tokens)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "kernel_0": (4, 6),
        "bias_0": (6,),
        "kernel_out": (6, 8),
        "bias_out": (8,),
        "kernel_direct": (4, 8),
    }
    grads = jax.grad(lambda v: (network.apply(v, tokens) ** 2).sum())(variables)["params"]
    degrees, outputs = [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 3, 3]
    for name, expected in {
        "kernel_0": np.arange(4)[:, None] <= degrees,
        "kernel_out": np.array(degrees)[:, None] < outputs,
        "kernel_direct": np.arange(4)[:, None] < outputs,
    }.items():
        np.testing.assert_array_equal(np.abs(grads[name]) > 0, expected)


def test_mistakes_are_named():
    tokens = tokens_of((3, 4, 1))
    with pytest.raises(ValueError, match="kernel of 4: expected an odd size"):
        PixelCNN((3, 4, 1), 1, kernel=4).init(KEY, tokens)
    with pytest.raises(ValueError, match="use direct=True"):
        MADE((3, 4, 1), 1, hidden=()).init(KEY, tokens)


# The convolution as a matrix product ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (1, 2, 8, 16), (3, 7, 1, 32)])
def test_slide_is_a_convolution(shape):
    """Of many features or of pictures, with its gradients."""
    rows, columns, inputs, _ = shape
    x, k = jax.random.normal(KEY, (2, rows + 4, columns + 5, inputs)), jax.random.normal(jax.random.key(1), shape)

    @jax.jit
    def both():
        return tuple((f(x, k), *jax.grad(lambda *xk: jnp.sin(f(*xk)).sum(), (0, 1))(x, k)) for f in (slide, convolve))

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *both())
