"""Networks of models that learn from each other, each at its own pace."""

import copy
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import torch
from rich.console import RenderableType
from torch import nn

from ..boundaries import Boundary, BoundaryChoice
from ..boundaries.choices import warn_unconditioned
from ..engine.actor import Actor
from ..engine.actor_state import set_aside, take_back
from ..engine.delays import Graph, graph_of
from ..engine.description.agent import Agent, AgentLoss
from ..engine.description.link import Link, SyntheticChoice
from ..engine.description.network_error import NetworkError
from ..engine.description.policy import PolicyChoice
from ..engine.dry_run import DryRun
from ..engine.event_log import EventLog, NoLog
from ..engine.running_network import Kept, RunningNetwork, build
from ..engine.tick import Tick, TickResult
from ..engine.updates.rules import MakeOptimizer
from ..heads import HeadChoice
from ..heads.conditions import ConditionChoice, Context
from ..passes.errors import is_whole
from ..passes.plan.plan import Plan
from ..runners.checkpoint import load_checkpoint, restore_random, save_checkpoint, taken_up
from ..runners.scheduler import INLINE
from ..runners.threads import refuse_shared, run_threads
from .arguments import check_network, make_agent, make_link
from .network_checkpoint import load_state, refuse_waiting, state_of_network, structure
from .network_plan import plan_of
from .network_table import text, view
from .overview import Overview
from .problems import problems
from .tick_inputs import tick_arguments
from .topology import Topology


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

    Raises:
        NetworkError: an argument does not fit; all of them are listed.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, sections 2.2, 2.3, 3.2 and 3.3.
    """

    _heads_come_late = False  # whether a checkpoint may have heads that are not there yet, and lack some

    def __init__(
        self, *, optimizer: MakeOptimizer | None = None, condition: ConditionChoice = None, seed: int = 0,
        log: bool = False,
    ):  # fmt: skip
        check_network(optimizer, condition, seed, log)
        self.topology = Topology()
        self.running: RunningNetwork | None = None  # made before the first tick
        self._kept = Kept()
        self.ticks = 0
        self.training = True
        self._log = EventLog() if log else None
        self.context = Context()
        self._optimizer: MakeOptimizer = optimizer or _adam
        self._condition, self._seed = condition, seed
        self.runner = INLINE

    # ---- wiring

    def add(
        self, name: str, module: nn.Module, *, every: int = 1, phase: int | None = None, loss: AgentLoss = None,
        optimizer: MakeOptimizer | None = None, clip: float | None = None, p_update: float = 1.0,
        outputs: Sequence[str] | None = None,
    ) -> Self:  # fmt: skip
        """Add an agent.

        Its inputs are called as the arguments of the module's forward method, its outputs as the keys of the dict,
        or the fields of the dataclass or named tuple, that it returns; entries of a tuple are "0", "1", ..., and a
        single value is "output", unless `outputs` names them. Inputs that no link feeds are given to `tick`, under any
        names where forward takes **names.

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
        self._refuse_running("add agents")
        agents = self.topology.agents
        agent = make_agent(name, module, agents, every, phase, loss, optimizer, clip, p_update, outputs)
        self.topology.add(agent)
        return self

    def connect(
        self, source: str, sink: str | Sequence[str], *, delay: int | None = None, back: int = 0,
        policy: PolicyChoice = "latest",
        boundary: "BoundaryChoice | Boundary | None" = "dni", head: HeadChoice = "auto",
        condition: ConditionChoice = None, synthetic: SyntheticChoice = False, initial: Any = None,
    ) -> Self:  # fmt: skip
        """Let an output feed an input, or several with one head for all: "agent.output" to "agent.input".

        A source without a dot is an input of the network: `connect("digits", "a.x", policy=dg.stack(4))`.

        Args:
            delay: ticks from sending to arriving. None: 0, or 1 where the link closes a circle.
            back: how many ticks later than it could the answer comes, which teaches the head, or with an oracle the
                sender. It does not wait meanwhile: on threads both ends run at the same time. A sender of true
                gradients learns with the weights that it had when it sent (PipeDream, arXiv 1806.03377).
            policy: what is read where messages come faster than they are read: "latest", the "mean" of all since the
                last firing, or `dg.stack(n)`, the last n as [batch, n, ...].
            boundary: what the sender learns from: "dni", "oracle", "local-loss", a factory, a ready boundary; None:
                nothing comes back.
            head, condition: as in `decouple`.
            synthetic: the receiver does not wait for the message of this tick but predicts it from the network's inputs
                (True: all with floating-point numbers; or names of some; or a factory of a module, called with
                examples of the inputs and of the message). The real message trains the predictor.
            initial: what is read before anything has come: the sizes of one sample (zeros), a tensor [batch, ...] or
                [1, ...], or a function of the batch size. None: the argument is left out where it has a default, else
                zeros, but an input of the network must have come. A stack is filled up with zeros in any case.

        Raises:
            NetworkError: an argument does not fit.
        """
        self._refuse_running("connect")
        condition = condition if condition is not None else self._condition
        link = make_link(source, sink, delay, back, policy, boundary, head, condition, synthetic, initial)
        self.topology.connect(link)
        return self

    def validate(self, inputs: Any = None) -> None:
        """Check everything. With an example of what `tick` is given, also run every agent on it.

        With an example, boundaries, heads and optimisers are made; `tick` does the same when it is first called.

        Raises:
            NetworkError: something is wrong; all of it is listed.
        """
        trial = self.topology.check(inputs)
        if trial is not None and self.running is None:
            self._build(trial)

    def _build(self, trial: DryRun) -> None:
        """Make boundaries, heads and optimisers, and check the links again with the boundaries that were made."""
        wiring = self.topology.wiring()
        running = build(self.agents, wiring, trial, self.context, self._optimizer, self._seed, self._log, self._kept)
        links = [replace(link, boundary=running.boundaries.get(link.name)) for link in self.links]
        if wrong := list(problems(self.agents, links, wiring)):
            raise NetworkError(wrong)
        self.running, self._kept = self.runner.take(running), running.kept
        running.follow(self.topology.wiring(self.training))
        self._warn_of_doubts(trial)
        self._warn_unconditioned()

    def _warn_unconditioned(self) -> None:
        warn_unconditioned(self.boundaries, "give tick(...) the target, or label=", stacklevel=5)

    def _warn_of_doubts(self, trial: DryRun) -> None:
        """Warn of what runs, and hardly means what the user thinks."""
        frozen = [name for name, agent in self.agents.items() if any(True for _ in agent.module.parameters())]
        doubts = list(trial.doubts)
        if frozen and self.training and not any(agent.trains() for agent in self.agents.values()):
            doubts.append("nothing will learn, since all parameters of agents are frozen: requires_grad_(True)")
        if doubts:
            warnings.warn("; ".join(doubts), stacklevel=5)

    # ---- running

    def tick(self, inputs: Any = None, targets: Any = None, *, label: Any = None, ends: bool = False) -> TickResult:
        """One tick of the global clock: agents whose clock says so fire, learn and send.

        Args:
            inputs: of the network, by name: {"digits": x} for a source of that name, {"a.x": x} for an input that no
                link feeds. A single value where there is just one.
            targets: by agent; a single value where just one agent has a loss. An agent without a target in this tick
                learns from its links alone.
            label: what heads look at where they have a condition: one for all, or by agent; needed in every tick in
                which their senders fire. None: the target, where just one agent has a loss; else each agent's own.
            ends: this tick ends the episode. Undelivered messages are dropped and return no gradient, waiting firings
                learn with what they have, and the clock restarts at 0.

        Raises:
            NetworkError: the network is wrong, or what is given does not fit it; nothing has happened then. What a
                module, a loss or a head raises (a `ConditionError`: the label does not fit) comes through with a note
                of where it was: that tick is over, with all that had happened in it, and the next one goes on.
        """
        running = self._made(inputs)
        tick = self.topology.inputs.tick(self.ticks, inputs, targets, label, ends, self.training)
        running.refuse_missing([tick])
        if self.training:
            running.prepare()
        with self._counting([tick]):
            self.runner.tick(running, self._order, tick)
        return tick.result(self._order)

    def run(self, given: Iterable[tuple[Any, ...]], *, threads: bool = False, capacity: int = 2) -> list[TickResult]:
        """One tick for each entry of `given`, a tuple of what `tick` takes: inputs, targets, label, ends.

        Args:
            threads: one thread for each agent. The results are bitwise the same, if the modules draw no random
                numbers: torch has one stream of them for all threads. At the end of an episode all threads come
                together.
            capacity: how many packets a queue between two threads holds, 1 or more.

        Raises:
            NetworkError: as in `tick`; or two agents share parameters, which threads must not.
        """
        wrong = [] if isinstance(threads, bool) else [f"threads={threads!r} (True: one thread for each agent)"]
        if not is_whole(capacity, 1):
            wrong.append(f"capacity={capacity!r} (packets in a queue: a whole number from 1 on)")
        if wrong:
            raise NetworkError(wrong)
        if not isinstance(given, Iterable) or isinstance(given, str | Mapping | torch.Tensor):
            kind = type(given).__name__
            words = f"run takes a list with a tuple (inputs, targets, label, ends) for each tick, not a {kind}"
            raise NetworkError([words], "the ticks do not fit")
        entries = (tick_arguments(entry) for entry in given)
        if not threads:
            return [self.tick(*entry[:2], label=entry[2], ends=entry[3]) for entry in entries]
        whole_run = list(entries)
        if not whole_run:
            return []
        running = self._made(whole_run[0][0])
        episodes = list(self.topology.inputs.episodes(self.ticks, whole_run, self.training))
        ticks = [tick for episode in episodes for tick in episode]
        running.refuse_missing(ticks)
        if self.training:
            running.prepare()
        refuse_shared(self.agents.values())
        for episode in episodes:
            with self._counting(episode):
                run_threads(running, episode, capacity)
        return [tick.result(self._order) for tick in ticks]

    def settle(self) -> None:
        """End the stretch of time through which gradients go back: everything that waits learns from what is known.

        Messages stay where they are and can still be read, but return no gradient any more. With oracles on a circle
        this ends the window of truncated backprop through time.
        """
        if self.running is not None:
            self.runner.settle(self.running, self.order, max(self.ticks - 1, 0))

    def finish(self) -> None:
        """End the episode: settle everything, drop all messages, and restart the clock at 0."""
        self.settle()
        self.clear()

    def clear(self) -> None:
        """Drop all messages and the answers that they wait for, and restart the clock at 0."""
        if self._log is not None:
            self._log.past += self.ticks
        self.ticks = 0
        for actor in self._actors().values():
            actor.clear()

    def pause(self, name: str) -> None:
        """The agent does not fire until `resume`. Messages still reach it; old ones are dropped for new ones.

        What it has sent is read on. Readings return their gradients when it sends again or the episode ends; those of
        a message that was answered before the pause return none, of which you are warned where it waits for true ones.
        """
        self.topology.agent(name).present = False

    def resume(self, name: str) -> None:
        """A paused agent fires again by its clock, with the weights that it has."""
        self.topology.agent(name).present = True

    def train(self, mode: bool = True) -> Self:
        """Set train mode, or with `mode=False` eval mode: nothing learns, and real messages replace synthetic ones."""
        if not isinstance(mode, bool):
            raise NetworkError([f"train({mode!r}): True is train mode, False eval mode"])
        self.training = mode
        for module in self.modules().values():
            module.train(mode)
        if self.running is not None:
            self.running.follow(self.topology.wiring(mode))
        return self

    def eval(self) -> Self:
        """Set eval mode: nothing learns."""
        return self.train(False)

    @contextmanager
    def aside(self) -> Iterator[Self]:
        """A block in eval mode that starts without messages; afterwards the run continues where it was."""
        ticks, log, mode = self.ticks, self._log, self.training
        modes = [(m, m.training) for module in self.modules().values() for m in module.modules()]
        messages = {name: set_aside(actor) for name, actor in self._actors().items()}
        self.ticks, self._log = 0, None
        self._set_log(None)
        self.eval()
        try:
            yield self
        finally:
            for name, actor in self._actors().items():
                if name in messages:
                    take_back(actor, messages[name])
                else:  # it was made in the block
                    actor.clear()
            self.train(mode)
            for module, own in modes:  # a part that the user froze in eval mode stays so
                module.training = own
            self.ticks, self._log = ticks, log
            self._set_log(log)

    # ---- checkpoints

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, optimisers, messages on their way, clock and random states to a file, atomically.

        Raises:
            NetworkError: firings wait for true gradients; `settle` or the end of an episode lets them learn.
        """
        state = state_of_network(self._overview, self.modules(), self._actors(), self._kept, self._log)
        save_checkpoint(path, {"network": state})

    def load(self, path: str | os.PathLike[str], inputs: Any = None) -> None:
        """Go on from a file that `save` wrote, with the numbers of never having stopped.

        Args:
            inputs: an example of what `tick` is given, where this network has not run yet.

        Raises:
            CheckpointError: the file is no such checkpoint.
            NetworkError: it belongs to another network; all differences are listed. Nothing has changed then.
        """
        checkpoint = load_checkpoint(path, {"network"})
        running, kept = self.running, self._kept
        try:
            with taken_up(path):
                self._take_up(checkpoint["network"], inputs)
        except BaseException:
            self.running, self._kept = running, kept
            raise
        restore_random(checkpoint)

    def _take_up(self, state: dict[str, Any], inputs: Any) -> None:
        """Go on from a state of a checkpoint. One of before the first tick has no heads: the next tick makes them."""
        log = EventLog()
        log.load(state["log"] or log.state())
        if not state["actors"]:
            self.running, self._kept = None, Kept()
        if inputs is not None and state["actors"]:
            self.validate(inputs)
        elif inputs is not None:
            self.topology.check(inputs)
        load_state(self._overview, self.modules(), self._actors(), self._kept, state, self._heads_come_late)
        self.ticks = state["ticks"]
        if self._log is not None and state["log"] is not None:
            self._log.past, self._log.events = log.past, log.events

    # ---- to look at

    @property
    def log(self) -> EventLog | NoLog:
        """The events so far; without `log=True` none are kept, and what is asked of it says so."""
        return NoLog() if self._log is None else self._log

    @property
    def agents(self) -> dict[str, Agent]:
        """The agents, by name."""
        return self.topology.agents

    @property
    def links(self) -> list[Link]:
        """The links, in the order in which they were made."""
        return self.topology.links

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """The boundaries on the links, by the links' names; empty before the first tick."""
        return {} if self.running is None else dict(self.running.boundaries)

    @property
    def skipped(self) -> dict[str, int]:
        """How many updates of each agent, or head, were skipped, since a gradient was not finite."""
        return dict(self._kept.skips.counts)

    @property
    def graph(self) -> Graph:
        """The network as a `networkx.MultiDiGraph`."""
        return graph_of(self.agents, self.links, self.topology.wiring().delays)

    @property
    def order(self) -> list[str]:
        """The agents in running order: over a link without delay the receiver comes after the sender."""
        return list(self.topology.wiring().order)

    @property
    def inputs(self) -> list[str]:
        """The names of what `tick` is given: sources without an agent, and "agent.input" that no link feeds."""
        return list(self.topology.inputs.inputs)

    @property
    def plan(self) -> Plan:
        """The network as a plan, for `dg.draw`."""
        return plan_of(self._overview)

    def to_json(self) -> dict[str, Any]:
        """The wiring as plain data: agents with their clocks, links with their delays and policies."""
        return structure(self._overview)

    def delay_of(self, number: int) -> int:
        """The ticks that the messages of a link take.

        Raises:
            NetworkError: there is no link of this number.
        """
        if not is_whole(number, 0) or number >= len(self.links):
            raise NetworkError([f"there is no link {number!r}: they are numbered from 0 to {len(self.links) - 1}"])
        return self.topology.wiring().delays[number]

    def modules(self) -> dict[str, nn.Module]:
        """All modules: agents by name, boundaries as "dni.link", predictors as "synthetic.link"."""
        modules: dict[str, nn.Module] = {name: agent.module for name, agent in self.agents.items()}
        ready = {link.name: link.boundary for link in self.links if isinstance(link.boundary, Boundary)}
        modules |= {f"dni.{name}": boundary for name, boundary in ready.items()}  # also before the first tick
        if self.running is not None:
            modules |= {f"dni.{name}": boundary for name, boundary in self.running.boundaries.items()}
            modules |= {f"synthetic.{name}": predictor for name, predictor in self.running.predictors.items()}
        return modules

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return list(dict.fromkeys(p for module in self.modules().values() for p in module.parameters()))

    def __str__(self) -> str:
        return text(self._overview)

    def __rich__(self) -> RenderableType:
        return view(self._overview)

    # ---- inside

    @property
    def _overview(self) -> Overview:
        return self.topology.overview(self.boundaries, self.ticks)

    @property
    def _order(self) -> list[str]:
        """The agents in the order of the present mode."""
        return self.topology.wiring(self.training).order

    def _actors(self) -> dict[str, Actor]:
        return {} if self.running is None else self.running.actors

    def _made(self, inputs: Any) -> RunningNetwork:
        """The network that runs; made of these inputs of a tick if it is the first one."""
        if self.running is None:
            self.validate({} if inputs is None else inputs)
        assert self.running is not None, "validate has made it"
        return self.running

    @contextmanager
    def _counting(self, ticks: Sequence[Tick]) -> Iterator[None]:
        """The block runs these ticks. If it fails, messages under way are delivered and half-made gradients dropped."""
        try:
            yield
        except BaseException:
            assert self.running is not None, "it runs"
            self.running.mend()
            raise
        finally:
            begun = [tick for tick in ticks if tick.begun]
            self.ticks += len(begun)
            if begun and begun[-1].ends:  # also after a failure: the next tick is another episode
                self.finish()

    def _set_log(self, log: EventLog | None) -> None:
        for actor in self._actors().values():
            actor.log = log

    def _refuse_running(self, what: str) -> None:
        if self.running is not None:
            raise NetworkError([f"the network runs already: {what} before the first tick"])

    def __deepcopy__(self, memo: dict[int, Any]) -> "Network":
        refuse_waiting(self._actors(), "copied")
        other: Network = object.__new__(type(self))
        memo[id(self)] = other
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)
