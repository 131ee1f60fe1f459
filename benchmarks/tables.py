"""Rows as tables: Markdown for the README, and for the console."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from .rows import Row


def markdown(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, its last line ended."""
    rule = "|" + "---|" * len(heads)
    return "\n".join((_line(heads), rule, *map(_line, lines))) + "\n"


def console(title: str, heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> Table:
    """A table for `rich`: the first column and every other one of words to the left, numbers to the right."""
    table, cells = Table(title=title), [tuple(line) for line in lines]
    for i, head in enumerate(heads):
        words = i == 0 or all(isinstance(line[i], str) for line in cells)
        table.add_column(head, justify="left" if words else "right")
    for line in cells:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in line))
    return table


def groups(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by their values under the names, in the order of the first row with each."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def spread(rows: Sequence[Row], score: str, form: str) -> str:
    """Mean, least and most of a score: "1.64 (1.53-1.71)"."""
    scores = [row[score] for row in rows]
    mean, least, most = (format(value, form) for value in (sum(scores) / len(scores), min(scores), max(scores)))
    return f"{mean} ({least}-{most})"


def over_seeds(rows: Sequence[Row], score: str, form: str) -> str:
    """The spread of a score, and over how many rows; a dash where there is none."""
    return f"{spread(rows, score, form)}, {len(rows)}" if rows else "-"


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
