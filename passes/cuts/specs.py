"""What a user may say about where to cut. Each way is a small class that gives the edges of a graph.

"layer2"  before("fc")  "blocks.*"  re:...  (a, b)  nn.ReLU  node -> bool  dg.cut  Plan  4  balanced(4)  [mixed]

A new way is a class and a row in `WAYS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from ..errors import CutError
from ..graph.mark import cut as mark
from ..plan.plan import Plan
from .balance import choose
from .names import Edge, Group, Misfit, Names, entering, leaving, nothing_leaves, with_nearest


class Spec(ABC):
    """One cut, as a user asks for it; `str` gives it as a user would write it."""

    @property
    def timed(self) -> bool:
        """Whether it asks what nodes cost in time, which only a timed run can tell."""
        return False

    @abstractmethod
    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        """The edges to cut, and notes for the user.

        Raises:
            Misfit: the cut does not fit the graph.
        """

    def again(self, edges: list[Edge]) -> "Spec":
        """The same cut for a further graph of the model, now that these edges are cut in this one."""
        return self


class Places(Spec):
    """A cut after groups of nodes, which it names."""

    @abstractmethod
    def groups(self, names: Names) -> list[Group]:
        """The groups.

        Raises:
            Misfit: there is none.
        """

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        """What leaves the groups; a group that nothing leaves is left out, with a note, if there are others."""
        edges, reasons = [], []
        for group in self.groups(names):
            there = leaving(group)
            edges += there
            if not there:
                reasons.append(nothing_leaves(group))
        return edges, _left_out(self, edges, reasons)


def _left_out(spec: Spec, edges: list[Edge], reasons: list[str]) -> list[str]:
    if reasons and not edges:
        raise Misfit(*(f"cut {spec}: {reason}" for reason in reasons))
    return [f"cut {spec}: {reason}; left out" for reason in reasons]


@dataclass(frozen=True)
class Named(Places):
    """A module path, glob, `re:` pattern, mark or node name."""

    name: str

    def groups(self, names: Names) -> list[Group]:
        """What the name stands for."""
        return names.named(self.name)

    def __str__(self) -> str:
        return repr(self.name)


@dataclass(frozen=True)
class Marks(Places):
    """Every mark that the model itself carries."""

    def groups(self, names: Names) -> list[Group]:
        """Each mark by itself."""
        groups = [Group(node.name, frozenset([node])) for nodes in names.marks.values() for node in nodes]
        return _or_misfit(groups, f"cut {self}: the model carries no mark")

    def __str__(self) -> str:
        return "cut"


@dataclass(frozen=True)
class OfType(Places):
    """Every call of a module of a type."""

    type: type[nn.Module]

    def groups(self, names: Names) -> list[Group]:
        """The calls."""
        groups = [names.call(key) for key, kind in names.types.items() if issubclass(kind, self.type)]
        return _or_misfit(groups, f"cut {self}: no module of this type ran")

    def __str__(self) -> str:
        return self.type.__name__


@dataclass(frozen=True)
class Chosen(Places):
    """Every node that a function says yes to."""

    function: Callable[[fx.Node], bool]

    def groups(self, names: Names) -> list[Group]:
        """The nodes, each by itself."""
        groups = []
        for node in names.nodes.values():
            try:
                if node.op != "output" and self.function(node):
                    groups.append(Group(node.name, frozenset([node])))
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
                raise Misfit(f"cut {self}: fails on node '{node.name}': {failure}") from error
        return _or_misfit(groups, f"cut {self}: says yes to no node")

    def __str__(self) -> str:
        return str(getattr(self.function, "__name__", self.function))


def _or_misfit(groups: list[Group], line: str) -> list[Group]:
    if not groups:
        raise Misfit(line)
    return groups


@dataclass(frozen=True)
class NoPlace(Places):
    """Anything that names no place."""

    value: Any

    def groups(self, names: Names) -> list[Group]:
        """None: it is a misfit."""
        kind = "class that is no module" if isinstance(self.value, type) else type(self.value).__name__
        raise Misfit(
            f"cut {self}: a {kind} names no place; say a module path, before(...), after(...), "
            "a pattern, an edge (a, b), a module type, a function of a node, dg.cut, a plan, or a number of parts"
        )

    def __str__(self) -> str:
        if isinstance(self.value, Spec):
            return str(self.value)
        if isinstance(self.value, nn.Module):
            return f"{type(self.value).__name__}(...)"
        return self.value.__name__ if isinstance(self.value, type) else repr(self.value)


@dataclass(frozen=True)
class After(Places):
    """Cut what leaves a module, a mark, a node, or all that a pattern matches."""

    what: Any

    def groups(self, names: Names) -> list[Group]:
        """The groups that it speaks of."""
        return as_places(self.what).groups(names)

    def __str__(self) -> str:
        return f"after({as_places(self.what)})"


@dataclass(frozen=True)
class Before(Spec):
    """Cut what enters a module, a mark, a node, or all that a pattern matches."""

    what: Any

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        """What enters the groups; a group that nothing enters is left out, with a note, if there are others."""
        edges, reasons = [], []
        for group in as_places(self.what).groups(names):
            there = entering(group)
            edges += there
            if not there:
                reasons.append(f"nothing that learns flows into '{group.name}'; it begins the model")
        return edges, _left_out(self, edges, reasons)

    def __str__(self) -> str:
        return f"before({as_places(self.what)})"


@dataclass(frozen=True)
class Between(Spec):
    """An edge (a, b): what flows straight from one place to another."""

    ends: tuple[str, str]

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        """The edges between the two places."""
        groups, misfits = [], list[str]()
        for end in self.ends:
            try:
                groups.append(names.named(end))
            except Misfit as misfit:
                misfits += misfit.lines
        if misfits:
            raise Misfit(*misfits)
        inside = {node for group in groups[1] for node in group.nodes}
        edges = [edge for group in groups[0] for edge in leaving(group) if edge[1] in inside]
        if not edges:
            a, b = self.ends
            straight = f"nothing that learns flows straight from {a!r} to {b!r}"
            raise Misfit(f"cut {self}: {straight}; for two cuts say [{a!r}, {b!r}]")
        return edges, []

    def __str__(self) -> str:
        return repr(self.ends)


@dataclass(frozen=True)
class Planned(Spec):
    """The edges of a saved plan."""

    plan: Plan

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        """The same edges of this graph."""
        if missing := sorted({name for edge in self.plan.cuts for name in edge if name not in names.nodes}):
            raise Misfit(
                *(with_nearest(f"saved plan: the graph has no node {name!r}", name, names.nodes) for name in missing)
            )
        edges = [(names.nodes[a], names.nodes[b]) for a, b in self.plan.cuts]
        if gone := [f"saved plan: {b} does not read {a}" for a, b in edges if a not in b.all_input_nodes]:
            raise Misfit(*gone)
        return edges, []

    def __str__(self) -> str:
        return repr(self.plan)


@dataclass(frozen=True)
class Balanced(Spec):
    """Cut into `parts` parts of even cost. Made by `balanced`."""

    parts: int
    cost: str = "flops"
    max_crossing_bytes: int | None = None
    places: tuple[tuple[str, str], ...] | None = None  # chosen for another graph of the model: used if it has them

    @property
    def timed(self) -> bool:
        """Whether it counts seconds, and has still to choose."""
        return self.cost == "time" and self.places is None

    def edges(self, names: Names) -> tuple[list[Edge], list[str]]:
        """The edges chosen for another graph, as far as this one has them; else those of the best balance."""
        if self.places is not None:
            ends = [(names.nodes[a], names.nodes[b]) for a, b in self.places if {a, b} <= names.nodes.keys()]
            edges = [(a, b) for a, b in ends if a in b.all_input_nodes]
            if edges or not self.places:
                return edges, []
        try:
            return choose(names.graph, self.parts, self.cost, self.max_crossing_bytes)
        except CutError as error:
            raise Misfit(*(f"cut {self}: {line}" for line in error.misfits)) from error

    def again(self, edges: list[Edge]) -> "Balanced":
        """The same places in a further graph."""
        return replace(self, places=tuple((a.name, b.name) for a, b in edges))

    def __str__(self) -> str:
        cost = f", cost={self.cost!r}" if self.cost != "flops" else ""
        most = f", max_crossing_bytes={self.max_crossing_bytes}" if self.max_crossing_bytes is not None else ""
        return f"balanced({self.parts!r}{cost}{most})"


Cut = str | Spec | tuple[str, str] | type[nn.Module] | Callable[[fx.Node], bool] | Plan | int
Cuts = Cut | Iterable[Cut] | None


def after(what: str) -> After:
    """Cut after a module path, glob, `re:` pattern, mark or node name; the same as the bare string."""
    return After(what)


def before(what: str) -> Before:
    """Cut before a module path, glob, `re:` pattern, mark or node name."""
    return Before(what)


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
    (object, lambda cut: cut is mark, lambda _: Marks()),
    (object, lambda cut: callable(cut) and not isinstance(cut, type | nn.Module), Chosen),
)


def as_spec(cut: Any) -> Spec:
    """What a user wrote for one cut, as a spec."""
    if isinstance(cut, Spec):
        return cut
    for kind, meant, spec in WAYS:
        if isinstance(cut, kind) and meant(cut):
            return spec(cut)
    return NoPlace(cut)


def as_places(cut: Any) -> Places:
    """What a user wrote behind `after` or `before`, as a spec of groups."""
    spec = as_spec(cut)
    return spec if isinstance(spec, Places) and not isinstance(spec, After) else NoPlace(cut)


def as_specs(cuts: Cuts) -> list[Spec]:
    """What a user gave as `cuts`, as a list of specs. `None` means the marks that the model itself carries."""
    if cuts is None:
        return [Marks()]
    one = as_spec(cuts)
    if isinstance(cuts, Iterable) and isinstance(one, NoPlace) and not isinstance(cuts, Mapping | type | nn.Module):
        return [as_spec(cut) for cut in cuts]
    return [one]


def wants_time(cuts: Cuts) -> bool:
    """Whether these cuts ask what nodes cost in time."""
    if isinstance(cuts, Iterator):
        return False  # to look would use it up
    return any(spec.timed for spec in as_specs(cuts))
