"""Which values cross between parts, what they are called, and whether the user asked for it."""

from collections.abc import Sequence

from ..graph.facts import Facts
from ..graph.mark import mark_name
from .aliasing import Pair
from .placement import Placement
from .plan import AROUND, Crossing, Note
from .units import Kind, Units


class Flow:
    """Which part reads and which hands on which value.

    Attributes:
        reads: for each part the values that it reads.
        hands: for each part the values that it hands on.
        consumers: value -> part -> the nodes that read it there.
    """

    def __init__(self, facts: Facts, placed: Placement):
        self.maker = placed.maker
        self.reads: list[list[int]] = []
        self.hands: list[list[int]] = []
        self.consumers: dict[int, dict[int, list[int]]] = {}
        for part, members in enumerate(placed.members):
            here, read = set(members), set[int]()
            for x in members:
                read.update(facts[x].inputs)
            self.reads.append(sorted(read - here))
            self.hands.append([])
            for value in self.reads[-1]:
                if facts[value].kind != "input":
                    self.consumers.setdefault(value, {})[part] = [user for user in facts[value].users if user in here]
        for value, fact in enumerate(facts):
            if value in self.consumers or (fact.handed and fact.kind != "input"):
                self.hands[self.maker[value]].append(value)


def crossings(facts: Facts, units: Units, cuts: frozenset[Pair], flow: Flow) -> tuple[Crossing, ...]:
    """The values that a later part reads, in graph order. `gradient` is false if no reader sends a gradient back."""
    names = module_names(facts) if flow.consumers else {}
    taken: set[str] = set()
    asked_above, asked_below = _asked(units, cuts)
    result = []
    for value in sorted(flow.consumers):
        fact, meta = facts[value], facts[value].node.meta
        gradient, asked = False, asked_above[units.of[value]]
        for users in flow.consumers[value].values():
            for user in users:
                gradient |= fact.gradient and facts[user].gradient
                asked |= (value, user) in cuts or asked_below[units.of[user]]
        result.append(
            Crossing(
                name=unique_name(names.get(value, fact.name), taken),
                node=fact.name,
                producer=f"part_{flow.maker[value]}",
                consumers=tuple([f"part_{part}" for part in flow.consumers[value]]),
                shape=tuple(meta["shape"]) if "shape" in meta else None,
                dtype=str(meta["dtype"]).removeprefix("torch.") if "dtype" in meta else None,
                bytes=meta.get("bytes", 0),
                gradient=gradient,
                asked=asked,
            )
        )
    return tuple(result)


def around(crossings: Sequence[Crossing]) -> list[Note]:
    """A note on each value with a gradient that the user did not ask to cut."""
    return [
        Note(f"'{c.name}' goes around the cuts (used in {', '.join(c.consumers)}): cut too", AROUND, c.node)
        for c in crossings
        if c.gradient and not c.asked
    ]


def unique_name(name: str, taken: set[str]) -> str:
    """A name that differs from all others also where dots are not allowed, as in the names of modules."""
    count, unique = 1, name
    while unique.replace(".", "_") in taken:
        count += 1
        unique = f"{name}@{count}"
    taken.add(unique.replace(".", "_"))
    return unique


def _asked(units: Units, cuts: frozenset[Pair]) -> tuple[list[bool], list[bool]]:
    """For each unit whether a user's cut lies before it, and whether one lies behind it, with free units between."""
    cut = units.pairs(cuts)
    above, below = [False] * len(units.kinds), [False] * len(units.kinds)
    free = [u for u, kind in enumerate(units.kinds) if kind is Kind.FREE]
    for u in free:
        above[u] = any((i, u) in cut or above[i] for i in units.inputs[u])
    for u in reversed(free):
        below[u] = any((u, v) in cut or below[v] for v in units.users[u])
    return above, below


def module_names(facts: Facts) -> dict[int, str]:
    """The module call of each node that is the output of one, of the outermost call where there are several.

        layer2.0.conv  layer2.0.relu  layer2.1.conv  layer2.1.relu │ fc
                       "layer2.0"                    "layer2"

    A call's output is the last of its nodes whose value leaves it. The node of a leaf module that is no such output has
    the name of its own call, and a mark `dg.cut(x, name="mid")` the name that it was given. Further calls of a module
    are `layer2@2`, `layer2@3`, as in the user's cuts.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    stacks = [fact.node.meta.get("nn_module_stack") or {} for fact in facts]  # module calls, the outermost first
    for position in reversed(range(len(facts))):
        fact = facts[position]
        ended, innermost = [], str(fact.node.target)
        for call in stacks[position]:
            innermost = call or innermost
            leaves = fact.handed
            for user in fact.users:
                leaves |= call not in stacks[user]
            if call and call not in taken and leaves:
                ended.append(call)
        taken.update(ended)
        mark = mark_name(fact.node)
        if mark and mark not in taken:
            taken.add(mark)
            names[position] = mark
        elif ended:
            names[position] = ended[0]
        elif fact.node.op == "call_module":
            names[position] = innermost
    return names
