"""The runner of one model on several processes: each rank has some of the parts, and learns them."""

import io
import itertools
import json
import multiprocessing.util
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..boundaries import Boundary
from ..decoupled.module import DecoupledModule
from ..decoupled.specialization import Specialization
from ..engine.updates.rules import MakeOptimizer, MakeScheduler
from ..heads.conditions import ConditionError
from ..heads.seen import NEEDS
from ..passes.errors import CheckpointError, DniGraphError, bullets, is_number, is_whole
from ..passes.graph.guards import Trust
from ..passes.graph.pytrees import flatten, map_tensors
from ..passes.parts.boundary_nodes import key_of
from ..passes.sandbox.journal import all_or_nothing
from .checkpoint import portable_random, restore_random, save_checkpoint
from .local import TARGET, Local, Loss, StepResult
from .placement import Owners, by_cost, rank_misfits
from .post import Post
from .processes import Rank
from .roster import DistributedError, Roster
from .wire import BYTES, MAGIC, Frame, Stamp

COUNT = itertools.count()  # runs of this process: all ranks make theirs in the same order
FOREVER = timedelta(days=20)  # of a receive: who waits looks by itself whether the other lives
STAR = -1  # the channel between rank 0 and every other
SEEN = 1024  # numbers of a tensor that its digest looks at
LONGEST = 160  # letters of a fact in an error


@dataclass(frozen=True)
class RankResult(StepResult):
    """The result of one step on one rank."""

    loss: Tensor | None  # type: ignore[assignment]  # None on ranks that do not compute it
    output: Any  # what the model returned, detached; None where `loss` is


class Distributed:
    """Trains a decoupled model on several processes: each rank runs and learns some of the parts.

        rank 0   part_0: forward ─► message ─► backward, update ─► ...          each at its own pace: nobody waits
        rank 1                      part_1: forward, backward, update ─► answer  for what comes back later

    Every rank makes the same model, and calls the same methods with the same arguments: its own loader with the same
    seed. Between processes go messages (what crosses a cut) and answers (the gradients that train heads, or parts with
    oracles). With `late=0` each step waits for its answers, and the weights are bitwise those of `Local`; with `late=k`
    those of `Local(late=k)`, and a part runs ahead of its readers by up to k steps. That holds as long as parts draw no
    random numbers: each process has a stream of its own.

    Start the processes with torchrun, and `torch.distributed.init_process_group("gloo")` first. A rank that dies,
    hangs, fails or does something else than the others ends the run on all ranks within seconds, with an error that
    names it.

    Args:
        dm, loss, optimizer, scheduler, clip, monitor, late: as in `Local`.
        ranks: the rank of each part, by name. None: stretches of parts, so that the busiest rank has the least to do.
        patience: seconds without a sign of life after which a rank is taken for dead.
        timeout: seconds that a rank which lives is waited for.

    Raises:
        DniGraphError: an argument does not fit; all that do not are listed.
        DistributedError: torch.distributed is not initialised, or the ranks do not fit each other: other plans,
            versions or choices.

    Example:
        >>> dist.init_process_group("gloo")
        >>> dm = dg.decouple(model, 2, (x,), condition=dg.one_hot(10))
        >>> with dg.Distributed(dm, loss=F.cross_entropy, optimizer=torch.optim.Adam, late=2) as run:
        ...     for x, y in loader:
        ...         run.step(x, target=y)
        ...     run.settle()
        ...     run.save("run.pt")
    """

    def __init__(
        self,
        dm: DecoupledModule,
        *,
        loss: Loss,
        optimizer: MakeOptimizer | Mapping[str, MakeOptimizer],
        ranks: Mapping[str, int] | None = None,
        scheduler: MakeScheduler | Mapping[str, MakeScheduler] | None = None,
        clip: float | Mapping[str, float] | None = None,
        monitor: int = 1,
        late: int = 0,
        patience: float = 5.0,
        timeout: float = 1800.0,
    ):
        if not (dist.is_available() and dist.is_initialized()):
            raise DistributedError(
                "torch.distributed is not initialised: start the processes with torchrun --nproc-per-node 2 train.py, "
                "and call torch.distributed.init_process_group('gloo') before"
            )
        self._local = Local(dm, loss=loss, optimizer=optimizer, scheduler=scheduler, clip=clip, monitor=monitor)
        self.dm, self.updates = self._local.dm, self._local.updates
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        way = self.dm.specialization
        wrong = rank_misfits(way.plan, ranks, self.world)
        wrong += [
            f"{name}={value!r} (seconds, above 0)"
            for name, value in (("patience", patience), ("timeout", timeout))
            if not (is_number(value) and value > 0)
        ]
        if not is_whole(late):
            wrong.append(f"late={late!r} (a whole number of steps from 0 on)")
        looking = [g.name for g in self.updates.groups.values() if isinstance(g.scheduler, ReduceLROnPlateau)]
        if looking and self.world > 1:
            wrong.append(f"the schedules of {', '.join(looking)} look at the loss, which only one rank has")
        if self.world > 1:
            wrong += unseen(self.dm.boundaries)
        if wrong:
            raise DniGraphError(f"Distributed does not take these arguments:{bullets(wrong)}")
        self.ranks = dict(ranks) if ranks is not None else by_cost(way.plan, self.world)
        self._owners = Owners(self.dm.original, self.ranks)
        self._heads: dict[str, int] = {}  # by the names of boundaries, the rank of the part that makes the value
        self._place(way)
        self._late, self._timeout = late, timeout
        self._ways: dict[Specialization, int] = {}  # a number that tells each from the others
        self._under_way = False  # whether steps with late answers were not settled
        names = [f"rank {r} ({', '.join(n for n, at in self.ranks.items() if at == r)})" for r in range(self.world)]
        store = dist.distributed_c10d._get_default_store()
        self._roster = Roster(store, f"dnigraph/{next(COUNT)}", self.rank, names, patience)
        self._roster.agree(self._facts(way), timeout)
        self._roster.watch()
        group = dist.new_group(backend="gloo", timeout=FOREVER)
        most = late * len(way.plan.parts) + 2  # what parts share waits for the last answer, each other packet for one
        self.post = Post(group, self._roster, [r for r in range(self.world) if r != self.rank], most)
        self._own = Rank(self.rank, {}, self.post, timeout)
        self.net = self.dm.network(loss=self._local._loss, late=late)
        self.net.runner = self._own.runner()
        self._end = multiprocessing.util.Finalize(self, _close, (self.post, self._roster), exitpriority=10)

    # ---- training

    @property
    def steps(self) -> int:
        """How many steps there were."""
        return self._local.steps

    def step(self, *args: Any, target: Any = None, label: Any = TARGET, **kwargs: Any) -> RankResult:
        """One step of training on one batch. Call it on all ranks with the same arguments.

        Args:
            args, kwargs: the model's own.
            target: as in `Local.step`; only the rank that computes the loss looks at it.
            label: as in `Local.step`; only ranks with heads that have a `condition` look at it.

        Raises:
            DniGraphError, ConditionError: as in `Local.step`, before anything has happened.
            DistributedError: a rank is gone, hangs, failed, or does something else than this one: the run is over on
                all of them. Or the ranks would take different ways through the model's code: the step is refused on
                all, and the run goes on.
            Exception: what a part or the loss of this rank raises; the other ranks get a `DistributedError`.
        """
        self._begin(f"step {self.steps + 1}")
        with self._local._lock:
            return self._step(args, kwargs, target, label)

    @all_or_nothing
    def _step(self, args: Any, kwargs: Any, target: Any, label: Any) -> RankResult:
        local, dm = self._local, self.dm
        dm.follow()
        if not dm.training:
            raise DniGraphError("the model is in eval mode: call dm.train() before run.step(...)")
        if label is TARGET:
            label = target if dm.context.label is None else dm.context.label
        with torch.enable_grad(), dm.conditioned(label):
            way, inputs = local._choose(args, kwargs)
            self._take(way)
            heads = self._heads_on(way)
            self._refuse_blind(heads, label)
            looks = [0 if value is None else _digest(value) for value in (inputs, label)]
            self._own.stamp = Stamp(self.steps, 0, self._ways[way], *looks)
            self.post.release(self.steps - self._late - 1)
            self.updates.begin(way)
            look = local.monitor and (self.steps + 1) % local.monitor == 0
            for boundary in heads.values() if look else ():
                boundary.measure_next()
            result = self.net.tick_on(way, inputs, target, label, self.updates.groups)
            loss = next(iter(result.losses.values()), None)
            output = None if loss is None else map_tensors(Tensor.detach, self.net.output_of(result))
        self._end_step(loss)
        return RankResult(loss, output, {name: b.measured() for name, b in heads.items() if look})

    def _end_step(self, loss: Tensor | None) -> None:
        if loss is not None:
            self._local._look_at(loss)
        strays = [p for group in self.updates.unread for p in group.parameters if p.grad is not None]
        if strays and self.world > 1:
            names = ", ".join(name for name, p in self.dm.original.named_parameters() if any(p is s for s in strays))
            self._roster.fail(f"{names} got gradients on {self._name}, and no part has them: only their owner may")
            self._roster.check()
        self.updates.end_step(torch.zeros(()) if loss is None else loss)
        self._local.steps += 1
        self._under_way = self._late > 0

    def settle(self) -> None:
        """With `late`: let every part learn now from what is under way. Call it on all ranks."""
        self._begin("settle()")
        if self._under_way:
            self._own.stamp = Stamp(self.steps, 1)
            self.net.settle()
        self._under_way = False

    # ---- the way of a step

    def _place(self, way: Specialization) -> dict[str, int]:
        """The rank of each part of a way.

        Raises:
            DniGraphError: the way cannot be divided so; all reasons are listed.
        """
        place, wrong = self._owners.place(way, self.updates.groups.values())
        for crossing in way.plan.crossings:
            if self._heads.setdefault(crossing.name, place[crossing.producer]) != place[crossing.producer]:
                wrong.append(f"the head of {crossing.name} is on rank {self._heads[crossing.name]}, its part is not")
        if wrong:
            raise DniGraphError(f"the parts cannot lie on these ranks:{bullets(wrong)}")
        return place

    def _take(self, way: Specialization) -> None:
        """See that all ranks take this way, and that it can be divided among them. Nothing is sent before."""
        place = self._place(way)
        self._own.place = defaultdict(lambda: place[way.plan.parts[-1].name], place)
        new = way not in self._ways
        if new:
            shape = {**way.plan.to_json(), "notes": ()}
            self._ways[way] = zlib.crc32(f"{json.dumps(shape, default=str)}{way.captured.graph}".encode())
        if new or way.trust is Trust.NEVER:
            told = self._heard_of_all(str(self._ways[way]))
            if len(set(told)) > 1:
                ranks = [f"{other} on {name}" for other, name in zip(told, self._roster.names, strict=True)]
                raise DistributedError(
                    "this step is refused on all ranks, and nothing has changed: they would take different ways "
                    f"through the model's code ({'; '.join(ranks)}). A rank knows the weights of its own parts only, "
                    "so the code may look at inputs, and not at what other parts compute"
                )

    def _heads_on(self, way: Specialization) -> dict[str, Boundary]:
        """The boundaries of this rank's parts, by name."""
        names = [crossing.name for crossing in way.plan.crossings if self._heads[crossing.name] == self.rank]
        known = self.dm.boundaries
        return {name: known[name] for name in names if name in known}

    @staticmethod
    def _refuse_blind(heads: Mapping[str, Boundary], label: Any) -> None:
        blind = [name for name, boundary in heads.items() if boundary.training and "label" in boundary.needs]
        if blind and label is None:
            words = f"the heads of {', '.join(blind)} look at the label, and there is none"
            raise ConditionError(f"{words}: run.step(..., target=y), or label=")

    # ---- weights and checkpoints

    def own_weights(self) -> dict[str, Any]:
        """The entries of the model's state dict that this rank answers for."""
        prefix, own = f"{self.dm._prefix}.", {}
        heads = {key_of(name): rank for name, rank in self._heads.items()}
        for key, value in self.dm.state_dict(keep_vars=True).items():
            head = key.removeprefix(prefix).partition(".")[0] if key.startswith(prefix) else None
            rank = heads.get(head) if head is not None else self._owners.rank_of(key, value)
            if (rank or 0) == self.rank:
                own[key] = value.detach() if isinstance(value, Tensor) else value
        return own

    def gather(self) -> None:
        """Give rank 0 the weights and heads of all ranks, so that its model is whole. Call it on all ranks."""
        self._begin("gather()")
        found = self._collected({"model": self.own_weights()})
        if found is not None:
            self.dm.load_state_dict(self._whole([one["model"] for one in found]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file with the parts, heads, optimisers, schedules and random states of all ranks, atomically.

        Rank 0 writes it. `Local.load` reads it, too, and so does a run on any number of ranks. Call it on all ranks;
        when it returns on one, the file is there.

        Raises:
            CheckpointError: with `late`, answers are under way: `settle` first. Or the file cannot be written: then all
                ranks raise it.
        """
        self._begin("save()")
        if self._under_way:
            raise CheckpointError("answers are under way: let the parts learn from them first, run.settle()")
        updates = self.updates.state_dict()
        own = {name: state for name, state in updates.items() if self._rank_of_group(name) == self.rank}
        found = self._collected({"model": self.own_weights(), "updates": own, "random": portable_random()})
        error = "" if found is None else self._write(path, found)
        if words := self._heard_of_all(error)[0]:
            raise CheckpointError(words)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save`, or `Local.save`, wrote. Call it on all ranks, each of which reads the file.

        Raises:
            CheckpointError: the file does not fit on some rank; all that does not fit is listed, on all ranks, and
                nothing has changed on any of them.
        """
        self._begin("load()")
        try:
            state = self._local.fitting(path)
            told = f"+{state['steps']} steps"
        except DniGraphError as failure:
            state, told = {}, str(failure)
        told_of_all = self._heard_of_all(told)
        if len(set(told_of_all)) > 1 or not told.startswith("+"):
            words = dict.fromkeys(f"{n}: {t}" for n, t in zip(self._roster.names, told_of_all, strict=True))
            raise CheckpointError(f"{path} does not fit all ranks:{bullets(list(words))}")
        self._local.restore(state)
        for name, group in self.updates.groups.items():
            if self._rank_of_group(name) != self.rank:  # each rank keeps the states of its own parts
                kept = group.optimizer.state
                for parameter in [p for p in kept if not self._owners.has(self.rank, p)]:
                    del kept[parameter]
        if len(others := state.get("random of ranks", ())) == self.world:
            restore_random({"random": others[self.rank]})
        self.net.clear()
        self._under_way = False

    def _write(self, path: Any, found: Sequence[Mapping[str, Any]]) -> str:
        """Write what all ranks have. Returns why that failed, or nothing."""
        state = {
            "model": self._whole([one["model"] for one in found]),
            "boundaries": self._local._settings(),
            "updates": {name: group for one in found for name, group in one["updates"].items()},
            "steps": self.steps,
            "random of ranks": [one["random"] for one in found],
        }
        try:
            save_checkpoint(path, state)
        except (DniGraphError, OSError) as failure:
            return str(failure)
        return ""

    def _whole(self, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The model's state dict, of the entries of all ranks."""
        known = {key: value for one in found for key, value in one.items()}
        state = self.dm.state_dict()
        for key in [key for key in state if key not in known]:
            del state[key]  # a rank of another owner has it no more: a batch that a head remembered
        state |= known
        return state

    def _rank_of_group(self, name: str) -> int:
        """The rank that steps a group of parameters; rank 0 for those of no part."""
        if name.startswith("dni."):
            return self._heads.get(name.removeprefix("dni."), 0)
        group = self.updates.groups.get(name)
        ranks = [self._owners.rank_of("", p) for p in (group.parameters if group is not None else ())]
        return next((rank for rank in ranks if rank is not None), 0)

    # ---- between rank 0 and the others

    def _begin(self, doing: str) -> None:
        if not self._end.still_active():
            raise DniGraphError("the run is closed: make another one")
        self._roster.doing = doing if doing.startswith("step") else f"{doing} after step {self.steps}"
        self._roster.check()

    def _collected(self, state: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The states of all ranks, on rank 0; None on the others."""
        if self.rank:
            self.post.send(0, Frame(BYTES, STAR, Stamp(self.steps), value=_bytes_of(state)))
            return None
        return [state, *(_state_of(self._from(r)) for r in range(1, self.world))]

    def _heard_of_all(self, text: str) -> list[str]:
        """The texts of all ranks, on all ranks."""
        found = self._collected({"text": text})
        if found is None:
            return list(_state_of(self._from(0))["texts"])
        texts = [one["text"] for one in found]
        for r in range(1, self.world):
            self.post.send(r, Frame(BYTES, STAR, Stamp(self.steps), value=_bytes_of({"texts": texts})))
        return texts

    def _from(self, rank: int) -> Tensor:
        what = f"what {self._roster.names[rank]} says in {self._roster.doing}"
        value: Tensor = self.post.take(rank, STAR, what, self._timeout).value
        return value

    @property
    def _name(self) -> str:
        return self._roster.names[self.rank]

    def _facts(self, way: Specialization) -> dict[str, str]:
        """What must be the same on all ranks."""
        plan, groups = way.plan, self.updates.groups
        return {
            "torch": torch.__version__,
            "form of frames": str(MAGIC),
            "model": plan.model,
            "cuts": _short([*plan.cuts]),
            "parts": _short([(p.name, p.inputs, p.outputs, p.parameters) for p in plan.parts]),
            "crossings": _short([(c.name, c.producer, c.consumers, c.gradient) for c in plan.crossings]),
            "boundaries": _short(self._local._settings()),
            "weights": _short([(n, [*p.shape], str(p.dtype)) for n, p in self.dm.original.named_parameters()]),
            "optimisers": _short({name: type(group.optimizer).__name__ for name, group in groups.items()}),
            "ranks": str(self.ranks),
            "late": str(self._late),
        }

    # ---- the end

    def close(self) -> None:
        """End the run of this rank: send what is on its way, and tell the others. So does the end of the process."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(post: Post, roster: Roster) -> None:
    post.close()
    roster.close()


def _digest(value: Any) -> int:
    """A number that tells what was given on one rank from what was given on another: of sizes, and first numbers."""
    found = 0
    for one in flatten(value)[0]:
        text = f"{list(one.shape)} {one.dtype}" if isinstance(one, Tensor) else f"{type(one).__name__} {one}"
        found = zlib.crc32(text.encode(), found)
        if isinstance(one, Tensor) and one.is_cpu and one.layout == torch.strided:
            numbers = one.detach().resolve_conj().reshape(-1)[:SEEN].contiguous().view(torch.uint8)
            found = zlib.crc32(numbers.numpy().tobytes(), found)
    return found


def _short(fact: Any) -> str:
    """A fact as text. A long one ends in a digest of the whole."""
    text = str(fact)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({zlib.crc32(text.encode()):08x})"


def _bytes_of(state: Mapping[str, Any]) -> Tensor:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


def _state_of(received: Tensor) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(received.numpy().tobytes()), weights_only=True)
    return state


def unseen(boundaries: Mapping[str, Boundary]) -> list[str]:
    """Boundaries that look at what another rank has; a line each."""
    return [
        f"boundary '{name}' ({boundary.kind}) looks at {NEEDS[need]}, which another rank has: run it in one process, "
        "dg.Local"
        for name, boundary in boundaries.items()
        for need in sorted({"error", "neighbours"}.intersection(boundary.needs))
    ]
