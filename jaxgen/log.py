"""What a run says while it runs: a progress bar or plain lines, metrics.jsonl, TensorBoard events."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import jax
import msgspec
import numpy as np

from jaxgen.errors import UserError
from jaxgen.files import parse_json, read_file, write_atomically
from jaxgen.terminal import plain, say
from jaxgen.train import Progress

T = TypeVar("T")
MOST_BYTES = 512 << 20  # of metrics.jsonl


class Log:
    """Averages metrics over the steps between two lines and writes them wherever they are read.

    Args:
      directory: of the run; None writes and says nothing, as on all processes but one.
      start, stop: steps; lines of an earlier attempt after `start` are dropped, since those steps run again.
      batch_size: examples in one step.
      every: steps between two lines.
      unit: what one example is, for the rate.
      quiet: say nothing, only write.
      protocol: stands in the name of every metric in the file, since no two protocols may be compared.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        start: int,
        stop: int,
        batch_size: int,
        every: int,
        unit: str = "images",
        protocol: str = "",
        quiet: bool = False,
    ):
        self._stop, self._batch_size, self._every, self._unit = stop, batch_size, every, unit
        self._suffix = f" ({protocol})" if protocol else ""
        self._since: list[Progress] = []
        self._quiet, self._bar, self._events = quiet or directory is None, None, None
        if directory is None:
            self._file = open(os.devnull, "wb", buffering=0)  # noqa: SIM115
        else:
            path = directory / "metrics.jsonl"
            kept = [row for row in read(directory) if row["step"] <= start]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
            self._file = path.open("ab", buffering=0)  # a line that the disk has no room for is not tried again
            self._events = _tensorboard(directory, start)
        if sys.stderr.isatty() and not self._quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1)

    def progress(self, progress: Progress) -> None:
        """Hears of every chunk; writes a line where one is due."""
        if self._bar is not None and not sys.stderr.isatty():  # the terminal was closed: lines in the log instead
            self._bar.close()
            self._bar = None
        if self._bar is not None:
            losses = ", ".join(f"{n} loss {r.loss[r.due][-1]:.4g}" for n, r in progress.reports.items() if r.due.any())
            rate = _rate([progress], self._batch_size)
            self._bar.set_postfix_str(f"{losses}, {rate:,.0f} {self._unit}/s", refresh=False)
            self._bar.update(progress.stop - progress.start)
        for piece in _pieces(progress, self._every):
            self._since.append(piece)
            if piece.stop % self._every == 0 or piece.stop == self._stop:
                self._line(piece.stop)

    def _line(self, step: int) -> None:
        """Means since the line before, to the file and to whoever watches."""
        since, self._since = self._since, []
        means, skipped = _means(since)
        rate = _rate(since, self._batch_size)
        self.metrics(step, "train", means | skipped)
        self.write(step, {f"train/{self._unit} per second": rate})
        if self._bar is None:
            left = int((self._stop - step) * self._batch_size / rate)
            shown = means | {name: value for name, value in skipped.items() if value}
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            self.say(
                f"step {step}/{self._stop}  {numbers}  {rate:,.0f} {self._unit}/s  {left // 60}:{left % 60:02d} left"
            )

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to TensorBoard."""
        values = {f"{split}/{name}{self._suffix}": value for name, value in values.items() if math.isfinite(value)}
        self.write(step, values)
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        line = (json.dumps({"step": step} | values, allow_nan=False) + "\n").encode()
        try:
            if self._file.write(line) < len(line):  # the rest has no room
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._file.name)) from None

    def warn(self, step: int, warning: str) -> None:
        """What is wrong, in words, to the file and to whoever watches."""
        self.write(step, {"warning": warning})
        self.say(f"step {step}  warning: {warning}")

    def say(self, line: str) -> None:
        """One line for whoever watches, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(plain(line), file=sys.stderr)
        elif not self._quiet:
            say(line)

    def close(self) -> None:
        self._file.close()
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()


class _Outlasting:
    """An output stream that goes on in a file where its reader has gone."""

    def __init__(self, stream: TextIO, path: Path):
        self._stream, self._path = stream, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._outlast(partial(self._stream.write, text))

    def flush(self) -> None:
        self._outlast(self._stream.flush)

    def _outlast(self, call: Callable[[], T]) -> T:
        for path in (self._path, Path(os.devnull)):  # the second where the disk is full
            try:
                return call()
            except OSError as error:
                line = f"{self._stream.name} cannot be written ({error.strerror}): its lines go on here\n"
            with suppress(OSError):
                file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                os.dup2(file, self._stream.fileno())
                os.close(file)
                os.write(self._stream.fileno(), line.encode())
        return call()


@contextmanager
def outlasting(path: Path) -> Iterator[None]:
    """Within, what stdout and stderr are given goes to a file once nobody reads them: a closed terminal or pipe."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Outlasting(stream, path) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class _Row(msgspec.Struct):
    """What lines have in common, and results."""

    step: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    figures: dict[str, tuple[float, float]] = {}
    audit: "_Audit | None" = None
    warning: str | None = None


class _Audit(msgspec.Struct):
    figures: list[str] = []
    verdict: str = ""


@contextmanager
def bar(what: str) -> Iterator[Callable[[float], None]]:
    """A bar for work that is not training; yields a function that hears the share done, 0 to 1."""
    from tqdm import tqdm

    with tqdm(total=100, desc=what, unit="%", leave=False, disable=not sys.stderr.isatty()) as shown:
        yield lambda share: shown.update(round(100 * share) - shown.n)


def read(directory: Path, *, whole: bool = False) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, up to one that a kill or a full disk cut short.

    Args:
      directory: of the run.
      whole: only the last line may be cut short.

    Raises:
      UserError: the file is too large, or a line is not what a run writes.
    """
    path = directory / "metrics.jsonl"
    content = read_file(path, MOST_BYTES) if path.exists() else b""
    rows, lines = [], content.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            parse_json(line, _Row)
            rows.append(parse_json(line))
        except ValueError as error:
            cut = number == len(lines) and not content.endswith(b"\n")
            if isinstance(error, msgspec.ValidationError) or (whole and not cut):
                message = f"{path} is not what a run wrote (line {number}: {error}): run its experiment again"
                raise UserError(message) from None
            break
    return rows


def _means(since: list[Progress]) -> tuple[dict[str, float], dict[str, float]]:
    """Means of all metrics, each over the steps at which its objective was due; shares of these that were skipped."""
    means, skipped = {}, {}
    for name in since[0].reports:
        report = jax.tree.map(lambda *x: np.concatenate(x), *(p.reports[name] for p in since))
        if not report.due.any():
            continue
        values = report.metrics
        if report.skipped is not None:
            values = values | {f"{name} gradient norm": report.gradient_norm}
            skipped[f"{name} skipped"] = float(report.skipped[report.due].mean())
        means |= {key: float(value[report.due].mean(dtype=np.float64)) for key, value in values.items()}
    return means, skipped


def _pieces(progress: Progress, every: int) -> Iterator[Progress]:
    """Cuts what happened in a chunk at the multiples of `every`."""
    start, _, reports, seconds = progress
    first, total = start, progress.stop - start
    while start < progress.stop:
        stop = min(progress.stop, (start // every + 1) * every)
        part = jax.tree.map(lambda values, a=start - first, b=stop - first: values[a:b], reports)
        yield Progress(start, stop, part, seconds * (stop - start) / total)
        start = stop


def _rate(chunks: list[Progress], batch_size: int) -> float:
    """Examples per second."""
    steps, seconds = chunks[-1].stop - chunks[0].start, sum(p.seconds for p in chunks)
    return steps * batch_size / max(seconds, 1e-9)


def _tensorboard(directory: Path, start: int):
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        return None  # the extra is not installed
    return SummaryWriter(str(directory / "events"), purge_step=start + 1)
