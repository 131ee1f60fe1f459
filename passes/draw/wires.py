"""Lines that run through no box.

        ┌ part ┐            a row of parts
        └─┬──┬─┘
       ┌──┴┐┌┴──┐           a row of crossings
       └──┬┘└┬──┘
          │  └──────┐       a line that skips rows leaves through the gap under its row,
       ┌──┴─┐       │       runs down a lane beside all boxes,
       └──┬─┘       │
          │  ┌──────┘       and comes back through the gap above its reader
        ┌─┴──┴─┐

A line runs only in gaps and lanes, where no box ever is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .rows import GAP, SPACE, Box, Rows, spread

RUN = 11.0  # between lines that run side by side
PORT = 20.0  # between lines that meet one edge of a box
INSET = 14.0  # from the corner of a box to its outermost line
BACK = 9.0  # from a line to the gradient that comes back beside it
ROOM = 44.0  # what a gap gains at most where lines cross it far to the side

Point = tuple[float, float]


@dataclass(frozen=True)
class Wire:
    """A line between two items, as the corners that it passes; `curved` where it goes to the row below."""

    source: str
    target: str
    points: tuple[Point, ...]
    style: str  # of the crossing that it belongs to, else "plain"
    curved: bool = False
    back: bool = False  # the gradient that a boundary hands to the producer

    def moved(self, right: float, down: float = 0.0) -> "Wire":
        return replace(self, points=tuple((x + right, y + down) for x, y in self.points))

    def rounded(self) -> "Wire":
        return replace(self, points=tuple((round(x, 1), round(y, 1)) for x, y in self.points))


@dataclass(frozen=True)
class Column:
    """Boxes and wires, and how far they reach."""

    left: float
    right: float
    boxes: list[Box]
    wires: list[Wire]

    def moved(self, right: float) -> "Column":
        boxes, wires = [box.moved(right) for box in self.boxes], [wire.moved(right) for wire in self.wires]
        return Column(self.left + right, self.right + right, boxes, wires)


@dataclass(frozen=True)
class Track:
    """A line that skips rows: from one box down a lane to its readers."""

    source: str
    readers: tuple[str, ...]
    first: int  # the layers between which the lane is taken
    last: int
    side: int  # -1: left of all boxes, 1: right
    lane: int  # 0 is next to the boxes
    x: float

    def overlaps(self, other: "Track") -> bool:
        return self.side == other.side and self.first <= other.last and other.first <= self.last


def routed(rows: Rows, top: float) -> Column:
    """Stack the rows from `top` down, each gap as high as its lines need, and draw the lines.

    Guarantees:
        No line runs through a box; the lines in lanes and gaps never run on top of each other.
    """
    router = _Router(rows, top)
    sides = [rows.x[key] + sign * rows.half(key) for key in rows.x for sign in (-1, 1)]
    sides += [track.x for track in router.tracks]
    wires = [*router.straight(), *router.skipping()]
    return Column(min(sides), max(sides), list(router.boxes.values()), wires)


class _Router:
    """Gives rows their height and lines their way, in this order: lanes, ports, gaps, boxes, lines."""

    def __init__(self, rows: Rows, top: float):
        self.rows = rows
        self.tracks = laid(rows)
        # (a box, its lower (1) or upper (-1) edge) -> x of its lines, by the item at the other end
        self.ports = {(key, step): self._ports(key, step) for key in rows.x for step in (-1, 1)}
        self.tops: dict[int, float] = {}  # of each row
        self.feet: dict[int, float] = {}
        self.runs: dict[tuple[str, int], float] = {}  # (a track's source, the layer above a gap) -> y of its run there
        self.boxes: dict[str, Box] = {}
        for layer, row in rows.rows.items():
            self.tops[layer] = top
            tallest = max(rows.size[key][1] for key in row)
            self.feet[layer] = top + tallest
            for key in row:
                width, height = rows.size[key]
                down = top + (tallest - height) / 2
                self.boxes[key] = Box(rows.item(key), rows.x[key] - width / 2, down, width, height)
            top = self.feet[layer] + self._gap(layer, row)

    def _ports(self, key: str, step: int) -> dict[str, float]:
        """A line that skips rows leaves through one port, under its own key."""
        rows = self.rows
        middle, half = rows.x[key], rows.half(key) - INSET
        ends = [(rows.x[other], _aim(rows, key, other), other) for other in rows.near(key, step)]
        tracks = [t for t in self.tracks if (t.source == key if step > 0 else key in t.readers)]
        ends += [(track.x, track.x, track.source) for track in tracks]
        ends.sort(key=lambda end: end[0])
        wants = [min(max(aim, middle - half), middle + half) for _, aim, _ in ends]
        weights = [100.0 if abs(want - middle) < 2 else 1.0 for want in wants]  # an upright line stays upright
        apart = [min(PORT, half / max(1, len(ends)))] * (len(ends) - 1)
        places = spread(wants, apart, weights, middle - half, middle + half)
        return dict(zip((other for *_, other in ends), places, strict=True))

    def _gap(self, layer: int, row: list[str]) -> float:
        """The height of the gap under a row, with a run for each line in it, so that they cross each other least.

        First those that leave, the outer ones above; then those that come back, the inner ones above.
        """
        rows, ports = self.rows, self.ports
        leave = [t for t in sorted(self.tracks, key=lambda t: -t.lane) if t.first == layer]
        arrive = [t for t in sorted(self.tracks, key=lambda t: t.lane) if layer + 1 in map(rows.layer, t.readers)]
        for index, track in enumerate(leave + arrive):
            self.runs[track.source, layer] = self.feet[layer] + GAP / 2 + RUN * index
        count = len(leave + arrive)
        aside = max((abs(ports[a, 1][b] - ports[b, -1][a]) for a in row for b in rows.near(a, 1)), default=0.0)
        return GAP + max(RUN * max(0, count - 1) + (6.0 if count else 0.0), min(ROOM, 0.3 * aside))

    def straight(self) -> Iterator[Wire]:
        """The lines from each row to the row below, and beside them the gradients that come back."""
        for key, source in self.boxes.items():
            for other in self.rows.near(key, 1):
                target = self.boxes[other]
                x, to = self.ports[key, 1][other], self.ports[other, -1][key]
                foot, head = self.feet[self.rows.layer(key)], self.tops[self.rows.layer(other)]
                points = ((x, source.bottom), (x, foot), (to, head), (to, target.top))
                wire = Wire(key, other, points, style_of(source, target), curved=True)
                yield wire
                if target.item.kind == "crossing" and target.item.style != "as it is":
                    back = wire.moved(BACK)
                    yield replace(back, source=other, target=key, points=back.points[::-1], back=True)

    def skipping(self) -> Iterator[Wire]:
        """The lines that skip rows."""
        for track in self.tracks:
            key, source = track.source, self.boxes[track.source]
            x, leave = self.ports[key, 1][key], self.runs[key, track.first]
            for reader in track.readers:
                target, to = self.boxes[reader], self.ports[reader, -1][key]
                arrive = self.runs[key, self.rows.layer(reader) - 1]
                down = ((x, source.bottom), (x, leave), (track.x, leave))
                up = ((track.x, arrive), (to, arrive), (to, target.top))
                yield Wire(key, reader, down + up, style_of(source, target))


def laid(rows: Rows) -> list[Track]:
    """A lane for every line that skips rows: short ones inside, none on top of another."""
    left = min(rows.x[key] - rows.half(key) for key in rows.x)
    right = max(rows.x[key] + rows.half(key) for key in rows.x)
    tracks: list[Track] = []
    skipping = [(max(map(rows.layer, far)), key, far) for key in rows.x if (far := rows.far(key))]
    for last, key, far in sorted(skipping, key=lambda skip: skip[0] - rows.layer(skip[1])):
        mean = sum(rows.x[other] for other in (key, *far)) / (1 + len(far))
        side = -1 if mean < (left + right) / 2 - SPACE and not rows.stands_aside(key) else 1  # aside is to the right
        track = Track(key, tuple(far), rows.layer(key), last, side, 0, 0.0)
        taken = {other.lane for other in tracks if other.overlaps(track)}
        lane = min(set(range(len(taken) + 1)) - taken)
        edge = left if side < 0 else right
        tracks.append(replace(track, lane=lane, x=edge + side * (SPACE / 2 + RUN * lane)))
    return tracks


def _aim(rows: Rows, key: str, other: str) -> float:
    """Where a line from `key` to `other` wants to be: upright where one box stands over the other."""
    low = max(rows.x[end] - rows.half(end) + INSET for end in (key, other))
    high = min(rows.x[end] + rows.half(end) - INSET for end in (key, other))
    return (low + high) / 2 if low <= high else rows.x[other]


def style_of(source: Box, target: Box) -> str:
    """The style of the crossing at either end."""
    return next((box.item.style for box in (source, target) if box.item.kind == "crossing"), "plain")
