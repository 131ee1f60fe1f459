"""Networks of models that learn from each other, each at its own pace."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import RenderableType
from torch import Tensor, nn

from dnigraph.boundaries import Boundary, BoundaryChoice
from dnigraph.choices import warn_unconditioned
from dnigraph.conditions import ConditionChoice, Context
from dnigraph.heads import HeadChoice
from dnigraph.passes.errors import nearest
from dnigraph.passes.plan import Plan
from dnigraph.updates import MakeOptimizer

from . import saving, table
from .actor import Tick
from .building import Built, build, deliver
from .clock import Clock
from .drawing import plan_of
from .errors import NetworkError
from .inbox import batch_of
from .link import Agent, AgentLoss, Link, Port
from .log import EventLog
from .policy import PolicyChoice, make_policy
from .rehearsal import rehearse
from .synthetic import SyntheticChoice
from .threads import run_threads
from .wiring import Graph, Wiring, graph_of, problems


@dataclass(frozen=True)
class TickResult:
    """What one tick gives back."""

    tick: int
    losses: dict[str, Tensor]  # by agent; one number each, detached; of those that fired and had a target
    outputs: dict[str, dict[str, Any]]  # by agent and output, detached; of those that fired

    @property
    def fired(self) -> list[str]:
        """The agents that fired, in the order in which they did."""
        return list(self.outputs)


class Network:
    """Agents that send each other messages, and learn without waiting for what becomes of them.

        a ──message──► b        a learns at once from what the head on the link predicts that b's gradient will be;
          ◄─estimate─╯ │        b's answer comes when b has run, goes with the message that it belongs to, and trains
          ◄───answer───╯        the head

    A global clock counts ticks. An agent fires in the ticks of its own clock, with what its inputs hold then; it never
    waits for a message. Links may form circles: those need a delay, and get one where the user gives none.

    Everything is decided by `seed`, the data and torch's random state, so that a run can be repeated exactly.

    Args:
        optimizer: makes an optimiser of a list of parameters, for agents that have none of their own. None: Adam, 1e-3.
        condition: what heads see of the label, where a link does not say it: `one_hot(10)`, ...
        seed: of the agents that learn only now and then.
        log: keep an `EventLog` of what happens, in `net.log`.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, sections 2.2, 2.3, 3.2 and 3.3.
    """

    def __init__(
        self, *, optimizer: MakeOptimizer | None = None, condition: ConditionChoice = None, seed: int = 0,
        log: bool = False,
    ):  # fmt: skip
        self.agents: dict[str, Agent] = {}
        self.links: list[Link] = []
        self.ticks = 0
        self.training = True
        self.log = EventLog() if log else None
        self.context = Context()
        self._optimizer: MakeOptimizer = optimizer or _adam
        self._condition, self._seed = condition, seed
        self._built: Built | None = None
        self._wirings: dict[bool, Wiring] = {}  # by whether predictors stand in

    # ---- to wire

    def add(
        self, name: str, module: nn.Module, *, every: int = 1, phase: int | None = None, loss: AgentLoss = None,
        optimizer: MakeOptimizer | None = None, clip: float | None = None, p_update: float = 1.0,
        outputs: Sequence[str] | None = None,
    ) -> "Network":  # fmt: skip
        """Add an agent.

        Its inputs are called as the arguments of the module's forward method, its outputs as the keys of the dict,
        or the fields of the dataclass or named tuple, that it returns; entries of a tuple are "0", "1", ..., and a
        single value is "output", unless `outputs` names them. Inputs that no link feeds are given to `tick`.

        Args:
            every, phase: it fires in the ticks phase, phase + every, ... None: every - 1, so that an agent that
                fires every 4 ticks first does so when 4 ticks have come.
            loss: a function of (what the module returned, target), or the name of the output that is a loss.
            optimizer: makes an optimiser of a list of parameters, also for the heads on its outputs.
            clip: the largest norm of its gradient.
            p_update: how probable it is that a firing learns. Else it only sends its messages on.

        Raises:
            NetworkError: an argument does not fit.
        """
        self._refuse_built("add agents")
        clock = Clock(every, (every - 1 if isinstance(every, int) else 0) if phase is None else phase)
        wrong = [f"{name}: {misfit}" for misfit in clock.misfits()]
        if not isinstance(name, str) or not name or "." in name:
            wrong.append(f"{name!r} is no name for an agent: names are words without a dot")
        if name in self.agents:
            wrong.append(f"there is an agent {name!r} already")
        if not isinstance(module, nn.Module):
            wrong.append(f"{name} is a {type(module).__name__}, not an nn.Module")
        if not isinstance(p_update, int | float) or not 0 <= p_update <= 1:
            wrong.append(f"{name}: p_update={p_update!r} (a number from 0 to 1)")
        if wrong:
            raise NetworkError(wrong, "the agent does not fit")
        named = None if outputs is None else tuple(outputs)
        self.agents[name] = Agent(name, module, clock, loss, optimizer, clip, float(p_update), named)
        return self

    def connect(
        self, source: str, sink: str | Sequence[str], *, delay: int | None = None, policy: PolicyChoice = "latest",
        boundary: "BoundaryChoice | Boundary | None" = "dni", head: HeadChoice = "auto",
        condition: ConditionChoice = None, synthetic: SyntheticChoice = False, initial: Any = None,
    ) -> "Network":  # fmt: skip
        """Let an output feed an input, or several with one head for all: "agent.output" to "agent.input".

        A source without a dot is an input of the network: `connect("digits", "a.x", policy=dg.stack(4))`.

        Args:
            delay: ticks from sending to arriving. None: 0, or 1 where the link closes a circle.
            policy: what is read where messages come faster than they are read: "latest", the "mean" of all since the
                last firing, or `dg.stack(n)`, the last n as [batch, n, ...].
            boundary: what the sender learns from: "dni", "oracle", "local-loss", a factory, a ready boundary; None:
                nothing comes back.
            head, condition: as in `decouple`.
            synthetic: the receiver does not wait for the message of this tick but predicts it from the network's inputs
                (True: all with floating-point numbers; or names of some; or a factory of a module, called with
                examples of the inputs and of the message). The real message trains the predictor.
            initial: what is read before anything has come: a tensor, the sizes of one sample (zeros), or a function of
                the batch size. None: the argument is left out where it has a default, else zeros.

        Raises:
            NetworkError: an argument does not fit.
        """
        self._refuse_built("connect")
        sinks = (sink,) if isinstance(sink, str) else tuple(sink)
        wrong = [f"{s!r}: an input is called 'agent.input'" for s in sinks if "." not in s]
        if delay is not None and (isinstance(delay, bool) or not isinstance(delay, int) or delay < 0):
            wrong.append(f"delay={delay!r} (a whole number from 0 on)")
        if not sinks:
            wrong.append(f"{source!r} is connected to nothing")
        try:
            made = make_policy(policy)
        except NetworkError as error:
            wrong += error.problems
        if wrong:
            raise NetworkError(wrong, "the link does not fit")
        begin = _port(source) if "." in source else Port(None, source)
        condition = condition if condition is not None else self._condition
        ends = tuple(map(_port, sinks))
        self.links.append(Link(begin, ends, delay, made, boundary, head, condition, synthetic, initial))
        return self

    def validate(self, inputs: Any = None) -> None:
        """Look for everything that is wrong, and with an example of what `tick` is given, also try every agent on it.

        With an example, boundaries, heads and optimisers are made; `tick` does the same when it is first called.

        Raises:
            NetworkError: something is wrong; all of it is listed.
        """
        wiring = Wiring(self.agents, self.links)
        wrong = list(problems(self.agents, self.links, wiring))
        if inputs is None:
            if wrong:
                raise NetworkError(wrong)
            return
        given = self._named(inputs)
        known = [link for link in self.links if _both_ends(link, self.agents)]
        found = rehearse(self.agents, Wiring(self.agents, known), given)
        if wrong or found.problems:
            raise NetworkError([*wrong, *dict.fromkeys(found.problems)])
        if self._built is None:
            self._wirings = {True: wiring, False: self._unpredicted(wiring)}
            built = build(
                self.agents, wiring, found, given, self.context, self._optimizer, self._seed, self.log
            )  # fmt: skip
            made = {link.name: built.boundaries.get(link.name) for link in self.links}
            links = [_with(link, made[link.name]) for link in self.links]
            if wrong := list(problems(self.agents, links, wiring)):
                raise NetworkError(wrong)
            self._built = built
            warn_unconditioned(built.boundaries, "give tick(...) the target, or label=", stacklevel=3)

    # ---- to run

    def tick(self, inputs: Any = None, targets: Any = None, *, label: Any = None, ends: bool = False) -> TickResult:
        """One tick of the global clock: whose turn it is fires, learns and sends.

        Args:
            inputs: of the network, by name: {"digits": x} for a source of that name, {"a.x": x} for an input that no
                link feeds. A single value where there is just one.
            targets: by agent; a single value where just one agent has a loss. An agent without a target in this tick
                learns from its links alone.
            label: what heads look at where they have a condition: one for all, or by agent. None: the target, where
                there is one; else each agent's own.
            ends: nobody will read what has been sent: all that waits learns, and the next tick begins anew.

        Raises:
            NetworkError: the network is wrong, or what is given does not fit it.
        """
        tick = self._tick(self.ticks, inputs, targets, label)
        if self._built is None:
            self.validate(tick.inputs)
        assert self._built is not None, "validate has built it"
        deliver(self._built.outside, tick)
        actors = [self._built.actors[name] for name in self._wirings[self.training].order]
        for actor in actors:
            actor.begin(tick)
        for actor in reversed(actors):
            actor.end(tick)
        for actor in actors:
            actor.close(tick)
        self.ticks += 1
        if ends:
            self.finish()
        return _result(tick)

    def run(self, given: Iterable[tuple[Any, ...]], *, threads: bool = False, capacity: int = 2) -> list[TickResult]:
        """So many ticks as there are in `given`, each a tuple of what `tick` takes: inputs, targets, label.

        Args:
            threads: one thread for each agent. The results are bitwise the same, if the modules draw no random
                numbers: torch has one stream of them for all threads.
            capacity: so many packets lie in a queue between two threads.

        Raises:
            NetworkError: as in `tick`; or two agents share parameters, which threads must not.
        """
        if not threads:
            return [self.tick(*one[:2], label=one[2] if len(one) > 2 else None) for one in given]
        ticks = list(given)
        if ticks and self._built is None:
            self.validate(self._named(ticks[0][0]))
        return run_threads(self, ticks, self._tick, _result, capacity)

    def settle(self) -> None:
        """Go no further back: everything that waits for an answer learns from what is known.

        Messages stay where they are, and can be read; no gradient comes of it any more. With oracles on a circle this
        is the end of the window through which gradients go back in time.
        """
        if self._built is None:
            return
        actors = list(self._built.actors.values())
        for actor in actors:
            for inbox in actor.inboxes:
                inbox.close()
        busy = True
        while busy:
            for actor in actors:
                for inbox in actor.inboxes:
                    inbox.push()
            busy = False
            for actor in actors:
                busy = actor.settle(self.ticks) or busy
        for actor in actors:
            actor.step()

    def finish(self) -> None:
        """The episode is over: settle everything and forget all messages. The clock starts anew."""
        self.settle()
        self.clear()

    def clear(self) -> None:
        """Forget all messages, and what was expected of them. The clock starts anew."""
        self.ticks = 0
        for actor in self._built.actors.values() if self._built else ():
            actor.clear()

    def pause(self, name: str) -> None:
        """The agent drops out: it does not fire. Messages still come to it, and the older ones make room."""
        self._agent(name).present = False

    def resume(self, name: str) -> None:
        """The agent is back, with what it has learned, and fires when its clock says so."""
        self._agent(name).present = True

    def train(self, mode: bool = True) -> "Network":
        """Learn, or with `mode=False` only run: agents in eval mode, real messages for synthetic ones."""
        self.training = mode
        for module in self.modules().values():
            module.train(mode)
        if self._built is not None:
            self._built.order(self._wirings[mode])
        return self

    def eval(self) -> "Network":
        """Only run, and learn nothing."""
        return self.train(False)

    @contextmanager
    def aside(self) -> Iterator["Network"]:
        """Run something else in eval mode, beginning with no messages; afterwards the run goes on where it was."""
        mode, ticks = self.training, self.ticks
        kept = {} if self._built is None else {n: a.set_aside() for n, a in self._built.actors.items()}
        log, self.log = self.log, None
        self._set_log(None)
        self.ticks = 0
        self.eval()
        try:
            yield self
        finally:
            for name, held in kept.items():
                self._actors()[name].take_back(held)
            self.train(mode)
            self.ticks, self.log = ticks, log
            self._set_log(log)

    # ---- to look at

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """What stands on the links, by their names; empty before the first tick."""
        return {} if self._built is None else dict(self._built.boundaries)

    @property
    def graph(self) -> Graph:
        """The network as a `networkx.MultiDiGraph`."""
        return graph_of(self.agents, self.links, self._wiring().delays)

    @property
    def order(self) -> list[str]:
        """The agents, so that whoever reads without delay comes after who sends."""
        return list(self._wiring().order)

    @property
    def inputs(self) -> list[str]:
        """The names of what `tick` is given: sources without an agent, and "agent.input" that no link feeds."""
        return self._outside()

    @property
    def plan(self) -> Plan:
        """The network as a plan, for `dg.draw`."""
        return plan_of(self)

    def to_json(self) -> dict[str, Any]:
        """The wiring as plain data: agents with their clocks, links with their delays and policies."""
        return saving.structure(self)

    def delay_of(self, number: int) -> int:
        """The ticks that the messages of a link take."""
        return self._wiring().delays[number]

    def modules(self) -> dict[str, nn.Module]:
        """All that has weights: agents by name, boundaries as "dni.link", predictors as "synthetic.link"."""
        found: dict[str, nn.Module] = {name: agent.module for name, agent in self.agents.items()}
        if self._built is not None:
            found |= {f"dni.{name}": b for name, b in self._built.boundaries.items()}
            found |= {f"synthetic.{name}": p for name, p in self._built.predictors.items()}
        return found

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return list(dict.fromkeys(p for module in self.modules().values() for p in module.parameters()))

    def __str__(self) -> str:
        return table.text(self)

    def __rich__(self) -> RenderableType:
        return table.view(self)

    # ---- to keep

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, optimisers, messages on their way, clock and random states to a file, atomically.

        Raises:
            NetworkError: firings wait for true gradients; `settle` or the end of an episode lets them learn.
        """
        saving.save(self, path)

    def load(self, path: str | os.PathLike[str], inputs: Any = None) -> None:
        """Go on from a file that `save` wrote, with the numbers of never having stopped.

        Args:
            inputs: an example of what `tick` is given, where this network has not run yet.

        Raises:
            CheckpointError: the file is no such checkpoint.
            NetworkError: it belongs to another network; all differences are listed.
        """
        saving.load(self, path, inputs)

    # ---- inside

    def _wiring(self) -> Wiring:
        return self._wirings.get(True) or Wiring(self.agents, self.links)

    def _unpredicted(self, wiring: Wiring) -> Wiring:
        """The wiring in eval mode, where real messages are waited for; as in training where they go in circles."""
        plain = Wiring(self.agents, self.links, predicting=False)
        return wiring if plain.circles or plain.delays != wiring.delays else plain

    def _actors(self) -> dict[str, Any]:
        return {} if self._built is None else dict(self._built.actors)

    def _set_log(self, log: EventLog | None) -> None:
        for actor in self._actors().values():
            actor.log = log

    def _agent(self, name: str) -> Agent:
        if name not in self.agents:
            raise NetworkError([f"there is no agent {name!r}{nearest(name, self.agents)}"])
        return self.agents[name]

    def _refuse_built(self, what: str) -> None:
        if self._built is not None:
            raise NetworkError([f"the network runs already: {what} before the first tick"])

    def _outside(self) -> list[str]:
        """The names of the network's inputs, optional ones too."""
        fed = {sink for link in self.links for sink in link.sinks}
        free = [Port(a.name, n) for a in self.agents.values() for n in a.inputs.names if Port(a.name, n) not in fed]
        return [*dict.fromkeys(link.source.name for link in self.links if link.outside), *map(str, free)]

    def _named(self, inputs: Any) -> dict[str, Any]:
        """The inputs by name, when there are such."""
        names = self._outside()
        if inputs is None:
            return {}
        if not isinstance(inputs, Mapping):
            if len(names) != 1:
                raise NetworkError([f"the network has {len(names)} inputs, so name them: {', '.join(names) or 'none'}"])
            return {names[0]: inputs}
        strange = [
            f"there is no input {n!r}{nearest(n, names)}; inputs: {', '.join(names)}" for n in inputs if n not in names
        ]
        if strange:
            raise NetworkError(strange, "the tick does not fit")
        return dict(inputs)

    def _by_agent(self, what: str, given: Any, all_of: bool) -> dict[str, Any]:
        if given is None:
            return {}
        learning = [name for name, agent in self.agents.items() if agent.loss is not None]
        if not isinstance(given, Mapping):
            if all_of:
                return dict.fromkeys(self.agents, given)
            if len(learning) != 1:
                raise NetworkError([f"{len(learning)} agents have a loss, so name them: {what}={{agent: ...}}"])
            return {learning[0]: given}
        strange = [f"{what}: there is no agent {n!r}{nearest(n, self.agents)}" for n in given if n not in self.agents]
        if strange:
            raise NetworkError(strange, "the tick does not fit")
        return dict(given)

    def _tick(self, number: int, inputs: Any = None, targets: Any = None, label: Any = None) -> Tick:
        given = self._named(inputs)
        by_agent = self._by_agent("targets", targets, all_of=False)
        labels = self._by_agent("label", label, all_of=True)
        if label is None and by_agent:
            only = next(iter(by_agent.values())) if len(by_agent) == 1 else None
            labels = {name: by_agent.get(name, only) for name in self.agents}
        return Tick(number, given, by_agent, labels, batch_of(given.values()), self.training)


def _result(tick: Tick) -> TickResult:
    return TickResult(tick.number, tick.losses, tick.outputs)


def _port(words: str) -> Port:
    agent, _, name = words.partition(".")
    return Port(agent, name)


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)


def _both_ends(link: Link, agents: Mapping[str, Agent]) -> bool:
    """Whether the agents and inputs that the link names are there."""
    known = all(s.agent in agents and agents[s.agent].inputs.takes(s.name) for s in link.sinks if s.agent)
    return known and (link.outside or link.source.agent in agents)


def _with(link: Link, boundary: Boundary | None) -> Link:
    """The link with what really stands on it."""
    return replace(link, boundary=boundary)
