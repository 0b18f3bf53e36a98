"""Published numbers, and ours beside them: python -m experiments.results --list

`python -m experiments.results made --budget cpu` runs a row and prints the result; with `--write` it also appends the
result to results.jsonl beside this file and writes the README's table anew. The same command resumes a stopped run.
"""

import difflib
import importlib
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxgen import cli
from jaxgen.errors import UserError
from jaxgen.ranges import Seed

RESULTS = Path(__file__).with_name("results.jsonl")
README = Path(__file__).parents[1] / "README.md"
MARK = "†"
FOOTNOTE = f"""
{MARK} The schedule was chosen on the test split, which makes the figure optimistic; to be rerun with a schedule chosen
on validation data. Figures of the other rows are measured on samples alone.
"""
BEGIN, END = "<!-- results: python -m experiments.results --write -->\n", "<!-- end of results -->\n"


class Row(NamedTuple):
    """A number that was published.

    Attributes:
      command: what follows `python -m experiments.`
      protocol: what is measured, on what.
      published: the number, and whose.
      figures: how the names of the run's figures begin that stand beside it.
      smoke: flags for a few steps on data that come with the installation.
      cpu: flags for two CPU cores; None where they are too few.
      full: flags for the whole schedule.
      halved: whether the published schedule is twice as long as the whole one.
      on_test: whether the schedule was chosen by figures on the test split; False once it is chosen on validation data
        and the row is run again.
    """

    command: str
    protocol: str
    published: str
    figures: tuple[str, ...]
    smoke: str
    cpu: str | None = ""
    full: str = ""
    halved: bool = False
    on_test: bool = True


_DIGITS = "--data.name mnist_5k --data.image-size 8 --batch-size 16 --steps 20 --evaluate.copies None"
_VAE = f"{_DIGITS} --evaluate.nll-samples 2"
_TOY = "--seeds 2 --steps 20 --evaluate.num-samples 200 --data.count 1000"
_SMALL = "--model.layers 1 --model.heads 2 --model.width 16"
_TEXT = f"--data.name {shlex.quote(f'text:{__file__}')} --steps 4 --model.context 16 {_SMALL}"
_FEW = "--evaluate.num-samples 1000 --evaluate.num-conditions 8"
# SELFIES, since what so few steps have learnt writes no valid SMILES.
_MOLECULES = f"--data.name nci --data.representation selfies --data.longest 20 --steps 4 --batch-size 8 {_FEW} {_SMALL}"
_NLL, _BURDA = ("test NLL",), "MNIST, dynamic binarisation, 5,000 importance samples"
_RATE = "--optimizer.learning-rate 2e-3 --optimizer.warmup-steps 1000"
# K forward passes and one backward make more steps in an hour of two cores; DReG's gradient varies less.
_CHEAP = f"--model.resampled --model.doubly-reparameterized {_RATE}"
# 3,280 epochs of 60,000 images, in batches of 1,000 where Burda et al. have 20.
_EPOCHS, _HALF = f"--steps 196800 --batch-size 1000 {_RATE}", f"--steps 98400 --batch-size 1000 {_RATE}"


def _later(early: int, late: int) -> str:
    """50 samples only where 5 have led: a step of them costs as much as five or six of those."""
    return f"--steps {early + late} --model.early-samples 5 --model.early-steps {early} {_CHEAP}"


def _burda(name: str, published: str, *, cpu: str, hidden: str, halved: bool = False) -> Row:
    smoke, full = f"{_VAE} --model.hidden {hidden}", _HALF if halved else _EPOCHS
    return Row(f"vae_mnist burda-{name}", _BURDA, published, _NLL, smoke, cpu, full, halved)


ROWS = {
    "vae-1layer": _burda("1layer-k1", "86.76 (Burda et al. 2015)", cpu="", hidden="8"),
    "iwae-1layer-k5": _burda("1layer-k5", "85.54 (the same)", cpu=f"--steps 250000 {_CHEAP}", hidden="8"),
    "iwae-1layer-k50": _burda("1layer-k50", "84.78 (the same)", cpu=_later(115_000, 25_000), hidden="8", halved=True),
    "vae-2layer": _burda("2layer-k1", "85.33 (the same)", cpu=_RATE, hidden="8 8"),
    "iwae-2layer-k5": _burda(
        "2layer-k5", "83.89 (the same)", cpu=f"--steps 150000 --model.resampled {_RATE}", hidden="8 8"
    ),
    "iwae-2layer-k50": _burda("2layer-k50", "82.90 (the same)", cpu=_later(115_000, 25_000), hidden="8 8", halved=True),
    "iwae-dreg": _burda(
        "1layer-k50-dreg", "84.32 (Tucker et al. 2019)", cpu=_later(230_000, 50_000), hidden="8", halved=True
    ),
    "vae-flax": Row(
        "vae_mnist flax",
        "MNIST, fixed binarisation, 30 epochs",
        "100.86 (flax's example)",
        ("test -ELBO",),
        f"{_VAE} --data.binarization fixed --model.hidden 8",
    ),
    "made": Row(
        "pixelcnn_mnist made", "MNIST, dynamic binarisation, exact", "84.87 (pytorch-generative)", _NLL, _DIGITS
    ),
    "fvsbn": Row("pixelcnn_mnist fvsbn", "the same", "96.58 (pytorch-generative)", _NLL, _DIGITS),
    "pixelcnn": Row(
        "pixelcnn_mnist",
        "the same",
        "81.45, gated 81.50 (pytorch-generative)",
        _NLL,
        f"{_DIGITS} --model.width 8 --model.depth 2",
        "--data.strict --data.validation 0",
        "full",
    ),
    "grid": Row(
        "gan_toy --seeds 10 --data.validation 0",
        "25 modes, 2,500 samples, 10 seeds",
        "24.8 (PacGAN)",
        ("modes", "points"),
        _TOY,
        on_test=False,
    ),
    "ring": Row(
        "gan_toy --seeds 10 --data.name ring --data.validation 0",
        "8 modes, the same",
        "7.9 (PacGAN)",
        ("modes", "points"),
        _TOY,
        on_test=False,
    ),
    "stacked-mnist": Row(
        "gan_stacked_mnist --data.validation 0",
        "1,000 modes, 128,000 images, 26,000 samples",
        "1,000 modes, KL 0.06 (PacGAN)",
        ("modes", "KL"),
        "--data.name mnist_5k --data.count 500 --steps 4 --batch-size 8 --evaluate.num-samples 100 --model.width 4",
        "--data.strict --model.width 32 --steps 30000",
        "--data.strict",
        on_test=False,
    ),
    "shakespeare-cpu": Row(
        "transformer_text shakespeare_cpu",
        "Tiny Shakespeare, characters, the last tenth, nats",
        "1.88 (nanoGPT)",
        ("test loss",),
        _TEXT,
    ),
    "shakespeare-char": Row(
        "transformer_text shakespeare_char",
        "the same",
        "1.4697 (nanoGPT)",
        ("test loss",),
        _TEXT,
        None,
    ),
    "qm9": Row(
        "transformer_molecules qm9",
        "10,000 samples, valid, and unique too, %",
        "60.2, 5.6 (GrammarVAE)",
        ("valid",),
        _MOLECULES,
        on_test=False,
    ),
    "zinc250k": Row(
        "transformer_molecules",
        "10,000 samples at temperature 0.8, valid, unique, novel, %; error of log P asked for, the best of 4",
        "",
        ("valid", "unique@1k", "novel", "mean absolute error of logP"),
        _MOLECULES,
        "zinc250k_cpu",
        "zinc250k",
    ),
}
Budget = Literal["smoke", "cpu", "full"]


@dataclass(frozen=True)
class RunOptions:
    """How a run is kept, as in any experiment."""

    overwrite: bool = False
    """Start afresh: delete what an earlier run left in the folder."""


@dataclass(frozen=True)
class Options:
    """Run a row of the table."""

    budget: Budget = "cpu"
    """A few steps on data that come with the installation; what two CPU cores can do; the whole schedule."""
    seed: Seed = 0
    """Seed of the run, or the first of several."""
    workdir: Path | None = None
    """Run folder (default: runs/results/ROW-BUDGET-SEED)."""
    write: bool = False
    """Append the result to results.jsonl beside this file and write the README's table anew."""
    results: Path | None = None
    """Another file to append the result to."""
    run: RunOptions = field(default_factory=RunOptions)


def words_of(name: str, budget: Budget) -> list[str]:
    """What a row runs: the experiment, a named configuration, flags.

    Raises:
      UserError: two CPU cores are too few for it.
    """
    row = ROWS[name]
    flags = {"smoke": row.smoke, "cpu": row.cpu, "full": row.full}[budget]
    if flags is None:
        raise UserError(f"{name} is not for two CPU cores: --budget full, on an accelerator, or smoke")
    experiment, *rest = shlex.split(row.command)
    flags = shlex.split(flags)
    named = flags[:1] if flags and not flags[0].startswith("-") else []  # another configuration for this budget
    return [experiment, *named, *rest, *flags[len(named) :]]


def measured(name: str, options: Options) -> dict[str, Any] | None:
    """Runs a row; what is to be kept of it, or None where it was stopped."""
    from jaxgen import folder, log
    from jaxgen.run import parse, run

    workdir = options.workdir or Path("runs/results") / f"{name}-{options.budget}-{options.seed}"
    experiment, *words = words_of(name, options.budget)
    words += ["--seed", str(options.seed)]
    command = shlex.join(["python", "-m", f"experiments.{experiment}", *words])
    words += ["--workdir", str(workdir)] + ["--run.overwrite"] * options.run.overwrite
    module = importlib.import_module(f"experiments.{experiment}")
    config = parse(experiment, module.__doc__ or "", module.Config(), getattr(module, "NAMED", {}), words)
    print(command, flush=True)
    if options.run.overwrite or not (workdir / "config.json").exists():
        _times(workdir).unlink(missing_ok=True)
    with _timed(workdir):
        run(config, module.load, module.build, experiment, command)
    rows = [row for row in log.read(workdir) if "figures" in row and row["step"] == config.steps]
    if not rows:
        return None
    found, record = rows[-1]["figures"], folder.read_record(workdir)
    return {
        "row": name,
        "budget": options.budget,
        "figures": {key: value for key, value in found.items() if key.startswith(ROWS[name].figures)},
        "seeds": list(range(config.seed, config.seed + config.seeds)),
        "steps": config.steps,
        "seconds": round(sum(map(float, _times(workdir).read_text().split()))),
        "data": record.data.name,
        "device": record.device,
        "cores": folder.cores(),
        "versions": record.versions,
        "command": command,
    }


@contextmanager
def _timed(workdir: Path) -> Iterator[None]:
    """Notes how long each sitting took, beside the run folder."""
    start = time.monotonic()
    try:
        yield
    finally:
        path = _times(workdir)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{time.monotonic() - start:.1f}\n")


def _times(workdir: Path) -> Path:
    return workdir.with_name(f"{workdir.name}.seconds")


# The table ------------------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: every row, with what came out of its largest budget that was run, on its newest schedule."""
    lines = ["| row | protocol | published | ours | schedule | time, device |", "| --- | --- | --- | --- | --- | --- |"]
    for name, row in ROWS.items():
        runs = [result for result in results if result["row"] == name and result["budget"] != "smoke"]
        ours, schedule, cost = "not yet run", "", ""
        if runs:
            if row.cpu != row.full and any(run["budget"] == "full" for run in runs):
                runs = [run for run in runs if run["budget"] == "full"]
            newest = runs[-1]
            kept = {tuple(run["seeds"]): run for run in runs if _schedule(run) == _schedule(newest)}  # newest of each
            if len(newest["seeds"]) > 1:  # its figures are of several seeds already
                kept = {(): newest}
            ours = "<br>".join(_figures(list(kept.values())))
            seeds = [seed for run in kept.values() for seed in run["seeds"]]
            shortened = "shortened: " if row.halved or (newest["budget"] == "cpu" and row.cpu != row.full) else ""
            schedule = f"{shortened}{newest['steps']:,} steps, {_counted(seeds)}{_beyond(row, newest['command'])}"
            device = f"{_cores(newest['cores'])} of a CPU" if "cpu" in newest["device"] else newest["device"]
            cost = f"{newest['seconds'] / 60:.0f} min, {device}"
        mark = f" {MARK}" * row.on_test
        lines.append(f"| `{name}`{mark} | {row.protocol} | {row.published} | {ours} | {schedule} | {cost} |")
    return "\n".join(lines) + "\n" + FOOTNOTE


def _figures(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Each figure of one run with its error, or of several runs their mean and standard deviation."""
    from statistics import fmean, stdev

    from jaxgen.evaluate import Estimate

    for key in runs[-1]["figures"]:
        values = [run["figures"][key] for run in runs if key in run["figures"]]
        mean, error = values[0] if len(values) == 1 else (fmean(v for v, _ in values), stdev(v for v, _ in values))
        short = key.split(" (")[0].split(", ")[0]
        yield f"{short} {Estimate(mean, error)}"


def _schedule(run: dict[str, Any]) -> tuple[int, str]:
    """What runs have in common that differ in their seeds alone."""
    return run["steps"], re.sub(r" --seed \d+", "", run["command"])


def _beyond(row: Row, command: str) -> str:
    """The flags of a run that are not the row's; the number of steps is said already."""
    flags = re.sub(r" --(steps|seed) \d+", "", command.removeprefix("python -m experiments."))
    others = " ".join(word for word in flags.split() if word not in row.command.split())
    return f", `{others}`" if others else ""


def _counted(seeds: list[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _cores(count: int) -> str:
    return f"{count} core{'s' if count > 1 else ''}"


def read(path: Path | None = None) -> list[dict[str, Any]]:
    """What was kept."""
    path = path or RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def written(readme: str, results: list[dict[str, Any]]) -> str:
    """The README with the table of these results."""
    return between(readme, BEGIN, END, table(results))


def between(readme: str, begin: str, end: str, text: str) -> str:
    """The README with a text between two of its lines."""
    before, _, rest = readme.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(f"{README} has no place for the table: expected the lines {begin.strip()} and {end.strip()}")
    return before + begin + text + end + after


def keep(result: dict[str, Any], paths: list[Path]) -> None:
    """Append a result to files, or print it and say how to keep it."""
    line = json.dumps(result)
    for path in paths:
        with path.open("a") as file:
            file.write(line + "\n")
    if not paths:
        print(f"\n{line}\nnot kept: the same command with --write appends this line to {RESULTS}")


def main(args: list[str]) -> None:
    if args == ["--list"]:
        print(table(read()), end="")
    elif args == ["--write"]:
        README.write_text(written(README.read_text(), read()))
    elif not args or args[0] in ("-h", "--help"):
        print(f"{__doc__}\nusage: python -m experiments.results ROW [--budget smoke|cpu|full] [--write] | --list")
        print("       python -m experiments.results --write: only the README's table")
        print(f"rows:  {', '.join(ROWS)}\n       python -m experiments.results ROW --help: its flags")
    elif args[0] not in ROWS:
        close = difflib.get_close_matches(args[0], ROWS, n=1)
        raise UserError(
            f"no row {args[0]!r}{f'; did you mean {close[0]}?' if close else ''}: expected {', '.join(ROWS)}"
        )
    else:
        options = cli.parse(Options, args[1:], program=f"python -m experiments.results {args[0]}")
        if options.write and options.budget == "smoke":
            raise UserError("--write: a smoke run is no result; give --budget cpu or full")
        result = measured(args[0], options)
        if result is not None:
            keep(result, [RESULTS] * options.write + [options.results] * (options.results is not None))
        if result is not None and options.write:
            README.write_text(written(README.read_text(), read()))


if __name__ == "__main__":
    from jaxgen.run import errors_in_one_line

    with errors_in_one_line():
        main(sys.argv[1:])
