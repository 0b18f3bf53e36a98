"""In-memory data sets and the order in which training sees them.

The batch of step t is a pure function of (seed, t): a checkpoint needs the step and nothing else to go on with the
same batches, on any number of processes. Small data sets are read once into arrays and gathered by index, hundreds of
times faster than a pipeline that handles one example at a time.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from jaxgen.data.splits import parted
from jaxgen.errors import UserError

Arrays = dict[str, np.ndarray]  # leading axis = example, dtypes as stored


@dataclass(frozen=True)
class Spec:
    """What a model must know of its data; written into a run folder, so that it can be rebuilt without them."""

    name: str
    entries: dict[str, tuple[tuple[int, ...], str]]  # shape and dtype of one example's entries
    classes: tuple[str, ...] = ()  # names of the label values
    binarization: str = "none"  # that was really done, or is to be
    digest: str = ""  # of all splits: the same data, the same digest
    held_out: tuple[int, int] = (0, 0)  # see Dataset
    vocabulary: str = ""  # of texts: what jaxgen.data.vocabulary.vocabulary rebuilds it from
    # Of the columns of the entry "properties": the mean and standard deviation with which they were standardised.
    properties: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self):
        for name, (shape, dtype) in self.entries.items():  # they may come from a run folder
            if min(shape, default=0) < 0 or math.prod(shape) > 2**31 or np.dtype(dtype).kind not in "biuf":
                raise ValueError(f"entries {name!r} of shape {shape} and dtype {dtype}")


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set, and what a report says about it."""

    name: str  # the data set really used, e.g. "mnist_5k"
    train: Arrays  # {"image": uint8 [N, H, W, C], "label": int32 [N], "factors": int32 [N, F]}, as there are; or others
    test: Arrays
    validation: Arrays | None = None  # the data set's own split, or a part of its training data that `hold_out` took
    watch: Arrays | None = None  # a part of `train` in the form of `test`, evaluated where there is no validation split
    held_out: tuple[int, int] = (0, 0)  # training examples moved to `validation`, of how many; of texts, tokens
    classes: tuple[str, ...] = ()  # names of the label values, empty when there are no labels
    notice: str | None = None  # one line: what a reader must know of the data, such as another set in its place
    source: str = ""  # where it comes from and its licence, one line
    binarization: str = "none"  # "fixed" when the pixels are 0 or 255, "dynamic" when the training step is to draw them
    vocabulary: str = ""  # of texts: what their tokens mean, for jaxgen.data.vocabulary.vocabulary
    properties: dict[str, tuple[float, float]] = field(default_factory=dict)  # see Spec

    def noted(self, text: str) -> "Dataset":
        """The same data, with a sentence more in the notice."""
        return replace(self, notice="; ".join(filter(None, [self.notice, text])) or None)

    def __len__(self) -> int:
        """Number of training examples."""
        return len(next(iter(self.train.values())))

    @property
    def watched(self) -> tuple[str, Arrays]:
        """Name and examples of the split that is evaluated during training; never the test split."""
        if self.validation is not None:
            return "validation", self.validation
        watch = gather(self.train, parted(len(self), 0.0)[1]) if self.watch is None else self.watch
        return "train subset", watch

    @property
    def spec(self) -> Spec:
        entries = {name: (array.shape[1:], str(array.dtype)) for name, array in self.train.items()}
        digest = hashlib.sha256()
        for split in (self.train, self.validation or {}, self.test):
            for array in split.values():
                for part in _parts(array):
                    digest.update(np.ascontiguousarray(part))
        digest.update(self.vocabulary.encode())  # the same tokens may stand for another text
        if self.held_out[0]:
            digest.update(repr(self.held_out).encode())
        return Spec(
            self.name,
            entries,
            self.classes,
            self.binarization,
            digest.hexdigest()[:16],
            self.held_out,
            vocabulary=self.vocabulary,
            properties=self.properties,
        )


def protocol(held_out: tuple[int, int]) -> str:
    """Suffix for the names of figures of a model that was trained on less than the whole training split."""
    held, total = held_out
    return f", trained on {total - held:,} of {total:,}" if held else ""


def hold_out(data: Dataset, share: float, keys: Iterable[bytes] | None = None) -> Dataset:
    """Move a share of the training examples to a validation split; a data set with a validation split keeps its own.

    With share 0 the training split stays whole, and a part of it is evaluated during training.

    Args:
      data: a data set in memory.
      share: see `splits.parted`.
      keys: see `splits.parted`, one for each training example.
    """
    if data.validation is not None:
        return data
    trained, watched = parted(len(data), share, keys)
    watch = gather(data.train, watched)
    if len(trained) == len(data):
        return replace(data, watch=watch)
    return replace(data, train=gather(data.train, trained), validation=watch, held_out=(len(watched), len(data)))


def _parts(array: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays that hold the values of an array in memory: of windows that overlap, the sequence under them, once.

    Windows at every offset of a text take a thousand times its memory as soon as something copies them.
    """
    if array.ndim == 2 and array.strides == (array.itemsize, array.itemsize):  # numpy's sliding_window_view
        return array[:, 0], array[-1:, 1:]
    return (array,)


def batch_indices(
    num_examples: int, batch_size: int, *, seed: int, start: int, stop: int, whole: bool = False
) -> np.ndarray:
    """Indices of the examples in the batches of steps `start` to `stop - 1`: int64 [stop - start, batch_size].

    Training reads one endless stream, a fresh permutation of all examples per epoch, and step t takes its positions
    t * batch_size to (t + 1) * batch_size - 1. So every example comes exactly once per epoch, a batch may straddle
    epochs (or span several), and the answer does not depend on how steps are grouped into calls.

    With `whole`, what is left of an epoch after its last whole batch is passed over, so that no batch holds an example
    twice; a batch is then at most as large as the data set.
    """
    first, last = start * batch_size, stop * batch_size
    length = num_examples - num_examples % batch_size if whole else num_examples
    pieces = [
        _permutation(num_examples, seed, epoch)[:length][max(first - epoch * length, 0) : last - epoch * length]
        for epoch in range(first // length, last // length + 1)
    ]
    return np.concatenate(pieces).reshape(stop - start, batch_size)


@lru_cache(maxsize=64)  # neighbouring chunks of steps read the same epoch, of each of several seeds
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    words = seed % 2**32, epoch, seed >> 32  # (seed, epoch) would take epoch 0 of seed 2**32 for epoch 1 of seed 0
    permutation = np.random.default_rng(words).permutation(num_examples)
    permutation.setflags(write=False)  # it is shared by later calls
    return permutation


def gather(arrays: Arrays, indices: np.ndarray) -> Arrays:
    """The examples at `indices`: entries of shape [N, ...] become [*indices.shape, ...]."""

    def rows(array: np.ndarray) -> np.ndarray:
        # np.take copies whole rows: 1.6 times the speed of array[indices] on 28x28 images. Of an array that is not
        # contiguous, such as windows over a text, it first copies everything.
        return np.take(array, indices, axis=0) if array.flags.c_contiguous else array[indices]

    return {name: rows(array) for name, array in arrays.items()}


def is_path(name: str) -> bool:
    """Whether the name of a data set leads to files of the user, as "folder:PATH" does and "mnist:3.0.1" does not."""
    return ":" in name and not re.fullmatch(r"[^:]*:[\d.]+", name)


def check(arrays: Arrays, name: str) -> None:
    """Raise a UserError unless `arrays` hold examples, equally many in every entry, without NaN or infinity.

    Args:
      arrays: entries with a leading example axis.
      name: what the message calls them, e.g. "mnist (train)".
    """
    lengths = {entry: len(array) for entry, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{name}: expected as many examples in every entry, found {lengths}; repair the data set")
    if not any(lengths.values()):
        raise UserError(f"{name}: expected at least one example, found none; choose another data set or split")
    for entry, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if bad.any():
            raise UserError(
                f"{name}: {entry!r} of example {bad.argmax()} holds NaN or infinity, as do {bad.sum() - 1} more of "
                f"{len(array)} examples; expected finite numbers: repair or remove these examples"
            )
