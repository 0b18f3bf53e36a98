"""Three digits as the channels of one image, 1,000 modes to be found: python -m experiments.gan_stacked_mnist

Default: the protocol of VEEGAN (Srivastava et al. 2017) as used by Lin et al. 2018: 128,000 training images, 26,000
samples, modes named by a classifier of digits on each channel. Networks and loss are this project's own.

Configurations, as an optional first word:
  unrolled  samples (25,600), latents and batch of Metz et al. 2017; its figures do not compare with the default's
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

from experiments import gan_mnist
from experiments.gan_mnist import EvaluateConfig, ModelConfig, SampleConfig, check, experiment, model_of
from jaxgen import config as flags
from jaxgen.classifier import by_channel
from jaxgen.data import Dataset, Spec
from jaxgen.data.stacked import stacked
from jaxgen.errors import UserError
from jaxgen.experiment import Experiment
from jaxgen.ranges import Index, UpTo1M
from jaxgen.run import main


@dataclass(frozen=True)
class DataConfig(flags.ImageDataConfig):
    """Which digits, and how many triples of them."""

    binarization: Literal["none"] = "none"
    """Treatment of gray levels: none."""
    count: UpTo1M = 128_000
    """Number of training triples."""


@dataclass(frozen=True)
class Config(gan_mnist.Config):
    """One run."""

    workdir: Path = Path("runs/gan_stacked_mnist")
    """Run folder. Its default name ends in what other flags change. Rerun the command to resume."""
    steps: Index = 100_000
    """Number of training steps."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(conditional=False, width=64, latents=100))
    run: flags.RunConfig = field(
        default_factory=lambda: flags.RunConfig(log_every=500, evaluate_every=10_000, checkpoint_every=5_000)
    )
    evaluate: EvaluateConfig = field(
        default_factory=lambda: EvaluateConfig(metrics="labels", num_samples=26_000, truncation=None, copies=None)
    )
    sample: SampleConfig = field(default_factory=lambda: SampleConfig(truncation=None))


def digits(config: Config) -> Dataset:
    """What is stacked; a run folder knows it by the name of what became of it."""
    return replace(config.data, name=config.data.name.removeprefix("stacked_")).load()


def load(config: Config) -> Dataset:
    return stacked(digits(config), count=config.data.count)


def build(config: Config, spec: Spec) -> Experiment:
    check(config, spec)
    if config.evaluate.inception is not None:
        raise UserError("--inception: three digits are judged by a classifier of digits; leave it out")
    judge = cache(lambda: by_channel(gan_mnist.judge_of(config, spec, lambda: digits(config))))
    return experiment(model_of(config, spec), config, spec, judge)


NAMED = {
    "unrolled": Config(
        workdir=Path("runs/unrolled"),
        batch_size=128,
        data=DataConfig(validation=0.0),
        model=ModelConfig(conditional=False, width=16, latents=256),
        evaluate=EvaluateConfig(metrics="labels", num_samples=25_600, truncation=None, copies=None),
    ),
}

if __name__ == "__main__":
    main(__file__, Config(), load, build, NAMED)
