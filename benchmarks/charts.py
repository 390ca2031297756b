"""Draw what a comparison found, from its JSON: `python benchmarks/compare.py --charts-only`.

The same JSON gives the same files, byte for byte. Void figures are drawn hollow, absent ones not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
import results
from matplotlib.colors import ListedColormap
from matplotlib.ticker import NullFormatter
from results import Row

OURS, OTHERS, FLOOR = "#0b62b8", "#7a7a7a", "#c0392b"
MARKERS = ("o", "s", "^", "D")
GOOD, BAD, UNKNOWN = "#cfe8d5", "#e8a79c", "#eeeeee"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pooled_pymysql",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
}


def draw_all(found: Mapping[str, Any], folder: Path, prefix: str = "") -> list[Path]:
    """Draw every chart that there are figures for, and return their files."""
    rows = {one["key"]: one for one in found["rows"]}
    charts: dict[str, Callable[[], Any]] = {
        "speed": lambda: _speed(rows),
        "threads": lambda: _threads(rows),
        "costs": lambda: _costs(rows),
        "correctness": lambda: _correctness(found["probes"]),
    }
    drawn = []
    with plt.rc_context(STYLE):
        for name, draw in charts.items():
            figure = draw()
            if figure is None:
                continue
            figure.text(0.99, 0.005, _footnote(found), ha="right", fontsize=7, color="#555555")
            path = folder / f"{prefix}{name}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None})
            plt.close(figure)
            drawn.append(path)
    return drawn


def _footnote(found: Mapping[str, Any]) -> str:
    known = found["conditions"]
    text = f"Python {known['python']}, PyMySQL {known['pymysql']}, server {known['server']}, {known['begun'][:10]}"
    return f"QUICK RUN, not to be quoted. {text}" if found["quick"] else text


def labels_of(rows: Iterable[Row]) -> list[str]:
    """Name all that have a figure in any of the rows, ours first, the others from best to worst of the first row."""
    seen: dict[str, None] = {}
    for one in rows:
        seen.update({label: None for label in results.ordered(one) if "error" not in one["cells"][label]})
    return sorted(seen, key=lambda label: not label.startswith(results.OURS))


def _dots(axes: Any, rows: Sequence[tuple[str, Row]], labels: Sequence[str]) -> None:
    """Draw a line for each label, a marker for each row with its 10th to 90th percentile."""
    for number, (name, one) in enumerate(rows):
        marker = MARKERS[number % len(MARKERS)]
        for place, label in enumerate(labels):
            cell = one["cells"].get(label)
            if cell is None or "error" in cell:
                continue
            median, low, high = cell["value"]
            colour = OURS if label.startswith(results.OURS) else OTHERS
            height = place + (number - (len(rows) - 1) / 2) * 0.2
            axes.plot([low, high], [height, height], color=colour, linewidth=1, alpha=0.6)
            face = "white" if cell.get("void") else colour
            axes.plot([median], [height], marker=marker, markersize=5, color=colour, markerfacecolor=face)
        axes.plot([], [], marker=marker, color="#333333", linestyle="none", markersize=5, label=name)
    axes.axvline(1, color=FLOOR, linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    for tick in axes.get_yticklabels():
        if tick.get_text().startswith(results.OURS):
            tick.set(color=OURS, fontweight="bold")
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _speed(rows: Mapping[str, Row]) -> Any:
    works = (("select", "SELECT 1"), ("read", "SELECT, InnoDB"), ("insert", "INSERT + commit"))
    panels = [
        (way, [(name, rows[f"{kind}, {way}"]) for kind, name in works if f"{kind}, {way}" in rows])
        for way in ("loopback", "1 ms each way")
    ]
    labels = labels_of(one for _, found in panels for _, one in found)
    if not labels:
        return None
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(10, 1.4 + 0.34 * len(labels)), layout="constrained")
    for one, (way, found) in zip(axes, panels, strict=True):
        _dots(one, found, labels)
        one.set_xscale("log")
        one.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        one.set_title(way, fontsize=10)
        one.set_xlabel("time, x the floor (red); less is better")
    figure.suptitle(
        "A lease, its statement and its release, to the same on a connection that stays open",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    _finish(figure, axes[0] if panels[0][1] else axes[1])
    return figure


def _threads(rows: Mapping[str, Row]) -> Any:
    names = (("4", "4 threads"), ("16", "16 threads"), ("64", "64 threads"), ("200", "200 threads, 1 ms statements"))
    found = [(name, rows[f"threads, {key}"]) for key, name in names if f"threads, {key}" in rows]
    labels = labels_of(one for _, one in found)
    if not labels:
        return None
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.36 * len(labels)), layout="constrained")
    _dots(axes, found, labels)
    axes.set_xlim(left=0)
    axes.set_xlabel("statements a second, x those of threads with a connection each (red); more is better")
    figure.suptitle("Many threads on 8 sessions", fontsize=11, x=0.01, ha="left")
    _finish(figure, axes)
    return figure


def _costs(rows: Mapping[str, Row]) -> Any:
    keys = ("memory, without TLS", "memory, with TLS", "import", "spike")
    panels = [rows[key] for key in keys if key in rows and labels_of([rows[key]])]
    if not panels:
        return None
    most = max(len(labels_of([one])) for one in panels)
    figure, grid = plt.subplots(2, 2, figsize=(11, 2.2 + 0.5 * most), layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, one in zip(grid.flat, panels, strict=False):
        labels = labels_of([one])
        values = [one["cells"][label]["value"][0] for label in labels]
        colours = [OURS if label.startswith(results.OURS) else OTHERS for label in labels]
        axes.barh(labels, values, color=colours, height=0.6)
        for place, value in enumerate(values):
            axes.text(value, place, f" {results.figure(value)}", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log" if max(values) > 20 * min(values) > 0 else "linear")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(one["title"], fontsize=10)
        axes.set_xlabel(f"{one['unit']}; less is better")
    figure.suptitle("What else it costs", fontsize=11, x=0.01, ha="left")
    _finish(figure)
    return figure


def _correctness(probes: Mapping[str, Any]) -> Any:
    labels = list(dict.fromkeys(label for probe in probes.values() for label in probe["verdicts"]))
    if not labels:
        return None
    order = {True: 0, False: 1, None: 2}
    verdicts = [[probe["verdicts"].get(label, {"good": None})["good"] for label in labels] for probe in probes.values()]
    figure, axes = plt.subplots(figsize=(3.4 + 0.5 * len(labels), 2.4 + 0.24 * len(probes)), layout="constrained")
    axes.imshow([[order[good] for good in line] for line in verdicts], cmap=ListedColormap([GOOD, BAD, UNKNOWN]),
                vmin=0, vmax=2, aspect="auto")  # fmt: skip
    for height, line in enumerate(verdicts):
        for place, good in enumerate(line):
            axes.text(place, height, results.MARKS[good].lower(), ha="center", va="center", fontsize=7)
    axes.grid(visible=False)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(probes)), list(probes))
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    _finish(figure)
    return figure


def _finish(figure: Any, labelled: Any = None) -> None:
    """Add the legend of some axes beside the chart, and room for the footnote."""
    if labelled is not None:
        figure.legend(*labelled.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
