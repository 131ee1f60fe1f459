"""What must stay in one part, and what must keep its order.

h ─► relu_ ─► fc        h, relu_ and whatever reads h before relu_ are tied; fc reads the final value and is free
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..graph.facts import Fact, Facts

Pair = tuple[int, int]


@dataclass(frozen=True)
class Memory:
    """Who holds and who writes each storage that is written at all, in graph order."""

    holders: dict[int, list[int]]
    writers: dict[int, list[int]]
    outlasting: frozenset[int]  # storages of parameters, buffers and constants: order is all that they ask for


def memory(facts: Facts) -> Memory:
    """The storages that some node writes."""
    writers, holders = defaultdict(list), defaultdict(list)
    for position, fact in enumerate(facts):
        for storage in fact.writes:
            writers[storage].append(position)
    for position, fact in enumerate(facts):
        for storage in fact.holds & writers.keys():
            holders[storage].append(position)
    outlasting = {s for s in writers if not holders[s] or any(facts[p].kind == "constant" for p in holders[s])}
    return Memory(dict(holders), dict(writers), frozenset(outlasting))


def ties(facts: Facts, known: Memory) -> list[set[int]]:
    """Groups of nodes that no cut can separate.

    One is made of each storage that is written after it was computed: all that gives it up to the last write, the
    writers, and the readers before the last write. One of each bundle and what reads it: tensors cross, not tuples.
    And one of each gradient that the model itself asks for, with what it is sent back through.
    """
    groups = [_rewritten(facts, known, storage) for storage in known.writers if storage not in known.outlasting]
    groups += [tie for storage in known.outlasting for tie in _stale(facts, known, storage)]
    bundles = (p for p in facts.computed() if facts[p].bundle)
    groups += [{p, *facts[p].users} for p in bundles]
    groups += [_sent_back(facts, p) for p in facts.computed() if _differentiates(facts[p])]
    return [group for group in groups if len(group) > 1]


def _rewritten(facts: Facts, known: Memory, storage: int) -> set[int]:
    last = known.writers[storage][-1]
    tied = set(known.writers[storage])
    for holder in known.holders[storage]:
        given = facts[holder].kind == "input"  # each part reads it anew: late readers too must be where it is written
        tied.update(user for user in facts[holder].users if user < last or given)
        if holder <= last and not given:
            tied.add(holder)
    return tied


def _stale(facts: Facts, known: Memory, storage: int) -> Iterable[set[int]]:
    """Views of a buffer stay with who writes through them, or reads them after a write: a copy would not do."""
    for holder in known.holders.get(storage, ()):
        if facts[holder].kind != "computed":
            continue
        changes = [writer for writer in known.writers[storage] if writer > holder]
        yield {holder, *(user for user in facts[holder].users if changes and user >= changes[0])}


def _differentiates(fact: Fact) -> bool:
    """It calls `torch.autograd.grad`, or `backward`, in the middle of a forward pass."""
    function = getattr(fact.node.target, "function", fact.node.target)
    return function in (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward, "backward")


def _sent_back(facts: Facts, position: int) -> set[int]:
    """The two ends of what a gradient is sent back through, or all of it where no computed value is the far end.

    What lies between goes with them. A boundary on that way would stop the gradient.
    """
    ends = {p for p in facts[position].inputs if facts[p].gradient}
    if len(ends) > 1 and all(facts[p].kind == "computed" for p in ends):
        return {position, *ends}
    tied, waiting = {position}, list(ends)
    while waiting:
        fact = facts[at := waiting.pop()]
        if at not in tied and fact.kind == "computed" and fact.gradient:
            tied.add(at)
            waiting += fact.inputs
    return tied


def last_writer(facts: Facts, known: Memory, position: int) -> int | None:
    """The node that changes the value of another last, if any does."""
    writers = [known.writers[s][-1] for s in facts[position].holds & known.writers.keys() - known.outlasting]
    return max((writer for writer in writers if writer > position), default=None)


@dataclass(frozen=True)
class Sequences:
    """Pairs of nodes that must run in this order although no data flows between them."""

    pairs: tuple[Pair, ...]
    members: frozenset[int]  # whatever uses a parameter or buffer that changes during the run


def sequences(facts: Facts, known: Memory) -> Sequences:
    """The order in which random numbers are drawn, and changing parameters and buffers are read and written."""
    random = [p for p in facts.computed() if facts[p].random]
    changing = [uses for uses in _uses(facts, known).values() if any(writes for _, writes in uses)]
    pairs = [*pairwise(random), *(pair for uses in changing for pair in _in_turn(uses))]
    return Sequences(tuple(dict.fromkeys(pairs)), frozenset(p for uses in changing for p, _ in uses))


def _uses(facts: Facts, known: Memory) -> dict[Hashable, list[tuple[int, bool]]]:
    """Each use of what outlasts the run, in graph order, and whether it is a write."""
    storage_of = {f.node.target: s for f in facts if f.kind == "constant" for s in f.holds}
    found: dict[Hashable, list[tuple[int, bool]]] = defaultdict(list)
    for position in facts.computed():
        fact = facts[position]
        read: set[Hashable] = {s for p in fact.inputs for s in facts[p].holds & known.outlasting}
        read |= {storage_of.get(name, name) for name, _, _ in fact.parameters}
        written = {*(fact.writes & known.outlasting), *(storage_of.get(name, name) for name in fact.buffers)}
        for key in read | written:
            found[key].append((position, key in written))
    return found


def _in_turn(uses: Sequence[tuple[int, bool]]) -> Iterable[Pair]:
    """Write before read, read before write, write before write."""
    writer: int | None = None
    readers: list[int] = []
    for position, writes in uses:
        before = readers if writes and readers else [writer] if writer is not None else []
        yield from ((earlier, position) for earlier in before)
        if writes:
            writer, readers = position, []
        else:
            readers.append(position)
