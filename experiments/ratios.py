"""Ratios of rates that were measured in turns: in lines, as a table, as a picture."""

import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Rates = dict[str, list[float]]  # turn by turn, of what is compared; the first is ours


def take_turns(tasks: dict[str, Callable[[], None]], turns: int, work: float | dict[str, float]) -> Rates:
    """Units of work per second of each task, turn by turn, after one turn to warm up; another begins each time."""
    rates: Rates = {name: [] for name in tasks}
    names = deque(tasks)
    for turn in range(turns + 1):
        for name in names:
            start = time.perf_counter()
            tasks[name]()
            if turn:
                rates[name].append((work[name] if isinstance(work, dict) else work) / (time.perf_counter() - start))
        names.rotate(1)
    return rates


def compared(rates: Rates) -> Iterator[tuple[str, float, tuple[float, float, float]]]:
    """What ours is compared with, its median rate, and least, median and greatest of the ratios of the turns."""
    first, *others = rates.values()
    for name, values in zip(list(rates)[1:], others, strict=True):
        low, middle, high = map(float, np.quantile(np.array(first) / np.array(values), [0, 0.5, 1]))
        yield name, float(np.median(values)), (low, middle, high)


def newest(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last result of each comparison, those of one name together."""
    names, last = [result["name"] for result in results], {result["what"]: result for result in results}
    return dict(sorted(last.items(), key=lambda item: names.index(item[1]["name"])))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: the newest result of each comparison."""
    lines = ["| what | unit | ours | beside it | ratio (least to greatest) |", "| --- | --- | --- | --- | --- |"]
    for what, result in newest(results).items():
        (first, values), *others = result["rates"].items()
        start = f"| {what} | {result['unit']} | {first}: {_short(float(np.median(values)))} |"
        for name, value, (low, middle, high) in compared(result["rates"]):
            lines.append(f"{start} {name}: {_short(value)} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
        if not others:
            lines.append(f"{start}  |  |")
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    """Three digits: 42,600, 0.54, 107 billion."""
    if value >= 1e9:
        return f"{_short(value / 1e9)} billion"
    return f"{value:,.{max(0, 2 - int(np.floor(np.log10(value))))}f}" if value < 1000 else f"{round(value, -2):,.0f}"


def picture(results: list[dict[str, Any]]) -> str:
    """SVG: the ratio of each comparison of rates, and the line where both are as fast."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    bars = [
        (f"{what}, against {name}", ratio)
        for what, result in newest(results).items()
        if result["unit"].endswith("/s")
        for name, _, ratio in compared(result["rates"])
    ][::-1]
    figure = Figure(figsize=(9, 0.26 * len(bars) + 0.6), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, (low, middle, high)) in enumerate(bars):
        axes.barh(y, middle - 1, left=1, color="C0" if middle >= 1 else "C1", height=0.6)
        axes.plot([low, high], [y, y], color="black", linewidth=1)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    axes.set_xlabel("times as fast (median; the line from least to greatest)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    svg = io.StringIO()
    with rc_context({"svg.hashsalt": "jaxgen", "svg.fonttype": "none"}):  # the same file from the same numbers
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()


def show(what: str, unit: str, rates: Rates) -> None:
    """The first against each other one, turn by turn."""
    name, first = next(iter(rates.items()))
    print(f"\n{what}, {unit}\n  {name:<22} {np.median(first):16,.2f}")
    for other, value, (low, middle, high) in compared(rates):
        print(f"  {other:<22} {value:16,.2f}   {name} / this: {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)
