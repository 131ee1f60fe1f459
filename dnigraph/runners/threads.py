"""The runner with one thread for each agent: bitwise the numbers of `Network.tick`, without a scheduler.

    thread a   begin ─ end ─ close │ begin ─ ...       each phase waits only for packets of its own links;
                 ↓ message  ↑ answer                   a queue is full after `capacity` packets, and its sender
    thread b       begin ─ end ─ close │ begin ─ ...   waits: no agent runs ahead by more than that

An agent does in each tick what it does in `Network.tick`, and which packets it waits for depends on the network's clock
only. So the order in which threads run cannot change a number.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Generic, TypeVar

import torch

from ..engine.actor import Actor
from ..engine.description.agent import Agent
from ..engine.description.network_error import NetworkError
from ..engine.running_network import RunningNetwork
from ..engine.tick import Tick
from ..passes.sandbox.journal import all_or_nothing, undone

T = TypeVar("T")
PATIENCE = 0.1  # seconds between two checks whether the run is over


class Stopped(Exception):
    """Another thread has failed."""


class BoundedQueue(Generic[T]):
    """A channel between threads that holds so many packets."""

    def __init__(self, capacity: int, stop: threading.Event):
        self._queue: queue.Queue[T] = queue.Queue(capacity)
        self._stop = stop

    def put(self, packet: T) -> None:
        """Add a packet, when there is room."""
        while not self._stop.is_set():
            try:
                return self._queue.put(packet, timeout=PATIENCE)
            except queue.Full:
                continue
        raise Stopped

    def get(self) -> T:
        """Take the oldest packet, when there is one."""
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=PATIENCE)
            except queue.Empty:
                continue
        raise Stopped

    def rest(self) -> list[T]:
        """Take all that is there."""
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]


@all_or_nothing
def run_threads(network: RunningNetwork, ticks: Sequence[Tick], capacity: int) -> None:
    """Run these ticks, one thread for each agent."""
    stop, failures = threading.Event(), list[BaseException]()
    works: list[Callable[[], None]] = [lambda: _feed(network, ticks)]
    works += [_work(actor, ticks) for actor in network.actors.values()]
    threads = [threading.Thread(target=_guarded(work, stop, failures), daemon=True) for work in works]
    with undone(lambda: _end(network, threads, stop)):
        network.connect(lambda back: BoundedQueue(capacity + back, stop))
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            stop.set()  # let no thread go on by itself
            raise
    if failures:
        raise failures[0]


def _end(network: RunningNetwork, threads: Sequence[threading.Thread], stop: threading.Event) -> None:
    """Wait for threads that were stopped, and let the network run in one thread again."""
    for thread in threads:
        if thread.is_alive():
            thread.join()
    if stop.is_set():
        network.mend()
    network.connect()


def _feed(network: RunningNetwork, ticks: Sequence[Tick]) -> None:
    for tick in ticks:
        network.deliver(tick)


def _work(actor: Actor, ticks: Sequence[Tick]) -> Callable[[], None]:
    def work() -> None:
        for tick in ticks:
            tick.begun = True
            actor.begin(tick)
            actor.end(tick)
            actor.close(tick)

    return work


def _guarded(work: Callable[[], None], stop: threading.Event, failures: list[BaseException]) -> Callable[[], None]:
    """Wrap the work of a thread: its error stops the other threads and is kept for the caller."""
    learning = torch.is_grad_enabled()
    casts = [(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]

    def run() -> None:
        try:
            with ExitStack() as stack:  # torch keeps grad mode and autocast per thread
                stack.enter_context(torch.set_grad_enabled(learning))
                for device, dtype in casts:
                    stack.enter_context(torch.autocast(device, dtype))
                work()
        except Stopped:
            pass
        except BaseException as error:
            failures.append(error)
            stop.set()

    return run


def refuse_shared(agents: Iterable[Agent]) -> None:
    """Refuse networks that threads cannot run.

    Raises:
        NetworkError: two agents own one parameter, which two threads would write at once.
    """
    first: dict[torch.nn.Parameter, str] = {}
    owned = [(p, agent.name) for agent in agents for p in agent.module.parameters()]
    others = {(first.setdefault(p, name), name) for p, name in owned}
    wrong = [f"{a} and {b} share a parameter, which two threads would write at once" for a, b in others if a != b]
    if wrong:
        raise NetworkError(sorted(wrong), "the network cannot run on threads")
