"""What a user may say about where to cut. Each way is a small class that gives the edges of a graph.

"layer2"  before("fc")  "blocks.*"  re:...  (a, b)  nn.ReLU  node -> bool  dg.cut  Plan  4  balanced(4)  [mixed]

A new way is a class and a row in `WAYS`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from ..errors import CutError
from ..graph.mark import cut as mark
from ..plan.partition import partition
from ..plan.plan import Note, Plan
from .balance import choose
from .names import FROZEN, Edge, Group, Misfit, Names, entering, leaving, nothing_enters, nothing_leaves, with_nearest


@dataclass(frozen=True)
class Spec:
    """One cut, as a user asks for it; `str` gives it as a user would write it. This one names no place."""

    what: Any

    @property
    def timed(self) -> bool:
        """Whether it asks what nodes cost in time, which only a timed run can tell."""
        return False

    def groups(self, names: Names) -> list[Group]:
        """The groups of nodes that it names, if it names any.

        Raises:
            Misfit: there is none.
        """
        kind = "class that is no module" if isinstance(self.what, type) else type(self.what).__name__
        raise Misfit(
            f"cut {self}: a {kind} names no place; say a module path, before(...), after(...), "
            "a pattern, an edge (a, b), a module type, a function of a node, dg.cut, a plan, or a number of parts"
        )

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        """The edges to cut, and notes for the user: here those that leave the groups.

        Raises:
            Misfit: the cut does not fit the graph.
        """
        return _edges_at(self, self.groups(names), leaving, nothing_leaves)

    def again(self, edges: list[Edge]) -> "Spec":
        """The same cut for a further graph of the model, now that these edges are cut in this one."""
        return self

    def __str__(self) -> str:
        if isinstance(self.what, nn.Module):
            return f"{type(self.what).__name__}(...)"
        return str(getattr(self.what, "__name__", None) or repr(self.what))


def _edges_at(
    spec: Spec, groups: list[Group], side: Callable[[Group], list[Edge]], reason: Callable[[Group], str]
) -> tuple[list[Edge], list[str]]:
    """The edges on one side of groups. A group without any is left out, with a note, if there are others."""
    edges, reasons = [], []
    for group in groups:
        there = side(group)
        edges += there
        if not there:
            why = reason(group)
            reasons.append(Note(f"cut {spec}: {why}", why.kind if isinstance(why, Note) else None))
    if reasons and not edges:
        raise Misfit(*reasons)
    return edges, [f"{line}; left out" for line in reasons]


class Named(Spec):
    """A module path, glob, `re:` pattern, mark or node name."""

    def groups(self, names: Names) -> list[Group]:
        return names.named(self.what)


class Marks(Spec):
    """Every mark that the model itself carries, each by itself."""

    def groups(self, names: Names) -> list[Group]:
        groups = [Group(node.name, frozenset([node])) for nodes in names.marks.values() for node in nodes]
        return groups or _none(f"cut {self}: the model carries no mark")


class OfType(Spec):
    """Every call of a module of a type."""

    def groups(self, names: Names) -> list[Group]:
        groups = [names.call(key) for key, kind in names.types.items() if issubclass(kind, self.what)]
        return groups or _none(f"cut {self}: no module of this type ran")


class Chosen(Spec):
    """Every node that a function says yes to, each by itself."""

    def groups(self, names: Names) -> list[Group]:
        groups = []
        for node in names.nodes.values():
            try:
                if node.op != "output" and self.what(node):
                    groups.append(Group(node.name, frozenset([node])))
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
                raise Misfit(f"cut {self}: fails on node '{node.name}': {failure}") from error
        return groups or _none(f"cut {self}: says yes to no node")


def _none(line: str) -> list[Group]:
    raise Misfit(line)


class After(Spec):
    """Cut after a module path, glob, `re:` pattern, mark or node name; the same as the bare string."""

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        return _edges_at(self, _places(self.what).groups(names), leaving, nothing_leaves)

    def __str__(self) -> str:
        return f"after({_places(self.what)})"


class Before(Spec):
    """Cut before a module path, glob, `re:` pattern, mark or node name."""

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        return _edges_at(self, _places(self.what).groups(names), entering, nothing_enters)

    def __str__(self) -> str:
        return f"before({_places(self.what)})"


def _places(what: Any) -> Spec:
    """What stands behind `after` or `before`: a spec of groups."""
    spec = as_spec(what)
    return Spec(what) if isinstance(spec, After | Before | Between | Planned | Balanced) else spec


class Between(Spec):
    """An edge (a, b): what flows straight from one place to another."""

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        groups, misfits = [], list[str]()
        for end in self.what:
            try:
                groups.append(names.named(end))
            except Misfit as misfit:
                misfits += misfit.lines
        if misfits:
            raise Misfit(*misfits)
        inside = {node for group in groups[1] for node in group.nodes}
        edges = [edge for group in groups[0] for edge in leaving(group) if edge[1] in inside]
        if not edges:
            a, b = self.what
            straight = f"nothing that learns flows straight from {a!r} to {b!r}"
            raise Misfit(f"cut {self}: {straight}; for two cuts say [{a!r}, {b!r}]")
        return edges, []


class Planned(Spec):
    """The edges of a saved plan."""

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        if missing := sorted({name for edge in self.what.cuts for name in edge if name not in names.nodes}):
            lines = [(f"saved plan: the graph has no node {name!r}", name) for name in missing]
            raise Misfit(*(with_nearest(line, name, names.nodes) for line, name in lines))
        edges = [(names.nodes[a], names.nodes[b]) for a, b in self.what.cuts]
        if gone := [f"saved plan: {b} does not read {a}" for a, b in edges if a not in b.all_input_nodes]:
            raise Misfit(*gone)
        return edges, []


@dataclass(frozen=True)
class Balanced(Spec):
    """Cut into `parts` parts of even cost. Made by `balanced`."""

    what: Any = field(init=False, repr=False, default=None)
    parts: int
    cost: str = "flops"
    max_crossing_bytes: int | None = None
    places: tuple[tuple[str, str], ...] | None = None  # chosen for another graph of the model: used if it has them

    @property
    def timed(self) -> bool:
        return self.cost == "time" and self.places is None

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        if self.places is not None:  # chosen for another graph: taken as far as this one has them
            ends = [(names.nodes[a], names.nodes[b]) for a, b in self.places if {a, b} <= names.nodes.keys()]
            edges = [(a, b) for a, b in ends if a in b.all_input_nodes]
            if edges or not self.places:
                return edges, []
        try:
            return choose(names.graph, self.parts, self.cost, self.max_crossing_bytes)
        except CutError as error:
            raise Misfit(*(f"cut {self}: {line}" for line in error.misfits)) from error

    def again(self, edges: list[Edge]) -> "Balanced":
        return replace(self, places=tuple((a.name, b.name) for a, b in edges))

    def __str__(self) -> str:
        cost = f", cost={self.cost!r}" if self.cost != "flops" else ""
        most = f", max_crossing_bytes={self.max_crossing_bytes}" if self.max_crossing_bytes is not None else ""
        return f"balanced({self.parts!r}{cost}{most})"


Cut = str | Spec | tuple[str, str] | type[nn.Module] | Callable[[fx.Node], bool] | Plan | int
Cuts = Cut | Iterable[Cut] | None


after, before = After, Before


def balanced(parts: int, cost: str = "flops", max_crossing_bytes: int | None = None) -> Balanced:
    """Cut into `parts` parts, so that the largest costs as little as can be; a plain number K is `balanced(K)`.

    Args:
        cost: "flops" of one forward run, where each scalar that is made counts one more; "time", in a timed run of the
            nodes; or "memory", the bytes of the activations that wait for their gradient.
        max_crossing_bytes: cut only where no more bytes cross, of values with a gradient.
    """
    return Balanced(parts, cost, max_crossing_bytes)


# What a user may write for each spec: its type, whether it is meant, and the spec. The first row that fits counts.
WAYS: tuple[tuple[type, Callable[[Any], bool], Callable[[Any], Spec]], ...] = (
    (str, lambda _: True, Named),
    (Plan, lambda _: True, Planned),
    (tuple, lambda cut: len(cut) == 2 and isinstance(cut[0], str) and isinstance(cut[1], str), Between),
    (int, lambda cut: not isinstance(cut, bool), Balanced),
    (type, lambda cut: issubclass(cut, nn.Module), OfType),
    (object, lambda cut: cut is mark, Marks),
    (object, lambda cut: callable(cut) and not isinstance(cut, type | nn.Module), Chosen),
)


def as_spec(cut: Any) -> Spec:
    """What a user wrote for one cut, as a spec."""
    if isinstance(cut, Spec):
        return cut
    for kind, meant, spec in WAYS:
        if isinstance(cut, kind) and meant(cut):
            return spec(cut)
    return Spec(cut)


def as_specs(cuts: Cuts) -> list[Spec]:
    """What a user gave as `cuts`, as a list of specs. `None` means the marks that the model itself carries."""
    if cuts is None:
        return [Marks(mark)]
    one = as_spec(cuts)
    if isinstance(cuts, Iterable) and type(one) is Spec and not isinstance(cuts, Mapping | type | nn.Module):
        return [as_spec(cut) for cut in cuts]
    return [one]


def wants_time(cuts: Cuts) -> bool:
    """Whether these cuts ask what nodes cost in time."""
    if isinstance(cuts, Iterator):
        return False  # to look would use it up
    return any(spec.timed for spec in as_specs(cuts))


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
    frozen = [line for _, line in missed if isinstance(line, Note) and line.kind == FROZEN]
    if missed and strict and (len(frozen) < len(missed) or not edges):
        raise CutError([line for _, line in missed])
    notes += [f"{line}; left out" for line in frozen if strict]
    return Resolved(tuple(sorted(edges)), tuple(dict.fromkeys(notes)), tuple(again), tuple(missed))
