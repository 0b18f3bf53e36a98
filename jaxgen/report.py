"""Rows, pictures and sounds in, one self-contained HTML page out."""

import base64
import csv
import io
import math
import re
import warnings
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Sound(NamedTuple):
    """Samples, int16 [N], and how many of them there are per second."""

    samples: np.ndarray
    rate: int


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words under the names of their columns; a file of comma-separated values."""

    columns: Sequence[str]
    rows: Sequence[Sequence]


Exhibit = np.ndarray | str | Sound | Table  # a picture is uint8 [H, W, C]
SUFFIXES = (".png", ".txt", ".wav", ".csv")
File = tuple[str, bytes]  # one of those suffixes, and what the file holds

BASE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 body { overflow-wrap: anywhere } td:first-child { min-width: 14rem } td + td { min-width: 10rem }
 h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
 code, pre { background: #f4f4f4; border-radius: 4px; padding: .1rem .3rem }
 pre { padding: .7rem; overflow-x: auto; white-space: pre-wrap }
 table { border-collapse: collapse } td, th { text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top }
 tr + tr td { border-top: 1px solid #eee } .notice { background: #fff3cd; padding: .6rem .8rem; border-radius: 4px }
 figure { display: inline-block; width: 30%; min-width: 14rem; margin: 0 2% 1rem 0; vertical-align: top }
 figure.wide { width: 98% } figure.wide img { image-rendering: auto }
 figcaption { color: #666 }
 img { image-rendering: pixelated; max-width: 100% } svg { max-width: 100%; height: auto } audio { width: 100% }
</style>
<h1>{{ title }}</h1>
{% block body %}{% endblock %}
</html>
"""

SHOW = """{% macro show(name, kind, content) %}{% if kind in (".txt", ".csv") %}<h3>{{ name }}</h3>\
<pre>{{ content.decode(errors="replace") }}</pre>\
{% elif kind == ".wav" %}<figure><audio controls src="data:audio/wav;base64,{{ content | base64 }}"></audio>\
<figcaption>{{ name }}</figcaption></figure>\
{% else %}<figure{% if content | width > 640 %} class="wide"{% endif %}>\
<img alt="{{ name }}" src="data:image/png;base64,{{ content | base64 }}">\
<figcaption>{{ name }}</figcaption></figure>{% endif %}{% endmacro %}
"""

PAGE = """{% extends "base" %}
{% block body %}
{% from "show" import show %}
{% if notice %}<p class="notice">{{ notice }}</p>{% endif %}
{% for warning in warnings %}<p class="notice">{{ warning }}</p>{% endfor %}
<pre>{{ command }}</pre>
<h2>Figures</h2>
<table>{% for name, value in figures.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Samples</h2>
{% for name, file in exhibits.items() %}{{ show(name, *file) }}
{% endfor %}
{% if earlier %}<details><summary>as they came about</summary>
{% for name, file in earlier.items() %}{{ show(name, *file) }}
{% endfor %}</details>{% endif %}
<h2>Curves</h2>
{{ curves }}
<h2>Run</h2>
<table>{% for name, value in facts.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
{% endblock %}
"""


def page(
    *,
    title: str,
    command: str,
    figures: Mapping[str, str],
    exhibits: Mapping[str, File],
    rows: Sequence[Mapping[str, float]],
    facts: Mapping[str, object],
    earlier: Mapping[str, File] = {},
    warnings: Sequence[str] = (),
    notice: str | None = None,
) -> str:
    """An HTML page that needs nothing beside it. Everything that came from data or user is escaped.

    Args:
      title: of the page.
      command: what was typed.
      figures: the run's results, by name.
      exhibits: files by caption.
      rows: lines of metrics, each with a `step`; curves are drawn of them.
      facts: configuration, versions, device.
      earlier: more of them, shown when asked for.
      warnings: what went wrong on the way.
      notice: what a reader must know first.
    """
    return render(
        PAGE,
        title=title,
        command=command,
        figures=figures,
        exhibits=exhibits,
        earlier=earlier,
        warnings=warnings,
        curves=curves(rows),
        facts=facts,
        notice=notice,
    )


def render(template: str, *, curves: str, **values: object) -> str:
    """A page in the style of all pages, that needs nothing beside it: all values are escaped, but for the SVG."""
    import jinja2

    parts = jinja2.DictLoader({"base": BASE, "show": SHOW})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=parts)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.filters["width"] = lambda png: int.from_bytes(png[16:20])
    return environment.from_string(template).render(curves=jinja2.utils.markupsafe.Markup(curves), **values)


def encode(exhibit: Exhibit) -> File:
    """The file that an exhibit becomes."""
    if isinstance(exhibit, str):
        return ".txt", exhibit.encode()
    if isinstance(exhibit, Table):
        text = io.StringIO()
        rows = [[inert(cell) for cell in row] for row in (exhibit.columns, *exhibit.rows)]
        csv.writer(text, lineterminator="\n").writerows(rows)
        return ".csv", text.getvalue().encode()
    return (".wav", wav(exhibit)) if isinstance(exhibit, Sound) else (".png", png(exhibit))


FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # as cells begin that spreadsheets compute


def inert(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe before it.

    Numbers stay, as text too. `unquoted` removes the apostrophe.
    """
    if not (isinstance(cell, str) and FORMULA.match(cell)):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def unquoted(cell: str) -> str:
    """The text of a cell that `inert` wrote."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def files(exhibits: Exhibit | list[Exhibit]) -> dict[str, bytes]:
    """The contents of the files that one or more exhibits become, by suffix."""
    return dict(map(encode, exhibits if isinstance(exhibits, list) else [exhibits]))


Line = tuple[list[int], list[float]]


def lines(rows: Sequence[Mapping[str, float]]) -> dict[str, Line]:
    """Steps and values of each metric, by its whole name, such as "train/loss"; of what is a finite number."""
    found: dict[str, Line] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)) and abs(value) < 1e300:  # as far as plots reach
                xs, ys = found.setdefault(name, ([], []))
                xs.append(row["step"])
                ys.append(value)
    return found


def _with_plain_text(draw: Callable[..., T]) -> Callable[..., T]:
    """A function that draws with Matplotlib, where no text is mathematics, and letters that fonts lack are boxes."""

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> T:
        from matplotlib import rc_context

        with rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            return draw(*args, **options)

    return drawn


def curves(rows: Sequence[Mapping[str, float]]) -> str:
    """A plot of each metric, training and held-out data over one another."""
    metrics: dict[str, dict[str, Line]] = {}
    for name, line in lines(rows).items():
        split, slash, metric = name.partition("/")
        metrics.setdefault(metric if slash else name, {})[split if slash else ""] = line
    return plots(metrics)


@_with_plain_text
def plots(each: Mapping[str, Mapping[str, Line]], *, labels: Sequence[str] = ()) -> str:
    """One SVG of small plots: lines by their labels, in plots by their titles.

    A label has the same colour in all plots, in the order of `labels`, or else of appearance.
    """
    from matplotlib.figure import Figure

    if not each:
        return ""
    columns = min(3, len(each))
    rows = math.ceil(len(each) / columns)
    width, height = 3.6 * columns, 2.6 * rows
    figure = Figure(figsize=(width, height))
    # Places in inches: a layout that looks for them would draw everything once more.
    figure.subplots_adjust(0.6 / width, 0.35 / height, 1 - 0.1 / width, 1 - 0.35 / height, wspace=0.25, hspace=0.35)
    labels = list(dict.fromkeys([*labels, *(label for several in each.values() for label in several)]))
    for axes, (title, several) in zip(figure.subplots(rows, columns, squeeze=False).flat, each.items(), strict=False):
        for label, (xs, ys) in several.items():
            i = labels.index(label)
            look = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10 % 3], "linewidth": 1.2}
            axes.plot(xs, ys, label=_printable(label) or None, marker="." if len(xs) < 30 else None, **look)
        axes.set_title(_printable(title), fontsize=8.5, loc="left", x=-0.15, y=1.0)
        axes.tick_params(labelsize=8)
        axes.locator_params(nbins=4)  # in small plots more of them are clutter
        axes.spines[["top", "right"]].set_visible(False)
        if any(several):
            axes.legend(fontsize=8, frameon=False)
    for axes in figure.axes[len(each) :]:
        axes.set_axis_off()
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    return svg.getvalue()[svg.getvalue().index("<svg") :]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)  # Matplotlib fails at half a pair of surrogates


def grid(images: np.ndarray, *, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """uint8 [N, H, W, C] -> one picture, uint8 [H', W', C], row by row; as square as N allows unless told otherwise."""
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, c), 128, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        canvas[y : y + h, x : x + w] = image
    return canvas


def spectrograms(levels: np.ndarray, *, columns: int | None = None) -> np.ndarray:
    """Loudness [N, frames, bins] in [0, 1] -> one picture, uint8 [H, W, 3]: time to the right, pitch upwards."""
    from matplotlib import colormaps

    colours = colormaps["magma"](np.asarray(levels).transpose(0, 2, 1)[:, ::-1])[..., :3]
    return grid(np.round(255 * colours).astype(np.uint8), columns=columns)


def in_turn(sounds: np.ndarray, rate: int, *, gap: float = 0.1) -> Sound:
    """int16 [N, T] -> one after another, with so many seconds of silence between them."""
    return Sound(np.pad(sounds, ((0, 0), (0, round(gap * rate)))).reshape(-1), rate)


def wav(sound: Sound) -> bytes:
    """A WAV file: 16 bits, one channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(sound.rate)
        target.writeframes(np.asarray(sound.samples).astype("<i2").tobytes())
    return file.getvalue()


@_with_plain_text
def scatter(points: np.ndarray, behind: np.ndarray, *, size: int = 480) -> np.ndarray:
    """Points [N, 2], over others in grey, within the square that holds those -> one picture, uint8 [size, size, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(size / 100, size / 100), dpi=100))
    axes = canvas.figure.add_axes((0, 0, 1, 1))
    axes.scatter(*behind.T, s=6, color="#cccccc", linewidths=0)
    axes.scatter(*points.T, s=4, color="#1f6fb4", linewidths=0, alpha=0.7)
    middle, half = (behind.max(0) + behind.min(0)) / 2, 0.55 * np.ptp(behind, axis=0).max()
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@_with_plain_text
def latent_map(points: np.ndarray, labels: np.ndarray, names: Sequence[str], *, size: int = 480) -> np.ndarray:
    """Points [N, D] along their two directions of most variance, coloured by label -> uint8 [size, size, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    centred = points - points.mean(0)
    if centred.shape[1] > 2:  # principal components, each turned so that its sum is not negative
        axes_of = np.linalg.svd(centred, full_matrices=False)[2][:2]
        centred = centred @ (axes_of * np.where(axes_of.sum(1, keepdims=True) < 0, -1, 1)).T
    x, y = centred[:, 0], centred[:, 1] if centred.shape[1] > 1 else np.zeros(len(centred))
    canvas = FigureCanvasAgg(Figure(figsize=(size / 100, size / 100), dpi=100))
    axes = canvas.figure.add_axes((0.02, 0.02, 0.96, 0.96))
    for label, name in enumerate(names):
        some = labels == label
        axes.scatter(x[some], y[some], s=7, color=f"C{label % 10}", linewidths=0, alpha=0.7, label=_printable(name))
    if len(names) > 1:
        axes.legend(fontsize=8, markerscale=2, frameon=False, loc="upper right", ncols=2)
    axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def structures(smiles: Sequence[str], captions: Sequence[str] = (), *, columns: int = 6, size: int = 180) -> Exhibit:
    """Drawings of molecules, each over its caption, row by row -> one picture, uint8 [H, W, 3].

    Or a text with their SMILES, where the system lacks what RDKit draws with, as servers without a screen do.
    """
    from PIL import Image
    from rdkit import Chem

    captions = list(captions) or [""] * len(smiles)
    try:
        from rdkit.Chem.Draw import rdMolDraw2D
    except ImportError as error:
        rows = (f"{one}  {caption}".rstrip() for one, caption in zip(smiles, captions, strict=True))
        return "\n".join([f"no drawings, since RDKit finds not all of its libraries ({error}):", *rows, ""])
    columns = max(1, min(columns, len(smiles)))
    rows = max(1, math.ceil(len(smiles) / columns))
    canvas = rdMolDraw2D.MolDraw2DCairo(columns * size, rows * size, size, size)
    canvas.DrawMolecules([Chem.MolFromSmiles(one) for one in smiles], legends=captions)
    canvas.FinishDrawing()
    return np.array(Image.open(io.BytesIO(canvas.GetDrawingText()), formats=("PNG",)).convert("RGB"))


ANIMATIONS = {".gif": {"format": "GIF", "disposal": 1}, ".webp": {"format": "WEBP", "lossless": True}}


def animation(pictures: Sequence[np.ndarray], suffix: str, *, seconds: float = 0.12) -> bytes:
    """Pictures uint8 [H, W, 1 or 3] of one size -> a GIF or WebP file that shows them there and back, without end."""
    from PIL import Image

    first, *others = (Image.fromarray(zoomed(one)) for one in [*pictures, *pictures[-2:0:-1]])
    file = io.BytesIO()
    times = {"duration": round(1000 * seconds), "loop": 0}
    first.save(file, save_all=True, append_images=others, **times, **ANIMATIONS[suffix])
    return file.getvalue()


def zoomed(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 1 or 3] as Pillow has it, small ones at twice their size."""
    zoom = 2 if len(picture) < 400 else 1
    picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return picture[..., 0] if picture.shape[-1] == 1 else picture


def png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 1 or 3] -> a PNG file; small pictures are shown at twice their size."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(zoomed(picture)).save(file, "PNG", optimize=True)
    return file.getvalue()
