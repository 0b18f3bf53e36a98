import hashlib
import tracemalloc
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from jaxgen.data.source import Dataset, Spec, batch_indices, check, gather
from jaxgen.errors import UserError


@pytest.mark.parametrize(("num_examples", "batch_size"), [(12, 4), (10, 4), (7, 3), (3, 8), (1, 5), (5, 5)])
def test_each_epoch_of_the_stream_is_a_permutation(num_examples, batch_size):
    epochs = 6
    steps = -(-epochs * num_examples // batch_size)  # the last batches straddle epochs where the sizes do not divide
    stream = batch_indices(num_examples, batch_size, seed=3, start=0, stop=steps).ravel()
    for epoch in stream[: epochs * num_examples].reshape(epochs, num_examples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))


def test_batches_depend_on_seed_and_step_only():
    together = batch_indices(100, 32, seed=0, start=0, stop=20)
    assert together.shape == (20, 32)
    for start, stop in [(0, 1), (3, 4), (2, 9), (19, 20), (7, 20)]:
        np.testing.assert_array_equal(batch_indices(100, 32, seed=0, start=start, stop=stop), together[start:stop])
    assert batch_indices(100, 32, seed=0, start=5, stop=5).shape == (0, 32)
    assert batch_indices(100, 100, seed=0, start=4, stop=4).shape == (0, 100)


def test_seeds_and_epochs_differ():
    first, second = batch_indices(1000, 1000, seed=0, start=0, stop=2)
    other = batch_indices(1000, 1000, seed=1, start=0, stop=1)[0]
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9


def test_a_caller_cannot_change_later_batches():
    before = batch_indices(50, 50, seed=9, start=0, stop=1)
    batch_indices(50, 50, seed=9, start=0, stop=1)[:] = 0
    np.testing.assert_array_equal(batch_indices(50, 50, seed=9, start=0, stop=1), before)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_gather_equals_indexing(shape):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (20, 6, 5, 3), np.uint8),
        "label": rng.integers(0, 10, 20, np.int32),
        "weight": rng.normal(size=(20, 2)).astype(np.float32),
    }
    indices = rng.integers(0, 20, shape)
    batch = gather(arrays, indices)
    assert batch.keys() == arrays.keys()
    for name, array in arrays.items():
        assert batch[name].dtype == array.dtype
        np.testing.assert_array_equal(batch[name], array[indices])


def test_gather_refuses_an_index_out_of_range():
    with pytest.raises(IndexError):
        gather({"image": np.zeros((3, 2))}, np.array([3]))


# Windows at all offsets of one sequence


def windows(sequence, length):
    return np.lib.stride_tricks.sliding_window_view(sequence, length)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gather_of_windows_equals_slicing(shape, dtype):
    rng = np.random.default_rng(0)
    sequence = rng.integers(0, 200, 100).astype(dtype)
    indices = rng.integers(0, 91, shape)
    batch = gather({"tokens": windows(sequence, 10)}, indices)["tokens"]
    assert batch.dtype == dtype
    assert batch.flags.c_contiguous
    expected = [sequence[i : i + 10] for i in indices.ravel()]
    np.testing.assert_array_equal(batch, np.reshape(expected, (*shape, 10)))
    with pytest.raises(IndexError):
        gather({"tokens": windows(sequence, 10)}, np.array([91]))


def test_windows_are_never_written_out():
    sequence = np.zeros(20_000, np.uint8)
    data = Dataset("long", train={"tokens": windows(sequence, 5_000)}, test={"tokens": windows(sequence, 5_000)})
    tracemalloc.start()
    gather(data.train, np.arange(8))
    data.spec  # noqa: B018
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # they would take 75e6 bytes


def test_the_digest_of_windows_covers_every_token_and_what_they_mean():
    def digest(sequence, **more):
        return Dataset("text", train={"tokens": windows(sequence, 4)}, test={}, **more).spec.digest

    sequence = np.arange(10, dtype=np.uint8)
    assert digest(sequence) == digest(sequence.copy())
    changed = [sequence + (np.arange(10) == i).astype(np.uint8) for i in range(10)]
    assert len({digest(s) for s in (sequence, *changed)}) == 11
    assert digest(sequence, vocabulary="a") != digest(sequence, vocabulary="b")


def test_the_digest_of_other_arrays_is_that_of_their_bytes():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    data = Dataset("images", train={"image": image, "column": image[..., 1]}, test={"image": image[:1]})
    expected = hashlib.sha256(image.tobytes() + image[..., 1].tobytes() + image[:1].tobytes())
    assert data.spec.digest == expected.hexdigest()[:16]


def test_a_spec_of_an_older_run_is_read():
    old = {"name": "mnist_5k", "entries": {"image": [[28, 28, 1], "uint8"]}, "digest": "ab"}
    spec = msgspec.convert(old, Spec)
    assert (spec.vocabulary, spec.entries) == ("", {"image": ((28, 28, 1), "uint8")})
    assert msgspec.json.decode(msgspec.json.encode(replace(spec, vocabulary="x")), type=Spec).vocabulary == "x"


def test_check_accepts_sound_arrays():
    check({"image": np.zeros((3, 2), np.uint8), "weight": np.ones(3, np.float32)}, "sound")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_check_names_data_set_entry_and_first_bad_example(value):
    field = np.zeros((9, 2, 2), np.float32)
    field[4, 1, 0] = field[7, 0, 0] = value
    with pytest.raises(
        UserError, match=r"waves \(train\): 'field' of example 4 holds NaN or infinity, as do 1 more of 9"
    ):
        check({"label": np.zeros(9, np.int32), "field": field}, "waves (train)")


@pytest.mark.parametrize("arrays", [{}, {"image": np.zeros((0, 4))}])
def test_check_refuses_emptiness(arrays):
    with pytest.raises(UserError, match=r"waves: expected at least one example, found none"):
        check(arrays, "waves")


def test_check_refuses_unequal_lengths():
    with pytest.raises(UserError, match=r"waves: .*'image': 3, 'label': 2"):
        check({"image": np.zeros((3, 4)), "label": np.zeros(2)}, "waves")
