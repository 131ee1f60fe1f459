"""Places to SVG: plain shapes and words that any browser, editor or paper takes."""

import re
import zlib
from collections.abc import Iterator, Sequence
from html import escape

from .columns import MARGIN, Picture
from .items import Item, short
from .rows import LINE, NAME, PAD, Box, length
from .wires import Point, Wire

HEADER = 78.0
CORNER = 7.0

INK, SOFT, LINE_INK, PAPER = "#1e293b", "#64748b", "#64748b", "#fbfcfe"
Colours = tuple[str, str]  # of the face, of the edge
_ENDS: Colours = ("#e2e8f0", "#94a3b8")
_PART: Colours = ("#ffffff", "#334155")
_BOUNDARIES: dict[str, Colours] = {
    "dni": ("#eef2ff", "#6366f1"),
    "oracle": ("#ecfdf5", "#10b981"),
    "local-loss": ("#fff7ed", "#f97316"),
    "boundary": ("#f5f3ff", "#a78bfa"),
    "as it is": ("#f8fafc", "#94a3b8"),
}
_FURTHER: tuple[Colours, ...] = (
    ("#fdf2f8", "#ec4899"),
    ("#ecfeff", "#06b6d4"),
    ("#fefce8", "#ca8a04"),
    ("#f7fee7", "#65a30d"),
    ("#fff1f2", "#e11d48"),
)

_STYLE = f"""
.dnigraph text {{ font-family: Inter, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; fill: {INK} }}
.dnigraph .title {{ font-size: 17px; font-weight: 600 }}
.dnigraph .name {{ font-size: {NAME:g}px; font-weight: 600 }}
.dnigraph .line {{ font-size: {LINE:g}px; fill: #475569 }}
.dnigraph .wire {{ fill: none; stroke-width: 1.5 }}
.dnigraph g:hover > .wire {{ stroke-width: 3 }}
"""


def svg(picture: Picture) -> str:
    """The picture as one SVG document; every box and line has a tooltip."""
    legend = list(_legend(picture))
    width = max(picture.width, MARGIN * 2 + length(picture.title, 17.0), 420.0)
    across = (width - picture.width) / 2
    rows = _in_rows(legend, width - 2 * MARGIN)
    height = HEADER + picture.height + MARGIN + 24.0 * len(rows) + MARGIN / 2
    name_of = {box.item.key: box.item.name for box in picture.boxes}
    body = [
        _text(MARGIN, 34, picture.title, "title"),
        _text(MARGIN, 53, picture.subtitle, "line"),
        f'<g transform="translate({across:.1f} {HEADER:g})">',
        *(_wire(wire, name_of) for wire in sorted(picture.wires, key=lambda wire: not wire.back)),
        *(_box(box) for box in picture.boxes),
        "</g>",
        *_legend_rows(rows, HEADER + picture.height + MARGIN),
    ]
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="dnigraph" {size} role="img">',
            f"<title>{escaped(picture.title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect width="100%" height="100%" fill="{PAPER}"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def colours(item: Item) -> Colours:
    """The colours of an item; a boundary of one name has the same ones in every drawing."""
    if item.kind != "crossing":
        return _PART if item.kind == "part" else _ENDS
    return _BOUNDARIES.get(item.style) or _FURTHER[zlib.crc32(item.style.encode()) % len(_FURTHER)]


def escaped(words: str) -> str:
    """Words as XML takes them: special characters as entities, those that XML forbids as a box."""
    return escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{WHITE SQUARE}", words))


def _text(x: float, y: float, words: str, look: str, middle: bool = False) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{look}"{anchor}>{escaped(words)}</text>'


# ------------------------------------------------------------------------------------------------ boxes


def _box(box: Box) -> str:
    """The frame, the words, and for a part a bar: how much of the model's parameters it holds."""
    item = box.item
    face, edge = colours(item)
    radius = {"part": 6.0, "crossing": 12.0}.get(item.kind, box.height / 2)
    dashes = "" if item.asked else ' stroke-dasharray="6 4"'
    size = f'x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:.1f}"'
    frame = f'<rect {size} fill="{face}" stroke="{edge}" stroke-width="1.4"{dashes}/>'
    lines = ["<g>", f"<title>{escaped(item.tip)}</title>", frame]
    lines.append(_text(box.middle, box.top + 18, short(item.name), "name", middle=True))
    for index, line in enumerate(item.lines):
        lines.append(_text(box.middle, box.top + 34 + 16 * index, line, "line", middle=True))
    if item.share is not None:
        x, y, width = box.left + PAD, box.bottom - 10, box.width - 2 * PAD
        for long, fill in ((width, "#e2e8f0"), (width * item.share, "#38bdf8")):
            lines.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{long:.1f}" height="4" rx="2" fill="{fill}"/>')
    return "\n".join([*lines, "</g>"])


# ------------------------------------------------------------------------------------------------ lines


def _wire(wire: Wire, name_of: dict[str, str]) -> str:
    """A line with its arrow head; it ends going straight down, or up where it is a gradient."""
    tip = f"{'gradient: ' if wire.back else ''}{name_of[wire.source]} → {name_of[wire.target]}"
    colour = _line_colour(wire.style, wire.back)
    dashes = ' stroke-dasharray="2 3"' if wire.back else ' stroke-dasharray="6 4"' if wire.style == "as it is" else ""
    way = -1 if wire.back else 1
    (x, y), points = wire.points[-1], wire.points[:-1]
    points = (*points, (x, y - way * 6))
    run = _curve(points) if wire.curved else _corners(points)
    head = f"M{x - 4:.1f} {y - way * 8:.1f}L{x:.1f} {y - way * 1:.1f}L{x + 4:.1f} {y - way * 8:.1f}Z"
    line = f'<path class="wire" d="{run}" stroke="{colour}"{dashes}/><path d="{head}" fill="{colour}"/>'
    return f"<g><title>{escaped(tip)}</title>{line}</g>"


def _line_colour(style: str, back: bool) -> str:
    if back:
        return colours(Item("", "crossing", style, "", (), ""))[1]
    return "#94a3b8" if style == "as it is" else LINE_INK


def _curve(points: Sequence[Point]) -> str:
    """Straight, then an S from the foot of one row to the head of the next, then straight."""
    (a, b), (c, d), (e, f), (g, h) = points
    half = (d + f) / 2
    return f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}C{c:.1f} {half:.1f} {e:.1f} {half:.1f} {e:.1f} {f:.1f}L{g:.1f} {h:.1f}"


def _corners(points: Sequence[Point]) -> str:
    """Straight runs whose corners are rounded."""
    path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(CORNER, _distance(before, corner) / 2, _distance(corner, after) / 2)
        (a, b), (c, d) = _towards(corner, before, radius), _towards(corner, after, radius)
        path.append(f"L{a:.1f} {b:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {c:.1f} {d:.1f}")
    return "".join([*path, f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"])


def _distance(one: Point, other: Point) -> float:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])  # runs are level or upright


def _towards(start: Point, end: Point, far: float) -> Point:
    share = far / (_distance(start, end) or 1.0)
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


# ----------------------------------------------------------------------------------------------- legend

Entry = tuple[str, str]  # a sample as SVG in a field of 34 x 16, and its words


def _legend(picture: Picture) -> Iterator[Entry]:
    """What each look means: only those that the picture has."""
    items = [box.item for box in picture.boxes]
    if any(item.kind in ("input", "output") for item in items):
        yield _sample(_ENDS, 8), "input or output of the model"
    if any(item.kind == "part" for item in items):
        bar = '<rect x="5" y="9" width="24" height="3" rx="1.5" fill="#e2e8f0"/>'
        bar += '<rect x="5" y="9" width="10" height="3" rx="1.5" fill="#38bdf8"/>'
        yield _sample(_PART, 3) + bar, "part, and its share of parameters"
    for style, item in {item.style: item for item in items if item.kind == "crossing"}.items():
        yield _sample(colours(item), 6), _meaning(style)
    if not all(item.asked for item in items):
        yield _sample(("#ffffff", SOFT), 6, ' stroke-dasharray="5 3"'), "goes around the cuts, cut too"
    if any(wire.style not in ("plain", "as it is") for wire in picture.wires):
        yield _stroke(LINE_INK, ""), "value"
    if any(wire.style == "as it is" for wire in picture.wires):
        yield _stroke("#94a3b8", "6 4"), "value without a gradient"
    if backs := [wire for wire in picture.wires if wire.back]:
        yield _stroke(_line_colour(backs[0].style, True), "2 3"), "gradient handed back"


def _meaning(style: str) -> str:
    if style == "as it is":
        return "crossing as it is, no gradient"
    return "crossing, any boundary" if style == "boundary" else f"crossing, {style} boundary"


def _sample(look: Colours, radius: float, more: str = "") -> str:
    return f'<rect x="1" y="1" width="32" height="14" rx="{radius:g}" fill="{look[0]}" stroke="{look[1]}"{more}/>'


def _stroke(colour: str, dashes: str) -> str:
    return f'<path d="M1 8H33" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes or "none"}"/>'


def _in_rows(entries: Sequence[Entry], width: float) -> list[list[tuple[float, Entry]]]:
    """The entries in rows and columns no wider than `width`, each with its place from the left."""
    cell = max((42 + length(words, LINE) + 14 for _, words in entries), default=1.0)
    across = max(1, int(width / cell))
    placed = [(index % across * cell, entry) for index, entry in enumerate(entries)]
    return [placed[start : start + across] for start in range(0, len(placed), across)]


def _legend_rows(rows: Sequence[Sequence[tuple[float, Entry]]], top: float) -> Iterator[str]:
    for index, row in enumerate(rows):
        for x, (sample, words) in row:
            yield f'<g transform="translate({MARGIN + x:.1f} {top + 24 * index:.1f})">{sample}'
            yield _text(42, 12, words, "line") + "</g>"
