"""What the commands share: their flags, and the data that a run was trained on."""

from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxgen import cli
from jaxgen.errors import UserError


@dataclass(frozen=True)
class Where:
    """Where the data of a run are read from."""

    data_name: Annotated[str | None, tyro.conf.arg(name="data.name")] = None
    """The data set, if its files lie elsewhere now, such as folder:PATH; its content must be the same."""
    data_dir: Annotated[Path | None, tyro.conf.arg(name="data.dir")] = None
    """Folder of prepared data sets (default: that of tensorflow-datasets)."""
    trust: bool = False
    """Read the files that the run folder names, wherever they lie: for a folder whose origin you know."""


def parse(own: type, options: Any, program: str, args: list[str]) -> tuple[Any, Any]:
    """Flags of the command and those of the family, side by side."""
    flat = tyro.conf.OmitArgPrefixes
    both = make_dataclass("Flags", [("own", flat[own], own()), ("options", flat[type(options)], options)], frozen=True)
    flags = cli.parse(both, args, program=f"python -m jaxgen {program}", description=own.__doc__, flat=True)
    return flags.own, flags.options


def explain(command: str, what: str, kind: type) -> None:
    """Print the help of a command without the first word that it needs."""
    more = " A run folder before --help adds the flags of its experiment." * (what == "RUN")
    cli.parse(kind, ["--help"], program=f"python -m jaxgen {command} {what}", description=f"{kind.__doc__}{more}")


def confirmed(named: Any, typed: Any, where: Where, flag: str, directory: Path) -> Any:
    """What was typed, or what the run folder names if that is trusted.

    Raises:
      UserError: the run folder names a place, and neither a flag nor --trust confirms it.
    """
    if typed is not None or named is None or where.trust:
        return named if typed is None else typed
    raise UserError(
        f"{directory}/config.json names {flag} {named}: repeat this flag, or give --trust if you know where the run "
        "folder comes from"
    )


def own_paths(options: Any) -> dict[str, Path]:
    """The options of a run folder that are paths."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if isinstance(value, Path)}


def trained_on(record: Any, module: Any, config: Any, where: Where) -> tuple[Any, Any]:
    """The configuration and the data that a run was trained on, and no other data.

    A run folder may come from a stranger: a place that it names is looked at only with the user's word.
    """
    from jaxgen.data.source import is_path
    from jaxgen.run import cache_compilations

    cache_compilations()
    # The name of a path is where the data lie now; another may stand for a data set that could not be had.
    name = where.data_name or (config.data.name if is_path(config.data.name) else record.data.name)
    confirmed(name if is_path(name) else None, where.data_name, where, "--data.name", config.workdir)
    folder = confirmed(config.data.dir, where.data_dir, where, "--data.dir", config.workdir)
    # What data were used instead of others, and how, the record knows.
    kept = {"binarization": record.data.binarization} if hasattr(config.data, "binarization") else {}
    config = replace(config, data=replace(config.data, name=name, dir=folder, strict=True, **kept))
    data = module.load(config)
    if data.spec.digest != record.data.digest:
        there = f"{data.name} in {folder}" if folder else data.name
        raise UserError(f"{there} is not what {config.workdir} was trained on (its digest differs)")
    return config, data
