"""One agent at work: the three phases of a tick, and when its parameters are updated."""

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..decoupled.module import DecoupledModule
from ..heads.conditions import ConditionError, Context
from ..heads.seen import Seen
from .arrivals import ABSENT
from .description.agent import Agent
from .description.network_error import NetworkError
from .description.ports import outputs_of
from .description.samples import entered, shapes
from .event_log import EventLog
from .failure_notes import failure_notes
from .firing import Firing, stashed
from .inbox import Inbox, Reading
from .outbox import Outbox
from .skips import Skips
from .tick import Tick
from .updates.groups import Group, Tied, finite
from .updates.makers import BARE, Detached

Form = tuple[Any, ...]


class Actor:
    """Runs one agent. A tick has three phases; each depends on earlier phases only.

        begin   read, fire, send, learn from what is known at once
        end     take messages over links with a delay, hear answers over links without one; answer what was read
        close   hear all other answers; they take effect in the next tick

    The optimiser is stepped after a phase that brought gradients: those of one phase are added up to one step.

    Args:
        group: parameters that this agent alone uses; None: none are trained.
        chance: decides which firings learn; None: one of its own.
        tied: groups that it uses beside others.
    """

    def __init__(
        self, agent: Agent, inboxes: list[Inbox], outboxes: list[Outbox], group: Group | None,
        chance: torch.Generator | None = None, log: EventLog | None = None, skips: Skips | None = None,
        tied: Sequence[Tied] = (),
    ):  # fmt: skip
        self.agent, self.inboxes, self.outboxes, self.group, self.log = agent, inboxes, outboxes, group, log
        self.skips, self.tied = skips or Skips(), tied
        self.waiting: list[Firing[Reading]] = []
        self.chance = chance or torch.Generator()
        self._learned = False
        self._detached = Detached()
        context = getattr(agent.module, "watched", None)  # of a model whose outputs this agent puts together
        self._watched: Context | None = context if isinstance(context, Context) else None
        self._judged: Form | None = None  # what the loss could take the last time
        self._forms: dict[str, Form] = {}  # of the inputs of the last firing
        fed = {inbox.sink.name for inbox in inboxes}
        self._free = {f"{agent.name}.{name}": name for name in agent.inputs.names if name not in fed}
        self._needed = [port for port, name in self._free.items() if name not in agent.inputs.optional]
        self._decoupled = [m for m in agent.module.modules() if isinstance(m, DecoupledModule)]
        self._statistics = [b for b in agent.module.buffers() if b.is_floating_point() and b.layout == torch.strided]
        self.waits = any(box.boundary is not None and box.boundary.may_wait for box in outboxes)  # for true gradients
        boundaries = [box.boundary for box in outboxes if box.boundary is not None]
        self._stash = [agent.module, *boundaries] if self.waits else []
        self._copies = any(boundary.stashes for boundary in boundaries if boundary.may_wait)

    # ---- the phases

    def begin(self, tick: Tick) -> None:
        """Read, fire, send, learn."""
        for inbox in self.inboxes:
            inbox.begin(tick)
        firing = self._fire(tick) if self.agent.reads(tick.number) else None
        for box in self.outboxes:  # before it learns: the readers begin meanwhile
            box.push()
        if firing is not None:
            self.waiting.append(firing)
            self._learn()
        elif tick.learning:
            self._through(tick.number)
        self.step(tick.number, tick.losses.get(self.agent.name))

    def end(self, tick: Tick) -> None:
        """Hear the answers of receivers that read within the tick, and answer what this agent read."""
        for inbox in self.inboxes:
            inbox.end(tick)
        through = not self.waiting  # nothing that comes can add to its answers
        if through:
            self._answer_rest()
        for box in self.outboxes:
            box.hear(True)
        self._learn()
        if not through:
            self._answer_rest()

    def close(self, tick: Tick) -> None:
        """Hear all other answers. Messages that still wait for one release their graphs."""
        for box in self.outboxes:
            box.hear(False)
        self._learn()
        self.step(tick.number)
        for box in self.outboxes:
            box.forget_graphs()
            self._note_answers(box, tick.number)

    def answer(self) -> None:
        """Send back the answers that are ready: one packet over each link."""
        for inbox in self.inboxes:
            inbox.push()

    def _answer_rest(self) -> None:
        for inbox in self.inboxes:
            if not inbox.pushed:
                inbox.push()

    def answer_early(self) -> list[Inbox]:
        """Answer before the phase `end` what nothing can change any more. Returns the inboxes whose answers went."""
        sent = [] if self.waiting else [inbox for inbox in self.inboxes if inbox.complete]
        for inbox in sent:
            inbox.push()
        return sent

    # ---- firing

    def missing(self, tick: Tick, known: Container[str], restarted: bool) -> list[str]:
        """The inputs and labels that the agent needs in this tick and is not given, a line each.

        Args:
            known: inputs given in this tick, or in an earlier one of the same call and episode.
            restarted: whether a new episode has begun in that call.
        """
        if not self.agent.reads(tick.number):
            return []
        names = [port for port in self._needed if port not in tick.inputs]
        for inbox in self.inboxes:
            names += inbox.missing(tick, known, restarted)
        lines = [f"{name} is needed in tick {tick.number}: tick({{{name!r}: ...}})" for name in names]
        if not tick.learning or not self.agent.trains() or tick.labels.get(self.agent.name) is not None:
            return lines
        return lines + [self._no_label(box, tick) for box in self.outboxes if box.needs_label(tick)]

    def _fire(self, tick: Tick) -> Firing[Reading] | None:
        """Run the forward pass. Returns the firing, if it learns."""
        learns = tick.learning and self._draw()
        firing = Firing[Reading](tick.number)
        try:
            self._run(firing, tick, learns)
        except BaseException as error:
            inputs = {port: tick.inputs[port] for port in self._free if port in tick.inputs}
            notes = failure_notes(tick.number, firing.readings, self.agent.name, inputs, self.agent.takes_windows)
            firing.done()
            other = [port for port, value in inputs.items() if self._forms.get(port, _form(value)) != _form(value)]
            if other and type(error) in BARE:
                facts = [f"{port} is {shapes(inputs[port])}, other than in the firing before" for port in other]
                words = [*facts, f"{type(error).__name__}: {error}", *notes]
                raise NetworkError(words, "the input does not fit") from error
            for note in notes:
                error.add_note(note)
            raise
        self._forms |= {port: _form(tick.inputs[port]) for port in self._free if port in tick.inputs}
        if learns:
            return firing
        firing.done()
        return None

    def _draw(self) -> bool:
        """Whether this firing learns."""
        p = self.agent.p_update
        return p >= 1 or float(torch.rand((), generator=self.chance)) < p

    def _run(self, firing: Firing[Reading], tick: Tick, learns: bool) -> None:
        arguments = self._read(firing, tick, learns)
        if self.log is not None:
            self.log.fired(tick.number, self.agent.name, firing.readings, learns)
        label = tick.labels.get(self.agent.name)
        torch.clear_autocast_cache()  # autocast caches cast weights until it ends, but weights change within it
        with (
            torch.set_grad_enabled(learns),
            stashed(self._stash, self._copies) if self._stash and learns else nullcontext(),
        ):
            returned = self._call(arguments, label)
            outputs = outputs_of(returned, self.agent.outputs)
            if tick.learning:
                self._send(firing, tick, outputs, label, learns)
        if not tick.learning:
            self._pass_on(firing, tick, outputs)
        loss = self._loss(returned, outputs, tick, learns)
        if learns and loss is not None and loss.requires_grad:
            firing.ends.append((loss, torch.ones_like(loss)))
        tick.outputs[self.agent.name] = {k: v.detach() if isinstance(v, Tensor) else v for k, v in outputs.items()}

    def _read(self, firing: Firing[Reading], tick: Tick, learns: bool) -> dict[str, Any]:
        arguments = {}
        for inbox in self.inboxes:
            reading = inbox.read(tick)
            if reading.value is ABSENT:
                if inbox.optional:
                    continue
                raise NetworkError([f"{inbox.sink} is read in tick {tick.number}, and nothing has come there yet"])
            leaf = entered(reading.value, learns and not inbox.link.outside)
            arguments[inbox.sink.name] = leaf.clone() if inbox.copies and isinstance(leaf, Tensor) else leaf
            reading.leaf = leaf
            firing.readings.append(reading)
        inputs = {name: tick.inputs[port] for port, name in self._free.items() if port in tick.inputs}
        return arguments | inputs | tick.others.get(self.agent.name, {})

    def _call(self, arguments: Mapping[str, Any], label: Any) -> Any:
        with ExitStack() as stack:
            for model in self._decoupled if label is not None else ():
                stack.enter_context(model.conditioned(label))
            before = [b.clone() for b in self._statistics]
            returned = self.agent.module(**arguments)
        if before and not finite(self._statistics) and finite(before):
            for statistic, kept in zip(self._statistics, before, strict=True):  # else they would stay so for ever
                statistic.data.copy_(kept)  # .data: the graph that has just been made may hold them
        return returned

    def _send(self, firing: Firing[Reading], tick: Tick, outputs: Mapping[str, Any], label: Any, learns: bool) -> None:
        for number, box in enumerate(self.outboxes):
            if box.port not in outputs:
                continue  # the module did not return this output
            value = _own_memory(outputs[box.port], self.agent.module)
            if box.harmed_by(value):
                self.skips.note(self.agent.name, tick.number, f"{box.link.source}, which it sends,")
                box.pass_on(tick.number, value)
                continue
            if not learns and isinstance(value, Tensor) and value.is_floating_point():
                value = value.detach().requires_grad_()  # the head still learns when the answer comes
            try:
                with torch.enable_grad():
                    seen = tick.seen(label) if box.looks_around else Seen(label)
                    sent = box.send(tick.number, value, seen, box.in_vain(tick))
            except ConditionError as error:
                if label is not None:
                    raise
                raise NetworkError([self._no_label(box, tick)], "the tick does not fit") from error
            if sent is not None and sent.visit is not None:
                firing.send(number, sent, sent.visit)
            if self.log is not None:
                self.log.sent(tick.number, box.link)

    def _no_label(self, box: Outbox, tick: Tick) -> str:
        name = self.agent.name
        target = "" if self.agent.takes_windows else " its target, or"
        words = f"{box.link.name} looks at the label, and in tick {tick.number} there is none for {name}"
        return f"{words}: give tick(...){target} label={{{name!r}: ...}}"

    def _pass_on(self, firing: Firing[Reading], tick: Tick, outputs: Mapping[str, Any]) -> None:
        """Send in eval mode: nothing comes back."""
        with torch.no_grad():
            for box in self.outboxes:
                if box.port in outputs:
                    box.pass_on(tick.number, _own_memory(outputs[box.port], self.agent.module))

    def _loss(self, returned: Any, outputs: Mapping[str, Any], tick: Tick, learns: bool) -> Tensor | None:
        name, choice = self.agent.name, self.agent.loss
        if choice is None or (not isinstance(choice, str) and name not in tick.targets):
            return None
        with torch.set_grad_enabled(learns):
            loss = outputs.get(choice) if isinstance(choice, str) else self._judge(choice, returned, tick)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise NetworkError([f"the loss of {name} must be one number in a tensor, not {kind}"])
        self._detached.look(loss, (returned, outputs))
        tick.losses[name] = loss.detach()
        return loss

    def _judge(self, loss: Callable[[Any, Any], Any], returned: Any, tick: Tick) -> Any:
        """The loss of what the module returned.

        Raises:
            NetworkError: torch's words for what it has not taken before. Other errors pass, with a note.
        """
        target = tick.targets[self.agent.name]
        form = *_form(returned, whole=True), *_form(target, whole=True)
        try:
            with nullcontext() if self._watched is None else self._watched.showing(tick.seen(None)):
                judged = loss(returned, target)
        except Exception as error:
            facts = f"the loss of {self.agent.name} was called with {shapes(returned)} and a target {shapes(target)}"
            if self._judged == form or type(error) not in BARE:
                error.add_note(facts)
                raise
            way = "it takes (what the module returned, target): look at their shapes and dtypes, and at targets={...}"
            words = f"{facts}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}; {way}"
            raise NetworkError([words], "the target does not fit") from error
        self._judged = form
        return judged

    # ---- learning

    def _learn(self) -> None:
        """Run the backward pass of every firing whose gradients are all there."""
        ready = [firing for firing in self.waiting if firing.knows]
        if not ready:
            return
        self.waiting = [firing for firing in self.waiting if not firing.knows]
        self._learned = True
        for firing in ready:
            try:
                firing.learn()
            finally:
                firing.done()
            self._through(firing.tick)

    def _through(self, tick: int) -> None:
        """The agent has learned from that tick, or will not."""
        for tied in self.tied:
            tied.through(tick, self.agent.name)

    def step(self, tick: int, loss: Tensor | None = None) -> None:
        """Step the optimisers of the agent and of its heads that have new gradients, where these are finite.

        Args:
            loss: of a firing in this tick.
        """
        if self._learned and self.group is not None and not self.group.update_if_finite():
            what = "its gradient" if loss is None or finite([loss]) else f"its loss, {float(loss)},"
            self.skips.note(self.agent.name, tick, what)
        self._learned = False
        for box in self.outboxes:
            if not box.step():
                self.skips.note(f"the head of {box.link.name}", tick, "its gradient")

    def settle(self, tick: int) -> bool:
        """Hear all answers and learn from them, without an optimiser step. Returns whether anything changed."""
        before = self.open
        for box in self.outboxes:
            box.hear(True)
            box.hear(False)
            box.flush()
        self._learn()
        for box in self.outboxes:
            self._note_answers(box, tick)
        return self.open != before

    def give_up(self, tick: int) -> bool:
        """Learn without the answers that will never come. Returns whether there were any."""
        lost = [box for box in self.outboxes if box.give_up()]
        self._learn()
        for box in lost:
            self._note_answers(box, tick)
        return bool(lost)

    def drop(self) -> None:
        """After a failed tick: drop half-made gradients, and hear the answers under way."""
        if self.group is not None:
            self.group.forget()
        self._learned = False
        for box in self.outboxes:
            box.drop()

    def clear(self) -> None:
        """Forget all messages."""
        self.waiting = []
        for tied in self.tied:
            tied.forget()
        for inbox in self.inboxes:
            inbox.clear()
        for box in self.outboxes:
            box.clear()

    @property
    def open(self) -> int:
        """How many firings and messages wait for answers."""
        return len(self.waiting) + sum(len(box.sent) for box in self.outboxes)

    def _note_answers(self, box: Outbox, tick: int) -> None:
        if self.log is not None:
            for sent, used in box.settled:
                self.log.answered(tick, self.agent.name, box.port, sent, used)
        box.settled.clear()


def _form(value: Any, whole: bool = False) -> Form:
    """What a value is, without the size of the batch, or with it."""
    if not isinstance(value, Tensor):
        return (type(value),)
    return value.dtype, *(value.shape if whole else value.shape[1:])


def _own_memory(value: Any, module: nn.Module) -> Any:
    """A copy if the value shares memory with a parameter or buffer, which the optimiser will change."""
    if not isinstance(value, Tensor) or not (value.is_leaf or value._is_view()) or value.layout != torch.strided:
        return value
    start = value.untyped_storage().data_ptr()
    shared = any(start == t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers()))
    return value.clone() if shared else value
