"""Words of a command line to a dataclass whose fields are in their ranges."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

import tyro

from jaxgen import ranges
from jaxgen.errors import UserError

# Flags as other projects call them.
SYNONYMS = {
    "lr": "learning-rate", "wd": "weight-decay", "bs": "batch-size", "batch": "batch-size", "epochs": "steps",
    "iterations": "steps", "iters": "steps", "max-steps": "steps", "max-iters": "steps", "output": "workdir",
    "output-dir": "workdir", "out-dir": "workdir", "logdir": "workdir", "log-dir": "workdir", "dataset": "data.name",
    "data": "data.name", "optimizer": "optimizer.name", "resolution": "image-size", "latent-dim": "latents",
    "hidden-dim": "hidden", "n": "num", "temp": "temperature", "class": "label", "cfg": "guidance",
    "precision": "dtype", "grad-clip": "clip-norm", "ema": "ema-decay", "warmup": "warmup-steps",
    "block-size": "context", "vocab-size": "vocabulary-size", "gpus": "parallel",
}  # fmt: skip
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse(
    kind: Any,
    args: Sequence[str],
    *,
    program: str,
    default: Any = None,
    description: str | None = None,
    flat: bool = False,
    brief: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Return the `kind` that `args` describe; exits for values of another type, and for --help.

    Args:
      kind: a dataclass.
      args: the words.
      program: what comes before them, for the help.
      default: values of the flags that are not given; None: the defaults of `kind`.
      description: for the help; None: the docstring of `kind`.
      flat: the flags of the dataclasses in `kind` have no prefix.
      brief: {field: fields in it that the short help shows}; --help-all shows every flag. None: all help is short.

    Raises:
      UserError: there is no such flag, or a value is out of its range.
    """
    options = {} if default is None else {"default": default}
    shown, known = {"prog": program, "description": description}, list(ranges.walk(kind, flat=flat))
    if "--help-all" in args:
        args = ["--help"]
    elif brief and {"-h", "--help"} & set(args):
        default = _short(default, brief)
        kind, args, options = type(default), ["--help"], {"default": default}
    found, unknown = tyro.cli(
        kind,
        args=_switched(args, {flag for _, flag, hint in known if hint is bool}),
        return_unknown_args=True,
        **options,
        **shown,
    )
    if unknown:
        word = next((word for word in unknown if word.startswith("--")), unknown[0])
        raise UserError(f"{_unknown(word, [flag for _, flag, _ in known])} (all flags: {program} --help-all)")
    ranges.check(found, flat=flat)
    return found


def _switched(args: Sequence[str], switches: set[str]) -> list[str]:
    """The words with `--switch=True` as `--switch` and `--switch False` as `--no-switch`, as tyro reads them."""
    words, rest = [], list(args)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        flag = name.removeprefix("--").replace("_", "-")
        if name.startswith("--") and flag in switches:
            value = value if equals else rest.pop(0) if rest and rest[0].lower() in SWITCH else "true"
            if value.lower() not in SWITCH:
                raise UserError(f"{name} {value}: expected True or False")
            group, dot, last = flag.rpartition(".")
            word = f"--{group}{dot}{'' if SWITCH[value.lower()] else 'no-'}{last}"
        words.append(word)
    return words


def _unknown(word: str, flags: Sequence[str]) -> str:
    """What is wrong with a word that no flag takes, and which flag may be meant."""
    if not word.startswith("-"):
        return f"unexpected word {word!r}: it belongs to no flag"
    name = word.lstrip("-").partition("=")[0].replace("_", "-")
    wanted = SYNONYMS.get(name, name.rpartition(".")[2])
    last = {flag.rpartition(".")[2]: flag for flag in reversed(flags)}
    meant = [flag for flag in flags if f".{flag}".endswith(f".{wanted}")]
    meant += difflib.get_close_matches(name, flags, n=1, cutoff=0.75)
    meant += [last[one] for one in difflib.get_close_matches(wanted, last, n=1)]
    return f"there is no flag --{name}" + (f": did you mean --{meant[0]}?" if meant else "")


def _short(config: Any, brief: Mapping[str, Sequence[str]]) -> Any:
    """The configuration as one whose class hides what the short help leaves out."""
    parts = {}
    for name, shown in brief.items():
        part = getattr(config, name)
        parts[name] = _hiding(part, [one.name for one in fields(part) if one.name not in shown])
    whole = [name for name, shown in brief.items() if not shown]
    return _hiding(config, whole, parts)


def _hiding(config: Any, hidden: Sequence[str], parts: Mapping[str, Any] | None = None) -> Any:
    """The dataclass `config` with fields hidden and others replaced, by a subclass whose source tyro finds."""
    kind, parts = type(config), parts or {}
    values = {one.name: getattr(config, one.name) for one in fields(kind)} | parts
    hints = get_type_hints(kind, include_extras=True) | {name: type(part) for name, part in parts.items()}
    hints |= {name: tyro.conf.Suppress[hints[name]] for name in hidden}
    changed = [(name, hints[name], field(default=values[name])) for name in values if name in {*hidden, *parts}]
    names = ("__module__", "__qualname__", "__doc__", "__firstlineno__")
    namespace = {name: vars(kind)[name] for name in names if name in vars(kind)}
    return make_dataclass(kind.__name__, changed, bases=(kind,), namespace=namespace, frozen=True)(**values)
