"""Agents and links as the user wires them, and everything that can be inspected."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from rich.console import RenderableType
from torch import nn

from ..boundaries import Boundary, BoundaryChoice
from ..boundaries.choices import warn_unconditioned
from ..heads import HeadChoice
from ..heads.conditions import ConditionChoice, Context
from ..passes.errors import nearest
from ..passes.plan.plan import Plan
from ..runners.optimizers import MakeOptimizer
from .checks.delays import Graph, Wiring, graph_of
from .checks.dry_run import DryRun, dry_run
from .checks.problems import problems
from .description.agent import Agent, AgentLoss
from .description.arguments import make_agent, make_link
from .description.link import Link, SyntheticChoice
from .description.network_error import NetworkError
from .description.overview import Overview
from .description.policy import PolicyChoice
from .network_checkpoint import structure
from .running.event_log import EventLog
from .running.running_network import RunningNetwork, build
from .running.tick_inputs import TickInputs
from .showing import network_table as table
from .showing.network_plan import plan_of


class Wired:
    """The agents and links of a network. `Network` runs them."""

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
        self._built: RunningNetwork | None = None
        self._names: TickInputs | None = None
        self._wirings: dict[bool, Wiring] = {}  # by whether predictions replace messages (in training)

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
        self._refuse_built("add agents")
        agent = make_agent(name, module, self.agents, every, phase, loss, optimizer, clip, p_update, outputs)
        self.agents[name] = agent
        self._forget()
        return self

    def connect(
        self, source: str, sink: str | Sequence[str], *, delay: int | None = None, policy: PolicyChoice = "latest",
        boundary: "BoundaryChoice | Boundary | None" = "dni", head: HeadChoice = "auto",
        condition: ConditionChoice = None, synthetic: SyntheticChoice = False, initial: Any = None,
    ) -> Self:  # fmt: skip
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
            initial: what is read before anything has come: the sizes of one sample (zeros), a tensor [batch, ...] or
                [1, ...], or a function of the batch size. None: the argument is left out where it has a default, else
                zeros, but an input of the network must have come. A stack is filled up with zeros in any case.

        Raises:
            NetworkError: an argument does not fit.
        """
        self._refuse_built("connect")
        condition = condition if condition is not None else self._condition
        self.links.append(make_link(source, sink, delay, policy, boundary, head, condition, synthetic, initial))
        self._forget()
        return self

    def validate(self, inputs: Any = None) -> None:
        """Check everything. With an example of what `tick` is given, also run every agent on it.

        With an example, boundaries, heads and optimisers are made; `tick` does the same when it is first called.

        Raises:
            NetworkError: something is wrong; all of it is listed.
        """
        wiring = self._wiring()
        wrong = list(problems(self.agents, self.links, wiring))
        if inputs is None:
            if wrong:
                raise NetworkError(wrong)
            return
        given, strange = self._given().named(inputs)
        wrong += strange if self.agents else []
        known = [link for link in self.links if _both_ends(link, self.agents)]
        trial = dry_run(self.agents, wiring if len(known) == len(self.links) else Wiring(self.agents, known), given)
        wrong += dict.fromkeys(trial.problems) if given or not strange else []
        if wrong:
            raise NetworkError(wrong)
        if self._built is None:
            self._build(wiring, trial)

    def _build(self, wiring: Wiring, trial: DryRun) -> None:
        """Make boundaries, heads and optimisers, and check the links again with the boundaries that were made."""
        built = build(self.agents, wiring, trial, self.context, self._optimizer, self._seed, self.log)
        links = [replace(link, boundary=built.boundaries.get(link.name)) for link in self.links]
        if wrong := list(problems(self.agents, links, wiring)):
            raise NetworkError(wrong)
        self._wirings = {True: wiring, False: self._unpredicted(wiring)}
        self._built = built
        built.follow(self._wirings[self.training])
        warn_unconditioned(built.boundaries, "give tick(...) the target, or label=", stacklevel=4)

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """The boundaries on the links, by the links' names; empty before the first tick."""
        return {} if self._built is None else dict(self._built.boundaries)

    @property
    def graph(self) -> Graph:
        """The network as a `networkx.MultiDiGraph`."""
        return graph_of(self.agents, self.links, self._wiring().delays)

    @property
    def order(self) -> list[str]:
        """The agents in running order: over a link without delay the receiver comes after the sender."""
        return list(self._wiring().order)

    @property
    def inputs(self) -> list[str]:
        """The names of what `tick` is given: sources without an agent, and "agent.input" that no link feeds."""
        return list(self._given().inputs)

    @property
    def plan(self) -> Plan:
        """The network as a plan, for `dg.draw`."""
        return plan_of(self._overview())

    def to_json(self) -> dict[str, Any]:
        """The wiring as plain data: agents with their clocks, links with their delays and policies."""
        return structure(self._overview())

    def delay_of(self, number: int) -> int:
        """The ticks that the messages of a link take."""
        return self._wiring().delays[number]

    def modules(self) -> dict[str, nn.Module]:
        """All modules: agents by name, boundaries as "dni.link", predictors as "synthetic.link"."""
        found: dict[str, nn.Module] = {name: agent.module for name, agent in self.agents.items()}
        if self._built is not None:
            found |= {f"dni.{name}": b for name, b in self._built.boundaries.items()}
            found |= {f"synthetic.{name}": p for name, p in self._built.predictors.items()}
        return found

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return list(dict.fromkeys(p for module in self.modules().values() for p in module.parameters()))

    def __str__(self) -> str:
        return table.text(self._overview())

    def __rich__(self) -> RenderableType:
        return table.view(self._overview())

    # ---- inside

    def _overview(self) -> Overview:
        wiring = self._wiring()
        delays = [wiring.delays[number] for number in range(len(self.links))]
        return Overview(self.agents, self.links, delays, self.boundaries, self.order, self.inputs, self.ticks)

    def _wiring(self) -> Wiring:
        if True not in self._wirings:
            self._wirings[True] = Wiring(self.agents, self.links)
        return self._wirings[True]

    def _given(self) -> TickInputs:
        if self._names is None:
            self._names = TickInputs(self.agents, self.links)
        return self._names

    def _forget(self) -> None:
        """Drop what was computed from the wiring, because the wiring changes."""
        self._wirings, self._names = {}, None

    def _unpredicted(self, wiring: Wiring) -> Wiring:
        """The wiring in eval mode, which waits for real messages; that of training if those go in circles."""
        if not any(link.synthetic for link in self.links):
            return wiring
        plain = Wiring(self.agents, self.links, predicting=False)
        return wiring if plain.circles or plain.delays != wiring.delays else plain

    def _actors(self) -> dict[str, Any]:
        return {} if self._built is None else dict(self._built.actors)

    def _agent(self, name: str) -> Agent:
        if name not in self.agents:
            raise NetworkError([f"there is no agent {name!r}{nearest(name, self.agents)}"])
        return self.agents[name]

    def _refuse_built(self, what: str) -> None:
        if self._built is not None:
            raise NetworkError([f"the network runs already: {what} before the first tick"])


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)


def _both_ends(link: Link, agents: Mapping[str, Agent]) -> bool:
    """Whether the agents and inputs that the link names exist."""
    known = all(s.agent in agents and agents[s.agent].inputs.takes(s.name) for s in link.sinks if s.agent)
    return known and (link.outside or link.source.agent in agents)
