"""Ranges of the fields of configurations and flags, declared on the field and checked here, all of them at once.

A field says `width: Width = 128`; where no alias fits, `Annotated[int, Meta(ge=2, le=9)]`. Every number has both ends:
integers fit the arrays they end up in, sizes the memory, and not-a-number and infinity are out of every range.
"""

import re
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta

from jaxgen.errors import UserError

INT32 = 2**31 - 1

Count = Annotated[int, Meta(ge=1, le=INT32)]
"""Steps, examples, tokens: at least one."""
Index = Annotated[int, Meta(ge=0, le=INT32)]
"""From 0: a label, a row, a number of steps that may be none."""
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""Seed of a generator of random numbers."""
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


def check(config: Any, prefix: str = "", *, flat: bool = False) -> None:
    """Raises UserError for the first field of a dataclass, and of the dataclasses in it, that is out of its range.

    Args:
      config: an instance of a dataclass.
      prefix: what comes before a field's name in its flag, such as "model.".
      flat: the flags of the dataclasses in it have no prefix of their own.
    """
    kinds = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        flag, value, kind = prefix + field.name.replace("_", "-"), getattr(config, field.name), kinds[field.name]
        if is_dataclass(value):
            check(value, prefix if flat else f"{flag}.")
            continue
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            none = ", or None" if type(None) in get_args(kind) else ""
            raise UserError(f"--{flag} {shown}".rstrip() + f": expected {_expected(str(error))}{none}") from None


def _expected(message: str) -> str:
    """Of msgspec's "Expected `int` >= 1 - at `$[0]`": "at least 1"."""
    message = message.partition(" - at ")[0].removeprefix("Expected ")
    found = re.fullmatch(r"`\w+`( of length)? ([<>]=?) (\S+)", message)
    if not found:
        return message.replace("`", "")
    length, sign, bound = found.groups()
    amount = f"{float(bound):,.10g}"
    return f"{WORDS[sign]} {amount}" + (f" number{'s' * (amount != '1')}" if length else "")
