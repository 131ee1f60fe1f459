"""An agent at work: what it does in a tick, and when its parameters move."""

from .outbox import Outbox
from .performer import Performer
from .predicted_inbox import Foretold
from .tick import Tick


class Actor(Performer):
    """Runs one agent. A tick has three phases, so that all that waits for something waits for an earlier phase.

        begin   read, fire, learn from what is known at once, send
        end     take the messages that nobody waited for, hear the answers of those that read without delay; answer
        close   hear all other answers; they count from the next tick on

    The optimiser is stepped after a phase that brought gradients: all that came together counts together.
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
        """Hear what comes within the tick, and answer."""
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
        """Hear the rest. What waits for answers of later ticks lets go of what it does not need."""
        for box in self.outboxes:
            box.hear(False)
        self._learn()
        self.step()
        for box in self.outboxes:
            box.forget_graphs()
            self._note_answers(box, tick.number)

    def step(self) -> None:
        """Update the agent and its heads where gradients have come."""
        if self._learned and self.group is not None:
            self.group.update()
        self._learned = False
        for box in self.outboxes:
            box.step()

    # ---- learning

    def _learn(self) -> None:
        """Let all firings learn that know enough."""
        ready = [firing for firing in self.waiting if firing.knows]
        if not ready:
            return
        self.waiting = [firing for firing in self.waiting if not firing.knows]
        self._learned = True
        for firing in ready:
            firing.learn()

    def settle(self, tick: int) -> bool:
        """Hear and learn what can be, without a step; whether anything happened."""
        before = self._open()
        for box in self.outboxes:
            box.hear(True)
            box.hear(False)
        self._learn()
        for box in self.outboxes:
            self._note_answers(box, tick)
        return self._open() != before

    def give_up(self, tick: int) -> bool:
        """Learn without the answers that will never come; whether there were such."""
        lost = [box for box in self.outboxes if box.give_up()]
        self._learn()
        for box in lost:
            self._note_answers(box, tick)
        return bool(lost)

    def drop(self) -> None:
        """A tick broke off: let go of half-made gradients, and hear what was on its way."""
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
