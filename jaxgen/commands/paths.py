"""Ways through the latents of a trained model, as a picture or, where --out ends in .gif or .webp, an animation.

python -m jaxgen interpolate runs/vae_mnist --examples 0 1 2 3
python -m jaxgen traverse runs/gan_mnist --label 3
python -m jaxgen arithmetic runs/vae_mnist --minus 3 --plus 8
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from jaxgen.commands.flags import Where, parse, trained_on
from jaxgen.commands.making import Files, Trained, check_size, make
from jaxgen.errors import UserError
from jaxgen.interpolation import spherical, straight
from jaxgen.ranges import Finite, Index, Positive, Seed, UpTo10k


@dataclass(frozen=True)
class Flags:
    """What the three have in common."""

    steps: Annotated[int, Meta(ge=2, le=10_000)] = 10
    """Number of points on a path, including its ends."""
    label: Index | None = None
    """Class of all samples, of a conditional model (default: that of the example, or all in turn)."""
    out: Path | None = None
    """File to write; a name that ends in .gif or .webp gives an animation."""
    seed: Seed = 0
    """Seed of random latents."""
    member: Index = 0
    """Index of the model, of a run with several --seeds."""
    checkpoint: str = "latest"
    """Checkpoint to use: latest, best (of the lowest held-out loss) or a step."""


@dataclass(frozen=True)
class Interpolate(Flags):
    """Paths from random latents to others, or from held-out examples to others."""

    num: UpTo10k = 8
    """Number of paths between random latents."""
    examples: tuple[Index, ...] = ()
    """Pairs of held-out examples, by number, as the ends of paths."""


@dataclass(frozen=True)
class Traverse(Flags):
    """One latent dimension at a time, a row each, while the others stay as they are."""

    dims: tuple[Index, ...] = ()
    """Latent dimensions, from 0 (default: the ten that vary most over held-out examples; without an encoder the first
    ten)."""
    span: Positive = 3.0
    """Largest distance from zero, in both directions."""
    example: Index | None = None
    """Number of the held-out example that fixes the other dimensions (default: the mean, or random latents)."""


@dataclass(frozen=True)
class Arithmetic(Flags):
    """Held-out examples of one label, moved by the difference of the mean latents of two labels."""

    minus: Index = 0
    """Label to subtract."""
    plus: Index = 1
    """Label to add."""
    num: UpTo10k = 8
    """Number of examples."""
    scale: Finite = 1.0
    """Multiple of the difference; 1 is the whole difference."""


def interpolate(trained: Trained, own: Interpolate) -> Files:
    """Along great circles where latents are normal, whose mass lies on a shell (White 2016), else straight."""
    latents, t = _latents(trained, own), np.linspace(0, 1, own.steps)
    count = len(own.examples) // 2 or own.num
    check_size(trained, count * own.steps, f"{count} paths, --steps {own.steps}")
    if not own.examples:
        z = np.asarray(latents.prior(trained.key, 2 * own.num))
        ends, labels = z.reshape(own.num, 2, -1), _in_turn(trained, own.num)
    else:
        if len(own.examples) % 2:
            raise UserError(f"--examples has {len(own.examples)} numbers: expected pairs, the ends of each path")
        z, label = _encoded(trained, own, rows=own.examples)
        ends, labels = z.reshape(-1, 2, z.shape[-1]), label[::2]
    path = spherical if latents.spherical else straight
    return _files(trained, own, np.stack([path(start, end, t) for start, end in ends]), labels)


def traverse(trained: Trained, own: Traverse) -> Files:
    latents = _latents(trained, own)
    label = _in_turn(trained, 1)
    if latents.encode is None:
        if own.example is not None:
            raise UserError(f"--example is for models with an encoder, and {trained.record.experiment} has none")
        z = np.asarray(latents.prior(trained.key, 1))[0]
        dims = np.arange(min(10, len(z)))
    else:
        means, labels = _encoded(trained, own, rows=None)
        dims = np.sort(np.argsort(-means.var(0))[:10])
        chosen = 0 if own.example is None else _checked(own.example, len(means), "--example")
        z = means.mean(0) if own.example is None else means[chosen]
        label = label if own.example is None else labels[[chosen]]
    dims = np.array([_checked(dim, len(z), "--dims") for dim in own.dims]) if own.dims else dims
    check_size(trained, len(dims) * own.steps, f"{len(dims)} dimensions, --steps {own.steps}")
    rows = np.tile(z, (len(dims), own.steps, 1))
    rows[np.arange(len(dims)), :, dims] = np.linspace(-own.span, own.span, own.steps)
    return _files(trained, own, rows, np.repeat(label, len(dims)))


def arithmetic(trained: Trained, own: Arithmetic) -> Files:
    """Radford et al. 2016, section 6.3.2, with means over all held-out examples of a label."""
    _latents(trained, own)
    if not trained.record.data.classes:
        raise UserError(f"{trained.record.data.name} has no labels: arithmetic wants some")
    z, labels = _encoded(trained, own, rows=None)
    means = {}
    for flag, label in (("--minus", own.minus), ("--plus", own.plus)):
        if label not in labels:
            most = len(trained.record.data.classes) - 1
            raise UserError(f"{flag} {label}: expected a label of held-out examples, 0 to {most}")
        means[label] = z[labels == label].mean(0)
    difference = own.scale * (means[own.plus] - means[own.minus])
    some = z[labels == own.minus][: own.num]
    check_size(trained, len(some) * own.steps, f"{len(some)} examples, --steps {own.steps}")
    rows = some[:, None] + np.linspace(0, 1, own.steps)[:, None] * difference
    return _files(trained, own, rows, np.full(len(some), own.minus))


def _latents(trained: Trained, own: Flags) -> Any:
    """The model's latents, once flags are in their range."""
    latents = trained.experiment.latents
    if latents is None:
        raise UserError(
            f"{trained.record.experiment} has no latents to move in: this is for variational autoencoders and "
            "generative adversarial networks"
        )
    if own.label is not None:
        if not latents.conditional:
            raise UserError("--label is for conditional models: train one with --model.conditional")
        _checked(own.label, len(trained.record.data.classes), "--label")
    return latents


def _checked(number: int, count: int, flag: str) -> int:
    if not 0 <= number < count:
        raise UserError(f"{flag} {number}: expected 0 to {count - 1}")
    return number


def _in_turn(trained: Trained, num: int) -> np.ndarray:
    """A label for each path."""
    return np.arange(num) % max(1, len(trained.record.data.classes))


def _encoded(trained: Trained, own: Flags, *, rows: tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean latents [N, D] of held-out examples, all or some, and their labels [N].

    Held-out examples are those of the validation split, or of the test split where nothing was held out.
    """
    encode = trained.experiment.latents.encode
    if encode is None:
        raise UserError(
            f"{trained.record.experiment} has no encoder that would find the latents of an example: interpolate and "
            "traverse go through random ones"
        )
    _, data = trained_on(trained.record, trained.module, trained.config, trained.where)
    arrays = data.test if data.validation is None else data.validation
    if rows is not None:
        count = len(next(iter(arrays.values())))
        arrays = {name: array[[_checked(row, count, "--examples") for row in rows]] for name, array in arrays.items()}
    z = np.asarray(encode(trained.params, arrays))
    return z, arrays.get("label", np.zeros(len(z), np.int32))


def _files(trained: Trained, own: Flags, rows: np.ndarray, labels: np.ndarray) -> Files:
    """Of latents [N, steps, D] and a label each: a picture with a path a row, or an animation of all paths."""
    from jaxgen import report

    latents, (num, steps, size) = trained.experiment.latents, rows.shape
    each = np.repeat(labels if own.label is None else np.full(num, own.label), steps).astype(np.int32)
    made = np.asarray(
        latents.decode(trained.params, rows.reshape(-1, size).astype(np.float32), each if latents.conditional else None)
    )
    if own.out is None or own.out.suffix not in report.ANIMATIONS:
        return report.files(trained.experiment.render(made, columns=steps))
    made = made.reshape(num, steps, *made.shape[1:])
    columns = math.ceil(math.sqrt(num))
    frames = [trained.experiment.render(made[:, i], columns=columns) for i in range(steps)]
    pictures = [
        one
        for frame in frames
        for one in (frame if isinstance(frame, list) else [frame])
        if isinstance(one, np.ndarray)
    ]
    if len(pictures) != steps:
        raise UserError(f"an animation is of pictures: give an --out that does not end in {own.out.suffix}")
    return {own.out.suffix: report.animation(pictures, own.out.suffix)}


def _command(
    name: str, flags: type, files_of: Callable[[Trained, Any], Files], directory: Path, args: list[str]
) -> None:
    from jaxgen import folder

    run = folder.load_run(directory)
    own, where = parse(flags, Where(), f"{name} {directory}", args)
    make(name, run, own, run[-1].sample, files_of, where)


MAKERS = {
    "interpolate": (Interpolate, interpolate),
    "traverse": (Traverse, traverse),
    "arithmetic": (Arithmetic, arithmetic),
}
COMMANDS = {name: partial(_command, name, *maker) for name, maker in MAKERS.items()}
