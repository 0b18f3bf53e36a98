"""A model card: what a reader must know of a trained model before using it (Mitchell et al. 2019, arXiv:1810.03993)."""

import html
import re
from collections.abc import Collection, Mapping, Sequence

INTENDED = """\
For research and teaching: to draw from, to measure, to compare with others, to build on. Samples are made up. They
may be wrong, invalid or offensive where the data are, and are neither facts nor advice. Nothing was measured that
would justify decisions about people, or use where a mistake does harm."""

LIMITS = """\
What the figures above do not name was not measured: how the model does on other data than those named, bias and
fairness between groups, robustness, safety, and privacy beyond epsilon and the section on memorization. Figures are of
this model, not of its method: only where they are of several seeds do they say how much another seed changes. Figures
compare only where their whole names agree."""

REPRODUCE = """\
All randomness derives from the seed: the same command with the versions and on the kind of device named above should
end in the same figures, to rounding. `config.json` holds every setting."""

PRIVATE = """\
The seed gives the initial parameters and the order of the data, but not the noise of private training, which comes from
the operating system: the same command trains another model. `config.json` holds every setting."""

FIGURES = """\
Of held-out data or of samples, as named, at the end of training. ± is a standard error, or what the name says."""


def card(
    *,
    title: str,
    experiment: str,
    command: str,
    sampling: Sequence[str],
    data: str,
    source: str,
    figures: Mapping[str, str],
    audited: Collection[str] | None,
    verdict: str,
    versions: Mapping[str, str],
    device: str,
    warnings: Sequence[str] = (),
    notice: str | None = None,
    reproducible: bool = True,
) -> str:
    """The card, in Markdown; whatever came from data or user is escaped, and stays text within one line.

    Args:
      title: of the model.
      experiment: that trained it, a name.
      command: what was typed.
      sampling: commands that draw from the model and measure it.
      data: the data set's name.
      source: where it comes from, and its licence.
      figures: the run's results, by name.
      audited: which of those say whether the model copies its training data; None where that was not asked.
      verdict: the answer, in words.
      versions: of the packages that decide what comes out.
      device: such as "1 x cpu".
      warnings: what went wrong on the way.
      notice: what a reader must know first.
      reproducible: whether the seed determines the model.
    """
    asked = {name: value for name, value in figures.items() if name in (audited or ())}
    others = {name: value for name, value in figures.items() if name not in asked}
    parts = [
        f"# {_text(title)}",
        *([f"**Notice:** {_text(notice)}"] if notice else []),
        "## Model",
        f"- Experiment: {_text(experiment)}\n- Device: {_text(device)}\n"
        f"- Versions: {_text(', '.join(f'{name} {version}' for name, version in versions.items()))}",
        "## Intended use",
        INTENDED,
        "## Data and licence",
        f"- Data: {_text(data)}\n- Source, credit and licence: {_text(source or 'not stated')}",
        "The licence of the data is not that of the code, and may bind what is done with the model and its samples.",
        "## Figures",
        _table(others) if others else "None.",
        FIGURES,
        "## Warnings",
        "\n".join(f"- {_text(warning)}" for warning in warnings) or "The run gave none.",
        "## Memorization",
        *([_text(verdict)] if audited is not None and verdict else []),
        *([_table(asked)] if asked else []),
        *(["Not asked."] if audited is None else []),
        "## Limits",
        LIMITS,
        "## To reproduce it",
        _code(command),
        REPRODUCE if reproducible else PRIVATE,
        "## To draw from it and measure it",
        _code("\n".join(sampling)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(figures: Mapping[str, str]) -> str:
    rows = (f"| {_text(name)} | {_text(value)} |" for name, value in figures.items())
    return "\n".join(["| figure | value |", "| --- | --- |", *rows])


def _text(text: str) -> str:
    """One line that Markdown and HTML show as it is, wherever it stands."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = re.sub(r"[\\`*\[\]~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)
    line = re.sub(r"^(\d*)([-+=](?![\w.])|(?<=\d)[.)](?= |$))", r"\1\\\2", line)
    return html.escape(line, quote=False).replace("|", "&#124;")


def _code(text: str) -> str:
    """A block of code, fenced by more backticks than there are in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return f"{fence}sh\n{shown}\n{fence}"
