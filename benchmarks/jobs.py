"""Trainings of hours: they take turns, can be stopped at any time, and go on where they were.

A job makes one row of a table. What it has learned so far lies in `out/<benchmark>/`: the net as the library saves it,
and beside it, as JSON, how far it is. Whoever runs the benchmark again goes on from there.
"""

import glob
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from . import curves, rows
from .rows import Row

KEPT = Path(__file__).parent.parent / "out"


class Training(ABC):
    """A net under way, and the data that it learns from."""

    @abstractmethod
    def step(self) -> None:
        """Learn from the next batch."""

    @abstractmethod
    def scores(self, curve: list[curves.Point]) -> Row | None:
        """What the row says as things stand, besides key and seconds; None: it can say nothing yet."""

    @abstractmethod
    def save(self, file: Path) -> Row:
        """Keep the net in the file; what is returned is plain data, for `load`."""

    @abstractmethod
    def load(self, file: Path, data: Row, steps: int) -> None:
        """Be as it was behind so many steps, on a training that has just begun."""

    def point(self, steps: int) -> curves.Point | None:
        """What the curve shows behind so many steps, besides steps and seconds; None: no point here."""
        return None

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to learn."""
        return False


class Job:
    """One training, until it has made its steps."""

    def __init__(
        self,
        key: Row,
        begin: Callable[[], Training],
        steps: int,
        turn: int,
        reached: int = 0,
    ) -> None:
        """`turn`: steps that it makes before others may; `reached`: those behind the row that is there already."""
        self.key, self.begin, self.steps, self.turn, self.reached = key, begin, steps, turn, reached
        self.done, self.seconds, self.ended = 0, 0.0, False
        self.curve: list[curves.Point] = []
        self._data: Row = {}  # what the training keeps beside the net
        self._training: Training | None = None

    @property
    def name(self) -> str:
        """The key as a file name."""
        words = "_".join(f"{name}={value}" for name, value in self.key.items())
        return words.replace(" ", "-").replace(",", "").replace("/", "-")

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.ended or self.done >= self.steps

    def find(self, folder: Path) -> None:
        """Go on, if something of this job is in the folder; it is kept there."""
        self._progress = folder / f"{self.name}.json"
        if self._progress.exists():
            kept = json.loads(self._progress.read_text())
            self.done, self.seconds, self.ended = kept["done"], kept["seconds"], kept["ended"]
            self.curve, self._data = kept["curve"], kept["data"]

    def take_turn(self) -> Row | None:
        """Make a turn's steps, keep what came of them, and return the row as it is now. Seconds are those of steps."""
        training = self._training or self._resumed()
        self._training = training
        for _ in range(min(self.turn, self.steps - self.done)):
            started = time.process_time()
            training.step()
            self.seconds += time.process_time() - started
            self.done += 1
            if (point := training.point(self.done)) is not None:
                self.curve.append([self.done, self.seconds, *point])
            if training.ended:
                self.ended = True
                break
        self._keep(training)
        scores = training.scores(self.curve)
        return None if scores is None else {**self.key, **scores, "seconds": self.seconds}

    def put_away(self) -> None:
        """Free the memory of the net; it is on disk."""
        self._training = None

    @property
    def _net(self) -> Path:
        """The file of the net, which has its steps in its name: with it and `_progress` nobody can mix two moments."""
        return self._progress.with_name(f"{self.name}_{self.done}.pt")

    def _resumed(self) -> Training:
        training = self.begin()
        if self.done:
            training.load(self._net, self._data, self.done)
        return training

    def _keep(self, training: Training) -> None:
        self._progress.parent.mkdir(parents=True, exist_ok=True)
        self._data = training.save(self._net)
        progress = {"done": self.done, "seconds": self.seconds, "ended": self.ended, "curve": self.curve}
        rows.save(self._progress, json.dumps({**progress, "data": self._data}).encode())
        for older in self._progress.parent.glob(f"{glob.escape(self.name)}_*.pt"):
            if older != self._net:
                older.unlink()


def take_turns(benchmark: str, groups: Iterable[list[Job]], minutes: float) -> None:
    """Run all jobs until they are finished or the time is up; rows and curves are written behind every turn.

    Groups come one after the other. In a group the job that is least far is next, so that at any time all have seen
    about as much; one net is in memory at a time.
    """
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * minutes
    for group in groups:
        for job in group:
            job.find(KEPT / benchmark)
        while waiting := [job for job in group if not job.finished]:
            job = min(waiting, key=lambda job: job.done)
            for other in group:
                if other is not job:
                    other.put_away()
            _report(benchmark, job, job.take_turn())
            if time.monotonic() > until:
                return
        for job in group:
            job.put_away()


def _report(benchmark: str, job: Job, row: Row | None) -> None:
    if row is not None and job.done >= job.reached:
        rows.put(rows.results(benchmark), row, job.key)
        curves.put(benchmark, job.key, job.curve)
    scores: dict[str, Any] = {name: value for name, value in (row or {}).items() if name not in job.key}
    print(job.name, f"{job.done} of {job.steps} steps,", rows.rounded(scores, 4), flush=True)
