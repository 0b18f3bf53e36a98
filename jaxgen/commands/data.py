"""Prepare data sets and weights from their raw files: python -m jaxgen data prepare mnist --from DIR"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgen import cli
from jaxgen.terminal import say


@dataclass(frozen=True)
class Prepare:
    """Prepare a data set from its raw files, whose checksums are verified."""

    raw_dir: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder of the raw files, under their published names."""
    data_dir: Annotated[Path | None, tyro.conf.arg(name="dir")] = None
    """Folder of prepared data sets (default: that of tensorflow-datasets)."""


@dataclass(frozen=True)
class Inception:
    """Convert the published weights of FID's Inception network, a file of PyTorch's, for --inception."""

    out: Path = Path("inception.npz")
    """File to write."""


def prepare(name: str, args: list[str]) -> None:
    from jaxgen.data.prepare import prepare

    own = cli.parse(Prepare, args, program=f"python -m jaxgen data prepare {name}")
    say(f"{name} is prepared in {prepare(name, raw_dir=own.raw_dir, data_dir=own.data_dir)}")


def inception(name: str, args: list[str]) -> None:
    from jaxgen.metrics.inception import convert_file

    own = cli.parse(Inception, args, program=f"python -m jaxgen data inception {name}")
    convert_file(Path(name), own.out)
    say(f"{own.out}: for python -m jaxgen evaluate RUN --inception {own.out}")
