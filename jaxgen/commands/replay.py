"""Find what made a run stop for numbers that are not finite: python -m jaxgen replay runs/vae_mnist"""

from dataclasses import dataclass
from pathlib import Path

from jaxgen import cli
from jaxgen.commands.flags import Where, trained_on
from jaxgen.terminal import say


@dataclass(frozen=True)
class Replay(Where):
    """Run the step again at which a run stopped, and name the first operation whose result was not finite."""


def run(directory: Path, args: list[str]) -> None:
    from jaxgen import folder
    from jaxgen.experiment import built
    from jaxgen.run import replay as rerun

    record, module, config = folder.load_run(directory)
    own = cli.parse(Replay, args, program=f"python -m jaxgen replay {directory}")
    config, data = trained_on(record, module, config, own)
    say(rerun(config, built(module.build, config, record.data), data))
