"""Learning curves: kept apart from the rows, and drawn as pictures by `python -m benchmarks curves`.

A curve is a list of points, each of which begins with batches and seconds. They lie in `results/curves/`, a file for
each benchmark, a line for each row: {"key": what makes it that row, "points": [...]}, compressed.
"""

import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from . import rows
from .rows import Row

Point = list[float]
Curve = tuple[Row, list[Point]]  # the key of a row, and its points
DIGITS = 4  # significant ones, enough for a picture; no table is made from curves
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
DASHES = ("-", "--", ":")  # for arms beyond the colours
# For each benchmark with curves: which number of a point is shown, and what it is.
SHOWN = {
    "recurrent_recall": (3, "bits of error per bit"),
    "recurrent_copy": (2, "symbols solved"),
    "recurrent_repeat": (2, "symbols solved"),
    "recurrent_characters": (4, "bits per character, unseen text"),
    "recurrent_rows": (4, "test error, %"),
    "two_clocks": (3, "accuracy of B, %"),
}


def curves(name: str) -> Path:
    """The file of a benchmark's curves."""
    return rows.RESULTS / "curves" / f"{name}.jsonl.gz"


def read(name: str) -> list[Curve]:
    """All curves of a benchmark."""
    file = curves(name)
    lines = gzip.decompress(file.read_bytes()).decode().splitlines() if file.exists() else []
    return [(line["key"], line["points"]) for line in map(json.loads, lines)]


def put(name: str, key: Row, points: list[Point]) -> None:
    """One curve, in place of the one with the same key, else as the last one."""
    kept = read(name)
    places = [i for i, (other, _) in enumerate(kept) if other == key]
    place = places[0] if places else len(kept)
    kept[place : place + 1] = [(key, rows.rounded(points, DIGITS))]
    lines = "".join(json.dumps({"key": key, "points": points}) + "\n" for key, points in kept)
    rows.save(curves(name), gzip.compress(lines.encode(), mtime=0))  # no time: the same curves are the same file


def draw(name: str, file: Path) -> None:
    """Two panels, against batches and against seconds: a line for every row, a style for every arm.

    Guarantees:
        The same curves make the same file, byte by byte.
    """
    import matplotlib as mpl  # only pictures need it
    from matplotlib.figure import Figure

    column, score = SHOWN[name]
    styles: dict[str, dict[str, Any]] = {}  # by arm
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for arm, points in _lines(name, column):
            label = None if arm in styles else arm  # an arm has a line for each seed, and stands in the legend once
            turn, number = divmod(len(styles), len(COLOURS))
            style = styles.setdefault(arm, {"color": COLOURS[number], "linestyle": DASHES[turn % len(DASHES)]})
            for x, panel in enumerate(panels):
                y = [point[column] for point in points]
                panel.plot([point[x] for point in points], y, label=label, alpha=0.8, linewidth=1, **style)
        for panel, unit in zip(panels, ("batches", "seconds"), strict=True):
            panel.set_xlabel(unit)
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(score)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        picture = io.StringIO()
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    file.write_text(_compact(picture.getvalue()))


def _compact(picture: str) -> str:
    """The picture in one line, its coordinates to a hundredth of a point: a third of the size."""
    return " ".join(re.sub(r"(\.\d\d)\d+", r"\1", picture).split()) + "\n"


def _lines(name: str, column: int) -> Iterator[tuple[str, list[Point]]]:
    """The arm of each curve as the legend calls it, and the points that have the number that is shown."""
    for key, points in read(name):
        settings = [f"{sign}={key[setting]}" for setting, sign in (("horizon", "T"), ("blanks", "D")) if setting in key]
        yield ", ".join((key["arm"], *settings)), [point for point in points if len(point) > column]


@click.command()
def main() -> None:
    """Draw the curves of all benchmarks that have some, as SVG, beside them."""
    for name in SHOWN:
        if curves(name).exists():
            draw(name, curves(name).with_name(f"{name}.svg"))
