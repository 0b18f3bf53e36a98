"""Measure a trained model on its test data: python -m jaxgen evaluate runs/vae_mnist --nll-samples 5000"""

from dataclasses import dataclass, replace
from pathlib import Path

from jaxgen.commands.flags import Where, confirmed, own_paths, parse, trained_on
from jaxgen.terminal import say


@dataclass(frozen=True)
class Evaluate(Where):
    """Measure on test data."""

    checkpoint: str = "latest"
    """Checkpoint to use: latest, best (of the lowest validation loss) or a step."""


def run(directory: Path, args: list[str]) -> None:
    from jaxgen import folder
    from jaxgen.experiment import audit, built, guarantee, measure, restore_params

    record, module, config = folder.load_run(directory)
    named = own_paths(config.evaluate)
    own, options = parse(Evaluate, replace(config.evaluate, **dict.fromkeys(named)), f"evaluate {directory}", args)
    paths = {name: confirmed(path, getattr(options, name), own, f"--{name}", directory) for name, path in named.items()}
    config, data = trained_on(record, module, replace(config, evaluate=replace(options, **paths)), own)
    experiment = built(module.build, config, record.data)
    step, params = restore_params(config, experiment.model, record.data, which=own.checkpoint)
    found = audit(config, experiment, params, data)
    figures = measure(config, experiment, params, data) | found.figures
    figures |= guarantee(config, experiment.model, len(data), step)
    say(f"{directory} at step {step}, {record.data.name} test")
    for name, value in figures.items():
        say(f"  {name}  {value}")
    for exhibit in found.exhibits.values():
        if isinstance(exhibit, str):
            say(f"\n{exhibit}", end="")
