"""Measure a trained model on its test data: python -m jaxgen evaluate runs/vae_mnist --nll-samples 5000"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxgen.commands.flags import parse, trained_on


@dataclass(frozen=True)
class Evaluate:
    """Measure on test data."""

    data_dir: Annotated[Path | None, tyro.conf.arg(name="data.dir")] = None
    """Where the data lie, if not where they lay in training."""
    checkpoint: str = "latest"
    """Checkpoint to use: latest, best (of the lowest held-out loss) or a step."""


def run(directory: Path, args: list[str]) -> None:
    from jaxgen import folder
    from jaxgen.experiment import audit, built, guarantee, measure, restore_params

    record, module, config = folder.load_run(directory)
    own, options = parse(Evaluate, config.evaluate, f"evaluate {directory}", args)
    config, data = trained_on(record, module, replace(config, evaluate=options), own.data_dir)
    experiment = built(module.build, config, record.data)
    step, params = restore_params(config, experiment.model, record.data, which=own.checkpoint)
    found = audit(config, experiment, params, data)
    figures = measure(config, experiment, params, data.test) | found.figures
    figures |= guarantee(config, experiment.model, len(data), step)
    print(f"{directory} at step {step}, {record.data.name} test")
    for name, value in figures.items():
        print(f"  {name}  {value}")
    for exhibit in found.exhibits.values():
        if isinstance(exhibit, str):
            print(f"\n{exhibit}", end="")
