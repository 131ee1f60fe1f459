"""What a value is called by people: the call of the module whose output it is."""

from ..graph.facts import Facts
from ..graph.mark import cut as marker


def names(facts: Facts) -> dict[int, str]:
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
