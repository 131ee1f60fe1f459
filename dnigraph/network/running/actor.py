"""One agent in a tick: its three phases, and when its parameters are updated."""

from .outbox import Outbox
from .performer import Performer
from .prediction import Foretold
from .tick import Tick


class Actor(Performer):
    """Runs one agent. A tick has three phases; each depends on earlier phases only.

        begin   read, fire, learn from what is known at once, send
        end     take messages over links with a delay, hear answers over links without one; answer what was read
        close   hear all other answers; they take effect in the next tick

    The optimiser is stepped after a phase that brought gradients: those of one phase are added up to one step.
    """

    # ---- the phases

    def begin(self, tick: Tick) -> None:
        """Read, fire, learn, send."""
        for inbox in self.inboxes:
            if inbox.ordered:
                inbox.pull()
            if not (isinstance(inbox, Foretold) and tick.learning):
                inbox.arrive(tick.number)
        if self.agent.reads(tick.number):
            firing = self.fire(tick)
            if firing is not None:
                self.waiting.append(firing)
                self._learn()
        self.step()
        for box in self.outboxes:
            box.push()

    def end(self, tick: Tick) -> None:
        """Hear the answers of receivers that read within the tick, and answer what this agent read."""
        for inbox in self.inboxes:
            if not inbox.ordered:
                inbox.pull()
            if isinstance(inbox, Foretold) and tick.learning:
                inbox.compare(tick.number)
        for box in self.outboxes:
            box.hear(True)
        self._learn()
        for inbox in self.inboxes:
            inbox.push()

    def close(self, tick: Tick) -> None:
        """Hear all other answers. Messages that still wait for one release their graphs."""
        for box in self.outboxes:
            box.hear(False)
        self._learn()
        self.step()
        for box in self.outboxes:
            box.forget_graphs()
            self._note_answers(box, tick.number)

    def step(self) -> None:
        """Step the optimisers of the agent and of its heads that have new gradients."""
        if self._learned and self.group is not None:
            self.group.update()
        self._learned = False
        for box in self.outboxes:
            box.step()

    # ---- learning

    def _learn(self) -> None:
        """Run the backward pass of every firing whose gradients are all there."""
        ready = [firing for firing in self.waiting if firing.knows]
        if not ready:
            return
        self.waiting = [firing for firing in self.waiting if not firing.knows]
        self._learned = True
        for firing in ready:
            firing.learn()

    def settle(self, tick: int) -> bool:
        """Hear all answers and learn from them, without an optimiser step. Returns whether anything changed."""
        before = self._open()
        for box in self.outboxes:
            box.hear(True)
            box.hear(False)
        self._learn()
        for box in self.outboxes:
            self._note_answers(box, tick)
        return self._open() != before

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

    def _open(self) -> int:
        return len(self.waiting) + sum(len(box.sent) for box in self.outboxes)

    def clear(self) -> None:
        """Forget all messages."""
        self.waiting = []
        for inbox in self.inboxes:
            inbox.forget()
        for box in self.outboxes:
            box.sent.clear()

    def _note_answers(self, box: Outbox, tick: int) -> None:
        if self.log is not None:
            for sent, used in box.settled:
                self.log.answered(tick, self.agent.name, box.port, sent, used)
        box.settled.clear()
