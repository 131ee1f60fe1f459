"""One arm on one task with one seed, a batch a step."""

from math import log
from pathlib import Path
from typing import Any

import torch

import dnigraph as dg

from ..jobs import Training
from ..rows import Row
from . import tasks

ARMS: dict[str, dict[str, Any]] = {
    "truncated": {"boundary": "silent"},
    "DNI": {},
    "DNI, shuffled": {"boundary": "shuffled"},
    "DNI + auxiliary": {"boundary": dg.dni_in_time(auxiliary=True)},
    "DNI + auxiliary, weight 0.1": {"boundary": dg.dni_in_time(auxiliary=0.1)},
    "DNI + BP(0.9)": {"boundary": dg.blend("dni", 0.9)},
    "BP(0.9), no head": {"boundary": dg.blend("silent", 0.9)},
    "full BPTT": {"boundary": "bptt"},
}
LAST = 5  # evaluations, one every 1000 updates: a single one swings by more than arms differ
MEAN_BITS = f"bits per character, mean of the last {LAST} evaluations"


class Windows(Training):
    """A recurrent net that learns a task window by window."""

    def __init__(self, key: Row, steps: int, turn: int) -> None:
        """`key`: task, arm, seed, horizon, and what else the task asks for."""
        self.key, self.steps, self.turn = key, steps, turn
        torch.manual_seed(key["seed"])
        self.task = tasks.make(key["task"], key)
        options = {"horizon": key["horizon"], "monitor": 0, **ARMS[key["arm"]]}
        self.rnn = dg.Recurrent(**self.task.net(), optimizer=lambda p: torch.optim.Adam(p, self.task.rate), **options)
        self.iterations = 0
        self.bits: float | None = None  # the loss in bits, smoothed
        self.solved, self.solved_at = 0, dict[str, int]()  # the iteration in which each level was solved
        self.score: dict[str, float] = {}  # on unseen data, at the last point of the curve

    def step(self) -> None:
        batch = self.task.batch(self.key["horizon"])
        result = self.rnn.run(batch.x, batch.target, mask=batch.mask, ends=not self.task.stream)
        loss = float(result.loss) / log(2)
        self.iterations += 1
        self.bits = loss if self.bits is None else 0.9 * self.bits + 0.1 * loss
        if isinstance(self.task, tasks.Bits) and self.bits < tasks.SOLVED:
            went_on = self.task.harder()
            self.solved, self.bits = self.task.solved, 1.0 if went_on else self.bits
            self.solved_at[str(self.solved)] = self.iterations

    @property
    def ended(self) -> bool:
        """Recall has one task; the others grow."""
        return self.key["task"] == "recall" and bool(self.solved_at)

    def point(self, steps: int) -> list[float] | None:
        """What is solved, bits, and a score on unseen data where the task has one: once a turn, as it takes time."""
        every = self.turn if self.task.scored else max(1, self.steps // 60 // 250) * 250  # about 60 points, or fewer
        if steps % every and steps < self.steps and not self.ended:
            return None
        self.score = self.task.score(self.rnn)
        return [self.solved, self.bits or 0.0, *self.score.values()]

    def scores(self, curve: list[list[float]]) -> Row:
        row = {"most": self.steps, "iterations": self.iterations, "bits": self.bits, "solved": self.solved}
        row |= {"solved at": self.solved_at, "skipped": self.rnn.skipped, **self.score}
        if self.key["task"] == "characters":
            evaluations = [point[-1] for point in curve[-LAST:]]
            row[MEAN_BITS] = sum(evaluations) / len(evaluations)
        return row

    def save(self, file: Path) -> Row:
        self.rnn.save(file)
        level = {name: value for name, value in vars(self.task).items() if isinstance(value, int | str | bool)}
        return {"level": level, "bits": self.bits, "solved": self.solved, "solved at": self.solved_at}

    def load(self, file: Path, data: Row, steps: int) -> None:
        vars(self.task).update(data["level"])
        self.rnn.load(file)
        self.iterations, self.bits = steps, data["bits"]
        self.solved, self.solved_at = data["solved"], data["solved at"]
