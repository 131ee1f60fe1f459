"""The runner with one thread: agents in order, phase after phase."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engine.actor import Actor
from ..engine.running_network import RunningNetwork
from ..engine.tick import Tick
from ..passes.sandbox.journal import all_or_nothing


@all_or_nothing
def run_tick(network: RunningNetwork, order: Sequence[str], tick: Tick) -> None:
    """Run one tick.

    Args:
        order: the agents; over a link that is read within the tick, the receiver comes after the sender.
    """
    tick.begun = True
    network.deliver(tick)
    actors = [network.actors[name] for name in order]
    for name, actor in zip(order, actors, strict=True):
        actor.begin(tick)
        if tick.learning:
            network.answer_early(name)
    for actor in reversed(actors):
        actor.end(tick)
    for actor in actors:
        actor.close(tick)
    if tick.learning:
        network.step_tied(tick.number)


def settle(network: RunningNetwork, order: Sequence[str], tick: int) -> None:
    """Let everything that waits learn from what is known. Messages can still be read, but return no gradient."""
    actors = [network.actors[name] for name in order]
    for actor in actors:
        for inbox in actor.inboxes:
            inbox.close()
    busy = True
    while busy:
        for actor in actors:
            actor.answer()
        changed = [_settle(actor, tick) for actor in reversed(actors)]
        busy = any(changed) or any(actor.give_up(tick) for actor in reversed(actors))
    for actor in actors:
        actor.step(tick)
    network.step_tied(tick, last=True)


def _settle(actor: Actor, tick: int) -> bool:
    """Let one actor learn, and answer those before it, which hear it in the same round: an order of sums of its own."""
    changed = actor.settle(tick)
    actor.answer()
    return changed


@dataclass(frozen=True)
class Runner:
    """Who calls the actors of a network, and which of them."""

    take: Callable[[RunningNetwork], RunningNetwork]  # what it runs of a network that was built
    tick: Callable[[RunningNetwork, Sequence[str], Tick], None]
    settle: Callable[[RunningNetwork, Sequence[str], int], None]


INLINE = Runner(lambda network: network, run_tick, settle)
