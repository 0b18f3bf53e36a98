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
        except Stopped:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise
        finally:
            self.patient = before

    def _receive(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        line = b"stopping after this chunk of steps (again: at once)\n" if self.patient else b"stopping\n"
        with suppress(OSError, AttributeError):  # the terminal may be closed; print must not be entered twice
            os.write(sys.stderr.fileno(), line)
        self._stop(number, frame)

    def _stop(self, number: int, frame: Any) -> None:
        """Raises `Stopped`, and again after half a second: Python drops what is raised in callbacks of its own."""
        if not self.patient:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            raise Stopped


@contextmanager
def received() -> Iterator[Signals]:
    """Within, signals stop in good order; a second SIGINT stops at once. One that is ignored, as by nohup, stays so."""
    signals, hook = Signals(), sys.unraisablehook
    handlers = dict.fromkeys(STOPS, signals._receive) | {signal.SIGALRM: signals._stop}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    sys.unraisablehook = lambda dropped: None if dropped.exc_type is Stopped else hook(dropped)
    try:
        yield signals
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in earlier.items():
            signal.signal(number, handler)
