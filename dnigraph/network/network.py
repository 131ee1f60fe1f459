"""Networks of models that learn from each other, each at its own pace."""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from ..runners.checkpoint import load_checkpoint, restore_random, save_checkpoint
from .description.network_error import NetworkError
from .network_checkpoint import load_state, refuse_waiting, state_of_network
from .running.actor_state import set_aside, take_back
from .running.event_log import EventLog
from .running.threads import refuse_shared, run_threads
from .running.tick import Tick, TickResult
from .topology import Wired


class Network(Wired):
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
        if self._built is None:
            self.validate({} if inputs is None else inputs)
        tick = self._tick(self.ticks, inputs, targets, label, ends)
        self._refuse_missing([tick])
        assert self._built is not None, "validate has built it"
        with self._whole([tick]):
            tick.begun = True
            self._built.deliver(tick)
            actors = [self._built.actors[name] for name in self._wirings[self.training].order]
            for actor in actors:
                actor.begin(tick)
            for actor in reversed(actors):
                actor.end(tick)
            for actor in actors:
                actor.close(tick)
        return self._result(tick)

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
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise NetworkError([f"capacity={capacity!r} (packets in a queue: a whole number from 1 on)"])
        ticks = (self._given_tick(one) for one in given)
        if not threads:
            return [self.tick(*one[:2], label=one[2], ends=one[3]) for one in ticks]
        whole = list(ticks)
        if whole and self._built is None:
            self.validate({} if whole[0][0] is None else whole[0][0])
        episodes = list(self._episodes(whole))
        self._refuse_missing([tick for episode in episodes for tick in episode])
        if self._built is None:
            return []
        if episodes:
            refuse_shared(self.agents.values())
        for episode in episodes:
            with self._whole(episode):
                run_threads(self._built, episode, capacity)
        return [self._result(tick) for episode in episodes for tick in episode]

    def settle(self) -> None:
        """End the stretch of time through which gradients go back: everything that waits learns from what is known.

        Messages stay where they are and can still be read, but return no gradient any more. With oracles on a circle
        this ends the window of truncated backprop through time.
        """
        if self._built is None:
            return
        actors = list(self._built.actors.values())
        last_first = [self._built.actors[name] for name in reversed(self.order)]
        for actor in actors:
            for inbox in actor.inboxes:
                inbox.close()
        busy = True
        while busy:
            for actor in actors:
                for inbox in actor.inboxes:
                    inbox.push()
            now = max(self.ticks - 1, 0)
            moved = [actor for actor in actors if actor.settle(now)]
            busy = bool(moved) or any(actor.give_up(now) for actor in last_first)
        for actor in actors:
            actor.step()

    def finish(self) -> None:
        """End the episode: settle everything, drop all messages, and restart the clock at 0."""
        self.settle()
        self.clear()

    def clear(self) -> None:
        """Drop all messages and the answers that they wait for, and restart the clock at 0."""
        if self.log is not None:
            self.log.past += self.ticks
        self.ticks = 0
        for actor in self._built.actors.values() if self._built else ():
            actor.clear()

    def pause(self, name: str) -> None:
        """The agent does not fire until `resume`. Messages still reach it; old ones are dropped for new ones."""
        self._agent(name).present = False

    def resume(self, name: str) -> None:
        """A paused agent fires again by its clock, with the weights that it has."""
        self._agent(name).present = True

    def train(self, mode: bool = True) -> Self:
        """Set train mode, or with `mode=False` eval mode: nothing learns, and real messages replace synthetic ones."""
        self.training = mode
        for module in self.modules().values():
            module.train(mode)
        if self._built is not None:
            self._built.follow(self._wirings[mode])
        return self

    def eval(self) -> Self:
        """Set eval mode: nothing learns."""
        return self.train(False)

    @contextmanager
    def aside(self) -> Iterator[Self]:
        """A block in eval mode that starts without messages; afterwards the run continues where it was."""
        ticks, log, mode = self.ticks, self.log, self.training
        modes = [(m, m.training) for module in self.modules().values() for m in module.modules()]
        kept = {name: set_aside(actor) for name, actor in self._actors().items()}
        self.ticks, self.log = 0, None
        self._set_log(None)
        self.eval()
        try:
            yield self
        finally:
            for name, actor in self._actors().items():
                if name in kept:
                    take_back(actor, kept[name])
                else:  # it was made in the block
                    actor.clear()
            self.train(mode)
            for module, own in modes:  # a part that the user froze in eval mode stays so
                module.training = own
            self.ticks, self.log = ticks, log
            self._set_log(log)

    # ---- to keep

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, optimisers, messages on their way, clock and random states to a file, atomically.

        Raises:
            NetworkError: firings wait for true gradients; `settle` or the end of an episode lets them learn.
        """
        state = state_of_network(self._overview(), self.modules(), self._actors(), self.log)
        save_checkpoint(path, {"network": state})

    def load(self, path: str | os.PathLike[str], inputs: Any = None) -> None:
        """Go on from a file that `save` wrote, with the numbers of never having stopped.

        Args:
            inputs: an example of what `tick` is given, where this network has not run yet.

        Raises:
            CheckpointError: the file is no such checkpoint.
            NetworkError: it belongs to another network; all differences are listed.
        """
        whole = load_checkpoint(path, {"network"})
        state = whole["network"]
        if inputs is not None:
            self.validate(inputs)
        load_state(self._overview(), self.modules(), self._actors(), state)
        self.ticks = state["ticks"]
        if self.log is not None and state["log"] is not None:
            self.log.load(state["log"])
        restore_random(whole)

    # ---- inside

    def _tick(self, number: int, inputs: Any, targets: Any, label: Any, ends: bool) -> Tick:
        return self._given().tick(number, inputs, targets, label, ends, self.training)

    def _given_tick(self, one: Any) -> tuple[Any, Any, Any, bool]:
        """Inputs, targets, label and end of one tick of `run`."""
        if isinstance(one, tuple | list) and len(one) <= 4:
            inputs, targets, label, ends = list(one) + [None] * (4 - len(one))
            return inputs, targets, label, bool(ends)
        said = f"{len(one)} of them" if isinstance(one, tuple | list) else f"a {type(one).__name__}"
        raise NetworkError(
            [f"run takes a tuple (inputs, targets, label, ends) for each tick, not {said}"], "the ticks do not fit"
        )

    def _episodes(self, given: Sequence[tuple[Any, Any, Any, bool]]) -> Iterator[list[Tick]]:
        """The ticks of each episode; the clock restarts after a tick that ends one."""
        episode: list[Tick] = []
        first = self.ticks
        for one in given:
            episode.append(self._tick(first + len(episode), *one))
            if episode[-1].ends:
                yield episode
                episode, first = [], 0
        if episode:
            yield episode

    def _refuse_missing(self, ticks: Sequence[Tick]) -> None:
        """Refuse ticks that lack an input or a label, before any agent fires."""
        wrong: list[str] = []
        known, anew = set[str](), False
        for tick in ticks:
            known |= set(tick.inputs)
            wrong += [words for actor in self._actors().values() for words in actor.missing(tick, known, anew)]
            known, anew = (set(), True) if tick.ends else (known, anew)
        if wrong:
            raise NetworkError(wrong, "the tick does not fit")

    @contextmanager
    def _whole(self, ticks: Sequence[Tick]) -> Iterator[None]:
        """The block runs these ticks. If it fails, messages under way are delivered and half-made gradients dropped."""
        try:
            yield
        except BaseException:
            assert self._built is not None, "it runs"
            self._built.mend()
            raise
        finally:
            begun = [tick for tick in ticks if tick.begun]
            self.ticks += len(begun)
            if begun and begun[-1].ends:  # also after a failure: the next tick is another episode
                self.finish()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Network":
        refuse_waiting(self._actors(), "copied")
        other: Network = object.__new__(type(self))
        memo[id(self)] = other
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def _set_log(self, log: EventLog | None) -> None:
        for actor in self._actors().values():
            actor.log = log

    def _result(self, tick: Tick) -> TickResult:
        """The tick's results in the order of the agents, whatever the order of threads was."""
        fired = [name for name in self._wirings[self.training].order if name in tick.outputs]
        losses = {name: tick.losses[name] for name in fired if name in tick.losses}
        return TickResult(tick.number, losses, {name: tick.outputs[name] for name in fired})
