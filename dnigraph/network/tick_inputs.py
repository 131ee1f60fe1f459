"""The inputs, targets and labels of a tick, by name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..boundaries import Boundary
from ..decoupled.module import DecoupledModule
from ..engine.description.agent import Agent
from ..engine.description.link import Link, Port
from ..engine.description.network_error import NetworkError
from ..engine.description.samples import batch_of
from ..engine.tick import Tick
from ..passes.errors import nearest


class TickInputs:
    """The names that a network knows, looked up once.

    Attributes:
        inputs: sources without an agent, and "agent.input" that no link feeds.
        needed: those of them whose argument has no default.
    """

    def __init__(self, agents: Mapping[str, Agent], links: Sequence[Link]) -> None:
        self.agents = agents
        fed = {sink for link in links for sink in link.sinks}
        sources = list(dict.fromkeys(link.source.name for link in links if link.outside))
        free = [(Port(a.name, n), a) for a in agents.values() for n in a.inputs.names if Port(a.name, n) not in fed]
        self.inputs = [*sources, *(str(port) for port, _ in free)]
        self.needed = [*sources, *(str(port) for port, agent in free if port.name not in agent.inputs.optional)]
        self._known, self._fed = set(self.inputs), {str(sink) for sink in fed}
        self._in_windows = {name for name, agent in agents.items() if agent.takes_windows}
        self.learning = [name for name, agent in agents.items() if agent.loss is not None]
        labelled = {
            link.source.agent for link in links if link.condition is not None or isinstance(link.boundary, Boundary)
        }
        self._deaf = {n for n, a in agents.items() if not callable(a.loss) and n not in labelled and not _decoupled(a)}

    def named(self, inputs: Any) -> tuple[dict[str, Any], list[str]]:
        """The inputs by name, and a line for each that does not fit."""
        if inputs is None:
            return {}, []
        if isinstance(inputs, Mapping):
            strange = [self._strange(name) for name in inputs if not self._takes(name)]
            return {name: inputs[name] for name in self.inputs if name in inputs} | dict(inputs), strange
        names = self.needed if len(self.needed) == 1 else self.inputs
        if len(names) == 1:
            return {names[0]: inputs}, []
        if not names:
            return {}, ["the network has no inputs, so give it none"]
        return {}, [f"the network has {len(names)} inputs, so name them: {', '.join(names)}"]

    def tick(self, number: int, inputs: Any, targets: Any, label: Any, ends: bool, learning: bool) -> Tick:
        """A tick from what the user gives.

        Raises:
            NetworkError: names that the network does not have; all of them are listed.
        """
        by_name, wrong = self.named(inputs)
        by_agent = self._by_agent("targets", targets, wrong)
        wrong += [self._useless(name) for name in by_agent if name in self._deaf]
        if not isinstance(ends, bool):
            wrong.append(f"ends={ends!r} (True: this tick ends the episode, of all samples of the batch at once)")
        if label is None:
            usable = {name: target for name, target in by_agent.items() if name not in self._in_windows}
            only = usable.get(self.learning[0]) if len(self.learning) == 1 else None
            labels = {name: usable.get(name, only) for name in self.agents}
        elif isinstance(label, Mapping):
            labels = self._by_agent("label", label, wrong)
        else:
            labels = dict.fromkeys(self.agents, label)
        if wrong:
            raise NetworkError(wrong, "the tick does not fit")
        batch = batch_of([*by_name.values(), *by_agent.values()])  # a network may have no inputs at all
        tick = Tick(number, by_name, by_agent, labels, batch, learning, ends=ends)
        for port in by_name.keys() - self._known:
            agent, _, name = port.partition(".")
            tick.others.setdefault(agent, {})[name] = by_name[port]
        return tick

    def episodes(
        self, first: int, entries: Iterable[tuple[Any, Any, Any, bool]], learning: bool
    ) -> Iterator[list[Tick]]:
        """The ticks of each episode of a run; the clock restarts after a tick that ends one.

        Args:
            first: the number of the first tick.
            entries: of each tick, what `tick_arguments` returns.
        """
        episode: list[Tick] = []
        for inputs, targets, label, ends in entries:
            episode.append(self.tick(first + len(episode), inputs, targets, label, ends, learning))
            if ends:
                yield episode
                episode, first = [], 0
        if episode:
            yield episode

    def _by_agent(self, what: str, values: Any, wrong: list[str]) -> dict[str, Any]:
        if values is None:
            return {}
        if isinstance(values, Mapping):
            unknown = [name for name in values if name not in self.agents]
            wrong += [f"{what}: there is no agent {name!r}{nearest(str(name), self.agents)}" for name in unknown]
            return dict(values)
        if len(self.learning) != 1:
            wrong.append(f"{len(self.learning)} agents have a loss, so name them: {what}={{agent: ...}}")
            return {}
        return {self.learning[0]: values}

    def _useless(self, name: str) -> str:
        """Why nobody looks at a target."""
        loss = self.agents[name].loss
        if isinstance(loss, str):
            why = f"its loss is its output {loss!r}, so give what that needs as an input"
        else:
            near = f"; agents with a loss: {', '.join(self.learning)}" if self.learning else ""
            why = f"{name} has no loss, net.add({name!r}, ..., loss=...){near}"
        return f"targets: nobody looks at the target of {name!r}: {why}"

    def _takes(self, name: Any) -> bool:
        """Whether there is such an input, or an agent that takes arguments of any name."""
        if name in self._known:
            return True
        agent, dot, _ = str(name).partition(".")
        return bool(dot) and agent in self.agents and self.agents[agent].inputs.open and name not in self._fed

    def _strange(self, name: Any) -> str:
        known = ", ".join(self.inputs) or "none"
        return f"there is no input {name!r}{nearest(str(name), self.inputs)}; inputs: {known}"


def _decoupled(agent: Agent) -> bool:
    """Whether boundaries inside its module may look at its target as a label."""
    return any(isinstance(m, DecoupledModule) for m in agent.module.modules())


def tick_arguments(entry: Any) -> tuple[Any, Any, Any, bool]:
    """Inputs, targets, label and end of one tick, from an entry of what `Network.run` takes.

    Raises:
        NetworkError: it is no tuple of up to four of them.
    """
    if isinstance(entry, tuple | list) and len(entry) <= 4:
        inputs, targets, label, ends = list(entry) + [None] * (4 - len(entry))
        return inputs, targets, label, bool(ends)
    kind = f"{len(entry)} of them" if isinstance(entry, tuple | list) else f"a {type(entry).__name__}"
    raise NetworkError(
        [f"run takes a tuple (inputs, targets, label, ends) for each tick, not {kind}"], "the ticks do not fit"
    )
