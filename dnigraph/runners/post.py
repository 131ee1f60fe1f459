"""Frames between this rank and the others, over point-to-point messages of `torch.distributed` (gloo).

    main thread   send ─► isend, isend                 never waits for a reader
    one thread for each rank   recv ─► queue of its channel ─► main thread, which looks whether the other still lives

A wait inside of gloo cannot be ended from outside, so the main thread never waits there.
"""

import contextlib
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from .roster import GLANCE, DistributedError, Roster
from .wire import BYE, FIELDS, Frame, as_bytes, opened, packed, placed

HEADERS, PAYLOADS, NEVER = 1, 2, 3  # tags; nothing is ever sent under the last one
FLUSH = 5.0  # seconds that the end of a run waits for a reader


class Post:
    """Sends frames, and keeps those that have come until they are taken.

    Both ends of a channel put one packet into it in every step, and wait for the other's at most so many steps later:
    so a queue never holds more than `most` packets, of one or more frames, and nobody has to be slowed down.

    Args:
        group: a gloo group of its own.
        peers: the ranks that frames come from and go to.
        most: packets of a channel.
    """

    def __init__(self, group: Any, roster: Roster, peers: Iterable[int], most: int):
        self.group, self.roster, self.peers, self.most = group, roster, tuple(peers), most
        self.left = set[int]()  # ranks that have ended their run
        self._queues: dict[tuple[int, int], queue.Queue[Frame]] = defaultdict(queue.Queue)
        self._lock = threading.Lock()
        self._going: dict[int, deque[tuple[int, list[Any], list[Tensor]]]] = {peer: deque() for peer in self.peers}
        self._closed = False
        self._threads = {
            peer: threading.Thread(target=self._listen, args=(peer,), name=f"dnigraph rank {peer}", daemon=True)
            for peer in self._going
        }
        for thread in self._threads.values():
            thread.start()

    def send(self, peer: int, frame: Frame) -> None:
        """Send a frame on its way. The value may change afterwards only when it has been read.

        Raises:
            DistributedError: the value is none that crosses.
        """
        if peer in self.left:
            return  # it needs nothing any more
        header, payload = packed(frame)
        tensors = [header]
        try:
            works = [self.group.send([header], peer, HEADERS)]
            if payload is not None and payload.numel():
                tensors.append(payload)
                works.append(self.group.send([as_bytes(payload)], peer, PAYLOADS))
        except RuntimeError as error:
            self._lost(peer, error)
            return
        self._going[peer].append((frame.stamp.step, works, tensors))

    def release(self, before: int) -> None:
        """Let go of what was sent before a step, and what came back shows to have been read."""
        for peer, going in self._going.items():
            while going and going[0][0] < before:
                self._await(peer, going.popleft()[1], self.roster.patience)

    def take(self, peer: int, channel: int, what: str, seconds: float) -> Frame:
        """The oldest frame of a channel, when it has come.

        Raises:
            DistributedError: it will not.
        """
        arrived, frames = self._queue(peer, channel), list[Frame]()

        def done() -> bool:
            with contextlib.suppress(queue.Empty):
                frames.append(arrived.get(timeout=GLANCE))
                return True
            if peer in self.left and arrived.empty():
                self.roster.fail(f"{self.roster.names[peer]} has ended its run, and {what} has not come")
            return False

        self.roster.wait(done, what, seconds)
        return frames[0]

    def close(self) -> None:
        """Say goodbye: send what is on its way, and end all threads."""
        if self._closed:
            return
        self._closed = True
        until = time.monotonic() + FLUSH
        for peer in self._going:
            with contextlib.suppress(RuntimeError):
                self.send(peer, Frame(BYE, 0))
            for _, works, _ in self._going[peer]:
                self._await(peer, works, 1.0 if self.roster.failed else max(until - time.monotonic(), 0.1))
            self._going[peer].clear()
        for peer, thread in self._threads.items():
            if thread.is_alive():
                self._hang_up(peer)
                thread.join(FLUSH)

    def _hang_up(self, peer: int) -> None:
        """Close the connection. A receive that runs out of time is the only way; it wakes the thread that waits."""
        with contextlib.suppress(RuntimeError):
            self.group.recv([torch.empty(1)], peer, NEVER).wait(timedelta(milliseconds=1))

    def _await(self, peer: int, works: Iterable[Any], seconds: float) -> None:
        try:
            for work in works:
                work.wait(timedelta(seconds=seconds))
        except RuntimeError as error:
            self._lost(peer, error)

    # ---- what comes in

    def _listen(self, peer: int) -> None:
        try:
            while True:
                frame = self._receive(peer)
                if frame.kind == BYE:
                    self.left.add(peer)
                    return
                arrived = self._queue(peer, frame.channel)
                arrived.put(frame)
                with arrived.mutex:
                    unread = sum(not waiting.left for waiting in arrived.queue)
                if unread > self.most + 1:
                    raise DistributedError(f"{unread} packets of one channel have come, unread")
        except BaseException as error:
            self._lost(peer, error)

    def _receive(self, peer: int) -> Frame:
        header = torch.empty(FIELDS, dtype=torch.int64)
        self.group.recv([header], peer, HEADERS).wait()
        frame, room, order = opened(header)
        if room is None:
            return frame
        if room.numel():
            self.group.recv([as_bytes(room)], peer, PAYLOADS).wait()
        return placed(frame, room, order)

    def _lost(self, peer: int, error: BaseException) -> None:
        """The connection has ended: that is a failure, unless one of both has said goodbye."""
        if self._closed or peer in self.left:
            return
        facts = next(iter(str(error).splitlines()), type(error).__name__)
        facts = facts if isinstance(error, DistributedError) else facts.rpartition("] ")[2].partition(" [")[0]
        self.roster.fail(f"{self.roster.names[peer]} is gone ({facts})")

    def _queue(self, peer: int, channel: int) -> "queue.Queue[Frame]":
        with self._lock:
            return self._queues[peer, channel]
