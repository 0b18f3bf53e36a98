"""Gated PixelCNN (van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders")."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.networks.convolution import Conv
from jaxgen.networks.dropout import drop
from jaxgen.networks.sequential import Sequential

Array = jax.Array


class Cache(NamedTuple):
    """What the pixels to come need of those that were read; of a size that the height of the image does not change.

    The next pixel is at row r and column c. `border` and `first_border` are kernel sizes // 2; layers but the first
    have an entry each in `above` and `left`.

    Attributes:
      position: int32 [], how many pixels were read: r * W + c.
      pixels: [B, first_border + 1, W + 2 * first_border, C], row r and those above it, scaled, between borders of 0.
      above: [B, border, W + 2 * border, width], inputs of the vertical stack in row r and above it.
      left: [B, 1, border, width], inputs of the horizontal stack at c and left of it.
      context: [W, depth, B, 2 * width], what the vertical stack says to the horizontal one along row r.
      condition: [B, D] or None.
    """

    position: Array
    pixels: Array
    above: tuple[Array, ...]
    left: tuple[Array, ...]
    context: Array
    condition: Array | None


class PixelCNN(Sequential):
    """Tokens [B, T, C], the T = H * W pixels in raster order, -> outputs [B, T, K], each of the pixels before it alone.

    Two stacks of gated convolutions: a vertical one sees whole rows above the pixel, a horizontal one what is left of
    the pixel in its row and, through the vertical one, all rows above: together all pixels of the receptive field,
    without a blind spot. The channels of a pixel are one token: they are predicted together.

    An optional condition [B, D] shifts both gates of every layer (eq. 4), and so does, in the first layer, where in the
    image a pixel is: a receptive field that is smaller than the image does not tell.

    Attributes:
      shape: (H, W, C).
      features_out: K, numbers per pixel.
      levels: of a channel: tokens are 0, ..., levels - 1, and enter scaled to [-1, 1].
      width: features of each stack.
      depth: gated layers, the first included.
      first_kernel: odd size of the first layer's kernel, of which the taps above and left of its centre exist.
      kernel: odd size of the later ones, which have the centre too: 3 is 2x3 taps, and 1x2 in the horizontal stack.
      dropout: share of each gate's features that are dropped where there is a key "dropout" to draw them with, that is
        in training.
      dtype: of the arithmetic; parameters and outputs are float32.
    """

    shape: Sequence[int]
    features_out: int
    levels: int = 2
    width: int = 32
    depth: int = 8
    first_kernel: int = 7
    kernel: int = 3
    dropout: float = 0.0
    dtype: str | None = None

    given = 0  # pixels that are not predicted

    @property
    def limit(self) -> int:
        """The longest sequence of pixels."""
        return self.shape[0] * self.shape[1]

    def setup(self):
        for size in (self.first_kernel, self.kernel):
            if size < 3 or size % 2 == 0:
                raise ValueError(f"a kernel of {size}: expected an odd size of at least 3")
        self.layers = [
            Layer(self.width, self.kernel if i else self.first_kernel, i > 0, self.dropout, self.dtype)
            for i in range(self.depth)
        ]
        place = self.param("place", nn.initializers.normal(0.02), (*self.shape[:2], 4 * self.width))
        self.place = place.astype(self.dtype or jnp.float32)
        self.hidden = Conv(self.width, kernel_size=1, dtype=self.dtype)
        self.output = Conv(self.features_out, kernel_size=1, dtype=self.dtype)

    def __call__(self, tokens: Array, condition: Array | None = None) -> Array:
        outputs, _ = self.whole(self.image(tokens), condition)
        return outputs.reshape(tokens.shape[0], -1, self.features_out)

    def prefill(self, tokens: Array, condition: Array | None = None) -> tuple[Array, Cache]:
        """Tokens [B, P, C], 0 <= P < T -> output [B, K] of token P, and what is kept of those before it."""
        width, read = self.shape[1], tokens.shape[1]
        if read >= self.limit:
            raise ValueError(f"a prompt of {read} pixels leaves none of {self.limit} to predict")
        row, column = divmod(read, width)
        # Rows up to that of pixel P are enough, and whatever stands for it and the pixels after it.
        x = self.image(jnp.pad(tokens, ((0, 0), (0, (row + 1) * width - read), (0, 0))))
        outputs, (inputs, contexts) = self.whole(x, condition)
        first, border = self.first_kernel // 2, self.kernel // 2
        cache = Cache(
            position=jnp.asarray(read, jnp.int32),
            pixels=widen(x, first, rows=first)[:, row : row + first + 1],
            above=tuple(widen(v, border, rows=border)[:, row + 1 : row + 1 + border] for v, _ in inputs[1:]),
            left=tuple(widen(h, border)[:, row : row + 1, column + 1 : column + 1 + border] for _, h in inputs[1:]),
            context=jnp.stack([context[:, row] for context in contexts]).transpose(2, 0, 1, 3),
            condition=condition,
        )
        return outputs[:, row, column], cache

    def extend(self, token: Array, cache: Cache) -> tuple[Array, Cache]:
        """One more token [B, C] -> output [B, K] of the one after it, and the cache with it.

        Of the horizontal stack, that pixel is computed; of the vertical one, which knows whole rows above, a row at a
        time, when the row before is complete. After the last pixel, the output means nothing.
        """
        width, border = self.shape[1], self.first_kernel // 2
        column = cache.position % width
        pixels = jax.lax.dynamic_update_slice(
            cache.pixels, self.scale(token)[:, None, None], (0, border, border + column, 0)
        )
        cache = cache._replace(position=cache.position + 1, pixels=pixels)
        cache = nn.cond(column == width - 1, PixelCNN.next_row, lambda _, cache: cache, self, cache)
        return self.next_pixel(cache)

    def next_row(self, cache: Cache) -> Cache:
        """The vertical stack in a row of which no pixel was read."""
        pixels = jnp.pad(cache.pixels[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
        place = jax.lax.dynamic_slice_in_dim(self.place, cache.position // self.shape[1], 1)
        window, above, contexts = pixels[:, :-1], [], []
        for layer, before in zip(self.layers, (*cache.above, None), strict=True):
            v, context = layer.vertical(window, cache.condition, None if contexts else place)
            contexts.append(context[:, 0])
            if before is not None:
                window = jnp.concatenate([before, widen(v, self.kernel // 2)], axis=1)
                above.append(window[:, 1:])
        return cache._replace(
            pixels=pixels,
            above=tuple(above),
            left=tuple(jnp.zeros_like(h) for h in cache.left),
            context=jnp.stack(contexts).transpose(2, 0, 1, 3),
        )

    def next_pixel(self, cache: Cache) -> tuple[Array, Cache]:
        """The horizontal stack at one pixel."""
        column, border = cache.position % self.shape[1], self.first_kernel // 2
        contexts = jax.lax.dynamic_index_in_dim(cache.context, column, keepdims=False)
        rows, _, _, channels = cache.pixels.shape
        window = jax.lax.dynamic_slice(cache.pixels, (0, border, column, 0), (rows, 1, border, channels))
        h, skips, left = None, 0, []
        for layer, context, before in zip(self.layers, contexts, (*cache.left, None), strict=True):
            h, skip = layer.horizontal(window, context[:, None, None], h, last=before is None)
            skips += skip
            if before is not None:
                window = jnp.concatenate([before, h], axis=2)
                left.append(window[:, :, 1:])
        return self.head(skips)[:, 0, 0], cache._replace(left=tuple(left))

    def whole(self, x: Array, condition: Array | None = None) -> tuple[Array, tuple]:
        """Scaled images [B, H, W, C] -> outputs [B, H, W, K], each layer's inputs (v, h), and its context."""
        v, h, skips, inputs, contexts = x, x, 0, [], []
        for i, layer in enumerate(self.layers):
            inputs.append((v, h))
            border = layer.kernel // 2
            # The first layer's windows end above the pixel and left of it: they never hold the last row or column.
            above = widen(v if i else v[:, :-1], border, rows=border)
            left = jnp.pad(h if i else h[:, :, :-1], ((0, 0), (0, 0), (border, 0), (0, 0)))
            v, context = layer.vertical(above, condition, None if i else self.place[: x.shape[1]])
            h, skip = layer.horizontal(left, context, h if i else None, last=i == self.depth - 1)
            skips += skip
            contexts.append(context)
        return self.head(skips), (inputs, contexts)

    def head(self, skips: Array) -> Array:
        return self.output(nn.relu(self.hidden(nn.relu(skips)))).astype(jnp.float32)

    def image(self, tokens: Array) -> Array:
        """[B, rows * W, C] -> [B, rows, W, C], scaled."""
        return self.scale(tokens).reshape(tokens.shape[0], -1, *self.shape[1:])

    def scale(self, tokens: Array) -> Array:
        return (tokens / ((self.levels - 1) / 2) - 1).astype(self.dtype or jnp.float32)


class Layer(nn.Module):
    """Two gated convolutions, joined (fig. 2 of the paper), over windows that hold no pixel that must not be seen."""

    width: int
    kernel: int
    centre: bool
    dropout: float = 0.0
    dtype: str | None = None

    def setup(self):
        reach = self.kernel // 2 + self.centre
        self.down = Slide(2 * self.width, kernel_size=(reach, self.kernel), dtype=self.dtype)
        self.right = Slide(2 * self.width, kernel_size=(1, reach), dtype=self.dtype)
        self.join = Conv(2 * self.width, kernel_size=1, use_bias=False, dtype=self.dtype)
        self.shift = nn.Dense(4 * self.width, use_bias=False, dtype=self.dtype)
        self.skip = Conv(self.width, kernel_size=1, use_bias=False, dtype=self.dtype)
        self.residual = Conv(self.width, kernel_size=1, dtype=self.dtype)

    def vertical(self, window: Array, condition: Array | None, place: Array | None) -> tuple[Array, Array]:
        """[B, h + rows above, W + 2 * border, I] -> features [B, h, W, width], and [B, h, W, 2 * width] for below.

        Both are shifted by the condition [B, D] and the place [h, W, 4 * width], where there are any.
        """
        z = self.down(window)
        context = self.join(z)
        for shift in (place, None if condition is None else self.shift(condition)[:, None, None]):
            if shift is not None:
                for_z, for_context = jnp.split(shift, 2, axis=-1)
                z, context = z + for_z, context + for_context
        return drop(self, self.dropout, gate(z)), context

    def horizontal(self, window: Array, context: Array, h: Array | None, *, last: bool) -> tuple[Array | None, Array]:
        """[B, h, w + columns left, I] -> features [B, h, w, width], added to those of the layer before, and a skip.

        The last layer has a skip alone.
        """
        g = drop(self, self.dropout, gate(self.right(window) + context))
        if last:
            return None, self.skip(g)
        residual = self.residual(g)
        return residual if h is None else h + residual, self.skip(g)


class Slide(Conv):
    """A convolution of stride 1 where the kernel fits into the input, for kernels of few taps."""

    def convolve(self, x: Array, kernel: Array) -> Array:
        return jax.lax.platform_dependent(x, kernel, cpu=slide, default=convolve)


def convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def slide(x: Array, kernel: Array) -> Array:
    """One matrix product: the columns of the kernel side by side among the inputs, its rows among the outputs.

    Forward and backward in a scan on one core, at width 32 to 64, `jaxgen.networks.convolution.conv` takes 1.3 times as
    long for 2x3 taps, 1.7 to 2 times for 1x2, and 8 times for the 3x7 of a picture. All six taps among the inputs take
    1.1 times as long and more memory.
    """
    rows, columns, inputs, outputs = kernel.shape
    x = shifted(x, columns, axis=2)
    if inputs * columns < outputs:  # a picture: here rows among the outputs would be the larger array
        x, kernel = shifted(x, rows, axis=1), kernel.reshape(1, 1, -1, outputs)
    else:
        kernel = kernel.reshape(rows, 1, -1, outputs)
    height = x.shape[1] - len(kernel) + 1
    y = x.reshape(-1, x.shape[-1]) @ kernel.transpose(2, 0, 1, 3).reshape(x.shape[-1], -1)
    y = y.reshape(*x.shape[:3], -1)
    return sum(y[:, i : i + height, :, i * outputs : (i + 1) * outputs] for i in range(len(kernel)))


def shifted(x: Array, taps: int, axis: int) -> Array:
    """[..., N, ..., C] -> [..., N - taps + 1, ..., taps * C]."""
    size = x.shape[axis] - taps + 1
    return jnp.concatenate([jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(taps)], axis=-1)


def gate(x: Array) -> Array:
    """[..., 2 D] -> [..., D], tanh of one half times sigmoid of the other (eq. 2)."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)


def widen(x: Array, border: int, rows: int = 0) -> Array:
    """Zeros left and right of images [B, H, W, C], and above."""
    return jnp.pad(x, ((0, 0), (rows, 0), (border, border), (0, 0)))
