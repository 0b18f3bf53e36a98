"""Generators, discriminators, and the layers that they are made of."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.networks import dcgan, residual
from jaxgen.networks.convolution import Conv
from jaxgen.networks.mlp import maxout
from jaxgen.networks.norm import Norm, Spectral

KEY = jax.random.key(3)
FAMILIES = [dcgan, residual]
by_family = pytest.mark.parametrize("family", FAMILIES, ids=["dcgan", "residual"])


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def count(variables):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))


def shaped(network, *shape):
    """Shapes of the output and of the variables, without computing either."""
    return jax.eval_shape(lambda: network.init_with_output(KEY, jnp.zeros(shape)))


# Shapes ---------------------------------------------------------------------------------------------------------------


@by_family
@pytest.mark.parametrize(
    "shape", [(8, 8, 3), (28, 28, 1), (32, 32, 3), (64, 64, 3), (128, 128, 3), (30, 45, 3), (16, 9, 2)]
)
def test_images_of_any_size(family, shape):
    """Features are 4 to 7 pixels along the shorter side."""
    image, _ = shaped(family.Generator(shape, width=4), 5, 7)
    assert (image.shape, image.dtype) == ((5, *shape), jnp.float32)
    value, variables = shaped(family.Discriminator(width=4), 5, *shape)
    assert (value.shape, value.dtype) == ((5,), jnp.float32)
    halvings = {8: 1, 28: 2, 32: 3, 64: 4, 128: 5, 30: 2, 9: 1}[min(shape[:2])]
    rows, columns = (math.ceil(n / 2**halvings) for n in shape[:2])
    assert 4 <= min(rows, columns) <= 8
    width = 4 * 2 ** min(halvings - (family is dcgan), 3)
    assert variables["params"]["Head_0"]["Dense_0"]["kernel"].shape == (rows * columns * width, 1)


@by_family
def test_images_too_small_are_refused(family):
    with pytest.raises(ValueError, match="7x20: these networks want at least 8x8"):
        shaped(family.Generator((7, 20, 3)), 1, 2)
    with pytest.raises(ValueError, match="20x7"):
        shaped(family.Discriminator(), 1, 20, 7, 3)


def test_dcgan_has_the_parameters_it_should_have():
    """At 32x32 of width 64: 4x4 features, three layers of 4x4 kernels, a scale and a shift a channel."""
    dense, layers = 100 * 4096 + 4096, [(256, 128), (128, 64), (64, 3)]
    transposed, norms = sum(16 * i * o + o for i, o in layers), 2 * (256 + 128 + 64)
    _, generator = shaped(dcgan.Generator((32, 32, 3)), 1, 100)
    assert count(generator) == dense + transposed + norms == 1_073_219
    strided, norms = sum(16 * i * o + i for i, o in layers), 2 * (128 + 256)
    _, discriminator = shaped(dcgan.Discriminator(), 1, 32, 32, 3)
    assert count(discriminator) == strided + norms + 4096 + 1 == 663_745


@by_family
def test_bfloat16_is_of_the_arithmetic_alone(family):
    """The output is float32 but has been through bfloat16."""
    for network, shape in [
        (family.Generator((8, 8, 1), width=4, norm="group"), (2, 3)),
        (family.Discriminator(width=4, norm="group"), (2, 8, 8, 1)),
    ]:
        x, y = normal(*shape), jnp.eye(2)
        half = network.clone(dtype="bfloat16")
        output, variables = jax.jit(half.init_with_output)(KEY, x, y)
        assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        assert output.dtype == jnp.float32
        exact = jax.jit(network.apply)(variables, x, y)
        np.testing.assert_allclose(output, exact, rtol=0.05, atol=0.05 * np.abs(exact).max())
        assert not np.array_equal(output, exact)


# Normalisation --------------------------------------------------------------------------------------------------------


def test_batch_statistics_in_training_and_running_ones_in_evaluation():
    x, layer = 3 + 2 * normal(6, 4, 5, 3), Norm("batch")
    variables = layer.init(KEY, x)
    y, new = layer.apply(variables, x, mutable=["batch_stats"])
    mean, var = np.mean(x, (0, 1, 2)), np.var(x, (0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    running = new["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"], 0.1 * mean, rtol=1e-5)  # from 0 and 1, a tenth of the way
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * var, rtol=1e-5)
    y = layer.apply(variables | new, x)
    np.testing.assert_allclose(y, (x - running["mean"]) / np.sqrt(running["var"] + 1e-5), rtol=1e-4, atol=1e-5)


def test_group_norm_by_hand_and_one_example_at_a_time():
    x, layer = 3 + normal(4, 3, 5, 16), Norm("group")
    variables = layer.init(KEY, x)
    y = layer.apply(variables, x)
    groups = np.asarray(x).reshape(4, 15, 8, 2)
    by_hand = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, by_hand.reshape(x.shape), atol=1e-4)
    np.testing.assert_allclose(layer.apply(variables, x[:1]), y[:1], atol=1e-5)
    assert shaped(layer, 1, 5, 5, 4)[0].shape == (1, 5, 5, 4)  # fewer channels than groups


@pytest.mark.parametrize("kind", ["none", "batch", "group"])
@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 3, 8)])
def test_condition_scales_and_shifts_and_at_first_does_not(kind, shape):
    x, y, layer = normal(*shape), jax.nn.one_hot(jnp.array([0, 2, 1, 2]), 3), Norm(kind)
    plain, _ = layer.apply(layer.init(KEY, x), x, mutable=["batch_stats"])
    variables = layer.init(KEY, x, y)
    apply = partial(layer.apply, mutable=["batch_stats"])
    np.testing.assert_allclose(apply(variables, x, y)[0], plain, atol=1e-6)
    variables["params"] = {
        "scale": {"kernel": normal(3, 8, seed=1), "bias": normal(8, seed=2)},
        "shift": {"kernel": normal(3, 8, seed=3), "bias": normal(8, seed=4)},
    }
    scale, shift = (
        (y @ p["kernel"] + p["bias"]).reshape(4, *(1,) * (x.ndim - 2), 8) for p in variables["params"].values()
    )
    np.testing.assert_allclose(apply(variables, x, y)[0], plain * (1 + scale) + shift, rtol=1e-4, atol=1e-4)


@by_family
def test_spectral_norm_of_every_layer_is_1_after_some_calls(family):
    network = family.Discriminator(width=4, norm="none", spectral=True)
    x, y = normal(2, 8, 8, 3), jnp.eye(2)
    variables = jax.jit(network.init)(KEY, x, y)
    variables["params"] = jax.tree.map(lambda p: 3 * p, variables["params"])

    def call(statistics, _):
        _, new = network.apply({**variables, "batch_stats": statistics}, x, y, mutable=["batch_stats"])
        return new["batch_stats"], None

    warm = jax.jit(lambda s: jax.lax.scan(call, s, length=50)[0])(variables["batch_stats"])
    assert jax.tree.structure(warm) == jax.tree.structure(variables["batch_stats"])
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), warm, variables["batch_stats"])
    assert sum(jax.tree.leaves(changed)) >= len(jax.tree.leaves(changed)) // 2  # all but the u of one column

    @jax.jit
    def evaluate(variables):
        kernels = []  # as the layers find them

        def record(call, args, kwargs, context):
            if isinstance(context.module, Conv | nn.Dense) and context.method_name == "__call__":
                kernels.append(context.module.variables["params"]["kernel"])
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            return kernels, network.apply(variables, x, y, mutable=["params"])[1]

    kernels, written = evaluate({**variables, "batch_stats": warm})
    assert "batch_stats" not in written
    assert len(kernels) == len(jax.tree.leaves(warm)) // 2  # each has a vector and a value
    for kernel in kernels:
        largest = np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        np.testing.assert_allclose(largest, 1, rtol=0.01)


def test_spectral_layer_does_not_depend_on_the_scale_of_its_kernel():
    layer, x = Spectral(nn.Dense(4, use_bias=False)), normal(5, 3)
    variables = layer.init(KEY, x)

    def loss(params, scale=1.0):
        params = jax.tree.map(lambda p: scale * p, params)
        return (layer.apply({**variables, "params": params}, x) ** 3).sum()

    np.testing.assert_allclose(loss(variables["params"], 7.0), loss(variables["params"]), rtol=1e-4)
    # So the gradient goes round the origin: it goes through the singular value, too.
    grads = jax.grad(loss)(variables["params"])
    inner = jax.tree.map(lambda g, p: (g * p).sum(), grads, variables["params"])
    size = jax.tree.map(lambda g, p: jnp.linalg.norm(g) * jnp.linalg.norm(p), grads, variables["params"])
    assert abs(jax.tree.leaves(inner)[0]) < 1e-4 * jax.tree.leaves(size)[0]
    off = Spectral(nn.Dense(4), on=False)
    assert set(off.init(KEY, x)) == {"params"}


# Residual blocks and the head -----------------------------------------------------------------------------------------


def test_block_is_at_first_its_shortcut():
    x = normal(2, 5, 5, 4)
    for norm in ("none", "group"):
        y, _ = residual.Block(4, norm).init_with_output(KEY, x)
        np.testing.assert_array_equal(y, x)
    y, variables = residual.Block(6).init_with_output(KEY, x)
    projection = variables["params"]["Conv_2"]
    np.testing.assert_allclose(y, x @ projection["kernel"][0, 0] + projection["bias"], rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda p: (residual.Block(4).apply({"params": p}, x) ** 2).sum())(
        residual.Block(4).init(KEY, x)["params"]
    )
    assert np.abs(grads["Conv_1"]["kernel"]).max() > 0  # but it can leave


def test_remat_has_the_same_parameters_and_gradients():
    for make, x in [
        (partial(residual.Generator, (8, 8, 1), width=2), normal(2, 3)),
        (partial(residual.Discriminator, width=2), normal(2, 8, 8, 1)),
    ]:
        plain, again = make(), make(remat=True)
        variables, others = (jax.jit(network.init)(KEY, x) for network in (plain, again))
        jax.tree.map(np.testing.assert_array_equal, variables, others)
        # Away from the start, where the blocks are not yet shortcuts.
        variables = jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size).reshape(p.shape)), variables)
        one, other = (
            jax.jit(jax.grad(lambda v, network=network: (network.apply(v, x) ** 2).sum()))(variables)
            for network in (plain, again)
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other)


def test_head_projects_the_features_on_the_condition():
    phi, labels = normal(4, 3), np.array([1, 0, 1, 1])
    psi, bias, embedding = np.array([[1.0], [-2.0], [0.5]]), np.array([0.25]), np.array([[1.0, 2, 3], [-4, 5, -6]])
    params = {"Dense_0": {"kernel": psi, "bias": bias}, "Dense_1": {"kernel": embedding}}
    values = dcgan.Head().apply({"params": params}, phi, jnp.eye(2)[labels])
    by_hand = [(f @ psi)[0] + 0.25 + embedding[y] @ f for f, y in zip(np.asarray(phi), labels, strict=True)]
    np.testing.assert_allclose(values, by_hand, rtol=1e-5)
    np.testing.assert_allclose(dcgan.Head().apply({"params": params}, phi), (phi @ psi)[:, 0] + 0.25, rtol=1e-5)


@by_family
def test_condition_matters_to_both_networks(family):
    generator, discriminator = family.Generator((8, 8, 1), width=4), family.Discriminator(width=4)
    for network, x in [(generator, normal(1, 3)), (discriminator, normal(1, 8, 8, 1))]:
        x = jnp.repeat(x, 2, axis=0)
        one, other = jax.jit(network.init_with_output)(KEY, x, jnp.eye(2))[0]
        assert np.abs(one - other).max() > 1e-6


def test_maxout_is_the_largest_of_each_consecutive_five():
    x = jnp.array([[0, 1, 9, 2, 3, -5, -4, -3, -2, -9], [7, 1, 1, 1, 1, 0, 0, 0, 0, 8]])
    np.testing.assert_array_equal(maxout(x), [[9, -2], [7, 8]])
    np.testing.assert_array_equal(maxout(x, pieces=2), [[1, 9, 3, -3, -2], [7, 1, 1, 0, 8]])
