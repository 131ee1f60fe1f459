"""Agents and links as the user wires them, and what follows from them before anything runs."""

from collections.abc import Mapping
from typing import Any

from ..boundaries import Boundary
from ..engine.delays import Wiring
from ..engine.description.agent import Agent
from ..engine.description.link import Link
from ..engine.description.network_error import NetworkError
from ..engine.dry_run import DryRun, dry_run
from ..passes.errors import nearest
from .overview import Overview
from .problems import problems
from .tick_inputs import TickInputs


class Topology:
    """The agents and links of a network. Delays, order and names are found out when they are first asked for."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.links: list[Link] = []
        self._wirings: dict[bool, Wiring] = {}  # by whether predictions replace messages
        self._inputs: TickInputs | None = None

    def add(self, agent: Agent) -> None:
        """Add an agent."""
        self.agents[agent.name] = agent
        self._wirings, self._inputs = {}, None

    def connect(self, link: Link) -> None:
        """Add a link."""
        self.links.append(link)
        self._wirings, self._inputs = {}, None

    def agent(self, name: str) -> Agent:
        """The agent of this name.

        Raises:
            NetworkError: there is none.
        """
        if not isinstance(name, str) or name not in self.agents:
            known = ", ".join(self.agents) or "none"
            raise NetworkError([f"there is no agent {name!r}{nearest(str(name), self.agents)}; agents: {known}"])
        return self.agents[name]

    def wiring(self, predicting: bool = True) -> Wiring:
        """The links with their delays, in training; or in eval mode, where nothing is predicted.

        Eval mode waits for the real messages, unless those go in circles: then its order is that of training.
        """
        if predicting not in self._wirings:
            self._wirings[predicting] = Wiring(self.agents, self.links) if predicting else self._unpredicted()
        return self._wirings[predicting]

    def _unpredicted(self) -> Wiring:
        training = self.wiring()
        if not any(link.synthetic for link in self.links):
            return training
        waiting = Wiring(self.agents, self.links, predicting=False)
        return training if waiting.circles or waiting.delays != training.delays else waiting

    @property
    def inputs(self) -> TickInputs:
        """The names of what a tick is given."""
        if self._inputs is None:
            self._inputs = TickInputs(self.agents, self.links)
        return self._inputs

    def overview(self, boundaries: Mapping[str, Boundary], ticks: int) -> Overview:
        """The network as plain values."""
        wiring = self.wiring()
        delays = [wiring.delays[number] for number in range(len(self.links))]
        return Overview(self.agents, self.links, delays, boundaries, wiring.order, self.inputs.inputs, ticks)

    def check(self, inputs: Any = None) -> DryRun | None:
        """Check the wiring, and with an example of what a tick is given, run every agent on it.

        Raises:
            NetworkError: something is wrong; all of it is listed.
        """
        wiring = self.wiring()
        wrong = list(problems(self.agents, self.links, wiring))
        if inputs is None:
            if wrong:
                raise NetworkError(wrong)
            return None
        example, strange = self.inputs.named(inputs)
        wrong += strange if self.agents else []
        links = [link for link in self.links if self._has_ends(link)]
        trial = dry_run(self.agents, wiring if len(links) == len(self.links) else Wiring(self.agents, links), example)
        wrong += dict.fromkeys(trial.problems) if example or not strange else []
        if wrong:
            raise NetworkError(wrong)
        return trial

    def _has_ends(self, link: Link) -> bool:
        """Whether the agents and inputs that the link names exist."""
        known = all(s.agent in self.agents and self.agents[s.agent].inputs.takes(s.name) for s in link.sinks if s.agent)
        return known and (link.outside or link.source.agent in self.agents)
