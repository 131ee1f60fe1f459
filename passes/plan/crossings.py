"""Which values cross between parts, what they are called, and whether the user asked for it."""

from collections.abc import Sequence

from ..graph.facts import Facts
from ..graph.mark import cut as marker
from .aliasing import Pair
from .part_graph import Draft
from .placement import Placed
from .plan import AROUND, Crossing, Note
from .units import Kind, Units


def part_name(number: int) -> str:
    """Parts are called by their place in the running order."""
    return f"part_{number}"


class Flow:
    """Which part reads and which hands on which value."""

    def __init__(self, facts: Facts, placed: Placed):
        self.maker = placed.maker
        self.reads: list[tuple[int, ...]] = []
        self.consumers: dict[int, dict[int, list[int]]] = {}  # value -> part -> the nodes that read it there
        for part, members in enumerate(placed.members):
            here = set(members)
            self.reads.append(tuple(sorted({i for x in members for i in facts[x].inputs} - here)))
            for value in (value for value in self.reads[-1] if facts[value].kind != "input"):
                self.consumers.setdefault(value, {})[part] = [user for user in facts[value].users if user in here]
        handed = {x for x, fact in enumerate(facts) if fact.handed and fact.kind != "input"}
        self.hands: list[list[int]] = [[] for _ in placed.members]
        for value in sorted(handed | self.consumers.keys()):
            self.hands[self.maker[value]].append(value)


def crossings(facts: Facts, found: Draft, flow: Flow) -> tuple[Crossing, ...]:
    """The values that cross, in graph order. Those that no consumer has a gradient for carry none."""
    names, taken = module_names(facts), set[str]()
    asked = _Asked(found.units, found.cuts)
    result = []
    for value in sorted(flow.consumers):
        fact, meta = facts[value], facts[value].node.meta
        users = [user for users in flow.consumers[value].values() for user in users]
        result.append(
            Crossing(
                name=_unique(names.get(value, fact.name), taken),
                node=fact.name,
                producer=part_name(flow.maker[value]),
                consumers=tuple(map(part_name, flow.consumers[value])),
                shape=tuple(meta["shape"]) if "shape" in meta else None,
                dtype=str(meta["dtype"]).removeprefix("torch.") if "dtype" in meta else None,
                bytes=meta.get("bytes", 0),
                gradient=fact.gradient and any(facts[user].gradient for user in users),
                asked=any(asked(value, user) for user in users),
            )
        )
    return tuple(result)


def around(found: Sequence[Crossing]) -> list[Note]:
    """A note on each value with a gradient that the user did not ask to cut."""
    return [
        Note(f"'{c.name}' goes around the cuts (used in {', '.join(c.consumers)}): cut too", AROUND, c.node)
        for c in found
        if c.gradient and not c.asked
    ]


def _unique(name: str, taken: set[str]) -> str:
    """Different from all others also where dots must not be, in the names of modules."""
    count, unique = 1, name
    while unique.replace(".", "_") in taken:
        count += 1
        unique = f"{name}@{count}"
    taken.add(unique.replace(".", "_"))
    return unique


class _Asked:
    """Whether a user's cut lies on the way of a value: on its edge, or next to it among free nodes."""

    def __init__(self, units: Units, cuts: frozenset[Pair]):
        self.units, self.cuts = units, cuts
        cut = units.pairs(cuts)
        free = [u for u, kind in enumerate(units.kinds) if kind is Kind.FREE]
        self.above, self.below = [False] * len(units), [False] * len(units)
        for u in free:
            self.above[u] = any((i, u) in cut or self.above[i] for i in units.inputs[u])
        for u in reversed(free):
            self.below[u] = any((u, v) in cut or self.below[v] for v in units.users[u])

    def __call__(self, value: int, user: int) -> bool:
        return (value, user) in self.cuts or self.above[self.units.of[value]] or self.below[self.units.of[user]]


def module_names(facts: Facts) -> dict[int, str]:
    """The module call of each node that is the output of one, of the outermost call where there are several.

        layer2.0.conv  layer2.0.relu  layer2.1.conv  layer2.1.relu │ fc
                       "layer2.0"                    "layer2"

    A call's output is the last of its nodes whose value leaves it. The node of a leaf module that is no such output has
    the name of its own call, and a mark `dg.cut(x, name="mid")` the name that it was given. Further calls of a module
    are `layer2@2`, `layer2@3`, as in the user's cuts.
    """
    found: dict[int, str] = {}
    named: set[str] = set()
    for position in reversed(range(len(facts))):
        calls, mark = _calls(facts, position), _mark(facts, position)
        ended = [call for call in calls if call not in named and _leaves(facts, position, call)]
        named.update(ended)
        if mark and mark not in named:
            named.add(mark)
            found[position] = mark
        elif ended:
            found[position] = ended[0]
        elif facts[position].node.op == "call_module":
            found[position] = calls[-1] if calls else str(facts[position].node.target)
    return found


def _mark(facts: Facts, position: int) -> str | None:
    node = facts[position].node
    name = node.kwargs.get("name") if node.target is marker else None
    return name if isinstance(name, str) else None


def _calls(facts: Facts, position: int) -> list[str]:
    """The module calls around a node, outermost first."""
    stack = facts[position].node.meta.get("nn_module_stack") or {}
    return [key for key in stack if key]


def _leaves(facts: Facts, position: int, call: str) -> bool:
    return facts[position].handed or any(call not in _calls(facts, user) for user in facts[position].users)
