"""The Inception network of FID and of the Inception score.

Szegedy et al. 2015, "Rethinking the Inception architecture for computer vision", in the form of TensorFlow's graph of
2015-12-05. It differs from the paper and from other implementations in what looks small and moves every score: 1008
classes, images resized as TensorFlow 1 did it, averages that leave the padding out, and a maximum where the last block
should have an average. Layers are named as in torch-fidelity and pytorch-fid; `jaxgen.metrics.inception` reads weights.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxgen.types import PyTree

SIZE = 299
CLASSES = 1008
# A measure must not depend on the accelerator, and the default rounds to TF32 on GPUs and to bfloat16 on TPUs.
PRECISION = jax.lax.Precision.HIGHEST
EPSILON = 1e-3


def features(params: PyTree, images: jax.Array, *, bias: bool = False) -> tuple[jax.Array, jax.Array]:
    """What FID, KID, precision and recall compare, and what the Inception score does.

    Args:
      params: what `load` returns.
      images: uint8 [B, H, W, 1 or 3], of any size.
      bias: count the bias of the last layer. The Inception score leaves it out in the code of Salimans et al. 2016,
        which takes only that layer's weights from the graph, and in torch-fidelity.

    Returns:
      Features [B, 2048] and probabilities of the classes [B, 1008], float32.

    Raises:
      ValueError: images of another type or shape.

    """
    pooled, logits = Inception().apply({"params": params}, images)
    return pooled, nn.softmax(logits if bias else logits - params["fc"]["bias"])


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 1 or 3] -> float32 [B, 299, 299, 3] in [-1, 1): gray is repeated, 128 becomes 0."""
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 [B, H, W, 1 or 3]")
    x = (resize(images) - 128) / 128
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def resize(images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> float32 [B, 299, 299, C], bilinear as TensorFlow 1 (`align_corners=False`) resizes.

    Pixel i of the result lies at i * H / 299 of the image: corners meet at the top left only, unlike everywhere else
    today, and shrinking skips pixels instead of averaging them.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        at = jnp.arange(SIZE, dtype=jnp.float32) * jnp.float32(x.shape[axis] / SIZE)
        low = at.astype(jnp.int32)
        before, after = (jnp.take(x, i, axis, mode="clip") for i in (low, low + 1))
        x = before + (after - before) * (at - low).reshape(-1, *[1] * (3 - axis))
    return x


class Inception(nn.Module):
    """uint8 [B, H, W, 1 or 3] -> features [B, 2048] and logits [B, 1008], float32. For inference: batch normalisation
    is folded into the kernels and biases (`convert`).
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = preprocess(images)
        x = _conv(x, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = _conv(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = _conv(x, "Conv2d_2b_3x3", 64, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = _conv(x, "Conv2d_3b_1x1", 80, 1)
        x = _conv(x, "Conv2d_4a_3x3", 192, 3, padding="VALID")
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 35, 35, 192]
        x = InceptionA(32, name="Mixed_5b")(x)
        x = InceptionA(64, name="Mixed_5c")(x)
        x = InceptionA(64, name="Mixed_5d")(x)
        x = InceptionB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
        x = InceptionC(128, name="Mixed_6b")(x)
        x = InceptionC(160, name="Mixed_6c")(x)
        x = InceptionC(160, name="Mixed_6d")(x)
        x = InceptionC(192, name="Mixed_6e")(x)
        x = InceptionD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
        x = InceptionE(_average, name="Mixed_7b")(x)
        x = InceptionE(_maximum, name="Mixed_7c")(x)  # an average in the paper: the graph's slip, which FID inherits
        x = x.mean((1, 2))
        return x, nn.Dense(CLASSES, precision=PRECISION, name="fc")(x)


class InceptionA(nn.Module):
    """[B, H, W, I] -> [B, H, W, 224 + pool]."""

    pool: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [
            _chain(x, "branch1x1", (64, 1)),
            _chain(x, "branch5x5", (48, 1), (64, 5)),
            _chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            _chain(_average(x), "branch_pool", (self.pool, 1)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionB(nn.Module):
    """[B, H, W, I] -> [B, (H - 1) // 2, (W - 1) // 2, 480 + I]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [
            _chain(x, "branch3x3", (384, 3), stride=2),
            _chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3), stride=2),
            nn.max_pool(x, (3, 3), (2, 2)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionC(nn.Module):
    """[B, H, W, I] -> [B, H, W, 768], with `inner` channels between the long kernels."""

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        row, column = (1, 7), (7, 1)
        n = self.inner
        branches = [
            _chain(x, "branch1x1", (192, 1)),
            _chain(x, "branch7x7", (n, 1), (n, row), (192, column)),
            _chain(x, "branch7x7dbl", (n, 1), (n, column), (n, row), (n, column), (192, row)),
            _chain(_average(x), "branch_pool", (192, 1)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionD(nn.Module):
    """[B, H, W, I] -> [B, (H - 1) // 2, (W - 1) // 2, 512 + I]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [
            _chain(x, "branch3x3", (192, 1), (320, 3), stride=2),
            _chain(x, "branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), stride=2),
            nn.max_pool(x, (3, 3), (2, 2)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionE(nn.Module):
    """[B, H, W, I] -> [B, H, W, 2048]; `pool` keeps the size."""

    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _conv(x, "branch3x3_1", 384, 1)
        double = _chain(x, "branch3x3dbl", (448, 1), (384, 3))
        branches = [
            _conv(x, "branch1x1", 320, 1),
            _conv(single, "branch3x3_2a", 384, (1, 3)),
            _conv(single, "branch3x3_2b", 384, (3, 1)),
            _conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            _conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            _conv(self.pool(x), "branch_pool", 192, 1),
        ]
        return jnp.concatenate(branches, -1)


def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by names such as `Mixed_5b/branch1x1/kernel`."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8)
    params = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def _conv(x, name, channels, kernel, *, stride=1, padding=None):
    """Convolution and ReLU. Padded to keep the size unless it has a stride."""
    window = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = padding or ("SAME" if stride == 1 else "VALID")
    return nn.relu(nn.Conv(channels, window, stride, padding, precision=PRECISION, name=name)(x))


def _chain(x, name, *layers, stride=1):
    """Convolutions of (channels, kernel) in turn, of which the last has the stride; numbered if there are several."""
    for i, (channels, kernel) in enumerate(layers, 1):
        last = i == len(layers)
        x = _conv(x, f"{name}_{i}" if len(layers) > 1 else name, channels, kernel, stride=stride if last else 1)
    return x


def _average(x):
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x):
    return nn.max_pool(x, (3, 3), padding="SAME")
