"""A network that can run: actors, boundaries, predictors, and the channels between them, made once."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..boundaries import Boundary
from ..boundaries.choices import Choices
from ..boundaries.surroundings import Surroundings
from ..heads.conditions import Context
from ..passes.errors import DniGraphError
from ..passes.graph.facts import batch_dim
from ..passes.plan.plan import Crossing
from .actor import Actor
from .channel import Channel, Line, Message
from .delays import Wiring
from .description.agent import Agent
from .description.clock import Clock
from .description.link import Link
from .description.network_error import NetworkError
from .description.samples import batch_of
from .dry_run import DryRun
from .event_log import EventLog
from .inbox import Inbox
from .outbox import Outbox
from .prediction import Prediction, make_predictor
from .skips import Skips
from .tick import Tick
from .updates.groups import Group, Tied, Turns
from .updates.makers import Unheld
from .updates.rules import MakeOptimizer, Rules

HEAD_OF = "the head of"  # what names of groups of heads begin with
OUTSIDE = Clock()  # an input of the network may come in any tick


@dataclass
class Kept:
    """What a network keeps where its agents are wired anew: a decoupled model is, on another way through its code."""

    groups: dict[str, Group] = field(default_factory=dict)  # of agents, heads and predictors
    chances: dict[str, torch.Generator] = field(default_factory=dict)  # by agent: which of its firings learn
    skips: Skips = field(default_factory=Skips)  # updates that were skipped, of all actors
    waiting: dict[str, Any] = field(default_factory=dict)  # states of optimisers that are not there yet

    def chance(self, agent: str, seed: int) -> torch.Generator:
        """The random numbers of an agent, made when they are first asked for."""
        if agent not in self.chances:
            self.chances[agent] = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{agent}".encode()))
        return self.chances[agent]


@dataclass
class RunningNetwork:
    """Actors, boundaries, predictors and both ends of every link."""

    actors: dict[str, Actor]
    boundaries: dict[str, Boundary]  # by their links' names
    predictors: dict[str, nn.Module]  # by output and input
    inboxes: dict[tuple[int, int], Inbox]  # by the numbers of link and receiver
    outboxes: dict[int, Outbox]  # by the number of the link
    tied: list[Tied]  # groups that several actors use
    kept: Kept
    unheld: Unheld = field(init=False)  # sees what learns and has no optimiser

    def __post_init__(self) -> None:
        self.unheld = Unheld(self._named, self._held)
        self._senders = {inbox: self.outboxes.get(number) for (number, _), inbox in self.inboxes.items()}
        self._outside = [(i.link.source.name, i) for i in self.inboxes.values() if i.link.outside]

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, actor in self.actors.items():
            yield from actor.agent.module.named_parameters(name)

    def _held(self) -> Iterator[nn.Parameter]:
        for group in self.kept.groups.values():
            yield from group.parameters

    def follow(self, wiring: Wiring) -> None:
        """Tell both ends of each link whether its messages are read within the tick."""
        for (number, _), inbox in self.inboxes.items():
            inbox.ordered = wiring.waits(number)
        for number, outbox in self.outboxes.items():
            outbox.ordered = wiring.waits(number)

    def connect(self, make_channel: Callable[[int], Channel[Any]] = lambda _: Line()) -> None:
        """Connect all actors by new channels.

        Args:
            make_channel: of the number of packets that lie in a channel when its reader is not behind.
        """
        for outbox in self.outboxes.values():
            outbox.pull()
        for inbox in self.inboxes.values():
            inbox.messages, inbox.answers = make_channel(0), make_channel(inbox.link.back)
        for number, outbox in self.outboxes.items():
            inboxes = [self.inboxes[number, i] for i in range(len(outbox.link.sinks))]
            outbox.messages = [inbox.messages for inbox in inboxes]
            outbox.answers = [inbox.answers for inbox in inboxes]

    def deliver(self, tick: Tick) -> None:
        """Put the network's inputs into the inboxes that read them."""
        for name, inbox in self._outside:
            inbox.messages.put(Message(tick.number, tick.inputs[name], False) if name in tick.inputs else None)

    def prepare(self) -> None:
        """Before ticks that learn: drop the gradients that other training has left, which the updates would hold."""
        self.unheld.look(stacklevel=3)
        for group in self.kept.groups.values():
            group.forget()

    def answer_early(self, name: str) -> None:
        """Carry back what an agent can answer already, so that the graphs of heads live no longer than they must."""
        for inbox in self.actors[name].answer_early():
            if (outbox := self._senders[inbox]) is not None:
                outbox.hear_early()

    def refuse_missing(self, ticks: Sequence[Tick]) -> None:
        """Refuse ticks that lack an input or a label, before any agent fires.

        Raises:
            NetworkError: all that is missing is listed.
        """
        wrong: list[str] = []
        known, restarted = set[str](), False
        for tick in ticks:
            known |= set(tick.inputs)
            wrong += [line for actor in self.actors.values() for line in actor.missing(tick, known, restarted)]
            known, restarted = (set(), True) if tick.ends else (known, restarted)
        if wrong:
            raise NetworkError(wrong, "the tick does not fit")

    def step_tied(self, tick: int, last: bool = False) -> None:
        """At the end of a tick that learns: step what several agents share, where all of them are through with it.

        Args:
            last: nothing under way will be learned from later.
        """
        for tied in self.tied:
            if tied.gather(tick, last) and not tied.step():
                self.kept.skips.note(" and ".join(tied.users), tick, "the gradient of what they share")

    def mend(self) -> None:
        """After a failed tick: deliver messages under way, and drop half-made gradients."""
        for inbox in self.inboxes.values():
            for message in inbox.messages.rest():
                if message is not None:
                    inbox.take(message)
        for actor in self.actors.values():
            actor.drop()
        waiting = [(firing.tick, name) for name, actor in self.actors.items() for firing in actor.waiting]
        for tied in self.tied:
            tied.forget(waiting)


def build(
    agents: Mapping[str, Agent], wiring: Wiring, trial: DryRun, context: Context, optimizer: MakeOptimizer, seed: int,
    log: EventLog | None, kept: Kept,
) -> RunningNetwork:  # fmt: skip
    """The running network of these agents and links.

    Heads and predictors draw from torch's random state, which is put back. A parameter of several agents is trained by
    the optimiser of the last of them, when all have learned from the same tick.

    Args:
        kept: what is there already.

    Raises:
        NetworkError: a boundary, head or predictor does not fit its link; all of them are listed.
    """
    builder = _Builder(agents, wiring, trial, kept)
    with torch.random.fork_rng(devices=[]):
        builder.make_modules(context)
    users = {p: name for name, agent in agents.items() for p in agent.module.parameters()}  # the last one
    inboxes, outboxes = dict[tuple[int, int], Inbox](), dict[int, Outbox]()
    for name, agent in agents.items():
        make = agent.optimizer or optimizer
        builder.group(name, [p for p in agent.module.parameters() if users[p] == name], make, agent.clip)
        outboxes |= {number: builder.outbox(number, make) for number in builder.sends[name]}
        inboxes |= {end: builder.inbox(*end, make) for end in builder.reads[name]}
    turns = Turns.of({name: agent.module for name, agent in agents.items()}, builder.groups.values())
    actors = {
        name: Actor(
            agent, [inboxes[end] for end in builder.reads[name]], [outboxes[n] for n in builder.sends[name]],
            turns.own.get(name), kept.chance(name, seed), log, kept.skips,
            [tied for tied in turns.tied if name in tied.users],
        )
        for name, agent in agents.items()
    }  # fmt: skip
    boundaries, predictors = builder.named_boundaries(), builder.named_predictors()
    known = replace(kept, groups=builder.groups, waiting=builder.waiting)
    running = RunningNetwork(actors, boundaries, predictors, inboxes, outboxes, turns.tied, known)
    running.connect()
    running.follow(wiring)
    return running


class _Builder:
    """Makes what a running network consists of.

    Attributes:
        sends: by agent, the links from its outputs.
        reads: by agent, the links to its inputs, each with the number of the receiver.
        groups: by name, those that were there and new ones.
    """

    def __init__(self, agents: Mapping[str, Agent], wiring: Wiring, trial: DryRun, kept: Kept):
        self.agents, self.wiring, self.trial = agents, wiring, trial
        self.groups, self.waiting = dict(kept.groups), dict(kept.waiting)
        self.batch = batch_of(trial.inputs.values())
        self.sends: dict[str, list[int]] = {name: [] for name in agents}
        self.reads: dict[str, list[tuple[int, int]]] = {name: [] for name in agents}
        for number, link in enumerate(wiring.links):
            if not link.outside:
                self.sends[link.source.agent or ""].append(number)
            for i, sink in enumerate(link.sinks):
                self.reads[sink.agent or ""].append((number, i))
        self._boundaries: dict[int, Boundary] = {}
        self._predictors: dict[tuple[int, int], tuple[nn.Module, tuple[str, ...]]] = {}  # and the inputs that they see
        self._trained = {p: group for group in kept.groups.values() for p in group.parameters}

    def make_modules(self, context: Context) -> None:
        """Make all boundaries with their heads, and all predictors.

        Raises:
            NetworkError: some do not fit their links; all of them are listed.
        """
        misfits: list[str] = []
        cause: Exception | None = None
        for number, link in enumerate(self.wiring.links):
            try:
                for i in range(len(link.sinks)) if link.synthetic else ():
                    self._predictors[number, i] = self._predictor(link)
                if (boundary := self._boundary(link, context)) is not None:
                    self._boundaries[number] = boundary
            except NetworkError as error:
                misfits += error.problems
            except DniGraphError as error:
                failed = error.__cause__  # a factory of the user's did: its boundary is named, and the link is not
                misfits.append(str(error) if failed is None else f"{link.name}: {error}")
                cause = cause or (failed if isinstance(failed, Exception) else None)
            except Exception as error:  # of a factory of the user's
                misfits.append(f"{link.name}: what it is made of fails: {type(error).__name__}: {error}")
                cause = cause or error
        if misfits:
            raise NetworkError(misfits) from cause

    def named_boundaries(self) -> dict[str, Boundary]:
        return {self.wiring.links[number].name: boundary for number, boundary in self._boundaries.items()}

    def named_predictors(self) -> dict[str, nn.Module]:
        links = self.wiring.links
        return {f"{links[n].source} → {links[n].sinks[i]}": module for (n, i), (module, _) in self._predictors.items()}

    def inbox(self, number: int, i: int, make: MakeOptimizer) -> Inbox:
        link = self.wiring.links[number]
        sink, sample = link.sinks[i], self.trial.sample(link)
        agent = self.agents[sink.agent or ""]
        optional = sink.name in agent.inputs.optional
        boundary = self._boundaries.get(number)
        exact = boundary is not None and boundary.may_wait
        prediction = None
        if (number, i) in self._predictors:
            module, names = self._predictors[number, i]
            group = self.group(f"the predictor of {link.name}", list(module.parameters()), make)
            prediction = Prediction(module, names, group)
        return Inbox(
            link, sink, self.wiring.delays[number],
            sender=OUTSIDE if link.outside else self.agents[link.source.agent or ""].clock, reader=agent.clock,
            initial=_initial(link, sample, self.batch, optional),
            example=sample if isinstance(sample, Tensor) else None,
            optional=optional, copies=str(sink) in self.trial.writes, prediction=prediction,
            source=None if link.outside else self.agents[link.source.agent or ""], exact=exact,
        )  # fmt: skip

    def outbox(self, number: int, make: MakeOptimizer) -> Outbox:
        link, boundary = self.wiring.links[number], self._boundaries.get(number)
        parameters = [] if boundary is None else list(boundary.parameters())
        group = self.group(f"{HEAD_OF} {link.name}", parameters, make)
        readers = [self.agents[sink.agent or ""] for sink in link.sinks]
        return Outbox(link, boundary, self.wiring.delays[number], readers, group)

    def group(
        self, name: str, parameters: list[nn.Parameter], make: MakeOptimizer, clip: float | None = None
    ) -> Group | None:
        """The group of these parameters, new for those that have no optimiser yet; None where nothing is trained.

        Raises:
            NetworkError: `make` makes no optimiser of these parameters.
        """
        trained = [p for p in dict.fromkeys(parameters) if p.requires_grad]
        if new := [p for p in trained if p not in self._trained]:
            rules = Rules(make, None, clip, lambda words: NetworkError([words]))
            made = rules.group(name, new, self._named)
            assert made is not None  # some of them are trained
            while name in self.groups:
                name += ", later"  # parameters of a part that it did not have on another way
            self.groups[name] = group = replace(made, name=name)
            self._trained |= dict.fromkeys(new, group)
            if name in self.waiting:
                group.optimizer.load_state_dict(self.waiting.pop(name))
        own = (self._trained[p] for p in trained)  # a head may share parameters with an agent, which trains them
        return next((group for group in own if {*group.parameters} <= {*trained}), None)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters of agents, heads and predictors, by name."""
        for name, agent in self.agents.items():
            yield from agent.module.named_parameters(name)
        for name, boundary in self.named_boundaries().items():
            yield from boundary.named_parameters(f"dni.{name}")
        for name, predictor in self.named_predictors().items():
            yield from predictor.named_parameters(f"synthetic.{name}")

    def _predictor(self, link: Link) -> tuple[nn.Module, tuple[str, ...]]:
        sample = self.trial.sample(link)
        if not isinstance(sample, Tensor):
            raise NetworkError([f"{link.name}: only a tensor can be predicted"])
        return make_predictor(link.synthetic, self.trial.inputs, sample)

    def _boundary(self, link: Link, context: Context) -> Boundary | None:
        """What stands on the link; None where no gradient can come back."""
        sample, batch = self.trial.sample(link), self.batch
        learns = not link.outside and str(link.source) in self.trial.learns
        if link.boundary is None or not isinstance(sample, Tensor) or not learns:
            return None
        if isinstance(link.boundary, Boundary):
            return link.boundary
        crossing = Crossing(str(link.source), str(link.source), "", (), tuple(sample.shape), gradient=True)
        at = batch_dim(tuple(sample.shape), batch if batch is not None else len(sample) if sample.dim() else 1)
        if at is None and link.condition is not None and link.boundary != "oracle":
            facts = f"the message is {list(sample.shape)}, and the batch has {batch}"
            raise NetworkError(
                [f"{link.name}: {facts}: which row belongs to which label? Send [batch, ...], or leave out condition="]
            )
        meta = {"dtype": sample.dtype, "device": sample.device, "batch_dim": at}
        return Choices(link.head, link.condition, link.boundary).make(
            crossing, meta, context, Surroundings(inputs=self.trial.inputs)
        )


def _initial(link: Link, sample: Any, batch: int | None, optional: bool) -> Any:
    """What is read before anything has come: as the user said, else nothing where the argument has a default, else
    zeros.
    """
    if link.initial is not None:
        return link.initial
    if optional or not isinstance(sample, Tensor):
        return None
    zeros = torch.zeros_like(sample)
    return zeros[:1] if sample.dim() and len(sample) == batch else zeros
