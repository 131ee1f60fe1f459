"""What each node of a graph costs, in whole numbers."""

from collections.abc import Iterable
from math import prod

from ..graph.facts import Fact, Facts

COSTS = ("flops", "time", "memory")


def costs(facts: Facts, kind: str) -> list[int]:
    """The cost of each node, in graph order.

    flops: of the forward run, and one for each scalar that is made or changed, so that nothing but views is free.
    time: nanoseconds; where no one has timed the nodes, flops.
    memory: bytes of what carries a gradient, each storage once; about what autograd keeps.
    """
    if kind == "time" and any("seconds" in fact.node.meta for fact in facts):
        return [round(1e9 * fact.node.meta.get("seconds", 0)) for fact in facts]
    of = _memory if kind == "memory" else _flops
    return [of(fact, made) for fact, made in zip(facts, _made(facts), strict=True)]


def _made(facts: Facts) -> Iterable[bool]:
    """Whether each node makes something: no input, no constant, no view of what was there."""
    seen: set[int] = set()
    for fact in facts:
        yield fact.kind == "computed" and not (fact.holds and fact.holds <= seen)
        seen |= fact.holds


def _memory(fact: Fact, made: bool) -> int:
    return fact.bytes if made and fact.gradient else 0


def _flops(fact: Fact, made: bool) -> int:
    meta = fact.node.meta
    scalars = prod(meta["shape"]) if "shape" in meta else 0
    return int(meta.get("flops", 0)) + scalars * (made or bool(fact.writes))
