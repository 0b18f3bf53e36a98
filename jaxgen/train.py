"""The one training loop. It knows of steps and chunks of steps, and nothing of what is trained."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from jaxgen.step import Reports, Update
from jaxgen.types import Batch, TrainState


class Hook(NamedTuple):
    """`call(step, state)` after every `every` steps, and after the last one.

    The state is given up to the next step, so a hook that keeps any of it makes a copy.
    """

    every: int
    call: Callable[[int, TrainState], None]


class Progress(NamedTuple):
    """One chunk of steps: the reports [K] of steps start..stop-1, by objective, and the seconds that they took."""

    start: int
    stop: int
    reports: Reports
    seconds: float


def train(
    state: TrainState,
    steps: Update,
    batches: Callable[[int, int], Batch],
    *,
    stop: int,
    chunk: int = 50,
    hooks: Sequence[Hook] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains from `state.step` up to `stop`, or until `should_stop()` after a chunk.

    While the device computes one chunk, a thread prepares the next, and the reports of the one before are fetched: the
    device never waits for Python.

    Args:
      state: given up; use the returned one.
      steps: `(state, batches [K, B, ...]) -> (state, reports [K])`, compiled.
      batches: `(start, stop) ->` the batches of those steps, on the device. Called from the thread.
      stop: number of steps after which training ends.
      chunk: most steps in one dispatch. A chunk never crosses a step at which a hook is due.
      hooks: called in order, when every step before them has finished.
      should_stop: asked after every chunk, and after hooks.
      on_progress: called once for every chunk, one chunk late.
    """
    clock = time.perf_counter()

    def report(start: int, end: int, reports: Reports) -> None:
        nonlocal clock
        fetched = jax.tree.map(np.asarray, reports)  # waits for the chunk
        now = time.perf_counter()
        on_progress(Progress(start, end, fetched, now - clock))
        clock = now

    spans = list(_chunks(int(state.step), stop, chunk, [hook.every for hook in hooks]))
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        following = [thread.submit(batches, *span) for span in spans[:1]]
        unreported = None
        for i, (start, end) in enumerate(spans):
            batch = following.pop().result()
            following = [thread.submit(batches, *span) for span in spans[i + 1 : i + 2]]
            state, reports = steps(state, batch)
            if unreported:
                report(*unreported)
            unreported = start, end, reports
            due = [hook for hook in hooks if end % hook.every == 0 or end == stop]
            stopping = should_stop()
            if due or stopping or end == stop:
                report(*unreported)
                unreported = None
                for hook in due:
                    hook.call(end, state)
                stopping = stopping or should_stop()  # one of them may have been cut short
                clock = time.perf_counter()  # the time of hooks is not the time of steps
            if stopping:
                break
    return state


def _chunks(start: int, stop: int, chunk: int, periods: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, end) of each dispatch: up to the next multiple of `chunk` or of any period, or to `stop`.

    Counted from step 0, so that a run that was interrupted goes on in the same chunks.
    """
    while start < stop:
        end = min(stop, *((start // n + 1) * n for n in (chunk, *periods)))
        yield start, end
        start = end
