"""A decoupled model as a network: each part an agent, each crossing a link with its boundary."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..boundaries.exchange import overheard
from ..decoupled.on_graphs import CapturedModule
from ..decoupled.specialization import Specialization
from ..engine.description.network_error import NetworkError
from ..engine.description.ports import outputs_of
from ..engine.dry_run import DryRun
from ..engine.running_network import RunningNetwork
from ..engine.tick import TickResult
from ..engine.updates.groups import Group
from ..engine.updates.makers import loss_misfits, maker_misfits
from ..engine.updates.optimizers import REST
from ..engine.updates.rules import HEADS, MakeOptimizer, Rules, check_names, chosen, lacks
from ..heads.conditions import Context
from ..passes.errors import DniGraphError, is_whole, nearest
from ..passes.graph.pytrees import Tree, field_of
from ..passes.parts.split import Value
from ..passes.plan.plan import Part
from .network import Network
from .tick_inputs import tick_arguments
from .topology import Topology

RESULT = "result"  # the agent that puts the model's output together where several parts make it

_NO_MORE = (
    "the agents and links of a decoupled model's network are its parts and crossings: make the decoupled model one "
    "agent of a larger network, dg.Network().add('model', dm, ...)"
)

Loss = Callable[[Any, Any], Tensor] | str


class PartModule(nn.Module):
    """A part that takes its values by name and gives them by name.

    Shapes: those of the plan's crossings.
    """

    def __init__(self, module: nn.Module, part: Part, watched: Context | None = None) -> None:
        super().__init__()
        self.module, self.part, self.watched = module, part, watched

    def forward(self, **values: Any) -> dict[str, Any]:
        outputs = self.module(*(values[name] for name in self.part.inputs))
        return dict(zip(self.part.outputs, outputs if len(self.part.outputs) > 1 else (outputs,), strict=True))


class Result(nn.Module):
    """Returns its inputs, under the same names.

    Shapes: any.
    """

    def __init__(self, watched: Context | None) -> None:
        super().__init__()
        self.watched = watched

    def forward(self, **values: Any) -> dict[str, Any]:
        return values


class DecoupledNetwork(Network):
    """A decoupled model as a network: it computes and learns what `Local` does, with agents called as the parts.

    A tick goes the way through the model's code that its inputs take, in the present mode. The agents of each way are
    the parts of its graph, wired when it is first taken; weights, heads and optimisers are the same on all of them.

    Its inputs are called as those of the plan. Where the model was unlocked forward, every crossing that carries a
    gradient is predicted by its readers.
    """

    _heads_come_late = True

    def __init__(
        self, dm: CapturedModule, loss: Loss, optimizer: MakeOptimizer | Mapping[str, MakeOptimizer] | None,
        p_update: float, late: int, seed: int, log: bool,
    ):  # fmt: skip
        super().__init__(seed=seed, log=log)
        _refuse(dm, dm.specialization, loss, optimizer, late)
        self._rest = _maker(dm, optimizer, REST) or self._optimizer
        self._way_trains = dm.training
        self._dm, self._loss, self._makers, self._p_update, self._late = dm, loss, optimizer, p_update, late
        self._way = dm.specialization
        self._ways: dict[Specialization, _Way] = {}
        self._fixed: Specialization | None = None  # the way of this tick, where it is known
        self._wire()

    def validate(self, inputs: Any = None) -> None:
        """As in `Network`."""
        self._choose(inputs)
        super().validate(inputs)

    def add(self, *args: Any, **kwargs: Any) -> Self:
        """Refused: the agents are the parts of the model."""
        raise NetworkError([_NO_MORE])

    def connect(self, *args: Any, **kwargs: Any) -> Self:
        """Refused: the links are the crossings of the model."""
        raise NetworkError([_NO_MORE])

    def run(self, given: Iterable[tuple[Any, ...]], *, threads: bool = False, capacity: int = 2) -> list[TickResult]:
        """As in `Network`. On threads all ticks must take one way through the model."""
        if threads is True:
            self._refuse_a_race()
            given = list(given)
            ways = [self._choose(tick_arguments(entry)[0]) for entry in given]
            if other := next((i for i, way in enumerate(ways) if way is not ways[0]), None):
                facts = f"tick {other} of the run takes another way through the model's code than tick 0"
                raise NetworkError([f"{facts}: run them apart, or without threads"], "the ticks do not fit")
        return super().run(given, threads=threads, capacity=capacity)

    def _refuse_a_race(self) -> None:
        """Refuse threads where a part that needs the error at the outputs may be answered before that is known."""
        boundaries = self._dm.boundaries
        wanting = [name for name, boundary in boundaries.items() if "error" in boundary.needs]
        early = [name for name, boundary in boundaries.items() if not boundary.waits]
        if wanting and (early or self._p_update < 1):
            why = f"the parts that make {', '.join(early)} learn before" if early else "with p_update not all learn"
            words = f"{', '.join(wanting)} need the error at the outputs, and {why}, so that it may not be known yet"
            raise NetworkError([f"{words}: run it without threads"])

    @contextmanager
    def aside(self) -> Iterator[Self]:
        """As in `Network`."""
        way = self._way
        with super().aside():
            try:
                yield self
            finally:
                self._go(way)

    def modules(self) -> dict[str, nn.Module]:
        """The decoupled model, with its heads, as "model"; predictors as "synthetic.link"."""
        predictors = {} if self.running is None else self.running.predictors
        return {"model": self._dm, **{f"synthetic.{name}": predictor for name, predictor in predictors.items()}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """As in `Network`."""
        way = self._way
        self._go(self._first)
        try:
            super().save(path)
        finally:
            self._go(way)

    def load(self, path: str | os.PathLike[str], inputs: Any = None) -> None:
        """As in `Network`."""
        self._go(self._first)
        super().load(path, inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoupledNetwork":
        words = "make one of a copy of the model, copy.deepcopy(dm).network(...); net.save(path) and load(path) hand on"
        raise NetworkError([f"{words} what optimisers know"], "the network of a decoupled model is not copied")

    def tick_on(
        self, way: Specialization, inputs: Sequence[Any], target: Any, label: Any, groups: Mapping[str, Group]
    ) -> TickResult:
        """One tick on a way that is known already.

        Args:
            inputs: those of the way's graph.
            groups: the optimisers, by name; those of new heads among them.
        """
        self._go(way)
        self._kept.groups.update(groups)
        read = {name for part in way.plan.parts for name in part.inputs}
        given = {name: value for name, value in zip(way.plan.inputs, inputs, strict=True) if name in read}
        self._fixed = way
        try:
            return self.tick(given, {self._judge: target}, label=dict.fromkeys(self.agents, label))
        finally:
            self._fixed = None

    def output_of(self, result: TickResult) -> Any:
        """What the model returned in a tick, on the way that was gone last."""
        values = result.outputs[self._judge]
        outputs = [values[v.name] if isinstance(v, Value) else v for v in self._way.split.outputs]
        return self._way.build(outputs)

    @property
    def open(self) -> int:
        """How many firings and messages wait for answers."""
        return sum(actor.open for actor in self._actors().values())

    @property
    def _judge(self) -> str:
        """The agent that has the loss."""
        return _only_maker(self._way) or RESULT

    def _made(self, inputs: Any) -> RunningNetwork:
        self._dm.follow()
        if self._dm.training != self.training:
            modes = ("in train mode", "in eval mode")[:: 1 if self._dm.training else -1]
            raise NetworkError(
                [f"the model is {modes[0]}, its network {modes[1]}: set both with net.train() or net.eval()"]
            )
        self._choose(inputs)
        return super()._made(inputs)

    def _choose(self, inputs: Any) -> Specialization:
        """Go the way that the model takes for these inputs, if they are all there. Returns the way."""
        if self._fixed is not None:
            return self._fixed
        plan = self._way.plan
        given, strange = self.topology.inputs.named(inputs)
        read = [name for name in plan.inputs if any(name in part.inputs for part in plan.parts)]
        if strange or not given.keys() >= {*read}:
            return self._way  # what is wrong will be told
        facts = {node.name: node.meta for node in self._way.captured.graph.find_nodes(op="placeholder")}
        values = [given[n] if n in given else _stand_in(facts[n]) for n in plan.inputs]
        args, kwargs = self._dm.arguments(self._way, values)
        with torch.enable_grad():  # also in eval mode: without gradients there would be nothing to cut
            way, _ = self._dm.choose(*args, **kwargs)
        self._go(way)
        return way

    def _go(self, way: Specialization) -> None:
        """Have the agents of a way, wired if they are not yet."""
        if way is self._way:
            return
        if self._late:
            self.settle()
        self._ways[self._way] = _Way(self.topology, self.running, self._way_trains)
        first = self._first
        self._ways = {w: known for w, known in self._ways.items() if w in (first, way) or self._dm.keeps(w)}
        present = {name: agent.present for name, agent in self.agents.items()}
        self._way = way
        if way in self._ways:
            self.topology, self.running, self._way_trains = self._ways[way]
        else:
            self.topology, self.running, self._way_trains = Topology(), None, self._dm.training
            self._wire()
        for name, agent in self.agents.items():
            agent.present = present.get(name, True)
        if self.running is not None:
            self.running.kept = self._kept  # it may have grown
        self._set_log(self._log)

    def _build(self, trial: DryRun) -> None:
        """With an optimiser, as in `Local`, for what other ways through the model may use."""
        held = {p for part in self._way.parts.values() for p in part.parameters()}
        rest = [p for p in self._dm.model_parameters() if p not in held]
        rules = Rules(self._rest, error=lambda words: NetworkError([words]))
        if REST not in self._kept.groups and (group := rules.group(REST, rest, self._dm.named_parameters)):
            self._kept.groups[REST] = group
        super()._build(trial)
        names = list(self.agents)
        for tied in self.running.tied if self.running is not None else ():
            tied.late = self._late * (len(names) - 1 - names.index(tied.users[0]))  # of the part that is through last

    def _warn_unconditioned(self) -> None:
        """Not here: whoever decoupled the model has been told."""

    @property
    def _first(self) -> Specialization:
        """The way whose wiring and messages are saved: the first one that was gone in train mode."""
        ways = {**self._ways, self._way: _Way(self.topology, self.running, self._way_trains)}
        made = [way for way, known in ways.items() if known.running is not None]
        return next((way for way in made if ways[way].trains), made[0] if made else self._way)

    def _wire(self) -> None:
        """Add an agent for each part of the way, and a link for each crossing."""
        dm, way, add, connect = self._dm, self._way, super().add, super().connect
        build, alone = way.captured.outputs, _only_maker(way)
        watched = dm.context if "error" in dm.boundary_set.needs else None
        for part in way.plan.parts:
            own = _loss(self._loss, build, way, watched) if part.name == alone else None
            module = PartModule(way.parts[part.name], part, watched if own is not None else None)
            add(part.name, module, loss=own, optimizer=_maker(dm, self._makers, part.name), p_update=self._p_update)
        for name in way.plan.inputs:
            if readers := [f"{part.name}.{name}" for part in way.plan.parts if name in part.inputs]:
                connect(name, readers)
        for crossing in way.plan.crossings:
            boundary = dm.boundaries.get(crossing.name) if crossing.gradient else None
            sinks = [f"{name}.{crossing.node}" for name in crossing.consumers]
            predicted = dm.unlock == "forward" and boundary is not None
            source = f"{crossing.producer}.{crossing.node}"
            connect(source, sinks, delay=0, back=self._late, boundary=boundary, synthetic=predicted)
        if alone is None:  # an agent behind all that make some of the output; they learn when the loss is known
            add(RESULT, Result(watched), loss=_loss(self._loss, build, way, watched))
            for name in dict.fromkeys(v.name for v in way.split.outputs if isinstance(v, Value)):
                maker = _made_by(way, Value(name))
                connect(f"{maker}.{name}" if maker else name, f"{RESULT}.{name}", delay=0, boundary="oracle")


class _Way(NamedTuple):
    topology: Topology
    running: RunningNetwork | None  # None: no tick has gone this way
    trains: bool  # it is one of train mode


def _refuse(dm: CapturedModule, specialization: Specialization, loss: Any, optimizer: Any, late: Any) -> None:
    """Look for choices that fit nothing.

    Raises:
        NetworkError: a part or a head has no optimiser, or the loss is none; all faults are listed.
    """
    wrong = _wrong_loss(specialization, loss)
    if not is_whole(late, 0):
        wrong.append(f"late={late!r} (a whole number of ticks from 0 on)")
    if isinstance(optimizer, Mapping):
        parts = [name for name, part in specialization.parts.items() if any(p.requires_grad for p in part.parameters())]
        names = [
            *(part.name for part in specialization.plan.parts),
            REST,
            HEADS,
            *(f"dni.{name}" for name in dm.boundaries),
        ]
        try:
            check_names([optimizer], names)
        except DniGraphError as error:
            wrong.append(str(error))
        lacking = [name for name in parts if chosen(optimizer, name) is None]
        wrong += map(lacks, lacking)
    wrong += maker_misfits(optimizer)
    if wrong:
        raise NetworkError(wrong, "the model cannot become a network")


def _wrong_loss(specialization: Specialization, loss: Any) -> list[str]:
    if not isinstance(loss, str):
        return loss_misfits(loss)
    count = len(specialization.split.outputs)
    whole: Any = specialization.build([torch.zeros(()) for _ in range(count)])
    names = [str(n) for n in (whole if isinstance(whole, Mapping) else getattr(whole, "__dict__", {}))]
    names = list(getattr(whole, "_fields", names))
    if loss in names or field_of(whole, loss) is not None:
        return []
    known = f"; outputs: {', '.join(names)}" if names else ": the model returns one without names"
    return [f"loss={loss!r}: there is no such output{nearest(loss, names)}{known}"]


def _maker(dm: CapturedModule, choice: Any, part: str) -> MakeOptimizer | None:
    """What makes the optimisers of a part: its own, those of its heads and of the predictors of its inputs."""
    if not isinstance(choice, Mapping):
        return choice  # type: ignore[no-any-return]  # a callable, or None
    heads = {p: f"dni.{name}" for name, boundary in dm.boundaries.items() for p in boundary.parameters()}

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        names = heads.get(parameters[0], part), part, HEADS
        named = next(filter(None, (chosen(choice, name) for name in names)), None)
        if named is None:
            raise NetworkError([lacks(f"what belongs to {part}")])
        return named(parameters)  # type: ignore[no-any-return]  # the user's

    return make


def _only_maker(specialization: Specialization) -> str | None:
    """The part that makes all of the model's output; None: there are several, or it hands its values on, too."""
    makers = {_made_by(specialization, value) for value in specialization.split.outputs if isinstance(value, Value)}
    return next(iter(makers)) if len(makers) == 1 else None


def _made_by(specialization: Specialization, value: Value) -> str | None:
    return next((part.name for part in specialization.plan.parts if value.name in part.outputs), None)


def _stand_in(meta: Mapping[str, Any]) -> Tensor:
    """In place of an input that no part reads: of its kind, with nothing in it."""
    return torch.zeros(meta["shape"], dtype=meta["dtype"], device=meta["device"])


def _loss(
    loss: Loss, build: Tree, specialization: Specialization, watched: Context | None
) -> Callable[[Any, Any], Any]:
    outputs = specialization.split.outputs

    def of(results: Any, target: Any) -> Any:
        values = outputs_of(results)
        flat = [values[v.name] if isinstance(v, Value) else v for v in outputs]
        noted = None if watched is None else watched.seen.outputs
        whole = build.build(flat if noted is None else overheard(noted, flat))
        if callable(loss):
            return loss(whole, target)
        return field_of(whole, loss)

    of.__name__ = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return of
