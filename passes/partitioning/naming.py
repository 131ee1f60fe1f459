"""What a value is called by people: the path of the module whose output it is."""

from collections.abc import Mapping

from .facts import Facts


def paths(facts: Facts) -> dict[int, str]:
    """The module path of each node that is the output of a module, of the outermost one where there are several.

        layer2.0.conv  layer2.0.relu  layer2.1.conv  layer2.1.relu │ fc
                       "layer2.0"                    "layer2"

    A module's output is the last of its nodes whose value leaves it. What is no output of a module but the call of one
    has that one's path.
    """
    found: dict[int, str] = {}
    runs: dict[str, _Run] = {}  # the calls of modules that we are in, seen from behind
    for position in reversed(range(len(facts))):
        stack = _stack(facts, position)
        if not stack:
            continue
        runs = {key: runs.get(key) or _Run(position) for key in stack}
        for key, run in runs.items():
            if not run.named and stack[key] and _leaves(facts, position, key, run.end):
                run.named = True
                found.setdefault(position, stack[key])
        if facts[position].node.op == "call_module":
            found.setdefault(position, str(facts[position].node.target))
    return found


class _Run:
    """One call of a module: nodes that stand together."""

    def __init__(self, end: int):
        self.end, self.named = end, False


def _stack(facts: Facts, position: int) -> Mapping[str, str]:
    """The modules around a node, outermost first: key of the call -> path."""
    stack = facts[position].node.meta.get("nn_module_stack") or {}
    return {str(key): str(found[0]) for key, found in stack.items()}


def _leaves(facts: Facts, position: int, key: str, end: int) -> bool:
    users = facts[position].users
    return facts[position].handed or any(user > end or key not in _stack(facts, user) for user in users)
