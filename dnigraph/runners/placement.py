"""Which rank has which part of a model."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..decoupled.specialization import Specialization
from ..engine.updates.groups import Group
from ..passes.cuts.linear_partition import Chain
from ..passes.errors import nearest
from ..passes.plan.plan import Plan


def by_cost(plan: Plan, count: int) -> dict[str, int]:
    """The parts in their order, divided among so many ranks so that the busiest one has the least to do.

    Requires:
        There are as many parts as ranks, or more.
    """
    parts = plan.parts
    known = all(part.flops is not None for part in parts)
    costs = [1 + (part.flops or 0 if known else part.parameters) for part in parts]
    before = list(accumulate(costs))
    order = {part.name: i for i, part in enumerate(parts)}
    bytes_over = [0] * (len(parts) - 1)  # what is sent from the parts before a place to those after it
    for crossing in plan.crossings:
        last = max((order[name] for name in crossing.consumers), default=0)
        for place in range(order[crossing.producer], last):
            bytes_over[place] += crossing.bytes
    ends = Chain(before[:-1], before[-1], bytes_over).divide(count)
    return {part.name: sum(i > end for end in ends) for i, part in enumerate(parts)}


def rank_misfits(plan: Plan, ranks: Mapping[str, int] | None, count: int) -> list[str]:
    """What is wrong with a choice of ranks; a line each."""
    names = [part.name for part in plan.parts]
    if len(names) < count:
        return [f"there are {count} ranks and {len(names)} parts: cut into more parts, or start fewer processes"]
    if ranks is None:
        return []
    if not isinstance(ranks, Mapping):
        return [f"ranks={ranks!r} (a dict from each part to its rank, or None: by cost)"]
    wrong = [
        f"ranks names {name!r}{nearest(str(name), names)}; parts: {', '.join(names)}"
        for name in ranks
        if name not in names
    ]
    wrong += [f"ranks does not name {name}" for name in names if name not in ranks]
    bad = [(n, r) for n, r in ranks.items() if isinstance(r, bool) or not isinstance(r, int) or not 0 <= r < count]
    wrong += [f"ranks={{{name!r}: {rank!r}}} (a whole number from 0 to {count - 1})" for name, rank in bad]
    idle = sorted(set(range(count)) - set(ranks.values())) if not wrong else []
    return wrong + [f"rank {rank} has no part: name one for it, or start fewer processes" for rank in idle]


class Owners:
    """The ranks of each weight and buffer, over all ways through a model's code.

    A weight that parts on several ranks share has a copy on each of them; the last of these parts answers for it, whose
    optimiser steps it.

    Args:
        ranks: of the parts of the first way, by name.
    """

    def __init__(self, model: nn.Module, ranks: Mapping[str, int]):
        self._model, self._ranks = model, dict(ranks)
        self._of: dict[torch.Tensor, int] = {}
        self._copies: dict[torch.Tensor, set[int]] = {}  # the ranks that have a weight
        self._paths: dict[str, int] = {}
        self._seen: WeakKeyDictionary[Specialization, dict[str, int]] = WeakKeyDictionary()

    def rank_of(self, path: str, value: Any) -> int | None:
        """The rank that has an entry of the model's state; None: no part does.

        Args:
            path: in the model. A buffer may be another tensor after each step.
        """
        rank = self._of.get(value) if isinstance(value, torch.Tensor) else None
        return self._paths.get(path) if rank is None else rank

    def has(self, rank: int, weight: torch.Tensor) -> bool:
        """Whether a rank steps a weight: one of its parts uses it."""
        return rank in self._copies.get(weight, ())

    def place(self, way: Specialization, groups: Iterable[Group]) -> tuple[dict[str, int], list[str]]:
        """The rank of each part of a way, and why they cannot lie there; a line each.

        A part goes where its weights are, if a part of an earlier way has put them somewhere.
        """
        if way in self._seen:
            return self._seen[way], []
        place: dict[str, int] = {}
        last = 0
        for part in way.plan.parts:
            mine = {self._of[t] for t in self._moving(way, part.name) if len(self._copies.get(t, ())) == 1}
            last = min(mine) if self._seen and mine else self._ranks.get(part.name, last)
            place[part.name] = last
        wrong = [*self._shared(way, place)] or [*self._apart(way, place, groups)]
        if not wrong:
            self._seen[way] = place
            for name, rank in reversed(list(place.items())):
                for path, tensor in _tensors(way.parts[name]):
                    self._of.setdefault(tensor, rank)
                    self._paths.setdefault(path, rank)
            for name, rank in place.items():
                for _, tensor in _tensors(way.parts[name]):
                    self._copies.setdefault(tensor, set()).add(rank)
        return place, wrong

    def _moving(self, way: Specialization, part: str) -> Iterator[torch.Tensor]:
        """The tensors of a part that a step changes: weights, and buffers that are written."""
        module, graph = way.parts[part], way.split.graphs[part]
        yield from module.parameters()
        own, written = {id(b) for b in module.buffers()}, set(way.captured.writes)
        yield from (b for name, b in self._model.named_buffers() if name in written and id(b) in own)
        for node in graph.find_nodes(op="call_module"):  # a normalisation, say: what it writes to is its own business
            yield from module.get_submodule(str(node.target)).buffers()

    def _shared(self, way: Specialization, place: Mapping[str, int]) -> Iterator[str]:
        """Tensors that parts on several ranks would each change for themselves, and that no sum brings together."""
        users: dict[torch.Tensor, list[str]] = {}
        for part in way.plan.parts:
            for tensor in self._moving(way, part.name):
                users.setdefault(tensor, []).append(part.name)
        names: dict[torch.Tensor, str] = {
            t: n for n, t in [*self._model.named_parameters(), *self._model.named_buffers()]
        }
        for tensor, parts in users.items():
            here = {place[name] for name in parts}
            ranks = here | self._copies.get(tensor, set())
            alike = ranks == here and isinstance(tensor, nn.Parameter)  # each copy gets the sum of all gradients
            if len(ranks) > 1 and not alike:
                where = " and ".join(f"{name} (rank {place[name]})" for name in parts)
                one = ", ".join(f"{name!r}: {max(ranks)}" for name in parts)
                before = " and ".join(map(str, sorted(ranks - here)))
                owner = f", and by other parts on rank {before} before" if before else ""
                yield (
                    f"{names.get(tensor, 'a weight')} is used by {where}{owner}, and each would change a copy of its "
                    f"own: put them on one rank, ranks={{{one}, ...}}"
                )

    def _apart(self, way: Specialization, place: Mapping[str, int], groups: Iterable[Group]) -> Iterator[str]:
        """Groups of parameters that one optimiser steps, and that lie on several ranks."""
        rank_of = dict(self._of)
        users: dict[nn.Parameter, set[int]] = {}
        for name, rank in reversed(list(place.items())):
            rank_of |= {p: rank for p in way.parts[name].parameters() if p not in rank_of}
            for parameter in way.parts[name].parameters():
                users.setdefault(parameter, set()).add(rank)
        for group in groups:
            shared = [p for p in group.parameters if len(users.get(p, ())) > 1]
            if shared and group.clip is not None:
                names = ", ".join(n for n, p in self._model.named_parameters() if any(p is s for s in shared))
                yield (
                    f"{names} lies on several ranks, none of which knows the norm of all gradients of {group.name}: "
                    "leave out its clip, or put the parts that share it on one rank, ranks={...}"
                )
            ranks = {rank_of[p] for p in group.parameters if p in rank_of}
            if len(ranks) > 1:
                listed = ", ".join(map(str, sorted(ranks)))
                yield (
                    f"the optimiser of {group.name} has weights of parts on the ranks {listed}: this way through the "
                    "model's code divides it otherwise than the first one; put those parts on one rank, ranks={...}"
                )


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
