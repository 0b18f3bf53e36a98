"""What the commands share: their flags, and the data that a run was trained on."""

from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from jaxgen import cli
from jaxgen.errors import UserError


def parse(own: type, options: Any, program: str, args: list[str]) -> tuple[Any, Any]:
    """Flags of the command and those of the family, side by side."""
    flat = tyro.conf.OmitArgPrefixes
    both = make_dataclass("Flags", [("own", flat[own], own()), ("options", flat[type(options)], options)], frozen=True)
    flags = cli.parse(both, args, program=f"python -m jaxgen {program}", description=own.__doc__, flat=True)
    return flags.own, flags.options


def trained_on(record: Any, module: Any, config: Any, data_dir: Path | None) -> tuple[Any, Any]:
    """The configuration and the data that a run was trained on, and nothing else."""
    from jaxgen.run import cache_compilations

    cache_compilations()
    where = config.data.dir if data_dir is None else data_dir
    # What data were used instead of others, and how, the record knows.
    kept = {"binarization": record.data.binarization} if hasattr(config.data, "binarization") else {}
    config = replace(config, data=replace(config.data, name=record.data.name, dir=where, strict=True, **kept))
    data = module.load(config)
    if data.spec.digest != record.data.digest:
        there = f"{data.name} in {where}" if where else data.name
        raise UserError(f"{there} is not what {config.workdir} was trained on (its digest differs)")
    return config, data
