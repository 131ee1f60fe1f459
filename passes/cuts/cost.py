"""What each node of a graph costs, in whole numbers."""

from math import prod

from ..graph.facts import Facts

COSTS = ("flops", "time", "memory")


def costs(facts: Facts, kind: str) -> list[int]:
    """The cost of each node, in graph order.

    flops: of the forward run, and one for each scalar that is made or changed, so that nothing but views is free.
    time: nanoseconds; flops where the nodes were not timed.
    memory: bytes of the values with a gradient, each storage once; about what autograd keeps for the backward pass.
    """
    if kind == "time" and any("seconds" in fact.node.meta for fact in facts):
        return [round(1e9 * fact.node.meta.get("seconds", 0)) for fact in facts]
    result: list[int] = []
    seen: set[int] = set()  # storages
    for fact in facts:
        meta = fact.node.meta
        new = fact.kind == "computed" and not (fact.holds and fact.holds <= seen)  # no view of what was there
        seen |= fact.holds
        if kind == "memory":
            result.append(fact.bytes if new and fact.gradient else 0)
        else:
            scalars = prod(meta["shape"]) if "shape" in meta else 0
            result.append(int(meta.get("flops", 0)) + scalars * (new or bool(fact.writes)))
    return result
