"""The convolutions equal plain `jax.lax` ones: values, gradients, and gradients of gradient norms."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxgen.networks.convolution import Conv, ConvTranspose, conv, conv_transpose

ORDER = ("NHWC", "HWIO", "NHWC")
QUICK = {"xla_backend_optimization_level": 0}  # these tests spend their time on compiling


def plain_conv(x, kernel, *, stride, padding="SAME"):
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=ORDER)


def plain_conv_transpose(x, kernel, *, stride, padding="SAME"):
    return jax.lax.conv_transpose(x, kernel, (stride,) * 2, padding, dimension_numbers=ORDER)


PAIRS = {"conv": (conv, plain_conv), "conv_transpose": (conv_transpose, plain_conv_transpose)}


def gradients(f):
    """First derivatives of a function that is not quadratic, so that second ones depend on the output too."""
    return jax.grad(lambda x, k: jnp.sum(f(x, k) ** 3), (0, 1))


def penalty_gradients(f):
    """What a gradient penalty needs: derivatives of the squared norm of a gradient (here of both)."""
    return jax.grad(lambda x, k: sum(jnp.sum(g**2) for g in gradients(f)(x, k)), (0, 1))


def everything(f):
    return lambda x, k: (f(x, k), gradients(f)(x, k), penalty_gradients(f)(x, k))


def both(name, derive, **options):
    """`derive` of ours and of the plain one, as a single program."""
    mine, plain = (derive(partial(f, **options)) for f in PAIRS[name])
    return jax.jit(lambda *args: (mine(*args), plain(*args)), compiler_options=QUICK)


def arrays(size, window, batch=2, channels=(2, 3), dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), (batch, *size, channels[0]), dtype)
    return x, jax.random.normal(jax.random.key(1), (*window, *channels), dtype) / window[0]


def assert_close(actual, expected, tolerance=1e-4):
    """Relative to the largest entry of each array: sums of products of both signs have no smaller scale."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


# Every kernel size meets every stride; sizes are odd, even and oblong, batches of one and more.
GRID = [
    (1, 1, "SAME", (5, 4), 2),
    (1, 1, "VALID", (5, 4), 1),
    (1, 2, "VALID", (6, 7), 2),
    (3, 1, "SAME", (5, 6), 1),
    (3, 2, "SAME", (7, 6), 2),
    (3, 2, "VALID", (8, 7), 1),
    (4, 1, "SAME", (6, 5), 2),
    (4, 2, "SAME", (8, 7), 1),
    (4, 2, "VALID", (7, 8), 2),
    (5, 1, "VALID", (7, 6), 2),
    (5, 2, "SAME", (7, 8), 1),
    ((2, 3), 2, ((2, 1), (0, 3)), (7, 6), 2),
    ((3, 2), 1, ((2, -1), (-2, 1)), (7, 6), 2),  # cut off, as well as padded
    ((3, 3), 2, ((0, -3), (1, 1)), (8, 7), 1),
]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("window", "stride", "padding", "size", "batch"), GRID)
def test_equals_plain_lax_to_the_second_derivative(name, window, stride, padding, size, batch):
    window = window if isinstance(window, tuple) else (window, window)
    assert_close(*both(name, everything, stride=stride, padding=padding)(*arrays(size, window, batch)))


@pytest.mark.parametrize("name", PAIRS)
def test_bfloat16(name):
    args = arrays((7, 6), (3, 3), dtype=jnp.bfloat16)
    assert_close(*both(name, lambda f: lambda *args: (f(*args), gradients(f)(*args)), stride=2)(*args), 2e-2)


@pytest.mark.parametrize("name", PAIRS)
def test_inside_scan(name):
    mine, plain = (penalty_gradients(partial(f, stride=2)) for f in PAIRS[name])
    x, kernel = arrays((6, 5), (4, 4))

    @jax.jit
    def run(kernel):
        return jax.lax.scan(lambda k, _: (k - 1e-4 * mine(x, k)[1], None), kernel, length=3)[0]

    plain, expected = jax.jit(plain), kernel
    for _ in range(3):
        expected = expected - 1e-4 * plain(x, expected)[1]
    assert_close(run(kernel), expected)


@pytest.mark.parametrize("mapped", [(0, 0), (0, None), (None, 0)])
@pytest.mark.parametrize("name", PAIRS)
def test_vmap_over_seeds_and_over_inputs(name, mapped):
    args = arrays((6, 5), (4, 4))
    args = [a if axis is None else jnp.stack([a, 0.5 * a, -a]) for a, axis in zip(args, mapped, strict=True)]
    assert_close(*both(name, lambda f: jax.vmap(penalty_gradients(f), mapped), stride=2)(*args))


@pytest.mark.parametrize("replicated", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_shard_map_sums_gradients_of_a_replicated_kernel(name, replicated):
    mine, plain = (partial(f, stride=2) for f in PAIRS[name])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P()), out_specs=(P("data"), P()))
    def run(x, kernel):
        if replicated:  # as `jax.numpy` does, the gradient arrives summed
            return gradients(mine)(x, kernel)
        dx, dk = gradients(mine)(x, jax.lax.pcast(kernel, "data", to="varying"))
        return dx, jax.lax.psum(dk, "data")

    args = arrays((6, 5), (4, 4), batch=8)
    assert_close(run(*args), jax.jit(gradients(plain))(*args))


@pytest.mark.parametrize("name", PAIRS)
def test_pmap(name):
    mine, plain = (partial(f, stride=2) for f in PAIRS[name])
    x, kernel = arrays((6, 5), (4, 4), batch=8)
    run = jax.pmap(lambda x, k: jax.lax.psum(gradients(mine)(x, k)[1], "data"), "data", in_axes=(0, None))
    assert_close(run(x.reshape(4, 2, *x.shape[1:]), kernel)[0], jax.jit(gradients(plain))(x, kernel)[1])


@pytest.mark.parametrize("name", PAIRS)
def test_lowers_for_other_platforms(name):
    f = jax.jit(gradients(partial(PAIRS[name][0], stride=2)))
    for platform in ("cuda", "tpu"):
        text = f.trace(*arrays((6, 5), (4, 4))).lower(lowering_platforms=(platform,)).as_text()
        assert "x[i, 0, 1, o]->" in text  # the gradient of the filter as cuDNN knows it, unlike on CPU


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), ((2, 5), 2)])
@pytest.mark.parametrize(("mine", "linen"), [(Conv, nn.Conv), (ConvTranspose, nn.ConvTranspose)])
def test_modules_equal_linen(mine, linen, kernel_size, stride):
    window = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * 2
    x, _ = arrays((5, 6), window)
    mine, linen = mine(7, kernel_size=kernel_size, stride=stride), linen(7, window, strides=stride)

    @partial(jax.jit, compiler_options=QUICK)
    def run(key):
        params = mine.init(key, x)
        shifted = jax.tree.map(lambda p: p + 0.1, params)  # a bias of zero would not show
        return (params, mine.apply(shifted, x)), (linen.init(key, x), linen.apply(shifted, x))

    assert_close(*run(jax.random.key(3)))


def test_module_options():
    x, _ = arrays((5, 6), (4, 4))
    module = ConvTranspose(7, use_bias=False, dtype=jnp.bfloat16)
    y, params = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert (y.shape, y.dtype) == ((2, 10, 12, 7), jnp.bfloat16)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == {"params": {"kernel": ((4, 4, 2, 7), jnp.float32)}}


@pytest.mark.parametrize("f", [conv, conv_transpose])
def test_errors_name_the_value(f):
    x, kernel = arrays((3, 3), (4, 4))
    with pytest.raises(ValueError, match=r"kernel of \(4, 4\) does not fit into an image of \(3, 3\)"):
        f(x, kernel, stride=1, padding=((-1, -1), (-1, -1)))
    with pytest.raises((ValueError, RuntimeError), match="same!"):
        f(x, kernel, padding="same!")
