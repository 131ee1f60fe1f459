"""What is credit over a window's end worth to a recurrent network?

Delayed recall, Copy, Repeat Copy, characters of the King James Bible (or of the Penn Treebank, for who may use it) and
MNIST row by row, each with the same data and the same number of updates for every arm: truncated backprop, DNI, DNI
with its estimates shuffled over the batch (the control: what noise of the same size does), DNI with the auxiliary task
or BP(lambda), truncated backprop with longer windows. Adam, one update per window, nothing tuned per arm: DNI is what
`dg.Recurrent(core, horizon=T, ...)` does by itself. Recall: LSTM 64, batch 32; Copy and Repeat Copy: LSTM 128 with
forget gates that begin open (bias 1), batch 64, a set-up chosen on seed 0 and run on others.

Jobs run in turns, some iterations each, and are kept on disk: a run that is stopped goes on where it was, and at any
time all arms have seen about as much. Rows that are whole among the results are not run again. Seconds are those of
the processor, one thread.

    python -m benchmarks.recurrent recall                     until it is done
    python -m benchmarks.recurrent copy --minutes 60          so long, and the next time further
    python -m benchmarks.recurrent characters --text penn-treebank
"""

import json
import time
from math import log
from pathlib import Path
from typing import Any

import click
import torch

import dnigraph as dg

from .. import curves
from ..timing import RESULTS, machine
from . import tasks as sequences

KEPT = Path(__file__).parents[2] / "out" / "recurrent"
ARMS: dict[str, dict[str, Any]] = {
    "truncated": {"boundary": "silent"},
    "DNI": {},
    "DNI, shuffled": {"boundary": "shuffled"},
    "DNI + auxiliary": {"auxiliary": True},
    "DNI + auxiliary, weight 0.1": {"auxiliary": 0.1},
    "DNI + BP(0.9)": {"blend": 0.9},
    "full BPTT": {"boundary": "oracle"},
}
FRESH = (101, 102, 103, 104, 105)  # seeds on which nothing was chosen


SETTINGS = ("task", "arm", "seed", "horizon", "blanks", "text")  # what makes a row a row, in this order
SUITES = ("recall", "copy", "repeat", "characters", "rows")


def jobs(suite: str, text: str = "king-james") -> list[list[dict[str, Any]]]:
    """All jobs of a suite: groups one after the other; those of a group take turns."""
    same = ("truncated", "DNI", "DNI + auxiliary", "DNI, shuffled")
    if suite == "recall":
        turns = [(12, arm, seed) for arm in ("DNI", "truncated", "DNI + BP(0.9)") for seed in FRESH]
        turns += [(20, "DNI + BP(0.9)", seed) for seed in FRESH[:3]]
        turns += [(12, "DNI, shuffled", seed) for seed in FRESH]
        turns += [(20, arm, seed) for arm in ("DNI", "truncated", "DNI, shuffled") for seed in FRESH[:3]]
        turns += [(12, arm, seed) for arm in ("full BPTT", "DNI + auxiliary") for seed in FRESH]
        turns += [(12, "DNI + auxiliary, weight 0.1", seed) for seed in FRESH[:3]]
        return [[_job("recall", arm, seed, 3, 5000, 5000, blanks=blanks)] for blanks, arm, seed in turns]
    if suite == "rows":
        arms = ("truncated", "DNI", "DNI, shuffled", "DNI + BP(0.9)", "full BPTT")
        return [[_job("rows", arm, seed, 4, 4000, 500) for arm in arms] for seed in (0, 1)]
    if suite == "characters":
        groups = [(seed, t, same[:2]) for seed in range(5) for t in (4, 8, 2)]
        groups += [(seed, 4, same[2:]) for seed in range(3)]
        groups += [(0, t, same[:1]) for t in (20, 40)] + [(0, t, same[:2]) for t in (3, 6, 5, 7)]
        return [[_job("characters", arm, seed, t, 25_000, 1000, text=text) for arm in arms] for seed, t, arms in groups]
    task = {"copy": "copy", "repeat": "repeat copy"}[suite]
    seeds = FRESH[:3]
    three = [[_job(task, arm, s, 3, 40_000, 500) for s in seeds for arm in arms] for arms in (same[:3], same[3:])]
    long = {2: 20_000, 4: 40_000, 5: 20_000}
    others = [[_job(task, arm, s, t, long[t], 500) for s in seeds for arm in same[:3]] for t in long]
    longer = [[_job(task, "truncated", s, t, 20_000, 500) for s in seeds] for t in (10, 20)]
    return three + longer + others


def _job(task: str, arm: str, seed: int, horizon: int, most: int, slice_: int, **settings: Any) -> dict[str, Any]:
    fields = {"task": task, "arm": arm, "seed": seed, "horizon": horizon, **settings}
    return {**fields, "most": most, "slice": slice_}


class Job:
    """One arm on one task with one seed, which can be left and taken up again at any iteration."""

    def __init__(self, settings: dict[str, Any], before: dict[str, Any] | None = None) -> None:
        """`before`: the row of this job that is among the results, from whatever machine."""
        self.settings, self.before = settings, before
        self.file = KEPT / f"{_name(settings)}.pt"
        self.row = {
            **settings,
            "iterations": 0,
            "seconds": 0.0,
            "bits": None,
            "solved": 0,
            "solved at": {},
            "curve": [],
        }
        self.level: dict[str, Any] = {}
        if self.file.exists():
            kept = json.loads(self.file.with_suffix(".json").read_text())
            self.row, self.level = {**kept["row"], **settings}, kept["level"]
        elif before is not None and (before["iterations"] >= settings["most"] or before["solved at"].get("0")):
            self.row = {**before, **settings}

    @property
    def best(self) -> dict[str, Any] | None:
        """The row that is further: this run's, or the one that was there; None where nothing has run."""
        rows = [row for row in (self.row, self.before) if row and row["iterations"]]
        return max(rows, key=lambda row: row["iterations"], default=None)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        ended = self.settings["task"] == "recall" and self.row["solved at"]
        return bool(ended) or self.row["iterations"] >= self.settings["most"]

    def run(self, iterations: int) -> None:
        """Go on for so many batches at most, and keep what came of it. The net is in memory only so long."""
        task, rnn = self._made()
        started = time.process_time() - self.row["seconds"]
        for _ in range(iterations):
            if self.done:
                break
            self._once(task, rnn, started)
        self.row["seconds"] = time.process_time() - started
        scores = task.score(rnn)
        self.row |= {"skipped": rnn.skipped, **scores}
        self._point(task, *scores.values())
        KEPT.mkdir(parents=True, exist_ok=True)
        rnn.save(self.file)
        self.level = {key: value for key, value in vars(task).items() if isinstance(value, int | str | bool)}
        self.file.with_suffix(".json").write_text(json.dumps({"row": self.row, "level": self.level}))

    def _made(self) -> tuple[sequences.Task, dg.Recurrent]:
        torch.manual_seed(self.settings["seed"])
        task = sequences.make(self.settings["task"], self.settings)
        options = {"horizon": self.settings["horizon"], "monitor": 0, **ARMS[self.settings["arm"]]}
        rnn = dg.Recurrent(**task.net(), optimizer=lambda p: torch.optim.Adam(p, task.rate), **options)
        if self.file.exists():
            vars(task).update(self.level)
            rnn.load(self.file)
        return task, rnn

    def _once(self, task: sequences.Task, rnn: dg.Recurrent, started: float) -> None:
        row, batch = self.row, task.batch(self.settings["horizon"])
        found = rnn.run(batch.x, batch.target, mask=batch.mask, ends=not task.stream)
        loss = float(found.loss) / log(2)
        row["iterations"] += 1
        row["bits"] = loss if row["bits"] is None else 0.9 * row["bits"] + 0.1 * loss
        if row["iterations"] % 250 == 0:
            row["seconds"] = time.process_time() - started
            self._point(task)
        if isinstance(task, sequences.Bits) and row["bits"] < sequences.SOLVED:
            went_on = task.harder()
            row["solved"], row["bits"] = task.solved, 1.0 if went_on else row["bits"]
            row["solved at"][str(task.solved)] = row["iterations"]

    def _point(self, task: sequences.Task, *scores: float) -> None:
        """One point of the learning curve: iterations, seconds, and what there is to see."""
        seen = [self.row["iterations"], round(self.row["seconds"], 1), task.solved, round(self.row["bits"], 4), *scores]
        curve = self.row["curve"]
        if curve and curve[-1][0] == seen[0]:
            curve.pop()
        curve.append(seen)


def _name(settings: dict[str, Any]) -> str:
    words = (f"{key}={value}" for key, value in settings.items() if key not in ("most", "slice"))
    return "_".join(words).replace(" ", "").replace(",", "-").replace("+", "-")


def write(suite: str, begun: list[Job]) -> None:
    """The rows of all jobs that have begun, here or elsewhere, and their curves."""
    rows = [{**row, "curve": _thinned(row["curve"])} for job in begun if (row := job.best)]
    RESULTS.mkdir(exist_ok=True)
    file = _results(suite)
    file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    curves.draw(suite, rows, RESULTS / f"recurrent_{suite}.svg")


def _results(suite: str) -> Path:
    return RESULTS / f"recurrent_{suite}.json"


def _thinned(curve: list[Any]) -> list[Any]:
    """At most about 60 points, the last one among them; where some have a score, those."""
    most = max(map(len, curve))
    curve = [point for point in curve if len(point) == most]
    return [*curve[:-1][:: max(1, len(curve) // 60)], curve[-1]]


def run(suite: str, minutes: float, text: str) -> None:
    """Let the unfinished jobs take turns."""
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * minutes
    kept = json.loads(_results(suite).read_text())["rows"] if _results(suite).exists() else []
    before = {_name({key: row[key] for key in row if key in SETTINGS}): row for row in kept}
    groups = [[Job(settings, before.get(_name(settings))) for settings in group] for group in jobs(suite, text)]
    every = [job for group in groups for job in group]
    while left := next(filter(None, ([job for job in group if not job.done] for group in groups)), None):
        job = min(left, key=lambda job: job.row["iterations"])
        job.run(job.settings["slice"])
        write(suite, every)
        row = job.row
        said = {key: row[key] for key in ("iterations", "bits", "solved at", "seconds")}
        print(_name(job.settings), said, flush=True)
        if time.monotonic() > until:
            return


@click.command()
@click.argument("suite", type=click.Choice(SUITES))
@click.option("--minutes", default=1e9, help="Stop after so many.")
@click.option("--text", default="king-james", help="king-james or penn-treebank.")
def main(suite: str, minutes: float, text: str) -> None:
    """Run a suite, or go on with it."""
    run(suite, minutes, text)
