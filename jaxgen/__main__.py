"""python -m jaxgen sample | evaluate | replay | data: what one does with a run folder, and with data."""

import difflib
import sys
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxgen.errors import UserError
from jaxgen.files import write_atomically

USAGE = """usage: python -m jaxgen COMMAND ...

  sample RUN     draw samples from a trained model:   python -m jaxgen sample runs/vae_mnist --num 64 --out grid.png
                 (a folder as --out holds a file of each)
  evaluate RUN   measure it on its test data:         python -m jaxgen evaluate runs/vae_mnist --nll-samples 5000
  replay RUN     find what made a run stop for numbers that are not finite
  data prepare NAME --from DIR                        prepare a data set from its raw files, without a network
  data inception FILE.pth --out inception.npz         convert the published weights of FID's network, with PyTorch

Each has a --help of its own."""


@dataclass(frozen=True)
class Sample:
    """Draw samples."""

    num: int | None = None
    """How many (default: 64, or 1 where samples are texts)."""
    out: Path | None = None
    """The file to write (default: samples.png, or .wav; texts and tables go to the terminal), or a folder for a file of
    each."""
    seed: int = 0
    """The same seed gives the same samples."""
    member: int = 0
    """Which model, of a run that trained several --seeds."""


@dataclass(frozen=True)
class Evaluate:
    """Measure on test data."""

    data_dir: Annotated[Path | None, tyro.conf.arg(name="data.dir")] = None
    """Where the data lie, if not where they lay in training."""


@dataclass(frozen=True)
class Replay:
    """Run the step again at which a run stopped, and name the first operation whose result was not finite."""

    data_dir: Annotated[Path | None, tyro.conf.arg(name="data.dir")] = None
    """Where the data lie, if not where they lay in training."""


@dataclass(frozen=True)
class Prepare:
    """Prepare a data set from its raw files, whose checksums are verified."""

    raw_dir: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder of the raw files, as their publisher names them."""
    data_dir: Annotated[Path | None, tyro.conf.arg(name="dir")] = None
    """Where prepared data sets lie (default: the folder that tensorflow-datasets itself uses)."""


@dataclass(frozen=True)
class Inception:
    """Convert the published weights of FID's Inception network, a file of PyTorch's, for --inception."""

    out: Path = Path("inception.npz")
    """The file to write."""


def sample(directory: Path, args: list[str]) -> None:
    import jax

    from jaxgen import folder, report
    from jaxgen.experiment import built, draw, members, restore_params
    from jaxgen.run import cache_compilations

    record, module, config = folder.load_run(directory)
    own, controls = _parse(Sample, config.sample, f"sample {directory}", args)
    if own.num is not None and own.num < 1:
        raise UserError(f"--num {own.num}: expected at least 1")
    if own.seed < 0:
        raise UserError(f"--seed {own.seed}: expected at least 0")
    if not 0 <= own.member < config.seeds:
        raise UserError(
            f"--member {own.member}: expected 0 to {config.seeds - 1}, since the run has --seeds {config.seeds}"
        )
    cache_compilations()
    experiment = built(module.build, replace(config, sample=controls), record.data)
    step, params = restore_params(config, experiment.model, record.data)
    params, key = members(config, params)[own.member], jax.random.key(own.seed)
    if experiment.stream and own.out is None and own.num in (None, 1):
        for piece in experiment.stream(params, key):
            print(piece, end="", flush=True)
        print()
        return
    num = own.num or (1 if experiment.stream else 64)
    samples = draw(experiment, params, key, num)
    if own.out is not None and not own.out.suffix:
        names, shown = [f"{i:0{len(str(num))}d}" for i in range(1, num + 1)], [own.out]
        each = ((name, report.files(experiment.render(samples[i : i + 1]))) for i, name in enumerate(names))
        files = {own.out / f"{name}{suffix}": content for name, found in each for suffix, content in found.items()}
    else:
        found = report.files(experiment.render(samples))
        first = next(iter(found))
        if first in (".txt", ".csv") and own.out is None:
            print(found[first].decode())
            return
        out = own.out or Path(f"samples{first}")
        asked = out.suffix if out.suffix in found else first
        files = {out if suffix == asked else out.with_suffix(suffix): content for suffix, content in found.items()}
        shown = list(files)
    for path, content in files.items():
        try:
            write_atomically(path, content)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): give another --out") from None
    print(f"{num} sample{'s' if num > 1 else ''} of {directory} at step {step}: {', '.join(map(str, shown))}")


def evaluate(directory: Path, args: list[str]) -> None:
    from jaxgen import folder
    from jaxgen.experiment import audit, built, measure, restore_params

    record, module, config = folder.load_run(directory)
    own, options = _parse(Evaluate, config.evaluate, f"evaluate {directory}", args)
    config, data = _trained_on(record, module, replace(config, evaluate=options), own.data_dir)
    experiment = built(module.build, config, record.data)
    step, params = restore_params(config, experiment.model, record.data)
    found = audit(config, experiment, params, data)
    figures = measure(config, experiment, params, data.test) | found.figures
    print(f"{directory} at step {step}, {record.data.name} test")
    for name, value in figures.items():
        print(f"  {name}  {value}")
    for exhibit in found.exhibits.values():
        if isinstance(exhibit, str):
            print(f"\n{exhibit}", end="")


def replay(directory: Path, args: list[str]) -> None:
    from jaxgen import folder
    from jaxgen.experiment import built
    from jaxgen.run import replay as rerun

    record, module, config = folder.load_run(directory)
    own = tyro.cli(Replay, prog=f"python -m jaxgen replay {directory}", args=args)
    config, data = _trained_on(record, module, config, own.data_dir)
    print(rerun(config, built(module.build, config, record.data), data))


def _trained_on(record: Any, module: Any, config: Any, data_dir: Path | None) -> tuple[Any, Any]:
    """The configuration and the data that a run was trained on, and nothing else."""
    from jaxgen.run import cache_compilations

    cache_compilations()
    where = config.data.dir if data_dir is None else data_dir
    config = replace(config, data=replace(config.data, name=record.data.name, dir=where, strict=True))
    data = module.load(config)
    if data.spec.digest != record.data.digest:
        raise UserError(f"{data.name} in {where} is not what {config.workdir} was trained on (its digest differs)")
    return config, data


def prepare(name: str, args: list[str]) -> None:
    from jaxgen.data.prepare import prepare

    own = tyro.cli(Prepare, prog=f"python -m jaxgen data prepare {name}", args=args)
    print(f"{name} is prepared in {prepare(name, raw_dir=own.raw_dir, data_dir=own.data_dir)}")


def inception(name: str, args: list[str]) -> None:
    from jaxgen.metrics.inception import convert_file

    own = tyro.cli(Inception, prog=f"python -m jaxgen data inception {name}", args=args)
    convert_file(Path(name), own.out)
    print(f"{own.out}: for python -m jaxgen evaluate RUN --inception {own.out}")


def _parse(own: type, options: Any, program: str, args: list[str]) -> tuple[Any, Any]:
    """Flags of the command and those of the family, side by side."""
    flat = tyro.conf.OmitArgPrefixes
    both = make_dataclass("Flags", [("own", flat[own], own()), ("options", flat[type(options)], options)], frozen=True)
    flags = tyro.cli(both, prog=f"python -m jaxgen {program}", description=own.__doc__, args=args)
    return flags.own, flags.options


def main(args: list[str]) -> None:
    if args[:2] in (["data", "prepare"], ["data", "inception"]):
        args = args[1:]
    on_data = {"prepare": (prepare, "a data set's name"), "inception": (inception, "a file")}
    commands = {"sample": sample, "evaluate": evaluate, "replay": replay}
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return
    if args[0] == "data":
        raise UserError(f"data wants to know what to do: prepare or inception\n{USAGE}")
    if args[0] not in commands | on_data:
        close = difflib.get_close_matches(args[0], [*commands, "data"], n=1)
        raise UserError(f"no command {args[0]!r}{f'; did you mean {close[0]}?' if close else ''}\n{USAGE}")
    task, what = on_data.get(args[0]) or (commands[args[0]], "a run folder")
    if len(args) < 2 or args[1].startswith("-"):
        raise UserError(f"{args[0]} needs {what} as its first word\n{USAGE}")
    task(args[1] if args[0] in on_data else Path(args[1]), args[2:])


if __name__ == "__main__":
    from jaxgen.run import errors_in_one_line

    with errors_in_one_line():
        main(sys.argv[1:])
