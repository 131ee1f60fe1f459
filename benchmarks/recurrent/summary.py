"""The README's tables on recurrent networks, from the rows of each suite."""

from typing import Any

from .. import tables
from ..rows import Row
from .training import MEAN_BITS


def recall(rows: list[Row]) -> str:
    """How many seeds solve it, and when."""
    heads = ("delayed recall: blanks", "T", "arm", "seeds solved", "batches needed", "bits at 5000, unsolved")
    lines = []
    for (blanks, horizon, arm), own in _by(rows, "blanks", "horizon"):
        batches = [str(next(iter(row["solved at"].values()))) for row in own if row["solved at"]]
        bits = [f"{row['bits']:.2f}" for row in own if not row["solved at"]]
        solved = f"{len(batches)} of {len(own)}"
        lines.append((blanks, horizon, arm, solved, ", ".join(batches) or "-", ", ".join(bits) or "-"))
    return tables.markdown(heads, lines)


def copy(rows: list[Row]) -> str:
    """Symbols solved in Copy."""
    return _symbols(rows, "Copy")


def repeat(rows: list[Row]) -> str:
    """Symbols solved in Repeat Copy."""
    return _symbols(rows, "Repeat Copy")


def characters(rows: list[Row]) -> str:
    """Bits per character on unseen text."""
    return _scores(sorted(rows, key=lambda row: row["horizon"]), MEAN_BITS, "King James Bible, LSTM 128, updates")


def mnist_rows(rows: list[Row]) -> str:
    """Test errors."""
    return _scores(rows, "test error %", "MNIST row by row, LSTM 64, batches")


def _symbols(rows: list[Row], name: str) -> str:
    lines = [
        (horizon, arm, ", ".join(str(row["solved"]) for row in own), f"{min(row['iterations'] for row in own):,}")
        for (horizon, arm), own in _by(rows, "horizon")
    ]
    return tables.markdown((f"{name}: T", "arm", "symbols solved, by seed", "batches (least)"), lines)


def _scores(rows: list[Row], score: str, name: str) -> str:
    """Of finished jobs only, since the others have seen less."""
    lines = []
    for (horizon, arm), own in tables.groups(_whole(rows), "horizon", "arm").items():
        values = ", ".join(f"{row[score]:.3f}" for row in sorted(own, key=lambda row: row["seed"]))
        batches, skipped = min(row["iterations"] for row in own), sum(row["skipped"] for row in own)
        lines.append((f"{batches:,}", horizon, arm, values, skipped))
    return tables.markdown((name, "T", "arm", f"{score}, by seed", "windows skipped"), lines)


def _whole(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["iterations"] >= row["most"]]


def _by(rows: list[Row], *settings: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """The rows by settings, in the order of these, and by arm."""
    return sorted(tables.groups(rows, *settings, "arm").items(), key=lambda group: group[0][:-1])
