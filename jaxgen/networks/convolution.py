"""Strided and transposed convolutions whose gradients, of any order, are fast on every platform.

Between a large image x [B, H, W, I], a kernel k [kh, kw, I, O] and a small image y [B, h, w, O] lies a trilinear form,

    sum over b, p, t, i, o of  x[b, stride * p + t - low, i] * k[t, i, o] * y[b, p, o],

and its partial derivatives are the three maps below: `_down` (a strided convolution) with respect to y, `_up` (a
transposed one) with respect to x, and `_taps` (the gradient of a filter) with respect to k. Being linear in two
arguments each, they are one another's gradients, so three formulas serve for derivatives of every order.

XLA's CPU back end knows convolutions of images in NHWC and filters in HWIO order. It turns others into that order, but
not inside a loop, and not where the filter is reversed; what remains falls to a naive kernel, 6 to 40 times slower. So
on CPU each of the three is written in that order from the start; elsewhere as autodiff of `jax.lax` would write it,
which is what cuDNN and the TPU compiler expect.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype

Pair = tuple[int, int]
Padding = str | Sequence[Pair]  # "SAME", "VALID", or ((top, bottom), (left, right))


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Strided convolution, equal to `jax.lax.conv_general_dilated` in NHWC and HWIO order.

    Reverse-mode derivatives only (`jax.grad`, also nested); `jax.jvp` raises TypeError.

    Args:
      x: [B, H, W, I].
      kernel: [kh, kw, I, O], of the dtype of x.
      stride: the same along both axes.
      padding: "SAME" for images of ceil(H / stride) rows, "VALID", or ((top, bottom), (left, right)).

    Returns:
      [B, H', W', O].

    """
    window, large = kernel.shape[:2], x.shape[1:3]
    pads = padding if not isinstance(padding, str) else jax.lax.padtype_to_pads(large, window, (stride,) * 2, padding)
    small = tuple((n + sum(pad) - k) // stride + 1 for n, k, pad in zip(large, window, pads, strict=True))
    if min(small) < 1:
        raise ValueError(f"a kernel of {window} does not fit into an image of {large} padded by {padding!r}")
    if window == (1, 1) and large == small:  # a dense layer per pixel, and a plain matrix product is fast everywhere
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)
    return _down(*_alike(x, kernel), _Geometry(stride, window, large, small, tuple(low for low, _ in pads)))


def conv_transpose(x: jax.Array, kernel: jax.Array, *, stride: int = 2, padding: Padding = "SAME") -> jax.Array:
    """Transposed convolution, equal to `jax.lax.conv_transpose` with `transpose_kernel=False`.

    That is, stride - 1 zeros are put between the pixels of x, and the kernel slides over the result, not reversed.
    Reverse-mode derivatives only (`jax.grad`, also nested); `jax.jvp` raises TypeError.

    Args:
      x: [B, h, w, I].
      kernel: [kh, kw, I, O], of the dtype of x; I belongs to x.
      stride: the factor by which the image grows.
      padding: "SAME" for images of exactly [stride * h, stride * w], "VALID" for all pixels that the kernel reaches, or
        ((top, bottom), (left, right)) of the image with the zeros between.

    Returns:
      [B, H, W, O].

    """
    window, small = kernel.shape[:2], x.shape[1:3]
    pads = padding if not isinstance(padding, str) else [_transposed_pads(k, stride, padding) for k in window]
    large = tuple((n - 1) * stride + 2 + sum(pad) - k for n, k, pad in zip(small, window, pads, strict=True))
    if min(large) < 1:
        raise ValueError(f"a kernel of {window} does not fit into an image of {small} padded by {padding!r}")
    low = tuple(k - 1 - low for k, (low, _) in zip(window, pads, strict=True))
    return _up(*_alike(x, kernel[::-1, ::-1].swapaxes(2, 3)), _Geometry(stride, window, large, small, low))


class Conv(nn.Module):
    """A strided convolution and a bias: [B, H, W, I] -> [B, H', W', features].

    The parameters `kernel` and `bias` are named, shaped and initialised as those of `flax.linen.Conv`.
    """

    features: int
    kernel_size: int | Pair = 3
    stride: int = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: Any = None  # of the computation; None takes that of the input and the parameters

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.kernel_size,) * 2 if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
        kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = self.convolve(x, kernel)
        return y if bias is None else y + bias

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv(x, kernel, stride=self.stride, padding=self.padding)


class ConvTranspose(Conv):
    """A transposed convolution and a bias: [B, h, w, I] -> [B, stride * h, stride * w, features] by default.

    The parameters `kernel` and `bias` are named, shaped and initialised as those of `flax.linen.ConvTranspose`. A
    kernel size that `stride` divides spreads the input evenly (Odena et al. 2016, "Deconvolution and checkerboard
    artifacts").
    """

    kernel_size: int | Pair = 4
    stride: int = 2

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv_transpose(x, kernel, stride=self.stride, padding=self.padding)


class _Geometry(NamedTuple):
    """Where the pixels of two images meet: large[stride * p + t - low] and small[p], for taps t of the kernel."""

    stride: int
    kernel: Pair
    large: Pair
    small: Pair
    low: Pair

    def pads(self) -> list[Pair]:
        """Padding of the large image that leaves exactly one pixel per tap at the last p; negative where it crops."""
        s, axes = self.stride, zip(self.kernel, self.large, self.small, self.low, strict=True)
        return [(low, (p - 1) * s + k - n - low) for k, n, p, low in axes]

    def pads_up(self) -> list[Pair]:
        """Padding of the small image, with its zeros between, that makes the large one."""
        s, axes = self.stride, zip(self.kernel, self.large, self.small, self.low, strict=True)
        return [(k - 1 - low, n - 1 + low - (p - 1) * s) for k, n, p, low in axes]


def _transposed_pads(k: int, stride: int, padding: str) -> Pair:
    """The padding that `jax.lax.conv_transpose` means by a name."""
    if padding == "SAME":
        low = k - 1 if stride > k - 1 else -(-(k + stride - 2) // 2)
        return low, k + stride - 2 - low
    if padding == "VALID":
        return k - 1, max(k, stride) - 1
    raise ValueError(f"padding is {padding!r}; expected 'SAME', 'VALID' or pairs of integers")


def _alike(*args: jax.Array) -> list[jax.Array]:
    """Under `jax.shard_map`, makes all vary over the same axes, as `jax.numpy` does and `jax.custom_vjp` expects."""
    varying = [jax.typeof(a).manual_axis_type.varying for a in args]
    axes = frozenset().union(*varying)
    return [jax.lax.pcast(a, tuple(axes - own), to="varying") for a, own in zip(args, varying, strict=True)]


def _by_platform(cpu: Callable, default: Callable, *args: jax.Array) -> jax.Array:
    """Chooses when the computation is lowered, so that the choice follows `jit(..., device)` and `jax.export`."""
    return jax.lax.platform_dependent(*args, cpu=_loop_over_seeds(cpu), default=default)


def _loop_over_seeds(f: Callable) -> Callable:
    """Makes `jax.vmap` loop where both arguments are mapped: as one grouped convolution it is 4 times slower on CPU."""
    looped = jax.custom_batching.custom_vmap(f)

    @looped.def_vmap
    def rule(_: int, mapped: list[bool], *args: jax.Array) -> tuple[jax.Array, bool]:
        if all(mapped):
            return jax.lax.map(lambda pair: looped(*pair), args), True
        return jax.vmap(f, [0 if m else None for m in mapped])(*args), True

    return looped


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _down(x: jax.Array, k: jax.Array, g: _Geometry) -> jax.Array:
    """[B, H, W, I], [kh, kw, I, O] -> [B, h, w, O]."""
    # What a stride leaves over at the end need not be cut off.
    pads = [(low, 0 if -g.stride < high < 0 else high) for low, high in g.pads()]

    def plain(x, k):
        return _convolve(x, k, pads, strides=g.stride)

    return _by_platform(plain, plain, x, k)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _up(y: jax.Array, k: jax.Array, g: _Geometry) -> jax.Array:
    """[B, h, w, O], [kh, kw, I, O] -> [B, H, W, I]."""

    def cpu(y, k):
        return _convolve(y, k[::-1, ::-1].swapaxes(2, 3), g.pads_up(), spread=g.stride)

    def default(y, k):
        return _convolve(y, k[::-1, ::-1], g.pads_up(), spread=g.stride, order=("NHWC", "HWOI", "NHWC"))

    return _by_platform(cpu, default, y, k)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _taps(x: jax.Array, y: jax.Array, g: _Geometry) -> jax.Array:
    """[B, H, W, I], [B, h, w, O] -> [kh, kw, I, O]: y is a filter, with gaps, and the batch its channels."""

    def cpu(x, y):
        x, y = x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)
        return _convolve(x, y, g.pads(), dilation=g.stride).transpose(1, 2, 0, 3)

    def default(x, y):
        return _convolve(x, y, g.pads(), dilation=g.stride, order=("CHWN", "IHWO", "HWNC"))

    return _by_platform(cpu, default, x, y)


def _convolve(x, k, pads, *, strides=1, spread=1, dilation=1, order=("NHWC", "HWIO", "NHWC")):
    strides, spread, dilation = ((n, n) for n in (strides, spread, dilation))
    return jax.lax.conv_general_dilated(x, k, strides, pads, spread, dilation, dimension_numbers=order)


_down.defvjp(
    lambda x, k, g: (_down(x, k, g), (x, k)),
    lambda g, xk, dy: (_up(dy, xk[1], g), _taps(xk[0], dy, g)),
)
_up.defvjp(
    lambda y, k, g: (_up(y, k, g), (y, k)),
    lambda g, yk, dx: (_down(dx, yk[1], g), _taps(dx, yk[0], g)),
)
_taps.defvjp(
    lambda x, y, g: (_taps(x, y, g), (x, y)),
    lambda g, xy, dk: (_up(xy[1], dk, g), _down(xy[0], dk, g)),
)
