"""Learning curves as an SVG picture: against data seen, and against time."""

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN = 460, 300, 48
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
SHOWN = {"copy": (2, "symbols solved"), "repeat": (2, "symbols solved"), "recall": (3, "bits of error per bit"),
         "characters": (4, "bits per character, unseen text"), "rows": (4, "test error, %")}  # fmt: skip


def draw(suite: str, rows: list[dict[str, Any]], file: Path) -> None:
    """Two panels, a line for every job, a colour for every arm; written to `file`."""
    column, said = SHOWN[suite]
    lines([(_arm(row), [point for point in row["curve"] if len(point) > column]) for row in rows], column, said, file)


def lines(found: list[tuple[str, list[Any]]], column: int, said: str, file: Path) -> None:
    """Two panels of curves, each with its arm's name: points begin with iterations and seconds."""
    arms = list(dict.fromkeys(arm for arm, _ in found))
    panels = [_panel(found, arms, at, column, i) for i, at in enumerate((0, 1))]
    names = "".join(
        f'<text x="{2 * WIDTH + 12}" y="{30 + 18 * i}" fill="{COLOURS[i % len(COLOURS)]}">{escape(arm)}</text>'
        for i, arm in enumerate(arms)
    )
    size = f'width="{2 * WIDTH + 240}" height="{HEIGHT}"'
    title = f'<text x="8" y="16">{escape(said)}</text>'
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        f'<rect {size} fill="white"/>{title}{"".join(panels)}{names}</svg>\n'
    )


def _arm(row: dict[str, Any]) -> str:
    blanks = f", D={row['blanks']}" if "blanks" in row else ""
    return f"{row['arm']}, T={row['horizon']}{blanks}"


def _panel(lines: list[tuple[str, list[Any]]], arms: list[str], at: int, column: int, place: int) -> str:
    """One panel: its axes, the largest value on each, and the lines."""
    points = [point for _, line in lines for point in line]
    right = max((point[at] for point in points), default=1) or 1
    top = max((point[column] for point in points), default=1) or 1
    left, inner, tall = place * WIDTH + MARGIN, WIDTH - 1.5 * MARGIN, HEIGHT - 2 * MARGIN

    def x(value: float) -> float:
        return left + inner * value / right

    def y(value: float) -> float:
        return HEIGHT - MARGIN - tall * value / top

    drawn = [
        f'<polyline fill="none" stroke="{COLOURS[arms.index(arm) % len(COLOURS)]}" stroke-opacity="0.8" points="'
        + " ".join(f"{x(p[at]):.1f},{y(p[column]):.1f}" for p in line) + '"/>'
        for arm, line in lines
    ]  # fmt: skip
    axes = f'<path d="M{left} {MARGIN}V{HEIGHT - MARGIN}H{left + inner}" fill="none" stroke="#333"/>'
    unit = "iterations" if at == 0 else "seconds"
    texts = [(left - 8, MARGIN, f"{top:.3g}", "end"), (left - 8, HEIGHT - MARGIN, "0", "end"),
             (left + inner, HEIGHT - MARGIN + 16, f"{right:.6g} {unit}", "end")]  # fmt: skip
    labels = "".join(f'<text x="{a}" y="{b}" text-anchor="{anchor}">{t}</text>' for a, b, t, anchor in texts)
    return axes + labels + "".join(drawn)
