"""From a checked description to actors: boundaries, predictors, optimisers and channels are made here, once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...boundaries import Boundary
from ...boundaries.choices import Choices
from ...heads.conditions import Context
from ...passes.errors import DniGraphError
from ...passes.graph.facts import batch_dim
from ...passes.plan.plan import Crossing
from ...runners.optimizers import Group, MakeOptimizer
from ..checks.delays import Wiring
from ..checks.dry_run import Rehearsal
from ..description.agent import Agent
from ..description.clock import Clock
from ..description.link import Link
from ..description.network_error import NetworkError
from ..description.samples import batch_of
from .actor import Actor
from .event_log import EventLog
from .inbox import Inbox
from .outbox import Outbox
from .prediction import Foretold, make_predictor
from .running_network import Built

OUTSIDE = Clock()  # an input of the network may come in any tick


def build(
    agents: Mapping[str, Agent], wiring: Wiring, found: Rehearsal, inputs: Mapping[str, Any], context: Context,
    optimizer: MakeOptimizer, seed: int, log: EventLog | None,
) -> Built:  # fmt: skip
    """The actors of a network. Heads and predictors draw from torch's random state, which is put back.

    Raises:
        NetworkError: a boundary, head or predictor does not fit its link; all of them are listed.
    """
    built, misfits = Built({}, {}, {}), list[str]()
    with torch.random.fork_rng(devices=[]):
        for number, link in enumerate(wiring.links):
            try:
                _lay(built, number, link, agents, wiring, found, inputs, context)
            except DniGraphError as error:
                misfits += error.problems if isinstance(error, NetworkError) else [str(error)]
    if misfits:
        raise NetworkError(misfits)
    inboxes: dict[str | None, list[Inbox]] = {}
    outboxes: dict[str | None, list[Outbox]] = {}
    for inbox in built.inboxes.values():
        inboxes.setdefault(inbox.sink.agent, []).append(inbox)
    for box in built.outboxes.values():
        outboxes.setdefault(box.link.source.agent, []).append(box)
    for name, agent in agents.items():
        built.actors[name] = Actor(agent, inboxes.get(name, []), outboxes.get(name, []), seed, log)
    _group(built, agents, optimizer)
    built.connect()
    built.order(wiring)
    return built


def _lay(
    built: Built, number: int, link: Link, agents: Mapping[str, Agent], wiring: Wiring, found: Rehearsal,
    inputs: Mapping[str, Any], context: Context,
) -> None:  # fmt: skip
    """The two ends of one link."""
    batch = batch_of(inputs.values())
    sample = inputs.get(link.source.name) if link.outside else found.samples.get(str(link.source))
    sender = OUTSIDE if link.outside else agents[link.source.agent or ""].clock
    for i, sink in enumerate(link.sinks):
        kind = Foretold if link.synthetic else Inbox
        inbox = kind(link, sink, wiring.delays[number], sender, agents[sink.agent or ""].clock, False)
        inbox.optional = sink.name in agents[sink.agent or ""].inputs.optional
        inbox.initial = _first(link, sample, batch, inbox.optional)
        inbox.like = sample if isinstance(sample, Tensor) else None
        inbox.writes = str(sink) in found.writes
        if isinstance(inbox, Foretold):
            if not isinstance(sample, Tensor):
                raise NetworkError([f"{link.name}: only a tensor can be predicted"])
            key = f"{link.source} → {sink}"
            inbox.predictor, inbox.names = make_predictor(link.synthetic, inputs, sample)
            built.predictors[key] = inbox.predictor
        built.inboxes[number, i] = inbox
        if link.outside:
            built.outside.append((link.source.name, inbox))
    if link.outside:
        return
    boundary = _boundary(link, sample, str(link.source) in found.learns, batch, context)
    if boundary is not None:
        built.boundaries[link.name] = boundary
    readers = [agents[sink.agent or ""] for sink in link.sinks]
    built.outboxes[number] = Outbox(link, boundary, wiring.delays[number], readers)


def _first(link: Link, sample: Any, batch: int | None, optional: bool) -> Any:
    """What is read before anything has come: as the user said, else nothing where the argument has a default, else
    zeros.
    """
    if link.initial is not None:
        return link.initial
    if optional or not isinstance(sample, Tensor):
        return None
    zeros = torch.zeros_like(sample)
    return zeros[:1] if sample.dim() and len(sample) == batch else zeros


def _boundary(link: Link, sample: Any, learns: bool, batch: int | None, context: Context) -> Boundary | None:
    """What stands on the link; None where no gradient can come back."""
    if link.boundary is None or not isinstance(sample, Tensor) or not learns:
        return None
    if isinstance(link.boundary, Boundary):
        return link.boundary
    crossing = Crossing(str(link.source), str(link.source), "", (), tuple(sample.shape), gradient=True)
    at = batch_dim(tuple(sample.shape), batch if batch is not None else len(sample) if sample.dim() else 1)
    if at is None and link.condition is not None and link.boundary != "oracle":
        said = f"the message is {list(sample.shape)}, and the batch has {batch}"
        raise NetworkError(
            [f"{link.name}: {said}: which row belongs to which label? Send [batch, ...], or leave out condition="]
        )
    meta = {"dtype": sample.dtype, "device": sample.device, "batch_dim": at}
    return Choices(link.head, link.condition, link.boundary).make(crossing, meta, context)


def _group(built: Built, agents: Mapping[str, Agent], default: MakeOptimizer) -> None:
    """Optimisers. A parameter of several agents belongs to the last of them."""
    owner = {p: name for name, agent in agents.items() for p in agent.module.parameters() if p.requires_grad}
    taken: set[nn.Parameter] = set()
    for name, actor in built.actors.items():
        agent = agents[name]
        make = agent.optimizer or default
        own = [p for p in agent.module.parameters() if owner.get(p) == name]
        actor.group = make_group(name, own, make, agent.clip, taken)
        for box in actor.outboxes:
            parameters = [] if box.boundary is None else list(box.boundary.parameters())
            box.group = make_group(f"the head of {box.link.name}", parameters, make, None, taken)
        for inbox in actor.inboxes:
            if isinstance(inbox, Foretold):
                inbox.group = make_group(
                    f"the predictor of {inbox.link.name}", list(inbox.predictor.parameters()), make, None, taken
                )


def make_group(
    name: str, parameters: list[nn.Parameter], make: MakeOptimizer, clip: float | None, taken: set[nn.Parameter]
) -> Group | None:
    """Parameters with their optimiser; None where nothing is trained.

    Raises:
        NetworkError: `make` makes no optimiser.
    """
    trained = [p for p in dict.fromkeys(parameters) if p.requires_grad and p not in taken]
    if not trained:
        return None
    taken.update(trained)
    optimizer = make(trained)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise NetworkError([f"optimizer of {name}: it must return a torch optimiser, not a {type(optimizer).__name__}"])
    return Group(name, trained, optimizer, None, clip)
