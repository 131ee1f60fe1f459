"""The tables of the README on networks of models, from the results."""

import json
from collections.abc import Callable
from typing import Any

from .timing import RESULTS

Row = dict[str, Any]
RATES = (1.0, 0.5, 0.2, 0.05)  # p_update


def networks() -> str:
    """All tables whose results are there, as Markdown."""
    makers: dict[str, Callable[[list[Row]], str]] = {
        "asynchrony": _asynchrony,
        "two_clocks": _two_clocks,
        "network_size": _size,
    }
    files = ((RESULTS / f"{name}.json", make) for name, make in makers.items())
    return "\n".join(make(json.loads(file.read_text())["rows"]) for file, make in files if file.exists())


def _asynchrony(rows: list[Row]) -> str:
    """Test errors by arm and p; below, what the arms reach on the data they learn from."""
    data, rates = ", ".join(dict.fromkeys(row["data"] for row in rows)), [f"p = {p:g}" for p in RATES]
    lines, losses = [], []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        some = [[row for row in rows if (row["arm"], row["p"]) == (arm, p)] for p in RATES]
        lines.append(_line((arm, *(_over_seeds(found, "test error %", ".2f") for found in some))))
        losses.append(_line((arm, *(_over_seeds(found, "train loss", ".3f") for found in some))))
    errors = f"4 layers, every layer cut, {data}: test error %, mean (least-most), seeds"
    return f"{_table((errors, *rates), lines)}\n{_table(('the same runs: train loss', *rates), losses)}"


def _two_clocks(rows: list[Row]) -> str:
    heads = ("two clocks, accuracy %: mean (least-most), seeds", "A, odd of 4", "B, threes of 16")
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        some = [row for row in rows if row["arm"] == arm]
        lines.append(_line((arm, *(_over_seeds(some, f"{who} accuracy %", ".1f") for who in "AB"))))
    return _table(heads, lines)


def _size(rows: list[Row]) -> str:
    heads = ("small agents, one thread", "agents", "links", "a tick", "per link", "x 100 agents", "wiring", "start")
    lines = []
    for row in rows:
        ratios = [f"{row[f'{what}, ratio']:.2f}" for what in ("tick", "wiring", "start")]
        cells = (row["arm"], f"{row['agents']:,}", f"{row['links']:,}", f"{row['tick, ms']:,.0f} ms")
        lines.append(_line((*cells, f"{row['tick, us/link']:.0f} us", *ratios)))
    return _table(heads, lines)


def _over_seeds(rows: list[Row], score: str, form: str) -> str:
    """The mean, the least and the most of a score, and over how many seeds."""
    if not rows:
        return "-"
    found = [row[score] for row in rows]
    mean, least, most = (format(value, form) for value in (sum(found) / len(found), min(found), max(found)))
    return f"{mean} ({least}-{most}), {len(found)}"


def _line(cells: tuple[Any, ...]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _table(heads: tuple[str, ...], lines: list[str]) -> str:
    return "\n".join([_line(heads), "|" + "---|" * len(heads), *lines]) + "\n"
