"""Words of a command line to a dataclass whose fields are in their ranges."""

from typing import Any

import tyro

from jaxgen import ranges


def parse(
    kind: Any,
    args: list[str],
    *,
    program: str,
    default: Any = None,
    description: str | None = None,
    flat: bool = False,
) -> Any:
    """Return the `kind` that `args` describe; exits for words that are no flags, and for --help.

    Raises:
      UserError: a value is out of its range.
    """
    options = {} if default is None else {"default": default}
    found = tyro.cli(kind, prog=program, description=description, args=args, **options)
    ranges.check(found, flat=flat)
    return found
