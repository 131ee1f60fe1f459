"""From what the user says about where to cut to the edges of a captured graph, and to its plan."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx, nn

from ..errors import CutError
from ..plan.partition import partition
from ..plan.plan import Plan
from .names import Edge, Misfit, Names
from .specs import Cuts, Spec, as_specs


@dataclass(frozen=True)
class Resolved:
    """The edges to cut, in graph order, and what the user should know."""

    edges: tuple[Edge, ...]
    notes: tuple[str, ...] = ()
    again: tuple[Spec, ...] | None = None  # for a further graph of the model: what was balanced here stays where it is
    missed: tuple[tuple[str, str], ...] = ()  # without `strict`: each cut that does not fit, as written, and why


def cut_graph(
    graph: fx.Graph, cuts: Cuts, model: nn.Module, capture: str, strict: bool = True
) -> tuple[Plan, Resolved]:
    """The plan of an annotated graph of `model`, cut where the user says, and what became of each cut.

    Args:
        capture: the rung of the capture ladder that gave the graph.
        strict: cuts that do not fit are errors.

    Raises:
        CutError: cuts do not fit the model.
    """
    resolved = resolve(graph, cuts, [path for path, _ in model.named_modules()], strict)
    return partition(graph, resolved.edges, type(model).__name__, capture, resolved.notes), resolved


def resolve(graph: fx.Graph, cuts: Cuts, modules: Iterable[str] = (), strict: bool = True) -> Resolved:
    """The edges of `graph` that `cuts` name. `None` means the marks that the model itself carries.

    Args:
        modules: all module paths of the model, for better messages.
        strict: without it, cuts that do not fit are passed over (a further graph of a model whose cuts fitted once).

    Guarantees:
        Each edge carries a gradient and does not start at an input, a parameter or a constant.

    Raises:
        CutError: some cuts do not fit. All misfits are listed, with the nearest names.
    """
    names, specs = Names(graph, tuple(modules)), as_specs(cuts)
    if cuts is None and not names.marks:
        nothing = "no cuts are given and the model carries no mark: nothing is cut"
        return Resolved((), (nothing,), None, ((f"cut {specs[0]}", nothing),))
    edges: dict[Edge, Spec] = {}
    notes: list[str] = []
    again: list[Spec] = []
    missed: list[tuple[str, str]] = []
    for spec in specs:
        try:
            edges_here, remarks = spec.edges(names)
        except Misfit as misfit:
            missed += [(f"cut {spec}", line) for line in misfit.lines]
            again.append(spec)
            continue
        notes += remarks
        again.append(spec.again(edges_here))
        if edges_here and edges.keys() >= set(edges_here):
            notes.append(f"cut {spec} is the same place as cut {edges[edges_here[0]]}")
        for edge in edges_here:
            edges.setdefault(edge, spec)
    if missed and strict:
        raise CutError([line for _, line in missed])
    return Resolved(tuple(sorted(edges)), tuple(dict.fromkeys(notes)), tuple(again), tuple(missed))
