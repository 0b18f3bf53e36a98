"""The published weights of FID's Inception network: read, checked, converted once from PyTorch's file.

The public port of TensorFlow's weights (Apache License 2.0), as torch-fidelity and pytorch-fid use it, is the file
`weights-inception-2015-12-05-6726825d.pth`, 95,628,359 bytes, sha256
6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2. `convert_file` makes an .npz of it, and
nothing else needs PyTorch.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgen.errors import UserError, install
from jaxgen.files import write_atomically
from jaxgen.networks.inception import EPSILON, shapes
from jaxgen.types import PyTree

CHECKPOINT = "weights-inception-2015-12-05-6726825d.pth"
NORM = ("weight", "bias", "running_mean", "running_var")


def load(path: Path) -> PyTree:
    """Parameters from an .npz file that `save` wrote.

    Raises:
      UserError: the file cannot be read, or layers are missing or of another shape.

    """
    try:
        # Opened here, because numpy forgets to close a file that it finds damaged.
        with Path(path).open("rb") as file, jnp.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # what damaged bytes raise depends on where they are damaged
        reason = getattr(error, "strerror", None) or "damaged, or no .npz file"
        raise UserError(f"cannot read {path} ({reason}): expected what was converted from {CHECKPOINT}") from error
    expected = shapes()
    _check(path, found, expected)
    return unflatten_dict({name: jnp.asarray(found[name], jnp.float32) for name in expected}, sep="/")


def save(path: Path, params: PyTree) -> None:
    """Writes parameters as an .npz file with names such as `Mixed_5b/branch1x1/kernel`, whole or not at all.

    Raises:
      UserError: the file cannot be written.

    """
    content = io.BytesIO()
    jnp.savez(content, **flatten_dict(params, sep="/"))
    try:
        write_atomically(Path(path), content.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): give another path") from error


def convert(state: Mapping, *, source: Path | str = "the checkpoint") -> PyTree:
    """Parameters from the arrays of the PyTorch checkpoint, in float64 until the end.

    Batch normalisation at inference is affine and follows a convolution without bias, hence

        gain * (conv(x, kernel) - mean) / sqrt(var + epsilon) + shift = conv(x, scale * kernel) + shift - scale * mean

    with scale = gain / sqrt(var + epsilon).

    Args:
      state: NumPy arrays by name, such as `Mixed_5b.branch1x1.conv.weight` [O, I, kh, kw] and
        `Mixed_5b.branch1x1.bn.running_mean` [O]. Names that the network does not have are ignored.
      source: what an error calls the checkpoint.

    Returns:
      float32 NumPy arrays as `load` has them: kernels [kh, kw, I, O] and biases [O].

    Raises:
      UserError: arrays are missing or of another shape.

    """
    kernels = {name.removesuffix("/kernel"): shape for name, shape in shapes().items() if name.endswith("/kernel")}
    expected = {}
    for layer, (*window, inputs, outputs) in kernels.items():
        prefix = layer.replace("/", ".")
        vectors = [f"bn.{name}" for name in NORM] if window else ["bias"]
        expected[f"{prefix}.conv.weight" if window else f"{prefix}.weight"] = (outputs, inputs, *window)
        expected |= {f"{prefix}.{name}": (outputs,) for name in vectors}
    _check(source, state, expected)

    state = {name: state[name].astype("float64") for name in expected}
    params = {}
    for layer, shape in kernels.items():
        prefix = layer.replace("/", ".")
        if len(shape) == 4:
            gain, shift, mean, var = (state[f"{prefix}.bn.{name}"] for name in NORM)
            scale = gain / (var + EPSILON) ** 0.5
            kernel = state[f"{prefix}.conv.weight"].transpose(2, 3, 1, 0) * scale
            bias = shift - scale * mean
        else:
            kernel, bias = state[f"{prefix}.weight"].T, state[f"{prefix}.bias"]
        params |= {f"{layer}/kernel": kernel.astype("float32"), f"{layer}/bias": bias.astype("float32")}
    return unflatten_dict(params, sep="/")


def convert_file(source: Path, out: Path) -> None:
    """Writes the PyTorch checkpoint `source` as the .npz file `out`. Needs PyTorch, and nothing else here does.

    Raises:
      UserError: PyTorch is not installed; the checkpoint cannot be read or is of another network; `out` cannot be
        written.

    """
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {source} needs PyTorch, this once: {install('torch')}") from None
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
        state = {name: value.numpy() for name, value in state.items()}
    except Exception as error:  # as in `load`
        reason = getattr(error, "strerror", None) or "damaged, or no PyTorch file of tensors alone"
        raise UserError(f"cannot read {source} ({reason}): expected {CHECKPOINT}") from error
    save(out, convert(state, source=source))


def _check(source: Path | str, found: Mapping, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Says which arrays are not as expected."""
    wrong = []
    for name, shape in expected.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif found[name].shape != shape or found[name].dtype.kind != "f":
            wrong.append(f"{name} is {found[name].dtype} {found[name].shape}, expected float {shape}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{source} is not the Inception network of FID: {', '.join(wrong[:3])}{more}; use {CHECKPOINT}")
