"""Ranks that know of each other: who lives, who has failed and why, and whether all are of one mind.

    every rank   beat, beat, beat ─► store of torch.distributed ─► looks at the beats of all, and at the first failure

A process that was stopped sends nothing and closes nothing: only its beats tell. What one rank finds out about another
goes into the store, where the first finding holds: all ranks name the rank that failed, not the one next to them.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from ..passes.errors import DniGraphError, bullets

NOTHING = "-"  # a value of the store where there is nothing yet
LEFT = "left"  # the beat of a rank that has closed its run
EVERY = 0.5  # seconds between two beats
GLANCE = 0.2  # seconds between two looks whether a wait is in vain


class DistributedError(DniGraphError, RuntimeError):
    """A rank is gone, hangs, or is of another mind. The run is over on all ranks."""


class Roster:
    """The signs of life of all ranks, and the failure that ended their run.

    Args:
        store: of torch.distributed; a thread beats over a connection of its own.
        run: tells this run from others in the same store.
        names: of all ranks, in their order: "rank 1 (part_2)".
        patience: seconds without a beat after which a rank is taken for dead.
    """

    def __init__(self, store: Any, run: str, rank: int, names: Sequence[str], patience: float):
        self.rank, self.names, self.patience = rank, names, patience
        self.doing = "the start"  # what this rank is at, for the others
        self._run, self._store, self._beats = run, store.clone(), store.clone()
        self._failure: str | None = None
        self._waiting, self._taken = False, 0  # whether this rank waits, and for how much it has waited before
        self._still = "", 0.0  # that nobody moves: what all were at then, and since when
        self._others = [r for r in range(len(names)) if r != rank]
        self._seen: dict[int, tuple[str, float]] = {}  # by rank: its last beat, and when it came
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="dnigraph beats", daemon=True)
        self._store.set(self._key("beat", rank), f"0 0 works {self.doing}")
        if rank == 0:
            self._store.set(self._key("failed"), NOTHING)

    def watch(self) -> None:
        """From now on the beats of all ranks are looked at: all have agreed that they have started."""
        self._alive = time.monotonic()
        self._thread.start()

    # ---- failures

    def fail(self, words: str) -> None:
        """End the run of all ranks. Of several failures the first one holds, everywhere."""
        if self._failure is not None:
            return
        with contextlib.suppress(Exception):  # the store may be gone, too
            words = self._store.compare_set(self._key("failed"), NOTHING, words).decode()
        self._failure = self._failure or words

    @property
    def failed(self) -> bool:
        """Whether the run is over, as far as this rank knows."""
        return self._failure is not None

    def check(self) -> None:
        """One look while this rank waits.

        Raises:
            DistributedError: the run is over.
        """
        if self._failure is None and self._thread.is_alive():
            silence = time.monotonic() - self._alive
            if silence > self.patience + 4 * EVERY:
                self.fail(self._no_store(f"for {silence:.0f} s"))
        if self._failure is not None:
            raise DistributedError(f"{self._failure} (told on {self.names[self.rank]}, in {self.doing})")

    def wait(self, done: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until something is there.

        Args:
            done: waits for a moment, and returns whether it is.
            what: it is, for an error.
            seconds: after which the wait is given up.

        Raises:
            DistributedError: the run is over, or the time.
        """
        until = time.monotonic() + seconds
        while not done():
            self._waiting = True
            self.check()
            if time.monotonic() > until:
                self.fail(f"{self.names[self.rank]} has waited {seconds:g} s for {what}")
        self._waiting, self._taken = False, self._taken + 1

    # ---- to be of one mind

    def agree(self, facts: Mapping[str, str], seconds: float) -> None:
        """See that these facts are the same on all ranks, each of which calls this at its start.

        Raises:
            DistributedError: some are not, and all of them are listed, on every rank; or a rank does not come in time.
        """
        keys = [self._key("facts", r) for r in range(len(self.names))]
        self._store.set(keys[self.rank], json.dumps(facts))
        until = time.monotonic() + seconds
        for key, name in zip(keys, self.names, strict=True):
            while not self._store.check([key]):
                if time.monotonic() > until:
                    raise DistributedError(f"{name} has not started within {seconds:g} s: start it on every rank")
                time.sleep(GLANCE / 4)
        told = [json.loads(self._store.get(key)) for key in keys]
        wrong = []
        for what in dict.fromkeys(what for known in told for what in known):
            values = [known.get(what, "missing") for known in told]
            if len(set(values)) > 1:
                wrong.append(f"{what}: {_listed(values, self.names)}")
        if wrong:
            raise DistributedError(f"the ranks do not fit each other:{bullets(wrong)}")

    # ---- beats

    def _beat(self) -> None:
        keys = [self._key("beat", r) for r in self._others]
        beats = 0
        while not self._over.wait(EVERY):
            beats += 1
            try:
                own = f"{beats} {self._taken} {'waits' if self._waiting else 'works'} {self.doing}"
                self._beats.set(self._key("beat", self.rank), own)
                self._beats.wait([self._key("failed")], timedelta(seconds=self.patience))
                failed, *texts = self._beats.multi_get([self._key("failed"), *keys])
            except Exception as error:
                left = any(text == LEFT for text, _ in self._seen.values())
                if not (left or self._over.is_set()):  # else its process may have ended, as it should
                    self.fail(self._no_store(f"({str(error).splitlines()[0][:80]})"))
                return
            self._alive = time.monotonic()
            if (words := failed.decode()) != NOTHING:
                self._failure = self._failure or words
                return
            told = dict(zip(self._others, [text.decode() for text in texts], strict=True))
            self._look(told)
            self._look_for_deadlock({**told, self.rank: own})

    def _look(self, texts: Mapping[int, str]) -> None:
        for r, text in texts.items():
            last, when = self._seen.get(r, ("", 0.0))
            if text != last:
                self._seen[r] = text, time.monotonic()
            elif text != LEFT and (silence := time.monotonic() - when) > self.patience:
                self.fail(
                    f"{self.names[r]} has given no sign of life for {silence:.0f} s, since it was in {_doing(text)}"
                )

    def _look_for_deadlock(self, texts: Mapping[int, str]) -> None:
        """All ranks wait, and none gets anything: they do not do the same."""
        before, since = self._still
        state = str([texts[r].split(" ", 1)[1:] for r in sorted(texts)])
        if state != before or not all(text.split(" ")[2:3] == ["waits"] for text in texts.values()):
            self._still = state, time.monotonic()
        elif time.monotonic() - since > self.patience:
            where = ", ".join(f"{self.names[r]} in {_doing(texts[r])}" for r in sorted(texts))
            self.fail(f"all ranks wait for each other, {where}: make the same calls on all ranks")

    def _no_store(self, facts: str) -> str:
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        holder = "torchrun" if agent else self.names[0]
        return f"{holder}, whose process holds the store of torch.distributed, does not answer {facts}"

    def close(self) -> None:
        """Tell the others that this rank has left."""
        self._over.set()
        with contextlib.suppress(Exception):  # the store may have ended before
            self._store.set(self._key("beat", self.rank), LEFT)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(self.patience)

    def _key(self, *words: object) -> str:
        return "/".join(map(str, (self._run, *words)))


def _doing(beat: str) -> str:
    """What a rank was at."""
    return beat.split(" ", 3)[-1]


def _listed(values: Sequence[str], names: Sequence[str]) -> str:
    """Each value with the ranks that have it."""
    found: dict[str, list[str]] = {}
    for value, name in zip(values, names, strict=True):
        found.setdefault(value, []).append(name)
    return "; ".join(f"{value} on {', '.join(ranks)}" for value, ranks in found.items())
