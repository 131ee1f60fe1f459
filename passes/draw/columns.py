"""Where everything stands: columns of rows of boxes, and the lines between them, in pixels from the upper left.

A long chain is folded into columns, wherever only one line goes on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from .items import Net
from .rows import GAP, Box, arranged
from .wires import Column, Wire, routed

MARGIN = 28.0
GUTTER = 64.0  # between columns
LONG_CHAIN = 10  # parts in a column before it is worth folding


@dataclass(frozen=True)
class Picture:
    """Boxes and wires with their places."""

    title: str
    subtitle: str
    width: float
    height: float
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]


def place(graph: Net) -> Picture:
    """Give everything in `graph` its place.

    Guarantees:
        No two boxes overlap, and no wire runs through a box.
        The same graph gives the same places.
    """
    columns: list[Column] = []
    right = MARGIN
    for keys in _folded(graph):
        column = routed(arranged(_part_of(graph, keys)), top=GAP if columns else 0.0)
        columns.append(column.moved(right - column.left))
        right = columns[-1].right + GUTTER
    boxes = [box for column in columns for box in column.boxes]
    wires = [wire for column in columns for wire in column.wires] + _folds(graph, columns)
    height = max((box.bottom for box in boxes), default=0.0) + (GAP if len(columns) > 1 else 0)
    width = right - GUTTER + MARGIN if columns else 2 * MARGIN
    title, subtitle = graph.graph["title"], graph.graph["subtitle"]
    rounded = [wire.rounded() for wire in wires]
    return Picture(title, subtitle, round(width, 1), round(height, 1), tuple(boxes), tuple(rounded))


def _folded(graph: Net) -> list[list[str]]:
    """The keys of each column, layer after layer; one column unless there are many rows of parts."""
    rows: dict[int, list[str]] = {}
    for key, layer in graph.nodes(data="layer"):
        rows.setdefault(layer, []).append(key)
    most = _rows_of_parts(sum(layer % 2 for layer in rows))
    columns: list[list[str]] = []
    filled = most
    for layer in sorted(rows):
        if filled >= most and (not columns or _one_line_goes_on(graph, layer)):
            columns.append([])
            filled = 0
        columns[-1] += rows[layer]
        filled += layer % 2
    return columns


def _rows_of_parts(count: int) -> int:
    """How many rows of parts a column takes so that the page is a little wider than high."""
    return count if count <= LONG_CHAIN else math.ceil(count / max(2, round(math.sqrt(0.75 * count))))


def _one_line_goes_on(graph: Net, layer: int) -> bool:
    """Whether all that comes into this row of parts, or passes it, is one crossing of the row before."""
    at = graph.nodes
    over = [a for a, b in graph.edges if at[a]["layer"] < layer <= at[b]["layer"]]
    return layer % 2 == 1 and len(over) == 1 and at[over[0]]["item"].kind == "crossing"


def _part_of(graph: Net, keys: Sequence[str]) -> Net:
    """A subgraph whose order is the plan's: networkx's own views go through a set."""
    result: Net = nx.DiGraph()
    result.add_nodes_from((key, graph.nodes[key]) for key in keys)
    result.add_edges_from((a, b) for a, b in graph.edges if a in result and b in result)
    return result


def _folds(graph: Net, columns: Sequence[Column]) -> list[Wire]:
    """The lines from the foot of a column, up between the columns, to the head of the next."""
    column_of = {box.item.key: index for index, column in enumerate(columns) for box in column.boxes}
    box_of = {box.item.key: box for column in columns for box in column.boxes}
    wires = []
    for a, b in graph.edges:
        if column_of[a] != column_of[b]:
            foot = max(box.bottom for box in columns[column_of[a]].boxes) + GAP / 2
            wires.append(_fold(box_of[a], box_of[b], foot, columns[column_of[b]].left - GUTTER / 2))
    return wires


def _fold(source: Box, target: Box, foot: float, between: float) -> Wire:
    head = target.top - GAP / 2
    down = ((source.middle, source.bottom), (source.middle, foot), (between, foot))
    up = ((between, head), (target.middle, head), (target.middle, target.top))
    return Wire(source.item.key, target.item.key, down + up, source.item.style)
