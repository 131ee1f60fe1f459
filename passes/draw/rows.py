"""Boxes in rows: how large each is, in which order they stand, and how far to the right.

Rows are ordered and aligned by the mean of their neighbours: Sugiyama, Tagawa, Toda (1981).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .items import Item, Net, short

SPACE = 30.0  # between the boxes of a row
GAP = 36.0  # between rows
PAD = 14.0  # between words and the edge of their box
NAME, LINE = 13.0, 11.0  # font sizes

_WIDTHS = {"ijl.,:;|'!()[] ": 0.38, 'frt-_/"·1': 0.55, "mwMW@%—…": 1.0}
_WIDTH = {char: width for chars, width in _WIDTHS.items() for char in chars}


@dataclass(frozen=True)
class Box:
    """An item and its rectangle."""

    item: Item
    left: float
    top: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.left + self.width / 2

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def moved(self, right: float, down: float = 0.0) -> "Box":
        return replace(self, left=round(self.left + right, 1), top=round(self.top + down, 1))


@dataclass(frozen=True)
class Rows:
    """A graph with a place from left to right for each of its nodes."""

    graph: Net
    rows: dict[int, list[str]]  # keys by layer, from left to right
    x: dict[str, float]  # the middle of each box
    size: dict[str, tuple[float, float]]

    def layer(self, key: str) -> int:
        return int(self.graph.nodes[key]["layer"])

    def item(self, key: str) -> Item:
        item: Item = self.graph.nodes[key]["item"]
        return item

    def half(self, key: str) -> float:
        return self.size[key][0] / 2

    def near(self, key: str, step: int) -> list[str]:
        """The neighbours in the row above (-1) or below (1)."""
        neighbours = self.graph.successors(key) if step > 0 else self.graph.predecessors(key)
        return [other for other in neighbours if self.layer(other) == self.layer(key) + step]

    def far(self, key: str) -> list[str]:
        """The readers beyond the row below."""
        return [other for other in self.graph.successors(key) if self.layer(other) > self.layer(key) + 1]

    def stands_aside(self, key: str) -> bool:
        """A crossing that nothing in the row below reads, or an output: it stands to the right of its row."""
        return self.item(key).kind in ("crossing", "output") and not self.near(key, 1)

    def makes_room(self, key: str) -> bool:
        """What stands aside, or an input that comes in further down: it does not pull others out of their line."""
        return self.stands_aside(key) or (self.item(key).kind == "input" and self.layer(key) > 0)


def arranged(graph: Net) -> Rows:
    """Order and align the boxes of each layer of `graph`.

    Guarantees:
        The boxes of a row keep their distance.
        A box stands under and over the middle of its neighbours as far as that leaves room.
    """
    keys: dict[int, list[str]] = {}
    for key, layer in graph.nodes(data="layer"):
        keys.setdefault(layer, []).append(key)
    size = {key: size_of(item) for key, item in graph.nodes(data="item")}
    rows = Rows(graph, dict(sorted(keys.items())), dict.fromkeys(graph, 0.0), size)
    _order(rows)
    _align(rows)
    return rows


def size_of(item: Item) -> tuple[float, float]:
    """The width and height of the box that holds the item's words."""
    name = length(short(item.name), NAME) * 1.06  # bold
    width = max([name, *(length(line, LINE) for line in item.lines)]) + 2 * PAD
    least = 190.0 if item.kind == "part" else 60.0
    height = 26.0 + 16.0 * len(item.lines) + (10.0 if item.kind == "part" else 0.0)
    return 2.0 * math.ceil(max(width, least) / 2), height  # even, so that middles are whole


def length(words: str, font: float) -> float:
    """How wide the words are at most, in the usual fonts without serifs."""
    return font * sum(_WIDTH.get(char, 0.73 if char.isupper() or ord(char) > 0x2000 else 0.64) for char in words)


def spread(
    wants: Sequence[float],
    apart: Sequence[float],
    weights: Sequence[float],
    low: float = -math.inf,
    high: float = math.inf,
) -> list[float]:
    """The places nearest to `wants`, in weighted squares, that keep the order and the distances `apart`.

    All lie between `low` and `high`, which must leave room for the distances.

    Source: pool adjacent violators, Ayer et al. (1955).
    """
    offsets = [sum(apart[:index]) for index in range(len(wants))]
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for want, offset, weight in zip(wants, offsets, weights, strict=True):
        mean, heavy, count = want - offset, weight, 1
        while pools and pools[-1][0] >= mean:
            other, more, members = pools.pop()
            mean = (mean * heavy + other * more) / (heavy + more)
            heavy, count = heavy + more, count + members
        pools.append((mean, heavy, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    most = high - sum(apart)
    return [min(max(mean, low), most) + offset for mean, offset in zip(means, offsets, strict=True)]


def _order(rows: Rows) -> None:
    for row in rows.rows.values():
        _number(rows, row)
    for step in (-1, 1) * 4:
        for layer in sorted(rows.rows, reverse=step > 0):
            _sort(rows, rows.rows[layer], step)


def _sort(rows: Rows, row: list[str], step: int) -> None:
    row.sort(key=lambda key: (rows.stands_aside(key), _mean(rows, key, [step])))
    _number(rows, row)


def _number(rows: Rows, row: Sequence[str]) -> None:
    rows.x.update({key: index - (len(row) - 1) / 2 for index, key in enumerate(row)})


def _align(rows: Rows) -> None:
    for row in rows.rows.values():
        _settle(rows, row, [0.0] * len(row))
    for steps in [[-1], [1]] * 6 + [[-1, 1]] * 4 + [[-1]]:
        for layer in sorted(rows.rows, reverse=steps == [1]):
            row = rows.rows[layer]
            _settle(rows, row, [_mean(rows, key, steps) for key in row])


def _mean(rows: Rows, key: str, steps: Sequence[int]) -> float:
    near = [other for step in steps for other in rows.near(key, step)]
    straight = [other for other in near if not rows.makes_room(other)] or near
    return sum(rows.x[other] for other in straight) / len(straight) if straight else rows.x[key]


def _settle(rows: Rows, row: Sequence[str], wants: Sequence[float]) -> None:
    apart = [rows.half(a) + rows.half(b) + SPACE for a, b in pairwise(row)]
    weights = [1e-6 if rows.makes_room(key) else 1.0 for key in row]
    rows.x.update(zip(row, spread(wants, apart, weights), strict=True))
