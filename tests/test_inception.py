"""The Inception network of FID against PyTorch's functions; its weights against what can be wrong with a file of them.

What compares with PyTorch skips where it is not installed: the project does not need it.
"""

import io
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgen.errors import UserError
from jaxgen.metrics import inception as weights
from jaxgen.networks import inception

QUICK = {"xla_backend_optimization_level": 0}  # these tests spend their time on compiling


def random_images(height=40, width=56, channels=3):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def shapes():
    return inception.shapes()


@pytest.fixture(scope="module")
def params(shapes):
    """Numbers that tell every place in every array."""
    flat = {
        name: np.arange(math.prod(shape), dtype=np.float32).reshape(shape) + i
        for i, (name, shape) in enumerate(shapes.items())
    }
    return unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def state(shapes):
    """A checkpoint as PyTorch names it: [O, I, kh, kw], a batch normalisation, and a counter that nothing needs."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)

    arrays = {"fc.weight": draw(1008, 2048), "fc.bias": draw(1008)}
    for name, shape in shapes.items():
        if len(shape) == 4:
            prefix = name.removesuffix("/kernel").replace("/", ".")
            height, width, inputs, outputs = shape
            arrays[f"{prefix}.conv.weight"] = draw(outputs, inputs, height, width)
            arrays |= {f"{prefix}.bn.{key}": draw(outputs) for key in weights.NORM}
            arrays[f"{prefix}.bn.num_batches_tracked"] = np.int64(0)
    return arrays


def assert_same(actual, expected):
    actual, expected = (flatten_dict(tree, sep="/") for tree in (actual, expected))
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == jnp.float32
        np.testing.assert_array_equal(actual[name], expected[name])


# Architecture


def test_parameters_are_as_many_as_published(shapes):
    # 21,768,352 is what Keras counts as trainable in InceptionV3 without its top: a kernel and a shift per layer too.
    assert len(shapes) == 2 * (94 + 1)
    assert sum(map(math.prod, shapes.values())) == 21_768_352 + (2048 + 1) * 1008


@pytest.mark.parametrize("shape", [(1, 28, 28, 1), (3, 400, 299, 3)])
def test_takes_images_of_any_size(params, shape):
    pooled, probabilities = jax.eval_shape(inception.features, params, jax.ShapeDtypeStruct(shape, jnp.uint8))
    assert (pooled.shape, pooled.dtype) == ((shape[0], 2048), jnp.float32)
    assert (probabilities.shape, probabilities.dtype) == ((shape[0], 1008), jnp.float32)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), "u1")]
)
def test_other_images_are_refused(params, images):
    with pytest.raises(ValueError, match=r"expected uint8 \[B, H, W, 1 or 3\]"):
        inception.features(params, images)


# Images


def tensorflow1(images):
    """Bilinear, pixel i at i * n / 299 and constant beyond the last; only those places are in float32, as there."""
    x = images.astype(np.float64)
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.arange(299, dtype=np.float32) * np.float32(n / 299)
        x = np.apply_along_axis(lambda line, at=at, n=n: np.interp(at, np.arange(n), line), axis, x)
    return x


def test_resize_by_hand():
    image = np.array([[10, 20], [30, 60]], np.uint8).reshape(1, 2, 2, 1)
    x = np.asarray(inception.resize(image))[0, :, :, 0]
    t = 2 / 299  # the step of a pixel
    expected = {
        (0, 0): 10,
        (0, 1): 10 + 10 * t,
        (1, 0): 10 + 20 * t,
        (1, 1): 10 + 10 * t + 20 * t + 20 * t * t,
        (149, 0): 10 + 20 * 149 * t,
        (150, 0): 30,  # beyond the centre of the last pixel
        (298, 298): 60,
    }
    for place, value in expected.items():
        np.testing.assert_allclose(x[place], value, rtol=1e-6)


def test_resize_skips_pixels_where_it_shrinks():
    images = random_images(598, 897)
    np.testing.assert_array_equal(inception.resize(images), images[:, ::2, ::3].astype(np.float32))


@pytest.mark.parametrize("size", [(1, 1), (28, 32), (299, 299), (300, 517)])
def test_resize_equals_interpolation(size):
    images = random_images(*size)
    np.testing.assert_allclose(inception.resize(images), tensorflow1(images), rtol=0, atol=1e-4)


def test_preprocess_scales_and_repeats_gray():
    gray = random_images(channels=1)
    x = inception.preprocess(gray)
    np.testing.assert_array_equal(x, inception.preprocess(gray.repeat(3, -1)))
    np.testing.assert_allclose(x[..., :1], tensorflow1(gray) / 128 - 1, rtol=0, atol=2e-5)


# Weights


def test_save_and_load(tmp_path, params):
    weights.save(tmp_path / "deep" / "inception.npz", params)
    assert_same(weights.load(tmp_path / "deep" / "inception.npz"), params)


def test_convert_folds_batch_normalisation(state, shapes):
    converted = flatten_dict(weights.convert(state), sep="/")
    assert {name: array.shape for name, array in converted.items()} == shapes
    np.testing.assert_array_equal(converted["fc/kernel"], state["fc.weight"].T)
    np.testing.assert_array_equal(converted["fc/bias"], state["fc.bias"])

    layer = "Mixed_6b.branch7x7_2"  # its kernel is [1, 7]: a transposition would show
    kernel, gain, shift, mean, var = (
        state[f"{layer}.{name}"].astype(np.float64)
        for name in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    patch = np.random.default_rng(2).normal(size=kernel.shape[1:])  # [I, kh, kw]
    expected = gain * ((kernel * patch).sum((1, 2, 3)) - mean) / np.sqrt(var + 0.001) + shift
    folded = converted["Mixed_6b/branch7x7_2/kernel"]
    actual = np.einsum("hwio,ihw->o", folded.astype(np.float64), patch) + converted["Mixed_6b/branch7x7_2/bias"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_layers_that_are_missing_or_misshapen_are_named(tmp_path, params, state):
    without = {name: array for name, array in state.items() if not name.startswith("Mixed_7c.branch3x3")}
    with pytest.raises(UserError, match=r"Mixed_7c\.\S+ is missing, .* and 32 more; use weights-inception") as error:
        weights.convert(without, source="some.pth")
    assert str(error.value).startswith("some.pth is not the Inception network")
    assert "\n" not in str(error.value)

    thousand = state | {"fc.weight": np.zeros((1000, 2048), np.float32)}
    with pytest.raises(UserError, match=r"fc.weight is float32 \(1000, 2048\), expected float \(1008, 2048\); use"):
        weights.convert(thousand)

    path = tmp_path / "inception.npz"
    weights.save(path, params | {"fc": {"kernel": np.zeros((2048, 1008), np.int32)}})
    with pytest.raises(UserError, match=r"fc/bias is missing, fc/kernel is int32 \(2048, 1008\), expected float"):
        weights.load(path)


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    array, objects = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros(3))
    np.savez(objects, **{"fc/bias": np.array([None])})
    return {
        "empty": b"",
        "text": b"<html>404</html>",
        "truncated": content[:middle],
        "flipped": flipped,
        "npy": array.getvalue(),
        "objects": objects.getvalue(),
    }


def test_files_that_cannot_be_read(tmp_path, params):
    path = tmp_path / "inception.npz"
    weights.save(path, params)
    for content in damaged(path.read_bytes()).values():
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*inception.npz \(damaged, or no .npz file\)"):
            weights.load(path)
    for absent in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(UserError, match=r"cannot read .* \((No such file|Is a directory)"):
            weights.load(absent)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*: give another path"):
        weights.save(tmp_path / "file" / "inception.npz", {"fc": {"bias": np.zeros(1)}})


def test_conversion_without_pytorch_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"some.pth needs PyTorch, this once: pip install torch"):
        weights.convert_file(tmp_path / "some.pth", tmp_path / "out.npz")


# Against PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed, and only these comparisons need it")


class Reference:
    """What torch-fidelity's FeatureExtractorInceptionV3 computes, as its sources state it layer by layer.

    Weights are drawn when a layer is first met, its statistics from those of what flows, so that activations neither
    vanish nor explode; `state` is then the checkpoint. Means are a quarter of the true ones: a random network that
    subtracts all of them amplifies rounding tenfold, in PyTorch as here.
    """

    def __init__(self, torch):
        self.torch, self.f, self.state = torch, torch.nn.functional, {}
        self.generator = torch.Generator().manual_seed(0)

    def near(self, x):
        return x * (0.5 + self.torch.rand(x.shape, generator=self.generator))

    def conv(self, x, name, channels, size, stride=1, padding=0):
        size = (size, size) if isinstance(size, int) else size
        weight = self.torch.randn((channels, x.shape[1], *size), generator=self.generator) / (x.shape[1] ** 0.5)
        y = self.f.conv2d(x, weight, None, stride, padding)
        mean, var = self.near(y.mean((0, 2, 3)) / 4), self.near(y.var((0, 2, 3)))
        gain, shift = self.near(self.torch.ones(channels)), self.near(self.torch.ones(channels)) - 1
        norm = {"weight": gain, "bias": shift, "running_mean": mean, "running_var": var}
        self.state |= {f"{name}.conv.weight": weight} | {f"{name}.bn.{key}": value for key, value in norm.items()}
        return self.f.batch_norm(y, mean, var, gain, shift, training=False, eps=0.001).relu()

    def average(self, x):
        return self.f.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def a(self, x, name, pool_features):
        b1 = self.conv(x, f"{name}.branch1x1", 64, 1)
        b5 = self.conv(x, f"{name}.branch5x5_1", 48, 1)
        b5 = self.conv(b5, f"{name}.branch5x5_2", 64, 5, padding=2)
        b3 = self.conv(x, f"{name}.branch3x3dbl_1", 64, 1)
        b3 = self.conv(b3, f"{name}.branch3x3dbl_2", 96, 3, padding=1)
        b3 = self.conv(b3, f"{name}.branch3x3dbl_3", 96, 3, padding=1)
        pool = self.conv(self.average(x), f"{name}.branch_pool", pool_features, 1)
        return self.torch.cat([b1, b5, b3, pool], 1)

    def b(self, x, name):
        b3 = self.conv(x, f"{name}.branch3x3", 384, 3, stride=2)
        double = self.conv(x, f"{name}.branch3x3dbl_1", 64, 1)
        double = self.conv(double, f"{name}.branch3x3dbl_2", 96, 3, padding=1)
        double = self.conv(double, f"{name}.branch3x3dbl_3", 96, 3, stride=2)
        return self.torch.cat([b3, double, self.f.max_pool2d(x, 3, stride=2)], 1)

    def c(self, x, name, c7):
        b1 = self.conv(x, f"{name}.branch1x1", 192, 1)
        b7 = self.conv(x, f"{name}.branch7x7_1", c7, 1)
        b7 = self.conv(b7, f"{name}.branch7x7_2", c7, (1, 7), padding=(0, 3))
        b7 = self.conv(b7, f"{name}.branch7x7_3", 192, (7, 1), padding=(3, 0))
        double = self.conv(x, f"{name}.branch7x7dbl_1", c7, 1)
        double = self.conv(double, f"{name}.branch7x7dbl_2", c7, (7, 1), padding=(3, 0))
        double = self.conv(double, f"{name}.branch7x7dbl_3", c7, (1, 7), padding=(0, 3))
        double = self.conv(double, f"{name}.branch7x7dbl_4", c7, (7, 1), padding=(3, 0))
        double = self.conv(double, f"{name}.branch7x7dbl_5", 192, (1, 7), padding=(0, 3))
        pool = self.conv(self.average(x), f"{name}.branch_pool", 192, 1)
        return self.torch.cat([b1, b7, double, pool], 1)

    def d(self, x, name):
        b3 = self.conv(x, f"{name}.branch3x3_1", 192, 1)
        b3 = self.conv(b3, f"{name}.branch3x3_2", 320, 3, stride=2)
        b7 = self.conv(x, f"{name}.branch7x7x3_1", 192, 1)
        b7 = self.conv(b7, f"{name}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        b7 = self.conv(b7, f"{name}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        b7 = self.conv(b7, f"{name}.branch7x7x3_4", 192, 3, stride=2)
        return self.torch.cat([b3, b7, self.f.max_pool2d(x, 3, stride=2)], 1)

    def e(self, x, name, pooled):
        b1 = self.conv(x, f"{name}.branch1x1", 320, 1)
        b3 = self.conv(x, f"{name}.branch3x3_1", 384, 1)
        b3a = self.conv(b3, f"{name}.branch3x3_2a", 384, (1, 3), padding=(0, 1))
        b3b = self.conv(b3, f"{name}.branch3x3_2b", 384, (3, 1), padding=(1, 0))
        double = self.conv(x, f"{name}.branch3x3dbl_1", 448, 1)
        double = self.conv(double, f"{name}.branch3x3dbl_2", 384, 3, padding=1)
        double_a = self.conv(double, f"{name}.branch3x3dbl_3a", 384, (1, 3), padding=(0, 1))
        double_b = self.conv(double, f"{name}.branch3x3dbl_3b", 384, (3, 1), padding=(1, 0))
        pool = self.conv(pooled, f"{name}.branch_pool", 192, 1)
        return self.torch.cat([b1, b3a, b3b, double_a, double_b, pool], 1)

    def __call__(self, x):
        """float32 [B, 3, 299, 299] in [-1, 1) -> features, logits."""
        x = self.conv(x, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = self.conv(x, "Conv2d_2a_3x3", 32, 3)
        x = self.conv(x, "Conv2d_2b_3x3", 64, 3, padding=1)
        x = self.f.max_pool2d(x, 3, stride=2)
        x = self.conv(x, "Conv2d_3b_1x1", 80, 1)
        x = self.conv(x, "Conv2d_4a_3x3", 192, 3)
        x = self.f.max_pool2d(x, 3, stride=2)
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self.a(x, name, pool_features)
        x = self.b(x, "Mixed_6a")
        for name, c7 in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = self.c(x, name, c7)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", self.average(x))
        x = self.e(x, "Mixed_7c", self.f.max_pool2d(x, 3, stride=1, padding=1))
        x = self.f.adaptive_avg_pool2d(x, 1).flatten(1)
        weight = self.torch.randn((1008, 2048), generator=self.generator) / 32
        self.state |= {"fc.weight": weight, "fc.bias": self.torch.randn(1008, generator=self.generator)}
        return x, self.f.linear(x, weight, self.state["fc.bias"])


def test_equals_pytorch_from_checkpoint_to_probabilities(torch, tmp_path):
    images = random_images()
    reference = Reference(torch)
    with torch.inference_mode():
        x = torch.from_numpy(tensorflow1(images).astype(np.float32)).permute(0, 3, 1, 2)
        pooled, logits = reference((x - 128) / 128)
        expected = [pooled, logits.softmax(-1), (logits - reference.state["fc.bias"]).softmax(-1)]
    torch.save(reference.state, tmp_path / "checkpoint.pth")
    weights.convert_file(tmp_path / "checkpoint.pth", tmp_path / "inception.npz")
    params = weights.load(tmp_path / "inception.npz")

    @jax.jit(compiler_options=QUICK)
    def run(params, images):
        return *inception.features(params, images, bias=True), inception.features(params, images)[1]

    for actual, wanted in zip(run(params, images), expected, strict=True):
        wanted = wanted.numpy()
        assert np.abs(wanted[0] - wanted[1]).max() > 0.1 * wanted.max()  # or the network would not see its images
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-4 * wanted.max())


def test_checkpoints_that_cannot_be_read(torch, tmp_path):
    path, out = tmp_path / "some.pth", tmp_path / "inception.npz"
    for write in (
        lambda: path.write_bytes(b"<html>404</html>"),
        lambda: torch.save(torch.nn.Linear(1, 1), path),  # code, which is not run
        lambda: torch.save([1, 2], path),
    ):
        write()
        with pytest.raises(UserError, match=r"cannot read .*some.pth \(damaged, or no PyTorch file of tensors alone\)"):
            weights.convert_file(path, out)
    with pytest.raises(UserError, match=r"cannot read .*absent.pth \(No such file"):
        weights.convert_file(tmp_path / "absent.pth", out)
    torch.save({"fc.bias": torch.zeros(1008)}, path)
    with pytest.raises(UserError, match=r"some.pth is not the Inception network"):
        weights.convert_file(path, out)
    assert not out.exists()
