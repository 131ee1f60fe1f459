"""Trainings of hours: they take turns, can be stopped at any time, and go on where they were.

A job makes one row. After each turn it is kept in `out/<benchmark>/`: the net in the library's own format, and its
progress as JSON. The next run of the benchmark continues from there. Rows of seconds need none of that: `spread_out`
makes them side by side, each in one piece.
"""

import glob
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from . import curves, rows
from .rows import Row

KEPT = Path(__file__).parent.parent / "out"


class Training(ABC):
    """A net in training, and the data that it learns from."""

    @abstractmethod
    def step(self) -> None:
        """Learn from the next batch."""

    @abstractmethod
    def scores(self, curve: list[curves.Point]) -> Row | None:
        """The measured fields of the row, from the net and its curve so far; None: it is too early for a row."""

    @abstractmethod
    def save(self, file: Path) -> Row:
        """Save the net to the file, and return what else `load` needs, as plain data."""

    @abstractmethod
    def load(self, file: Path, data: Row, steps: int) -> None:
        """Continue from a file that `save` wrote after that many steps; called on a new training."""

    def point(self, steps: int) -> curves.Point | None:
        """The numbers of the curve after that many steps, without steps and seconds; None: no point here."""
        return None

    @property
    def ended(self) -> bool:
        """Whether the task is solved, so that the remaining steps are not needed."""
        return False


class Job:
    """One training, with a limit on its steps, and the row that comes of it."""

    def __init__(self, key: Row, begin: Callable[[], Training], steps: int, turn: int, reached: int = 0) -> None:
        """Nothing is built or read yet.

        Args:
            key: the fields that make it this job and no other; its row begins with them.
            begin: builds the training, as it is before the first step.
            turn: steps that it makes before another job may take a turn.
            reached: steps of the row that the results already have, which only a run of as many steps replaces.
        """
        self.key, self.begin, self.steps, self.turn, self.reached = key, begin, steps, turn, reached
        self.done, self.seconds, self.ended = 0, 0.0, False
        self.curve: list[curves.Point] = []
        self.row: Row | None = None
        self._data: Row = {}  # what the training keeps beside the net
        self._training: Training | None = None

    @property
    def name(self) -> str:
        """The key as a file name."""
        words = "_".join(f"{name}={value}" for name, value in self.key.items())
        return words.replace(" ", "-").replace(",", "").replace("/", "-")

    @property
    def finished(self) -> bool:
        """Whether all steps are made, or the task is solved."""
        return self.ended or self.done >= self.steps

    def find(self, folder: Path) -> None:
        """Keep the job in this folder, and read the progress that an earlier run left there."""
        self._progress = folder / f"{self.name}.json"
        if self._progress.exists():
            kept = json.loads(self._progress.read_text())
            self.done, self.seconds, self.ended = kept["done"], kept["seconds"], kept["ended"]
            self.curve, self.row, self._data = kept["curve"], kept["row"], kept["data"]

    def take_turn(self) -> None:
        """Make the steps of a turn and keep the result. Only the steps count as seconds, not scores and files."""
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
        scores = training.scores(self.curve)
        self.row = None if scores is None else {**self.key, **scores, "seconds": self.seconds}
        self._keep(training)

    def put_away(self) -> None:
        """Free the memory of the net, which is on disk."""
        self._training = None

    @property
    def _net(self) -> Path:
        """The file of the net. Its name has the steps, so that a net never meets the progress of another moment."""
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
        rows.save(self._progress, json.dumps({**progress, "row": self.row, "data": self._data}).encode())
        for older in self._progress.parent.glob(f"{glob.escape(self.name)}_*.pt"):
            if older != self._net:
                older.unlink()


def take_turns(benchmark: str, groups: Iterable[list[Job]], minutes: float) -> None:
    """Run all jobs until they are finished or the time is up; rows and curves are written after every turn.

    Groups are run one after the other. In a group the job with the fewest steps is next, so that at any time all have
    made about as many; one net is in memory at a time.
    """
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * minutes
    for group in groups:
        for job in group:
            job.find(KEPT / benchmark)
            if job.finished:  # by a run that was stopped before it wrote the row
                _write(benchmark, job)
        while waiting := [job for job in group if not job.finished]:
            job = min(waiting, key=lambda job: job.done)
            for other in group:
                if other is not job:
                    other.put_away()
            job.take_turn()
            _write(benchmark, job)
            if time.monotonic() > until:
                return
        for job in group:
            job.put_away()


def _write(benchmark: str, job: Job) -> None:
    if job.row is not None and job.done >= job.reached:
        rows.put(rows.results(benchmark), job.row, job.key)
        curves.put(benchmark, job.key, job.curve)
    scores = {name: value for name, value in (job.row or {}).items() if name not in job.key}
    print(job.name, f"{job.done} of {job.steps} steps,", rows.rounded(scores, 4), flush=True)


def spread_out(
    work: Callable[..., Row], settings: Sequence[tuple[Any, ...]], processes: int, seconds: float = float("inf")
) -> Iterator[Row]:
    """Call `work` with each of the settings, in so many processes of one thread, and yield rows as they come.

    Args:
        work: a function of a module, since each process imports it.
        seconds: after which no more is begun; what runs is waited for.
    """
    until = time.monotonic() + seconds
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting, running = list(settings), set()
        while running or (waiting and time.monotonic() < until):
            while waiting and len(running) < processes and time.monotonic() < until:
                running.add(pool.submit(work, *waiting.pop(0)))
            ended = next(as_completed(running))
            running.remove(ended)
            yield ended.result()
