"""Signals ask a run to stop in good order."""

import os
import signal
import sys

import pytest

from jaxgen import log
from jaxgen.signals import STOPS, Stopped, received


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_asks_or_acts_at_once(number):
    before = [signal.getsignal(n) for n in STOPS]
    with received() as signals:
        with signals.patience():
            signal.raise_signal(number)
            assert signals.asked
            with pytest.raises(Stopped), signals.patience(False):  # one that came before counts
                pass
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(n) for n in STOPS] == before


def test_what_python_drops_is_raised_again():
    """In a destructor, say; the timer is that of the system."""

    class Owner:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def lose():
        Owner()
        signal.pause()  # until the second time

    hook = sys.unraisablehook
    with received() as signals:
        with pytest.raises(Stopped), signals.patience(False):
            lose()
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert sys.unraisablehook is hook


def test_a_second_ctrl_c_stops_at_once():
    with received() as signals, signals.patience():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with received() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("writable", [True, False])
def test_what_nobody_reads_goes_to_a_file(tmp_path, monkeypatch, writable):
    read, write = os.pipe()
    path = tmp_path / "log.txt"
    if not writable:  # a link out of the folder is not followed
        path.symlink_to(tmp_path / "elsewhere")
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with log.outlasting(path):
            print("read", flush=True)
            os.close(read)
            print("not read", flush=True)
            print("long " * 10_000)
            print("last", flush=True)
        assert sys.stdout is pipe
        print("after")
    if writable:
        first, *lines, after = path.read_text().splitlines()
        assert first.endswith("cannot be written (Broken pipe): its lines go on here")
        assert lines == ["not read", "long " * 10_000, "last"]
        assert after == "after"
    assert not (tmp_path / "elsewhere").exists()
