"""Ranges of the fields of configurations and flags, declared on the field and checked here, all of them at once.

A field says `width: Width = 128`; where no alias fits, `Annotated[int, Meta(ge=2, le=9)]`. Every number has both ends:
integers fit the arrays they end up in, sizes the memory, and not-a-number and infinity are out of every range.
"""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import reduce
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from jaxgen.errors import UserError

INT32 = 2**31 - 1

Count = Annotated[int, Meta(ge=1, le=INT32)]
"""Steps, examples, tokens: at least one."""
Index = Annotated[int, Meta(ge=0, le=INT32)]
"""From 0: a label, a row, a number of steps that may be none."""
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Seed of a generator of random numbers; each has a key of its own (`jaxgen.keys.key_of`)."""
Width = Annotated[int, Meta(ge=1, le=65_536)]
"""Features of a layer, latent dimensions."""
Depth = Annotated[int, Meta(ge=1, le=128)]
"""Layers, which are traced one by one."""
UpTo1k = Annotated[int, Meta(ge=1, le=1_024)]
UpTo10k = Annotated[int, Meta(ge=1, le=10_000)]
UpTo1M = Annotated[int, Meta(ge=1, le=1_048_576)]
"""Examples or samples that are held in memory."""
Widths = Annotated[tuple[Width, ...], Meta(min_length=1, max_length=64)]
"""Features of each of several layers."""
Positive = Annotated[float, Meta(gt=0, le=1e9)]
NonNegative = Annotated[float, Meta(ge=0, le=1e9)]
Finite = Annotated[float, Meta(ge=-1e9, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Partial = Annotated[float, Meta(ge=0, lt=1)]
"""A share that is never the whole: dropout, decay of an average."""
Probability = Annotated[float, Meta(gt=0, le=1)]

WORDS = {">=": "at least", ">": "a number above", "<=": "at most", "<": "a number below"}


def walk(kind: type, prefix: str = "", *, flat: bool = False) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """(path, flag, type) of every field of a dataclass, and of the dataclasses in it.

    Args:
      kind: the dataclass.
      prefix: what comes before a field's name in its flag, such as "model.".
      flat: the flags of the dataclasses in it have no prefix of their own.
    """
    for name, hint in get_type_hints(kind, include_extras=True).items():
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        inner = get_args(hint)[0] if extras else hint
        renamed = (extra.name for extra in extras if getattr(extra, "name", None))  # tyro.conf.arg(name=...)
        flag = prefix + next(renamed, name.replace("_", "-"))
        if is_dataclass(inner):
            below = walk(inner, prefix if flat else f"{flag}.")
            yield from (((name, *path), *rest) for path, *rest in below)
        else:
            yield (name,), flag, hint


def check(config: Any, *, flat: bool = False) -> None:
    """Raises UserError for the first field of a dataclass, and of the dataclasses in it, that is out of its range."""
    for path, flag, hint in walk(type(config), flat=flat):
        value = reduce(getattr, path, config)
        try:
            msgspec.convert(value, hint)
        except msgspec.ValidationError as error:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            none = ", or None" if type(None) in get_args(hint) else ""
            raise UserError(f"--{flag} {shown}".rstrip() + f": expected {_expected(str(error))}{none}") from None


def _expected(message: str) -> str:
    """Of msgspec's "Expected `int` >= 1 - at `$[0]`": "at least 1"."""
    message = message.partition(" - at ")[0].removeprefix("Expected ")
    found = re.fullmatch(r"`\w+`( of length)? ([<>]=?) (\S+)", message)
    if not found:
        return message.replace("`", "")
    length, sign, bound = found.groups()
    amount = f"{int(bound):,}" if bound.lstrip("-").isdigit() else f"{float(bound):,.10g}"
    return f"{WORDS[sign]} {amount}" + (f" number{'s' * (amount != '1')}" if length else "")
