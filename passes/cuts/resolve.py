"""Where to cut: everything that a user may say, resolved to edges of the captured graph.

"layer2"  before("fc")  "blocks.*"  re:...  (a, b)  nn.ReLU  node -> bool  dg.cut  Plan  4  balanced(4)  [mixed]
    │
    ▼  each one names groups of nodes: the calls of modules, marks, single nodes
the edges that leave (or enter, for `before`) a group and carry a gradient
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from ..errors import CutError, nearest
from ..graph.mark import cut as marker
from ..graph.mark import mark_name
from ..plan.plan import Plan
from .balance import choose
from .specs import After, Balanced, Before, Cut, Cuts, Edge, is_edge, listed, spelled

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Resolved:
    """The edges to cut, in graph order, and what the user should know."""

    edges: tuple[Edge, ...]
    notes: tuple[str, ...] = ()
    again: Cuts = ()  # the same cuts for a further graph of the model: what was balanced here stands at the same places
    missed: tuple[tuple[str, str], ...] = ()  # without `strict`: each cut that does not fit, as written, and why


@dataclass(frozen=True)
class Group:
    """Nodes that a user speaks of as one: one call of a module, a mark, a node."""

    name: str
    nodes: frozenset[fx.Node]


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
    lookup = _Lookup(graph, tuple(modules))
    if cuts is None and not lookup.marks:
        nothing = "no cuts are given and the model carries no mark: nothing is cut"
        return Resolved((), (nothing,), None, ((spelled(marker), nothing),))
    edges: dict[Edge, str] = {}
    misfits: list[str] = []
    notes: list[str] = []
    again: list[Cut] = []
    missed: list[tuple[str, str]] = []
    for spec in listed(cuts):
        again.append(spec)
        try:
            found, said = lookup.edges(spec)
        except _Misfit as misfit:
            misfits += misfit.lines
            missed += [(spelled(spec), line) for line in misfit.lines]
            continue
        notes += said
        if isinstance(spec, Balanced):
            again[-1] = replace(spec, places=tuple((a.name, b.name) for a, b in found))
        if found and all(edge in edges for edge in found):
            notes.append(f"{spelled(spec)} is the same place as {edges[found[0]]}")
        edges |= {edge: spelled(spec) for edge in found if edge not in edges}
    if misfits and strict:
        raise CutError(misfits)
    place = {node: i for i, node in enumerate(graph.nodes)}
    ordered = sorted(edges, key=lambda e: (place[e[0]], place[e[1]]))
    return Resolved(tuple(ordered), tuple(dict.fromkeys(notes)), again, tuple(missed))


class _Misfit(Exception):
    def __init__(self, *lines: str):
        super().__init__(*lines)
        self.lines = lines


@dataclass
class _Lookup:
    """All names of a graph, and the groups of nodes behind them."""

    graph: fx.Graph
    modules: tuple[str, ...]
    calls: dict[str, list[fx.Node]] = field(default_factory=dict)  # "layers.3", "layers.3@2" -> its nodes
    kinds: dict[str, type] = field(default_factory=dict)
    marks: dict[str, list[fx.Node]] = field(default_factory=dict)
    nodes: dict[str, fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            self.nodes[node.name] = node
            for key, (_, kind) in (node.meta.get("nn_module_stack") or {}).items():
                if node.op != "get_attr":
                    self.calls.setdefault(key, []).append(node)
                    self.kinds[key] = kind
            if node.target is marker:
                self.marks.setdefault(mark_name(node) or node.name, []).append(node)

    # ---- from what the user says to edges

    def edges(self, spec: Any) -> tuple[list[Edge], list[str]]:
        """The edges of one cut, with notes."""
        if isinstance(spec, Plan):
            return self._planned(spec), []
        if isinstance(spec, Balanced):
            return self._balanced(spec)
        if is_edge(spec):
            return self._between(spec), []
        groups = self._groups(spec)
        side = _entering if isinstance(spec, Before) else _leaving
        found = {group.name: side(group) for group in groups}
        empty = [group for group in groups if not found[group.name]]
        if empty and (len(empty) == len(groups) or len(groups) == 1):
            raise _Misfit(*(f"{spelled(spec)}: {_why_nothing(group, isinstance(spec, Before))}" for group in empty))
        notes = [f"{spelled(spec)}: {_why_nothing(group, isinstance(spec, Before))}; left out" for group in empty]
        return [edge for group in groups for edge in found[group.name]], notes

    def _groups(self, spec: Any) -> list[Group]:
        if isinstance(spec, After | Before):
            spec = spec.what
        if isinstance(spec, str):
            return self._named(spec)
        if spec is marker:
            found = [Group(node.name, frozenset([node])) for nodes in self.marks.values() for node in nodes]
            return _or_misfit(found, f"{spelled(spec)}: the model carries no mark")
        if isinstance(spec, type) and issubclass(spec, nn.Module):
            found = [self._call(key) for key, kind in self.kinds.items() if issubclass(kind, spec)]
            return _or_misfit(found, f"{spelled(spec)}: no module of this type ran")
        if callable(spec) and not isinstance(spec, type | nn.Module):
            found = [Group(n.name, frozenset([n])) for n in self.graph.nodes if n.op != "output" and _says_yes(spec, n)]
            return _or_misfit(found, f"{spelled(spec)}: says yes to no node")
        kind = "class that is no module" if isinstance(spec, type) else type(spec).__name__
        raise _Misfit(
            f"{spelled(spec)}: a {kind} names no place; say a module path, before(...), after(...), "
            "a pattern, an edge (a, b), a module type, a function of a node, dg.cut, a plan, or a number of parts"
        )

    def _named(self, text: str) -> list[Group]:
        if not text:
            raise _Misfit("cut '': an empty name names no place")
        if text.startswith("re:"):
            return self._matching(text, _regex(text))
        if _GLOB.search(text) and text not in self.calls:
            return self._matching(text, _glob(text))
        if text.endswith("@1") and text[:-2] in self.calls:
            return [self._call(text[:-2])]
        if text in self.calls:
            further = [key for key in self.calls if key.partition("@")[0] == text]
            return [self._call(key) for key in (further if "@" not in text else [text])]
        if text in self.marks:
            return [Group(text, frozenset(self.marks[text]))]
        if text in self.nodes and self.nodes[text].op != "output":
            return [Group(text, frozenset([self.nodes[text]]))]
        raise _Misfit(f"cut {text!r}: {self._unknown(text)}")

    def _matching(self, text: str, pattern: re.Pattern[str]) -> list[Group]:
        found = [self._call(key) for key in self.calls if pattern.fullmatch(key.partition("@")[0])]
        found += [Group(name, frozenset(nodes)) for name, nodes in self.marks.items() if pattern.fullmatch(name)]
        if not found:
            found = [
                Group(name, frozenset([n]))
                for name, n in self.nodes.items()
                if pattern.fullmatch(name) and n.op != "output"
            ]
        return _or_misfit(
            found, f"cut {text!r}: matches none of {len(self.calls)} modules that ran{nearest(text, self.calls)}"
        )

    def _unknown(self, name: str) -> str:
        if name in self.modules:
            whole = next((key for key in self.calls if name.startswith(key + ".")), None)
            if whole is not None:
                return f"lies inside '{whole}', which is kept whole; cut before or after that"
            return "is a module that did not run in this call"
        return f"the model has no such module, mark or node{nearest(name, [*self.calls, *self.marks, *self.nodes])}"

    def _call(self, key: str) -> Group:
        return Group(key, frozenset(self.calls[key]))

    def _between(self, spec: tuple[str, str]) -> list[Edge]:
        if unknown := [line for end in spec for line in self._misfits(end)]:
            raise _Misfit(*unknown)
        sources, sinks = self._named(spec[0]), self._named(spec[1])
        inside = {node for group in sinks for node in group.nodes}
        found = [edge for group in sources for edge in _leaving(group) if edge[1] in inside]
        if not found:
            said = f"cut {spec}: nothing that learns flows straight from {spec[0]!r} to {spec[1]!r}"
            raise _Misfit(f"{said}; for two cuts say [{spec[0]!r}, {spec[1]!r}]")
        return found

    def _misfits(self, name: str) -> tuple[str, ...]:
        try:
            self._named(name)
        except _Misfit as misfit:
            return misfit.lines
        return ()

    def _balanced(self, spec: Balanced) -> tuple[list[Edge], list[str]]:
        try:
            return choose(self.graph, spec)
        except CutError as error:
            raise _Misfit(*error.misfits) from error

    def _planned(self, plan: Plan) -> list[Edge]:
        missing = sorted({name for edge in plan.cuts for name in edge if name not in self.nodes})
        if missing:
            raise _Misfit(
                *(f"saved plan: the graph has no node {name!r}{nearest(name, self.nodes)}" for name in missing)
            )
        edges = [(self.nodes[a], self.nodes[b]) for a, b in plan.cuts]
        if gone := [f"saved plan: {b} does not read {a}" for a, b in edges if a not in b.all_input_nodes]:
            raise _Misfit(*gone)
        return edges


# ---- what flows in and out of a group


def carries(node: fx.Node) -> bool:
    """Whether a gradient may come back through this node. Without an example run, all that is computed may."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    return bool(node.meta.get("gradient", "flops" not in node.meta))


def _leaving(group: Group) -> list[Edge]:
    return [
        (node, user)
        for node in _ordered(group)
        if carries(node)
        for user in node.users
        if user not in group.nodes and carries(user)
    ]


def _entering(group: Group) -> list[Edge]:
    return [
        (given, node)
        for node in _ordered(group)
        if carries(node)
        for given in node.all_input_nodes
        if _outer(given, group)
    ]


def _outer(given: fx.Node, group: Group) -> bool:
    return given not in group.nodes and carries(given)


def _ordered(group: Group) -> Iterator[fx.Node]:
    return iter(sorted(group.nodes))


def _why_nothing(group: Group, entering: bool) -> str:
    nodes = group.nodes
    if entering:
        return f"nothing that learns flows into '{group.name}'; it begins the model"
    if all(node.op == "placeholder" for node in nodes):
        return f"'{group.name}' is an input of the model; cut after something that learns"
    if any(user.op == "output" for node in nodes for user in node.users if user not in nodes):
        return f"matches '{group.name}', which ends the model; cut one of its inputs"
    if not any(map(carries, nodes)):
        return f"'{group.name}' makes {_kinds(nodes)}, which carry no gradient; there is nothing to decouple"
    return f"nothing that learns reads '{group.name}'"


def _says_yes(function: Callable[[fx.Node], bool], node: fx.Node) -> bool:
    try:
        return bool(function(node))
    except Exception as error:
        raise _Misfit(f"{spelled(function)}: fails on node '{node.name}': {type(error).__name__}: {error}") from error


def _kinds(nodes: Iterable[fx.Node]) -> str:
    found = sorted({str(n.meta["dtype"]).removeprefix("torch.") for n in nodes if "dtype" in n.meta})
    return f"only {', '.join(found)} values" if found else "values"


def _or_misfit(groups: list[Group], line: str) -> list[Group]:
    if not groups:
        raise _Misfit(line)
    return groups


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text.removeprefix("re:"))
    except re.error as error:
        raise _Misfit(f"cut {text!r}: is no regular expression: {error}") from error


def _glob(text: str) -> re.Pattern[str]:
    """`*` and `?` stay inside one name of a path, `**` crosses the dots."""
    parts = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    pieces = re.split(r"(\*\*|\*|\?|\[[^\]]*\])", text)
    return re.compile(
        "".join(p if p.startswith("[") and p.endswith("]") else parts.get(p, re.escape(p)) for p in pieces)
    )
