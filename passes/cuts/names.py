"""What a user can call by name in a graph, and the edges at such places.

"layer2"  "blocks.*"  re:...        each names groups of nodes: the calls of modules, marks, single nodes
   │
   ▼
the edges that leave or enter a group and carry a gradient
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from ..errors import nearest
from ..graph.mark import cut as mark
from ..graph.mark import mark_name
from ..graph.nodes import NOTHING_LEARNS, numbered
from ..plan.plan import Note
from .patterns import PatternError, pattern

Edge = tuple[fx.Node, fx.Node]
UNKNOWN, UNKNOWN_NEAR, IDLE, NEAR = "unknown", "unknown, but near", "did not run", "near"  # kinds of misfits
FROZEN = "frozen"  # the kind of one where nothing learns below the cut
_GLOB = re.compile(r"[*?\[]")


class Misfit(Exception):
    """A cut does not fit the graph. `lines` says why."""

    def __init__(self, *lines: str):
        super().__init__(*lines)
        self.lines = lines


@dataclass(frozen=True)
class Group:
    """Nodes that a user speaks of as one: one call of a module, a mark, a node."""

    name: str
    nodes: frozenset[fx.Node]


@dataclass
class Names:
    """All names of a graph, and the nodes behind them."""

    graph: fx.Graph
    modules: tuple[str, ...]  # all module paths of the model, whether they ran or not
    calls: dict[str, list[fx.Node]] = field(default_factory=dict)  # "layers.3", "layers.3@2" -> its nodes
    types: dict[str, type] = field(default_factory=dict)  # of the modules called
    marks: dict[str, list[fx.Node]] = field(default_factory=dict)
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    passed_by: dict[str, str] = field(default_factory=dict)  # modules that ran where nothing can be cut, and why

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            self.nodes[node.name] = node
            self.passed_by |= node.meta.get("passed_by", {})
            for key, (_, kind) in (node.meta.get("nn_module_stack") or {}).items():
                if node.op != "get_attr":
                    self.calls.setdefault(key, []).append(node)
                    self.types[key] = kind
            if node.target is mark:
                self.marks.setdefault(mark_name(node) or node.name, []).append(node)

    def call(self, key: str) -> Group:
        """One call of a module."""
        return Group(key, frozenset(self.calls[key]))

    def named(self, text: str) -> list[Group]:
        """The groups that a path, pattern, mark or node name stands for.

        Raises:
            Misfit: there is none.
        """
        if not text:
            raise Misfit("cut '': an empty name names no place")
        if text.startswith("re:") or (_GLOB.search(text) and text not in self.calls):
            return self._matching(text)
        if text.endswith("@1") and text[:-2] in self.calls:
            return [self.call(text[:-2])]
        if text in self.calls:
            every = text if "@" in text else None
            return [self.call(key) for key in self.calls if key == every or (not every and _path(key) == text)]
        if text in self.marks:
            return [Group(text, frozenset(self.marks[text]))]
        if text in self.nodes and self.nodes[text].op != "output":
            return [Group(text, frozenset([self.nodes[text]]))]
        raise Misfit(self._unknown(text))

    def _matching(self, text: str) -> list[Group]:
        """The calls and marks that a pattern matches; else the nodes."""
        try:
            matches = pattern(text)
            groups = [self.call(key) for key in self.calls if matches(_path(key))]
            groups += [Group(name, frozenset(nodes)) for name, nodes in self.marks.items() if matches(name)]
            if not groups:
                nodes = [node for name, node in self.nodes.items() if matches(name) and node.op != "output"]
                groups = [Group(node.name, frozenset([node])) for node in nodes]
        except PatternError as error:
            raise Misfit(f"cut {_short(text)}: {error}") from error
        if not groups:
            none = f"cut {text!r}: matches none of {len(self.calls)} modules that ran"
            raise Misfit(with_nearest(none, text, self.calls))
        return groups

    def _unknown(self, name: str) -> Note:
        if name in self.modules:
            whole = next((key for key in self.calls if name.startswith(key + ".")), None)
            if whole is not None:
                return Note(f"cut {name!r}: lies inside '{whole}', which is kept whole; cut before or after that")
            why = self.passed_by.get(name, "did not run in this call")
            return Note(f"cut {name!r}: is a module that {why}", FROZEN if why == NOTHING_LEARNS else IDLE)
        unknown = f"cut {name!r}: the model has no such module, mark or node"
        return with_nearest(unknown, name, [*self.calls, *self.marks, *self.nodes], UNKNOWN, UNKNOWN_NEAR)


def with_nearest(line: str, name: str, names: Iterable[str], kind: str | None = None, near: str = NEAR) -> Note:
    """A line with the known names nearest to one; of the kind `near` where there are such names."""
    tail = nearest(name, names)
    return Note(line + tail, near if tail else kind)


def _short(text: str) -> str:
    return repr(text if len(text) < 80 else f"{text[:60]}...")


def _path(call: str) -> str:
    return numbered(call)[0]


def carries(node: fx.Node) -> bool:
    """Whether the node computes a value through which a gradient may come back."""
    return node.op.startswith("call") and bool(node.meta.get("gradient"))


def leaving(group: Group) -> list[Edge]:
    """The edges out of a group that carry a gradient, in graph order."""
    edges = []
    for node in sorted(group.nodes):
        if carries(node):
            edges += [(node, user) for user in node.users if user not in group.nodes and carries(user)]
    return edges


def entering(group: Group) -> list[Edge]:
    """The edges into a group that carry a gradient, in graph order."""
    edges = []
    for node in sorted(group.nodes):
        if carries(node):
            edges += [(i, node) for i in node.all_input_nodes if i not in group.nodes and carries(i)]
    return edges


def nothing_enters(group: Group) -> str:
    """Why no edge into a group carries a gradient."""
    before = {i for node in group.nodes for i in node.all_input_nodes} - group.nodes
    if any(i.op.startswith("call") and _is_real(i) for i in before):
        return Note(f"what comes before '{group.name}' {NOTHING_LEARNS}", FROZEN)
    return f"nothing that learns flows into '{group.name}'; it begins the model"


def nothing_leaves(group: Group) -> str:
    """Why no edge out of a group carries a gradient."""
    nodes = group.nodes
    if all(node.op == "placeholder" for node in nodes):
        return f"'{group.name}' is an input of the model; cut after something that learns"
    if any(user.op == "output" for node in nodes for user in node.users if user not in nodes):
        return f"matches '{group.name}', which ends the model; cut one of its inputs"
    if not any(map(carries, nodes)):
        if any(map(_is_real, nodes)):
            return Note(f"'{group.name}' {NOTHING_LEARNS}", FROZEN)
        return f"'{group.name}' makes {_dtypes(nodes)}, which carry no gradient; there is nothing to decouple"
    return f"nothing that learns reads '{group.name}'"


def _is_real(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return dtype is not None and bool(dtype.is_floating_point)


def _dtypes(nodes: Iterable[fx.Node]) -> str:
    dtypes = sorted({str(n.meta["dtype"]).removeprefix("torch.") for n in nodes if "dtype" in n.meta})
    return f"only {', '.join(dtypes)} values" if dtypes else "values"
