"""Several runs side by side: one self-contained HTML page, and a table for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from jaxgen.report import File, lines, plots, render

NONE = "\N{EN DASH}"
MEANING = (
    "± is a standard error, and in brackets are 95 %, 1.96 of them either way; where the name speaks of several "
    f"seeds, ± is their standard deviation, and there are no brackets. {NONE}: not measured under this name."
)

PAGE = """{% extends "base" %}
{% block body %}
{% from "show" import show %}
{% macro table(rows, corner) %}<div class="scroll"><table class="ruled">
<tr><th>{{ corner }}</th>{% for run in runs %}<th title="{{ run.name }}">{{ loop.index }}</th>{% endfor %}</tr>
{% for name, cells in rows.items() %}<tr><td>{{ name }}</td>\
{% for cell in cells %}<td>{{ missing if cell is none else cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endmacro %}
<style>
 body { max-width: none; margin: 2rem } .scroll, .beside { overflow-x: auto }
 .ruled tr td { min-width: 0; max-width: 40rem; overflow-wrap: break-word } .ruled th { border-bottom: 1px solid #999 }
 .beside { display: grid; grid-template-columns: repeat({{ runs | length }}, minmax(14rem, 34rem)); gap: 1rem }
 .beside figure { width: auto; margin: 0 } .beside h3 { font: inherit; color: #666; margin: 0 }
 summary { font-weight: bold; margin: 1rem 0 .5rem }
</style>
{% for run in runs %}{% set number = loop.index %}{% for note in run.notes %}\
<p class="notice">run {{ number }}: {{ note }}</p>{% endfor %}{% endfor %}
<div class="scroll"><table class="ruled"><tr><th></th><th>run</th><th>what</th><th>figures</th><th>command</th></tr>
{% for run in runs %}<tr><td>{{ loop.index }}</td><td>{{ run.name }}</td><td>{{ run.what }}</td>\
<td>{{ run.state }}</td><td><code>{{ run.command }}</code></td></tr>
{% endfor %}</table></div>
<h2>Figures</h2>
{{ table(figures, "figure") }}
<p>{{ meaning }}</p>
<h2>Settings that differ</h2>
{{ table(settings, "setting") }}
<h2>Samples</h2>
{% for caption, files in exhibits.items() %}<details open><summary>{{ caption }}</summary><div class="beside">
{% for file in files %}<div>{% if file %}{{ show("run " ~ loop.index, *file) }}{% endif %}</div>
{% endfor %}</div></details>
{% endfor %}
<h2>Curves</h2>
{{ curves }}
{% endblock %}
"""


@dataclass(frozen=True)
class Run:
    """A column.

    Attributes:
      name: the folder, as it was typed.
      what: the experiment and its data.
      state: how far it is.
      command: that started it.
      figures: its results, by their whole names.
      settings: all that decides what comes out, by the names of flags.
      rows: lines of metrics, each with a `step`.
      exhibits: the newest files, by caption.
      notes: what a reader must know of it first.
    """

    name: str
    what: str
    state: str
    command: str
    figures: Mapping[str, str]
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    exhibits: Mapping[str, File] = field(default_factory=dict)
    notes: Sequence[str] = ()


def page(runs: Sequence[Run]) -> str:
    """An HTML page that needs nothing beside it. Everything that came from data or user is escaped."""
    each = aligned([lines(run.rows) for run in runs])
    curves = {
        name: {str(number): line for number, line in enumerate(found, 1) if line is not None}
        for name, found in sorted(each.items(), key=lambda item: item[1].count(None))  # what most have comes first
    }
    return render(
        PAGE,
        title=f"{len(runs)} runs side by side",
        runs=runs,
        figures=aligned([run.figures for run in runs]),
        settings=differing(runs),
        exhibits=aligned([run.exhibits for run in runs]),
        meaning=MEANING,
        missing=NONE,
        curves=plots(curves, labels=[str(number) for number in range(1, 1 + len(runs))]),
    )


def table(runs: Sequence[Run]) -> str:
    """The same for a terminal, without what must be seen; characters that would steer it are left out."""
    numbers = [str(number) for number in range(1, 1 + len(runs))]
    key = [f"{number}  {run.name}: {run.what}; {run.state}" for number, run in zip(numbers, runs, strict=True)]
    figures, settings = aligned([run.figures for run in runs]), differing(runs)
    rows = [["figure", *numbers], *([name, *cells] for name, cells in figures.items()), [""] * (1 + len(runs))]
    rows += [["setting", *numbers], *([name, *cells] for name, cells in settings.items())]
    wrapped = [[_wrapped(cell, 44 if i == 0 else 24) for i, cell in enumerate(row)] for row in rows]
    widths = [max(len(part) for cell in column for part in cell or [""]) for column in zip(*wrapped, strict=True)]
    flat = [
        "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for row in wrapped
        for parts in zip_longest(*(cell or [""] for cell in row), fillvalue="")
    ]
    return "\n".join([*map(_plain, key), "", *flat, "", MEANING])


def aligned(each: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """What each has under a name, by name; None where it has nothing."""
    return {name: [one.get(name) for one in each] for name in dict.fromkeys(name for one in each for name in one)}


def differing(runs: Sequence[Run]) -> dict[str, list]:
    """The settings that are not the same in all runs."""
    each = aligned([run.settings for run in runs])
    return {name: values for name, values in each.items() if any(value != values[0] for value in values)}


def _wrapped(cell: Any, width: int) -> list[str]:
    return [_plain(line) for line in wrap(NONE if cell is None else str(cell), width)]


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
