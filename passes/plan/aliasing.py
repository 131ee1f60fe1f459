"""Aliasing: which nodes share memory that is written in place, and what must stay together or in order for that.

h ─► relu_ ─► fc        h, relu_ and all that reads h before relu_ are tied; fc reads the final value and is free

What torch's functionalization does by rewriting (in-place writes become copies) is done here by tying nodes together:
the parts run the model's own operations.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..graph.facts import Facts

Pair = tuple[int, int]
# They differentiate in the middle of a forward pass.
GRADIENTS = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward, "backward")


@dataclass(frozen=True)
class Memory:
    """Who holds and who writes each storage that is written at all, in graph order."""

    holders: dict[int, list[int]]
    writers: dict[int, list[int]]
    outlasting: frozenset[int]  # storages of parameters, buffers and constants: these need an order only


def written_memory(facts: Facts) -> Memory:
    """The storages that some node writes."""
    writers: dict[int, list[int]] = defaultdict(list)
    holders: dict[int, list[int]] = defaultdict(list)
    for position, fact in enumerate(facts):
        for storage in fact.writes:
            writers[storage].append(position)
    outlasting = set(writers)
    for position, fact in enumerate(facts):
        for storage in fact.holds & writers.keys():
            holders[storage].append(position)
            outlasting.discard(storage)
    for fact in facts:
        if fact.kind == "constant":
            outlasting |= fact.holds & writers.keys()
    return Memory(dict(holders), dict(writers), frozenset(outlasting))


def ties(facts: Facts, memory: Memory) -> list[set[int]]:
    """Groups of nodes that no cut can separate.

    There is one for each storage that is written after it was computed: its holders up to the last write, the writers,
    and the readers before the last write. One for each bundle and its readers, as tensors cross and not tuples. And one
    for each gradient that the model itself asks for, with what it differentiates through.
    """
    groups: list[set[int]] = []
    for storage in memory.writers:
        groups += _views(facts, memory, storage) if storage in memory.outlasting else [_holders(facts, memory, storage)]
    for position in facts.computed:
        fact = facts[position]
        if fact.bundle:
            groups.append({position, *fact.users})
        if getattr(fact.node.target, "function", fact.node.target) in GRADIENTS:
            groups.append(_differentiated(facts, position))
    return [group for group in groups if len(group) > 1]


def _holders(facts: Facts, memory: Memory, storage: int) -> set[int]:
    last = memory.writers[storage][-1]
    tied = set(memory.writers[storage])
    for holder in memory.holders[storage]:
        # Each part reads an input of the model anew: its late readers too must be in the part that writes it.
        given = facts[holder].kind == "input"
        tied.update(user for user in facts[holder].users if user < last or given)
        if holder <= last and not given:
            tied.add(holder)
    return tied


def _views(facts: Facts, memory: Memory, storage: int) -> list[set[int]]:
    """Each view of a buffer with its readers after a write: a copy of the view would not show that write."""
    groups = []
    for holder in memory.holders.get(storage, ()):
        if facts[holder].kind == "computed":
            first = next((writer for writer in memory.writers[storage] if writer > holder), len(facts))
            groups.append({holder, *(user for user in facts[holder].users if user >= first)})
    return groups


def _differentiated(facts: Facts, position: int) -> set[int]:
    """An inner gradient with what it goes through, which a boundary would cut off.

    These are the two ends, between which `contract` adds the rest; or the whole way, if it leads to an input or weight.
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


def last_writer(facts: Facts, memory: Memory, position: int) -> int | None:
    """The last node that changes the value of another in place, if any does."""
    storages = facts[position].holds & memory.writers.keys() - memory.outlasting
    return max((w for s in storages if (w := memory.writers[s][-1]) > position), default=None)


@dataclass(frozen=True)
class Sequences:
    """Pairs of nodes that must run in this order although no data flows between them."""

    pairs: tuple[Pair, ...]
    members: frozenset[int]  # the users of parameters and buffers that change during the run


def sequences(facts: Facts, memory: Memory) -> Sequences:
    """The order in which random numbers are drawn, and changing parameters and buffers are read and written."""
    pairs = dict.fromkeys(pairwise([p for p in facts.computed if facts[p].random]))
    members: set[int] = set()
    for uses in _uses_of_changing(facts, memory):
        members.update(position for position, _ in uses)
        pairs |= dict.fromkeys(_in_turn(uses))
    return Sequences(tuple(pairs), frozenset(members))


def _uses_of_changing(facts: Facts, memory: Memory) -> list[list[tuple[int, bool]]]:
    """For each changing parameter or buffer its users, in graph order, and whether each writes it."""
    key_of: dict[Hashable, Hashable] = {}  # a tensor that is in the graph goes by its storage, else by its name
    for fact in facts:
        if fact.kind == "constant" and fact.holds:
            (key_of[str(fact.node.target)],) = fact.holds
    uses: dict[Hashable, list[tuple[int, bool]]] = defaultdict(list)
    changing: dict[Hashable, None] = {}
    for position in facts.computed:
        fact = facts[position]
        written: set[Hashable] = set(fact.writes & memory.outlasting)
        for name in fact.buffers:
            written.add(key_of.get(name, name))
        keys = set(written)
        for i in fact.inputs:
            keys |= facts[i].holds & memory.outlasting
        for name, _, _ in fact.parameters:
            keys.add(key_of.get(name, name))
        for key in keys:
            uses[key].append((position, key in written))
        changing |= dict.fromkeys(written)
    return list(map(uses.__getitem__, changing))


def _in_turn(uses: Sequence[tuple[int, bool]]) -> list[Pair]:
    """The pairs write before read, read before write, write before write."""
    pairs: list[Pair] = []
    writer: list[int] = []
    readers: list[int] = []
    for position, writes in uses:
        pairs += [(earlier, position) for earlier in (readers if writes and readers else writer)]
        if writes:
            writer, readers = [position], []
        else:
            readers.append(position)
    return pairs
