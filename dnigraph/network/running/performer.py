"""The forward half of an actor: read, run the module, send."""

import zlib
from collections.abc import Container, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...decoupled.module import DecoupledModule
from ...heads.conditions import ConditionError
from ...runners.optimizers import Group
from ..description.agent import Agent, WindowModule
from ..description.network_error import NetworkError
from ..description.ports import outputs_of
from ..description.samples import entered
from .arrivals import ABSENT
from .event_log import EventLog
from .firing import Firing, stashed
from .inbox import Inbox
from .outbox import Outbox
from .prediction import Foretold
from .tick import Tick


class Performer:
    """Runs the forward pass of one agent. `Actor` decides when, and runs the backward pass."""

    def __init__(self, agent: Agent, inboxes: list[Inbox], outboxes: list[Outbox], seed: int, log: EventLog | None):
        self.agent, self.inboxes, self.outboxes, self.log = agent, inboxes, outboxes, log
        self.group: Group | None = None
        self.waiting: list[Firing] = []
        self.chance = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{agent.name}".encode()))
        self._learned = False
        fed = {inbox.sink.name for inbox in inboxes}
        self._free = {f"{agent.name}.{name}": name for name in agent.inputs.names if name not in fed}
        self._needed = [port for port, name in self._free.items() if name not in agent.inputs.optional]
        self._decoupled = [m for m in agent.module.modules() if isinstance(m, DecoupledModule)]
        waits = any(box.boundary is not None and box.boundary.waits for box in outboxes)
        self._stash = [agent.module, *(b.boundary for b in outboxes if b.boundary is not None)] if waits else []

    def misses(self, tick: Tick, known: Container[str], anew: bool) -> list[str]:
        """The inputs and labels that the agent needs in this tick and is not given, a line each.

        Args:
            known: inputs given in this tick, or in an earlier one of the same call and episode.
            anew: whether a new episode has begun in that call.
        """
        if not self.agent.reads(tick.number):
            return []
        lacking = [port for port in self._needed if port not in tick.inputs]
        for inbox in self.inboxes:
            if isinstance(inbox, Foretold) and tick.learning:
                lacking += [name for name in inbox.names if name not in tick.inputs]
            elif inbox.lacks(known, anew):
                lacking.append(inbox.link.source.name)
        wrong = [f"{port} is needed in tick {tick.number}: tick({{{port!r}: ...}})" for port in lacking]
        if not tick.learning or tick.labels.get(self.agent.name) is not None:
            return wrong
        blind = [box for box in self.outboxes if _looks(box, tick)]
        return wrong + [self._unlabelled(box, tick) for box in blind if self.agent.trains()]

    def fire(self, tick: Tick) -> Firing | None:
        """Run the forward pass. Returns the firing, if it learns."""
        updates = tick.learning and self._draw()
        firing = Firing(tick.number, boxes=self.outboxes)
        try:
            self._run(firing, tick, updates)
        except BaseException as error:
            error.add_note(f"in agent {self.agent.name!r}, tick {tick.number}{_read_by(firing)}")
            sizes = {} if isinstance(self.agent.module, WindowModule) else _sizes(firing, tick, self._free)
            if len(set(sizes.values())) > 1:
                error.add_note(_of_two_sizes(sizes))
            firing.done()
            raise
        if updates:
            return firing
        firing.done()
        return None

    def _run(self, firing: Firing, tick: Tick, updates: bool) -> None:
        arguments = self._read(firing, tick, updates)
        if self.log is not None:
            self.log.fired(tick.number, self.agent.name, firing.readings, updates)
        label = tick.labels.get(self.agent.name)
        torch.clear_autocast_cache()  # autocast caches cast weights until it ends, but weights change within it
        with torch.set_grad_enabled(updates), stashed(self._stash) if self._stash and updates else nullcontext():
            made = self._call(arguments, label)
            outputs = outputs_of(made, self.agent.outputs)
            if tick.learning:
                self._send(firing, tick, outputs, label, updates)
        if not tick.learning:
            self._pass_on(firing, tick, outputs)
        loss = self._loss(made, outputs, tick, updates)
        firing.loss = loss if updates else None
        tick.outputs[self.agent.name] = {k: v.detach() if isinstance(v, Tensor) else v for k, v in outputs.items()}

    def _draw(self) -> bool:
        """Whether this firing learns."""
        p = self.agent.p_update
        return p >= 1 or float(torch.rand((), generator=self.chance)) < p

    def _read(self, firing: Firing, tick: Tick, learns: bool) -> dict[str, Any]:
        arguments = {}
        for inbox in self.inboxes:
            if isinstance(inbox, Foretold) and tick.learning:
                reading = inbox.foretell(tick.number, tick.inputs)
            else:
                reading = inbox.read(tick.number, tick.batch)
            if reading.value is ABSENT:
                if inbox.sink.name in self.agent.inputs.optional:
                    continue
                raise NetworkError([f"{inbox.sink} is read in tick {tick.number}, and nothing has come there yet"])
            leaf = entered(reading.value, learns and not inbox.link.outside)
            arguments[inbox.sink.name] = leaf.clone() if inbox.writes and isinstance(leaf, Tensor) else leaf
            firing.readings.append((inbox, reading, leaf))
        given = {name: tick.inputs[port] for port, name in self._free.items() if port in tick.inputs}
        return arguments | given | tick.others.get(self.agent.name, {})

    def _call(self, arguments: Mapping[str, Any], label: Any) -> Any:
        with ExitStack() as stack:
            for model in self._decoupled if label is not None else ():
                stack.enter_context(model.conditioned(label))
            return self.agent.module(**arguments)

    def _send(self, firing: Firing, tick: Tick, outputs: Mapping[str, Any], label: Any, updates: bool) -> None:
        for number, box in enumerate(self.outboxes):
            if box.port not in outputs:
                continue  # the module did not return this output
            value = self._own(outputs[box.port])
            if not updates and isinstance(value, Tensor) and value.is_floating_point():
                value = (
                    value.detach().requires_grad_()
                )  # the agent does not learn, but the head does when the answer comes
            try:
                with torch.enable_grad():
                    visit = box.send(tick.number, value, label, firing.answered, box.in_vain(tick))
            except ConditionError as error:
                if label is not None:
                    raise
                raise NetworkError([self._unlabelled(box, tick)], "the tick does not fit") from error
            if visit is not None:
                firing.visited(number, visit)
            if self.log is not None:
                self.log.sent(tick.number, box.link)

    def _unlabelled(self, box: Outbox, tick: Tick) -> str:
        name = self.agent.name
        target = "" if isinstance(self.agent.module, WindowModule) else " its target, or"
        words = f"{box.link.name} looks at the label, and in tick {tick.number} there is none for {name}"
        return f"{words}: give tick(...){target} label={{{name!r}: ...}}"

    def _pass_on(self, firing: Firing, tick: Tick, outputs: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for box in self.outboxes:
                if box.port in outputs:
                    box.send(tick.number, self._own(outputs[box.port]), None, firing.answered)

    def _own(self, value: Any) -> Any:
        """A copy if the value shares memory with a parameter or buffer, which the optimiser will change."""
        if not isinstance(value, Tensor) or not (value.is_leaf or value._is_view()) or value.layout != torch.strided:
            return value
        module, at = self.agent.module, value.untyped_storage().data_ptr()
        held = (*module.parameters(), *module.buffers())
        return value.clone() if any(at == t.untyped_storage().data_ptr() for t in held) else value

    def _loss(self, made: Any, outputs: Mapping[str, Any], tick: Tick, updates: bool) -> Tensor | None:
        agent = self.agent
        if agent.loss is None or (not isinstance(agent.loss, str) and agent.name not in tick.targets):
            return None
        with torch.set_grad_enabled(updates):
            loss = (
                outputs.get(agent.loss) if isinstance(agent.loss, str) else agent.loss(made, tick.targets[agent.name])
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise NetworkError([f"the loss of {agent.name} must be one number in a tensor, not {found}"])
        tick.losses[agent.name] = loss.detach()
        return loss


def _looks(box: Outbox, tick: Tick) -> bool:
    """Whether the boundary on the link will need the label."""
    boundary = box.boundary
    if boundary is None or not (boundary.training and boundary.needs_label):
        return False
    return boundary.waits or not box.in_vain(tick)


def _sizes(firing: Firing, tick: Tick, free: Mapping[str, str]) -> dict[str, int]:
    """The batch size of every tensor that the agent was given in this tick, by what it is."""
    given = {port: tick.inputs[port] for port in free if port in tick.inputs}
    for inbox, reading, leaf in firing.readings:
        if reading.entries or not isinstance(inbox.initial, Tensor):
            stale = f", sent {reading.stale} ticks before" if reading.stale else ""
            given[f"{inbox.sink.name} from {inbox.link.source}{stale}"] = leaf
    return {name: len(v) for name, v in given.items() if isinstance(v, Tensor) and v.dim()}


def _of_two_sizes(sizes: Mapping[str, int]) -> str:
    said = ", ".join(f"{size} ({name})" for name, size in sizes.items())
    return (
        f"its inputs are of different sizes: {said}. If that is the batch: keep it as large as it is while messages of "
        "it are on their way (drop_last=True), or end the episode before another size, tick(..., ends=True)"
    )


def _read_by(firing: Firing) -> str:
    """What the firing had read, as a note for its error."""
    read = [
        f"{inbox.sink.name} {list(leaf.shape)} from {inbox.link.source}"
        + (f", sent {reading.stale} ticks before" if reading.stale else "")
        for inbox, reading, leaf in firing.readings
        if isinstance(leaf, Tensor)
    ]
    return f"; it read {'; '.join(read)}" if read else ""
