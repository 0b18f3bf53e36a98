"""A run folder from its first step to its report.

An experiment is a module of `experiments/` with a dataclass `Config`, `load(config) -> Dataset` and
`build(config, spec) -> Experiment`. `build` sees only the shapes of the data, so that a run folder can be sampled where
no data are.
"""

import difflib
import errno
import json
import math
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgen import cli, folder, log, parallel, privacy, processes, report, signals, terminal
from jaxgen.card import card
from jaxgen.checkpoint import Checkpoints, restore
from jaxgen.config import Config, check
from jaxgen.data.reading import utf8
from jaxgen.data.source import Arrays, Dataset, Spec, batch_indices, gather, protocol
from jaxgen.errors import UserError
from jaxgen.evaluate import Estimate
from jaxgen.experiment import (
    Experiment,
    Figures,
    abstract_state,
    audit,
    built,
    evaluation_params,
    guarantee,
    initializer,
    measure,
    members,
    validate,
)
from jaxgen.files import read_json, write_atomically
from jaxgen.guard import Guard, is_finite
from jaxgen.keys import key_for
from jaxgen.step import Update, make_step, over_seeds
from jaxgen.terminal import say
from jaxgen.train import Hook, Progress, train
from jaxgen.types import Batch, Params, TrainState

REPLAY = "replay.json"
BRIEF = {"optimizer": ("learning_rate",), "evaluate": (), "sample": (), "run": ("overwrite",)}  # of the short help
LARGEST = "the largest array of the state is"


def main(
    file: str,
    default: Config,
    load: Callable[[Any], Dataset],
    build: Callable[[Any, Spec], Experiment],
    named: Mapping[str, Config] | None = None,
) -> None:
    """The command line of an experiment: flags to a configuration, and a run of it.

    Args:
      file: the experiment's, `__file__`.
      default: its configuration when no flag is given.
      load: the data of a configuration.
      build: the model of a configuration, and what to do with it.
      named: other configurations, picked by an optional first word.
    """
    name = Path(file).stem
    with errors_in_one_line():
        arguments = [utf8(word) for word in sys.argv[1:]]  # a run's record is in UTF-8
        config = parse(name, sys.modules[build.__module__].__doc__ or "", default, named or {}, arguments)
        flags = config.run
        processes.start(flags.coordinator, flags.num_processes, flags.process_id, flags.start_timeout)
        run(config, load, build, name, shlex.join(["python", *map(utf8, sys.orig_argv[1:])]))


def parse(name: str, doc: str, default: Config, named: Mapping[str, Config], args: list[str]) -> Config:
    """Flags to a configuration, whose folder is named after what they change unless --workdir names one."""
    program = f"python -m experiments.{name}"
    if args and not args[0].startswith("-"):
        if args[0] not in named:
            close = difflib.get_close_matches(args[0], named, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"no configuration named {args[0]!r}: {name} has {', '.join(named) or 'none'}{hint}")
        default, program, args = named[args[0]], f"{program} {args[0]}", args[1:]
    doc = f"{doc.rstrip()}\n\n--help-all also lists the flags of the optimizer, the run, evaluation and sampling."
    config = cli.parse(type(default), args, program=program, default=default, description=doc, brief=BRIEF)
    named_by_user = any(word.partition("=")[0] == "--workdir" for word in args)
    return config if named_by_user else replace(config, workdir=folder.default_workdir(default, config))


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the program with one line on stderr where the user can mend what is wrong, and with no traceback."""
    with terminal.outputs(), _errors():
        yield


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except (UserError, OSError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        advice = "; make room, then the same command goes on" if full else ""
        _end(f"error: {error}{advice}", 1, shared=getattr(error, "shared", False))
    except signals.Stopped:
        _end("stopped; what was saved is whole, and the same command goes on", 0)
    except KeyboardInterrupt:
        _end("stopped at once; what was saved before is whole", 130)
    except Exception as error:
        line = _memory(error)
        if not (line or processes.several()):
            raise
        if processes.is_loss(error):
            processes.announce_loss()
        elif not line:
            traceback.print_exc()
        _end(line, 1)


def _memory(error: Exception) -> str:
    """The line for an error of numpy or XLA that could not allocate; empty for any other."""
    text = (str(error).splitlines() or [""])[0]
    if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text):
        return ""
    text = re.sub(r"\b\d{7,}(?= bytes)", lambda size: f"{int(size[0]):,}", text.removeprefix("RESOURCE_EXHAUSTED: "))
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(LARGEST)]  # JAX has others
    what = "; ".join(filter(None, [text.rstrip("."), *notes])) or "of Python itself"
    return (
        f"error: not enough memory ({what}): train with a smaller --batch-size, with --run.accumulate or --run.remat, "
        "or draw fewer samples by --num"
    )


@contextmanager
def _largest_named(state: TrainState) -> Iterator[None]:
    """Within, an error of numpy or XLA, which may be want of memory, gets a note of the largest array of the state."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        path, array = max(jax.tree.leaves_with_path(state), key=lambda leaf: math.prod(leaf[1].shape))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        error.add_note(f"{LARGEST} {name}, {array.dtype}{list(array.shape)}")
        raise


def _end(line: str, status: int, *, shared: bool = False) -> NoReturn:
    """Exits; where the others know nothing of it, without the farewell for which JAX would wait."""
    several = processes.several()
    with suppress(OSError):  # nobody may be there to read it
        if line and not (several and shared and not processes.is_main()):
            say(line, file=sys.stderr)
        if several and not shared:
            sys.stdout.flush()
    if several and not shared:
        os._exit(status)
    sys.exit(status)


def cache_compilations() -> None:
    """Keeps compiled programs in the user's cache folder, so that the second start need not compile again."""
    import platformdirs

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("jaxgen"))
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # it compiles again
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # small ones too
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def run(config: Config, load: Callable, build: Callable, name: str, command: str) -> None:
    """Trains, evaluates and reports; goes on where an earlier run of the same configuration stopped.

    Every process of a run comes through here and computes the same; what is written, process 0 writes.
    """
    with signals.received() as received:
        _run(config, load, build, name, command, received)


def _run(config: Config, load: Callable, build: Callable, name: str, command: str, received: signals.Signals) -> None:
    processes.main_first(lambda: check(config))
    main = processes.is_main()
    processes.from_main(lambda: folder.check_writable(config.workdir))
    cache_compilations()
    mesh = parallel.make_mesh()
    parallel.check_batch_size(config.batch_size, config.run.accumulate, mesh)
    if config.run.parallel == "pmap" and jax.process_count() > 1:
        raise UserError("--run.parallel pmap is for one process: use jit or shard_map", shared=True)
    data = processes.main_first(lambda: load(config))
    if not config.run.overwrite:
        data = replace(data, name=processes.from_main(lambda: folder.known_as(config.workdir, data.spec)))
    for notice in (data.notice, config.optimizer.noise_multiplier and privacy.NOTICE):
        if notice and main:
            say(f"notice: {notice}", file=sys.stderr)
    if config.optimizer.private and config.batch_size > len(data):
        raise UserError(
            f"--batch-size {config.batch_size}: private training wants at most one example of each, and {data.name} "
            f"has {len(data):,}",
            shared=True,
        )
    experiment = processes.main_first(lambda: built(build, config, data.spec))
    record = folder.record_of(name, command, config, data)
    folder.check_alike(processes.exchange(folder.shared(record)))
    with ExitStack() as stack:

        def claim() -> dict[str, list] | None:
            nonlocal record
            stack.enter_context(folder.locked(config.workdir))
            record = folder.claim(config.workdir, record, overwrite=config.run.overwrite)
            folder.link_latest(config.workdir)
            return _figures(config.workdir, record)

        finished = processes.from_main(claim)
        folder.check_seen(config.workdir)
        kept = folder.keeper(config.workdir) if main else lambda: None
        stack.enter_context(log.outlasting(config.workdir / folder.LOG))
        if finished:
            figures = {name: Estimate(*value) for name, value in finished.items()}
            if main:
                say(f"{config.workdir} is finished: nothing left to do")
                record = folder.read_record(config.workdir)  # of the machine that measured, not of this one
        else:
            figures = _train_and_measure(config, experiment, data, mesh, record, received, kept)
        if figures and main:
            kept()
            (config.workdir / REPLAY).unlink(missing_ok=True)
            _write_report(experiment, config.workdir, record, figures)
            _summary(experiment, config, record, figures)
        processes.exchange(None)  # nobody leaves before the report is written


def _train_and_measure(
    config: Config,
    experiment: Experiment,
    data: Dataset,
    mesh: Mesh,
    record: folder.Record,
    received: signals.Signals,
    kept: Callable[[], None],
) -> Figures | None:
    """The run's figures; None where a signal stopped it."""
    directory, main = config.workdir, processes.is_main()
    template = abstract_state(config, experiment.model, data.spec, mesh)
    with _largest_named(template):
        state = initial_state(config, experiment, data, template)
    start = int(state.step)
    if start and main:
        before, now = ([None, *record.history])[-2:]
        other = f": --steps was {before.steps}, schedules are now those of {now.steps} steps" if before else ""
        say(f"going on from step {start} in {directory}{other}")
    checkpoints = Checkpoints(
        directory / "checkpoints", start=start, keep=config.run.keep, asynchronous=not config.run.synchronous
    )
    with _largest_named(template), closing(checkpoints):
        writer = log.Log(
            directory if main else None,
            start=start,
            stop=config.steps,
            batch_size=config.batch_size,
            every=config.run.log_every,
            unit=experiment.unit,
            protocol=experiment.protocol,
        )
        with closing(writer):
            with received.patience():
                state, stopped = _train(
                    config, experiment, data, mesh, template, state, checkpoints, writer, received, kept
                )
            if not stopped and not any(processes.exchange(received.asked)):
                try:
                    with received.patience(processes.several()):  # several stop together, between two parts
                        return _measure(config, experiment, data, state, record, writer, received, kept)
                except signals.Stopped:
                    pass
    again = " without --run.overwrite" if config.run.overwrite else ""
    step = int(state.step)
    at = f"at step {step} of {config.steps}{'' if step < config.steps else ', before its figures were measured'}"
    if main:
        say(f"stopped and saved {at}: the same command goes on{again}")
    return None


def _measure(
    config: Config,
    experiment: Experiment,
    data: Dataset,
    state: TrainState,
    record: folder.Record,
    writer: log.Log,
    received: signals.Signals,
    kept: Callable[[], None],
) -> Figures:
    """Measures the figures of the last state and logs them."""

    def between() -> None:
        if any(processes.exchange(received.asked)):
            raise signals.Stopped

    step, params = int(state.step), evaluation_params(state)
    found = audit(config, experiment, params, data)
    figures = measure(config, experiment, params, data, between) | found.figures
    figures |= guarantee(config, experiment.model, len(data), step)
    for warning in found.warnings:
        writer.warn(step, warning)
    processes.from_main(kept)
    _exhibit(config.workdir, step, found.exhibits)
    asked = {"audit": {"figures": list(found.figures), "verdict": found.verdict}} if experiment.audit else {}
    writer.write(step, {"figures": figures, "measured": record.config["evaluate"]} | asked)
    return figures


def initial_state(
    config: Config, experiment: Experiment, data: Dataset, template: TrainState, *, most: int | None = None
) -> TrainState:
    """That of the newest intact checkpoint, of those up to step `most`, or a fresh one.

    A fresh one starts at means of some examples. A private one starts without any example, with a fresh noise key.

    Raises:
      UserError: private training goes on from `most`, and no checkpoint up to that step holds its noise key.
    """
    restored = restore(config.workdir / "checkpoints", template, most=most)
    if restored is not None:
        return restored
    some = {name: x[0] for name, x in chunk(config, data, 0, 1, batch_size=min(len(data), 1_000)).items()}
    init = parallel.compile_init(initializer(config, experiment.model), template.replace(noise=None))
    if not config.optimizer.private:
        return init(some)
    if most is not None:
        raise UserError(
            f"{config.workdir} has no checkpoint up to step {most}, and with it the noise of the run is lost"
        )
    state = init({name: np.zeros_like(x) for name, x in some.items()})
    words = np.array(processes.from_main(lambda: privacy.entropy(template.noise)), np.uint32)
    # An argument, never a constant: compiled programs are kept in the user's cache folder.
    wrap = jax.jit(jax.random.wrap_key_data, out_shardings=template.noise.sharding)
    return state.replace(noise=wrap(words))


def chunk(
    config: Config,
    data: Dataset,
    start: int,
    stop: int,
    rows: np.ndarray | slice = slice(None),
    *,
    batch_size: int | None = None,
) -> Arrays:
    """The batches [K, B, ...] of those steps, or [K, S, B, ...] of several seeds; `rows` is a part of each batch."""
    seeds = range(config.seed, config.seed + config.seeds)
    size = batch_size or config.batch_size
    order = partial(batch_indices, len(data), size, start=start, stop=stop, whole=config.optimizer.private)
    each = [order(seed=seed)[:, rows] for seed in seeds]
    return gather(data.train, np.stack(each, axis=1) if config.seeds > 1 else each[0])


def _train(
    config: Config,
    experiment: Experiment,
    data: Dataset,
    mesh: Mesh,
    template: TrainState,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: log.Log,
    received: signals.Signals,
    kept: Callable[[], None],
) -> tuple[TrainState, bool]:
    """Trains, and saves the state it ends in; True where a signal ended it.

    A signal ends an evaluation too, which is then made up for by the run that goes on.
    """
    model, stacked = experiment.model, config.seeds > 1
    split, watched = data.watched
    rows = parallel.local_rows(config.batch_size, mesh)

    def batches(start: int, stop: int) -> Batch:
        return parallel.put_chunk(chunk(config, data, start, stop, rows), mesh, stacked=stacked)

    losses: dict[int, float] = {}
    guard = Guard(config.run.max_bad_steps)

    def on_checkpoint(step: int, state: TrainState) -> None:
        processes.from_main(kept)
        if is_finite(state.params):
            checkpoints.save(step, state, losses.get(step))

    def on_evaluate(step: int, state: TrainState) -> None:
        try:
            with received.patience(processes.several()):  # several cannot leave it one by one
                evaluate(step, evaluation_params(state))
        except signals.Stopped:
            pass

    def evaluate(step: int, params: Params) -> None:
        values = validate(config, experiment, params, watched, key_for("validation"))
        exhibits = experiment.exhibits(members(config, params)[0], watched, key_for("exhibits"))
        processes.from_main(kept)
        _exhibit(config.workdir, step, exhibits)
        found = values.get(experiment.criterion)
        if data.validation is not None and found is not None and math.isfinite(found.mean):
            losses[step] = found.mean
        writer.metrics(step, split, {name: value.mean for name, value in values.items()})
        writer.say(f"step {step}  {split}  " + "  ".join(f"{name} {value.mean:.4g}" for name, value in values.items()))
        for warning in experiment.warn(values):
            writer.warn(step, warning)

    def owed(step: int) -> bool:
        """Whether an evaluation was due at the step that a run goes on from, and has not been logged."""
        rows = [row for row in log.read(config.workdir) if row["step"] == step]
        due = step > 0 and (step % config.run.evaluate_every == 0 or step == config.steps)
        return due and not any(name.startswith(f"{split}/") for row in rows for name in row)

    def on_progress(progress: Progress) -> None:
        writer.progress(progress)
        guard.progress(progress)

    if config.optimizer.private and not int(state.step):  # the noise must outlive a kill before the first checkpoint
        checkpoints.save(0, state)
    if processes.from_main(lambda: owed(int(state.step))):
        on_evaluate(int(state.step), state)
        on_checkpoint(int(state.step), state)  # which is saved, and lacks the loss
    signalled = processes.any_process(lambda: received.asked, mesh)
    state = train(
        state,
        parallel.compile_steps(
            partial(
                make_step,
                model,
                ema_decay=config.optimizer.ema_decay,
                accumulate=config.run.accumulate,
                guard=config.run.guard,
            ),
            template,
            mesh,
            config.run.parallel,
            stacked=stacked,
        ),
        batches,
        stop=config.steps,
        chunk=config.run.chunk,
        hooks=[
            Hook(config.run.evaluate_every, on_evaluate),
            Hook(config.run.checkpoint_every, on_checkpoint),
        ],
        on_progress=on_progress,
        should_stop=lambda: signalled() or guard.full,
    )
    step = int(state.step)
    on_checkpoint(step, state)
    checkpoints.wait()
    if guard.full or not is_finite(state.params):
        _stop_for_bad_numbers(config, guard)
    return state, step < config.steps


def _exhibit(directory: Path, step: int, exhibits: Mapping[str, report.Exhibit]) -> None:
    """Files for the report."""
    for caption, exhibit in exhibits.items():
        suffix, content = report.encode(exhibit)
        if processes.is_main():
            write_atomically(directory / "samples" / f"{caption.replace(' ', '_')}_{step:07d}{suffix}", content)


def _stop_for_bad_numbers(config: Config, guard: Guard) -> NoReturn:
    advice = "Try a lower --optimizer.learning-rate or --optimizer.clip-norm 1, with --run.overwrite"
    where = (
        f"{guard.count} steps in a row were not finite: {guard.what}" if guard.count else "parameters are not finite"
    )
    if not (config.run.guard and guard.count):
        advice = f"{advice}; --run.guard leaves such steps out and can tell where they come from"
        raise UserError(f"{where}. {advice}", shared=True)
    if processes.is_main():
        write_atomically(config.workdir / REPLAY, json.dumps({"step": guard.first}).encode())
    command = f"python -m jaxgen replay {shlex.quote(str(config.workdir))}"
    message = f"{where}. They were left out; to see the operation that went wrong: {command}. {advice}"
    raise UserError(message, shared=True)


def replay(config: Config, experiment: Experiment, data: Dataset) -> str:
    """Runs the first step that was left out again, and says which operation was the first to go wrong in it.

    Raises:
      UserError: no step was.
    """
    from jax.experimental import checkify

    path = config.workdir / REPLAY
    try:
        step = read_json(path, dict[str, int])["step"]
        if not 0 <= step < config.steps:
            raise ValueError(step)
    except FileNotFoundError:
        raise UserError(f"{config.workdir} has nothing to replay: no run with --run.guard was stopped there") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not what a run wrote: let the run stop again") from None
    template = abstract_state(config, experiment.model, data.spec, parallel.make_mesh())
    state = initial_state(config, experiment, data, template, most=step)

    def update(**options: Any) -> Update:
        one = partial(make_step, experiment.model, ema_decay=config.optimizer.ema_decay, **options)
        if config.run.parallel != "jit":
            return parallel.over_parts(one(axis_name="data"), parallel.make_mesh())
        return over_seeds(one()) if config.seeds > 1 else one()

    def batch(step: int) -> Batch:
        return {name: x[0] for name, x in chunk(config, data, step, step + 1).items()}

    again = jax.jit(update(accumulate=config.run.accumulate, guard=True))
    for earlier in range(int(state.step), step):  # the steps between the checkpoint and the one that went wrong
        state, _ = again(state, batch(earlier))
    checked = checkify.checkify(update(accumulate=config.run.accumulate), errors=checkify.float_checks)
    error, _ = jax.jit(checked)(state, batch(step))
    return f"step {step}: {error.get() or _overflow(update(), state, batch(step))}"


def _overflow(step: Callable, state: TrainState, batch: Batch) -> str:
    """Checkify watches for NaN only: where there was none, a number became too large."""
    try:
        with jax.debug_infs(True):
            jax.block_until_ready(jax.jit(step)(state, batch))
    except FloatingPointError as error:
        return str(error).splitlines()[0]
    return "nothing went wrong this time; the run may have been on another platform"


def _figures(directory: Path, record: folder.Record) -> dict[str, list] | None:
    """(mean, error) of each figure of a finished run, if they were measured as is wished now."""
    return _measured(log.read(directory), record).get("figures")


def _measured(rows: list[dict[str, Any]], record: folder.Record) -> dict[str, Any]:
    """The newest line of figures of the last step, measured as is wished now; empty where there is none."""
    wished = record.config["steps"], record.config["evaluate"]
    return next((row for row in reversed(rows) if (row["step"], row.get("measured")) == wished), {})


def _write_report(experiment: Experiment, directory: Path, record: folder.Record, figures: Figures) -> None:
    """The page and the model card."""
    exhibits = folder.exhibits(directory)
    earlier = {
        f"{caption} at step {folder.step_of(path):,}": folder.shown(path)
        for caption, (*paths, _) in exhibits.items()
        for path in _spread(paths, 6)
    }
    rows = log.read(directory)
    title = f"{experiment.title}, {record.data.name}"
    shown = {name: str(value) for name, value in figures.items()}
    secret = privacy.NOTICE if record.config["optimizer"].get("noise_multiplier") else None
    notice = "; ".join(filter(None, (record.notice, secret))) or None
    warnings = [f"step {row['step']:,}: {row['warning']}" for row in rows if "warning" in row]
    command = "\n".join([*(part.command for part in record.history[:-1]), record.command])
    parts = [f"from step {part.start:,} with the schedules of {part.steps:,} steps" for part in record.history]
    page = report.page(
        title=title,
        command=command,
        figures=shown,
        exhibits={caption: folder.shown(paths[-1]) for caption, paths in exhibits.items()},
        earlier=earlier,
        rows=rows,
        warnings=warnings,
        facts={
            "data": f"{record.data.name}: {record.source}{protocol(record.data.held_out)}",
            "device": record.device,
            "model card": f"{folder.CARD}, beside this page",
        }
        | ({"trained": ", ".join(parts)} if len(parts) > 1 else {})
        | record.versions
        | {name: value for name, value, _ in folder.differences(record.config, {})},
        notice=notice,
    )
    write_atomically(directory / "report.html", page.encode(errors="replace"))
    audit = _measured(rows, record).get("audit", {})
    text = card(
        title=title,
        experiment=record.experiment,
        command=command,
        sampling=_next(experiment, directory),
        data=record.data.name + protocol(record.data.held_out),
        source=record.source,
        figures=shown,
        audited=audit.get("figures"),
        verdict=audit.get("verdict", ""),
        versions=record.versions,
        device=record.device,
        warnings=warnings,
        notice=notice,
        reproducible=secret is None,
    )
    write_atomically(directory / folder.CARD, text.encode())


def _spread(items: list, most: int) -> list:
    """At most so many of them, evenly spread."""
    return [items[i] for i in sorted({round(i) for i in np.linspace(0, len(items) - 1, most)})] if items else []


def _next(experiment: Experiment, directory: Path) -> list[str]:
    """What one may type when a run is finished."""
    run = shlex.quote(str(directory))
    out = "" if experiment.stream else f" --num 64 --out {experiment.out}"
    return [f"python -m jaxgen sample {run}{out}", f"python -m jaxgen evaluate {run} --help"]


def _summary(experiment: Experiment, config: Config, record: folder.Record, figures: Figures) -> None:
    width, directory = max(len(name) for name in figures), shlex.quote(str(config.workdir))
    say(f"\n{experiment.title}: {config.steps:,} steps on {record.device}, data {record.data.name}")
    for name, value in figures.items():
        say(f"  {name:<{width}}  {value}")
    say(f"\nfiles  {directory}/report.html, {folder.CARD}, samples/, metrics.jsonl, checkpoints/")
    for word, command in zip(("next", ""), _next(experiment, config.workdir), strict=True):
        say(f"{word:<4}   {command}")
