"""What a comparison found, as it is written to JSON, and as text. Pure: no clock, no process, no socket.

A row has `key`, `group`, `title`, `unit`, `better` ("lower" or "higher") and `cells`: label -> cell. A cell has `value`
(median, 10th and 90th percentile) or `error`; `control` (the floor against itself), `void` and `tries` where the value
is a ratio to a floor; and `more`, figures to be read beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OURS = "pooled_pymysql"
WIDTH = 34

Row = dict[str, Any]
Cell = dict[str, Any]


def row(key: str, group: str, title: str, unit: str, cells: Mapping[str, Cell], *, better: str = "lower") -> Row:
    return {"key": key, "group": group, "title": title, "unit": unit, "better": better, "cells": dict(cells)}


def cell(value: Sequence[float] | float, **more: Any) -> Cell:
    """Make a cell of a spread, or of one figure; `control`, `void` and `tries` are its own, the rest is `more`."""
    spread = list(value) if isinstance(value, Sequence) else [value] * 3
    own = {name: more.pop(name) for name in ("control", "void", "tries") if name in more}
    return {"value": spread, **own, "more": more}


def failed(error: object) -> Cell:
    return {"error": str(error)}


def is_valid(found: Cell) -> bool:
    return "error" not in found and not found.get("void")


def figure(value: float) -> str:
    """Write a figure with about three digits."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 or value == int(value) else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def cell_text(found: Cell) -> str:
    """Write a cell in one line."""
    if "error" in found:
        return f"-  ({found['error']})"
    median, low, high = found["value"]
    text = f"{figure(median):>7}"
    if (low, high) != (median, median):
        text += f" ({figure(low)}-{figure(high)})"
    if "control" in found:
        text = f"{text:<24} floor to floor {found['control']:.3f}"
        text += ", VOID" if found["void"] else ""
        text += f", try {found['tries']}" if found["tries"] > 1 else ""
    return text + more_text(found["more"])


def more_text(more: Mapping[str, Any]) -> str:
    parts = (f"{name} {figure(value) if isinstance(value, (int, float)) else value}" for name, value in more.items())
    text = ", ".join(parts)
    return f"   {text}" if text else ""


def ordered(found: Row) -> list[str]:
    """Order a row's labels from best to worst; those without a figure last."""
    sign = 1 if found["better"] == "lower" else -1

    def place(label: str) -> tuple[bool, float]:
        one = found["cells"][label]
        return ("error" in one, 0.0 if "error" in one else sign * one["value"][0])

    return sorted(found["cells"], key=place)


def row_text(found: Row) -> str:
    """Write a row as a table, the best first."""
    lines = [f"{found['title']}: {found['unit']}, {found['better']} is better"]
    for label in ordered(found):
        mark = ">" if label.startswith(OURS) else " "
        lines.append(f" {mark} {label:<{WIDTH}}{cell_text(found['cells'][label])}")
    return "\n".join(lines)


def void_count(rows: Iterable[Row]) -> int:
    return sum(1 for found in rows for one in found["cells"].values() if one.get("void"))


def valid_count(rows: Iterable[Row], label: str = OURS) -> int:
    """Count the rows in which a label has a figure that can be used."""
    return sum(1 for found in rows if label in found["cells"] and is_valid(found["cells"][label]))


# Correctness

MARKS = {True: "yes", False: "NO", None: "?"}


def grid_text(probes: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Write the verdicts as a table, a column for each label; what each column is stands above."""
    numbers = {label: str(number) for number, label in enumerate(labels, 1)}
    lines = ["Correctness, from probes that ran (yes: right; NO: wrong; ?: no answer)"]
    lines += [f"  {number:>2} {label}" for label, number in numbers.items()]
    lines.append(f"{'':<38}" + "".join(f"{number:>5}" for number in numbers.values()))
    for name, probe in probes.items():
        verdicts = (MARKS[probe["verdicts"].get(label, {"good": None})["good"]] for label in labels)
        lines.append(f"{name:<38}" + "".join(f"{verdict:>5}" for verdict in verdicts))
    return "\n".join(lines)


def wrongs(probes: Mapping[str, Any], label: str) -> dict[str, dict[str, Any]]:
    """Return the verdicts on what a label does wrong, or gave no answer to."""
    return {
        name: probe["verdicts"][label]
        for name, probe in probes.items()
        if label in probe["verdicts"] and probe["verdicts"][label]["good"] is not True
    }


# In short

LEASE = "fewer Python instructions in connect(), close() and the check of each statement"

# What would close the gap where a peer is ahead, by the first word of a row's key.
REMEDIES = {
    "cold": "one statement less at each opening, which asks what a reset must come back to, and no change of threads",
    "spike": "a higher opening_limit, at the price of connections that nobody needs a moment later",
    "memory,": "less kept for each session: the attributes of a new connection, what is owed, ages",
    "import": "fewer modules imported at first, or later",
    "threads,": "fewer Python instructions for a turn: where threads take turns at one core, they are what counts",
    "fetch,": "fewer Python instructions for a row in the reader of replies",
    "wire,": "fewer packets to clean a session",
    "read,": f"{LEASE}; on one core the ROLLBACK costs the same whether it is waited for or not",
    "insert,": f"{LEASE}; and `DO LAST_INSERT_ID(0)`, without which a trigger or a view could tell",
}


def remedy(found: Row) -> str:
    return REMEDIES.get(found["key"].split()[0], LEASE)


def beaten(rows: Iterable[Row], same_driver: Iterable[str]) -> list[str]:
    """Name each row in which a peer over the same driver is better than we are: our figure, theirs, the remedy."""
    rivals = set(same_driver)
    found = []
    for one in rows:
        ours = one["cells"].get(OURS)
        if ours is None or not is_valid(ours):
            continue
        sign = 1 if one["better"] == "lower" else -1
        valid = [label for label in ordered(one) if label in rivals and is_valid(one["cells"][label])]
        values = {label: one["cells"][label]["value"][0] for label in valid}
        ahead = [f"{label} {figure(value)}" for label, value in values.items() if sign * (value - ours["value"][0]) < 0]
        if ahead:
            ours_text = figure(ours["value"][0])
            found.append(f"{one['title']}: {ours_text}; {', '.join(ahead)}. To close it: {remedy(one)}.")
    return found
