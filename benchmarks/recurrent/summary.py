"""The tables of the README on recurrent networks, from the results."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from ..timing import RESULTS

Row = dict[str, Any]
LAST = 5  # evaluations, one every 1000 updates
BITS = f"bits per character, mean of the last {LAST} evaluations"


def tables() -> str:
    """All tables whose results are there, as Markdown."""
    makers: dict[str, Callable[[list[Row]], str]] = {
        "recurrent_recall": _recall,
        "recurrent_copy": lambda rows: _copy(rows, "Copy"),
        "recurrent_repeat": lambda rows: _copy(rows, "Repeat Copy"),
        "recurrent_characters": lambda rows: _characters(rows, "King James Bible, LSTM 128, updates"),
        "recurrent_rows": lambda rows: _scores(rows, "test error %", "MNIST row by row, LSTM 64, updates"),
        "window_time": _time,
    }
    files = ((RESULTS / f"{name}.json", make) for name, make in makers.items())
    return "\n".join(make(json.loads(file.read_text())["rows"]) for file, make in files if file.exists())


def _recall(rows: list[Row]) -> str:
    lines = []
    for blanks, arm in sorted(_order((row["blanks"], row["arm"]) for row in rows), key=lambda key: int(key[0])):
        some = [row for row in rows if (row["blanks"], row["arm"]) == (blanks, arm)]
        when = [str(next(iter(row["solved at"].values()))) for row in some if row["solved at"]]
        left = [f"{row['bits']:.2f}" for row in some if not row["solved at"]]
        cells = (blanks, arm, f"{len(when)} of {len(some)}", ", ".join(when) or "-", ", ".join(left) or "-")
        lines.append(_line(cells))
    heads = "delayed recall, T=3: blanks", "arm", "seeds solved", "batches needed", "bits at 5000, unsolved"
    return _table(heads, lines)


def _copy(rows: list[Row], name: str) -> str:
    lines = []
    for horizon, arm in sorted(_order((row["horizon"], row["arm"]) for row in rows), key=lambda key: int(key[0])):
        some = [row for row in rows if (row["horizon"], row["arm"]) == (horizon, arm)]
        solved = ", ".join(str(row["solved"]) for row in some)
        least = min(row["iterations"] for row in some)
        lines.append(_line((horizon, arm, solved, f"{least:,}")))
    return _table((f"{name}: T", "arm", "symbols solved, by seed", "batches (least)"), lines)


def _characters(rows: list[Row], name: str) -> str:
    """The mean of the last evaluations: a single one swings by more than arms differ."""
    for row in rows:
        scores = [point[4] for point in row["curve"]][-LAST:]
        row[BITS] = sum(scores) / len(scores)
    return _scores(sorted(rows, key=lambda row: row["horizon"]), BITS, name)


def _scores(rows: list[Row], score: str, name: str) -> str:
    """Of jobs that have come to their end: others have seen less."""
    rows, lines = [row for row in rows if row["iterations"] >= row["most"]], []
    for horizon, arm in _order((row["horizon"], row["arm"]) for row in rows):
        some = [row for row in rows if (row["horizon"], row["arm"]) == (horizon, arm)]
        found = ", ".join(f"{row[score]:.3f}" for row in sorted(some, key=lambda row: row["seed"]))
        updates = min(row["iterations"] for row in some)
        lines.append(_line((f"{updates:,}", horizon, arm, found, sum(row["skipped"] for row in some))))
    return _table((name, "T", "arm", f"{score}, by seed", "windows skipped"), lines)


def _time(rows: list[Row]) -> str:
    lines = [_line((row["arm"], f"{row['ratio']:.2f} ({row['ratio quartiles']})")) for row in rows]
    return _table(("a window of 8 steps, LSTM 256, batch 32", "time x by hand (quartiles)"), lines)


def _order(keys: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(keys))


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _table(heads: tuple[str, ...], lines: list[str]) -> str:
    return "\n".join([_line(heads), "|" + "---|" * len(heads), *lines]) + "\n"
