"""Where a model can be cut, and what each cut would cost: a list to choose from, which prints as a table."""

import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text
from torch import fx, nn

from ..errors import CutError
from ..plan import plan as tables
from ..plan.partition import partition
from ..plan.plan import Crossing, Plan
from .balance import choose
from .names import Edge, Names, leaving

SUGGESTED = (2, 4)  # numbers of parts
ARROW = "->"  # between the ends of an edge
COLUMNS = (
    ("place", "words"),
    ("class", "words"),
    ("value", "fact"),
    ("tensors", "number"),
    ("size", "number"),
    ("parameters", "number"),
    ("FLOPs before", "number"),
    ("share", "number"),
)
NODES = (*COLUMNS, ("node", "words"))


@dataclass(frozen=True)
class CutPlace:
    """What a cut after one call of a module would be.

    Attributes:
        path: what to say as a cut: "blocks.3"; of a module that is called twice "blocks.3@1", "blocks.3@2".
        kind: the name of the module's class.
        node: the graph node whose value crosses; of several the first.
        shape, dtype: of that value, as in the example, batch first.
        tensors: how many values with a gradient cross, with those that go around the module.
        bytes: of all these.
        parameters: scalars in the module's parameters.
        flops: of one forward pass on the example, of all that comes before the cut.
        share: the same as a share of the whole model's FLOPs; None where nothing was counted.
    """

    path: str
    kind: str
    node: str
    shape: tuple[int, ...] | None
    dtype: str | None
    tensors: int
    bytes: int
    parameters: int
    flops: int
    share: float | None


@dataclass(frozen=True)
class Suggestion:
    """Cuts for so many parts of even cost, as `decouple` takes them: names, or edges (a, b) where a value is cut on the
    way to some of its readers alone. There are none where so many parts are not possible, and `note` says why.
    """

    parts: int
    cuts: tuple[str | tuple[str, str], ...]
    note: str


class Places(tuple[CutPlace, ...]):
    """All places in the order in which their values are made. `print(places)` shows the table."""

    model: str
    capture: str  # the rung of the capture ladder
    suggested: tuple[Suggestion, ...]

    def __str__(self) -> str:
        file = io.StringIO()
        Console(file=file, width=tables.WIDTH, color_system=None, force_terminal=False, force_jupyter=False).print(
            self.view()
        )
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip()

    def __rich__(self) -> RenderableType:
        return self.view()

    def view(self, nodes: bool = False) -> RenderableType:
        """The table as something that `rich` prints, with a column of node names if asked for."""
        head = f"{self.model}: {tables.counted(len(self), 'place')} to cut (capture: {self.capture})"
        width = len(NODES if nodes else COLUMNS)
        table = tables.grid(NODES[:width], (row[:width] for row in map(_row, self)))
        lines = [f"{tables.counted(s.parts, 'part')}: {_said(s)}" for s in self.suggested]
        return Group(Text(head), Text(""), table, Text(""), tables.bulleted(lines))

    def to_json(self) -> dict[str, Any]:
        """The places as plain data."""
        return {
            "model": self.model,
            "capture": self.capture,
            "places": [dataclasses.asdict(place) for place in self],
            "suggested": [dataclasses.asdict(suggestion) for suggestion in self.suggested],
        }


def _row(place: CutPlace) -> tuple[str, ...]:
    share = tables.UNKNOWN if place.share is None else f"{100 * place.share:.1f} %"
    crossing = Crossing(place.path, place.node, "", (), place.shape, place.dtype, place.bytes)
    return (
        place.path,
        place.kind,
        tables.value(crossing),
        str(place.tensors),
        tables.amount_of_bytes(crossing),
        tables.amount(place.parameters),
        tables.amount_of_flops(place.flops),
        share,
        place.node,
    )


def _said(suggestion: Suggestion) -> str:
    cuts = [cut if isinstance(cut, str) else ARROW.join(cut) for cut in suggestion.cuts]
    return f"{', '.join(cuts)} ({suggestion.note})" if cuts else suggestion.note


def find_places(graph: fx.Graph, model: nn.Module, capture: str) -> Places:
    """Each call of a module that something with a gradient leaves, and suggested cuts.

    Args:
        capture: the rung of the capture ladder that gave the graph.

    Requires:
        The nodes say what `annotate` notes.

    Guarantees:
        `graph` is unchanged, and a cut at each path fits it.
    """
    names = Names(graph, ())
    result = Places(_places(names, model))
    result.model, result.capture = type(model).__name__, capture
    result.suggested = tuple(_suggestion(names, result, parts) for parts in SUGGESTED)
    return result


def _places(names: Names, model: nn.Module) -> Iterator[CutPlace]:
    modules = dict(model.named_modules())
    plans: dict[tuple[Edge, ...], Plan] = {}  # a block and its last layer are often one place
    found = []
    for key, kind in names.types.items():
        edges = tuple(leaving(names.call(key)))
        if not edges:
            continue
        if edges not in plans:
            try:
                plans[edges] = partition(names.graph, edges)
            except CutError:
                continue  # a cut here cannot be made, say inside a write in place
        if not (crossings := [crossing for crossing in plans[edges].crossings if crossing.gradient]):
            continue  # the cut separates nothing: what is before it, or behind it, does not learn
        path = next(stack[key][0] for node in names.calls[key] if key in (stack := node.meta["nn_module_stack"]))
        said = f"{key}@1" if f"{key}@2" in names.types else key  # without a number it stands for all calls
        parameters = sum(p.numel() for p in modules[path].parameters()) if path in modules else 0
        found.append((edges[0][0], _place(said, kind, crossings, plans[edges], parameters)))
    yield from (place for _, place in sorted(found, key=lambda pair: pair[0]))


def _place(path: str, kind: type, crossings: list[Crossing], plan: Plan, parameters: int) -> CutPlace:
    asked = [crossing for crossing in crossings if crossing.asked] or crossings
    flops = {part.name: part.flops or 0 for part in plan.parts}
    before = sum(flops[name] for name in {crossing.producer for crossing in asked})
    return CutPlace(
        path=path,
        kind=kind.__name__,
        node=asked[0].node,
        shape=asked[0].shape,
        dtype=asked[0].dtype,
        tensors=len(crossings),
        bytes=sum(crossing.bytes for crossing in crossings),
        parameters=parameters,
        flops=before,
        share=before / whole if (whole := sum(flops.values())) else None,
    )


def _suggestion(names: Names, places: Places, parts: int) -> Suggestion:
    try:
        edges, notes = choose(names.graph, parts)
    except CutError as error:
        return Suggestion(parts, (), "; ".join(error.misfits))
    paths: dict[str, str] = {}
    for place in sorted(places, key=lambda place: (place.path.count("."), place.tensors)):
        paths.setdefault(place.node, place.path)  # the outermost module that makes it
    cuts = tuple(paths.get(node, node) for node in dict.fromkeys(a.name for a, _ in edges))
    named = [edge for cut in cuts for group in names.named(cut) for edge in leaving(group)]
    same = len(partition(names.graph, named).parts) == len(partition(names.graph, edges).parts)
    return Suggestion(parts, cuts if same else tuple((a.name, b.name) for a, b in edges), "; ".join(notes))
