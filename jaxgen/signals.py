"""Signals that ask a run to stop: Ctrl-C, a preemption, the end of a batch job, a closed terminal."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal asked to stop, and nothing is to be saved first."""


class Signals:
    """What the signals asked for.

    Attributes:
      asked: one came.
      patient: the next one only sets `asked`. Otherwise it raises `Stopped`, as soon as the present call into compiled
        code returns.
    """

    def __init__(self) -> None:
        self.asked = self.patient = False

    @contextmanager
    def patience(self, patient: bool = True) -> Iterator[None]:
        """Within, `patient` is set so; a signal that came before counts."""
        before, self.patient = self.patient, patient
        try:
            if self.asked and not patient:
                raise Stopped
            yield
        finally:
            self.patient = before

    def _receive(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        line = b"stopping after this chunk of steps (again: at once)\n" if self.patient else b"stopping\n"
        with suppress(OSError, AttributeError):  # the terminal may be closed; print must not be entered twice
            os.write(sys.stderr.fileno(), line)
        if not self.patient:
            raise Stopped


@contextmanager
def received() -> Iterator[Signals]:
    """Within, signals stop in good order; a second SIGINT stops at once. One that is ignored, as by nohup, stays so."""
    signals = Signals()
    numbers = [n for n in STOPS if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)]
    earlier = {number: signal.signal(number, signals._receive) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
