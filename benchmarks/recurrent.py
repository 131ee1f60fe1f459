"""What is credit over a window's end worth to a recurrent network?

Delayed recall, Copy and Repeat Copy, each with the same data and the same number of updates for every arm: truncated
backprop, DNI, DNI with its estimates shuffled over the batch (the control: what noise of the same size does), DNI with
the auxiliary task or BP(lambda), truncated backprop with a longer window. LSTM 64, batch 32, Adam 1e-3, one update per
window, nothing tuned per arm: DNI is what `dg.Recurrent(core, horizon=T, ...)` does by itself.

Jobs run in turns, some iterations each, and are kept on disk: a run that is stopped goes on where it was, and at any
time all arms have seen about as much.

    python -m benchmarks.recurrent recall                     until it is done
    python -m benchmarks.recurrent copy --minutes 60          so long, then the next time further
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg

from . import sequences
from .timing import RESULTS, machine

KEPT = Path(__file__).parent.parent / "out" / "recurrent"
WIDTH, RATE = 64, 1e-3
ARMS: dict[str, dict[str, Any]] = {
    "truncated": {"boundary": "silent"},
    "DNI": {},
    "DNI, shuffled": {"boundary": "shuffled"},
    "DNI + auxiliary": {"auxiliary": True},
    "DNI + BP(0.5)": {"blend": 0.5},
    "full BPTT": {"boundary": "oracle"},
}
FRESH = (101, 102, 103, 104, 105)  # seeds on which nothing was chosen


def jobs(suite: str) -> list[dict[str, Any]]:
    """All jobs of a suite, in the order in which they take turns."""

    def job(task: str, arm: str, seed: int, horizon: int, most: int, slice_: int, **settings: Any) -> dict[str, Any]:
        fields = {"task": task, "arm": arm, "seed": seed, "horizon": horizon, **settings}
        return {**fields, "most": most, "slice": slice_}

    if suite == "recall":
        arms = ("DNI", "truncated", "DNI, shuffled", "DNI + auxiliary", "DNI + BP(0.5)", "full BPTT")
        twelve = [job("recall", arm, seed, 3, 5000, 5000, blanks=12) for arm in arms for seed in FRESH]
        far = ("DNI", "DNI + auxiliary", "DNI + BP(0.5)", "truncated")
        return twelve + [job("recall", arm, seed, 3, 5000, 5000, blanks=20) for arm in far for seed in FRESH[:3]]
    task = {"copy": "copy", "repeat": "repeat copy"}[suite]
    same = [(arm, t) for t in (3, 2, 4, 5) for arm in ("truncated", "DNI", "DNI + auxiliary", "DNI, shuffled")]
    longer = [("truncated", 10), ("truncated", 20)]
    return [job(task, arm, seed, t, 200_000, 500) for seed in (0, 1, 2) for arm, t in (*same, *longer)]


class Job:
    """One arm on one task with one seed, which can be left and taken up again at any iteration."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.file = KEPT / f"{_name(settings)}.pt"
        torch.manual_seed(settings["seed"])
        self.task = sequences.make(settings["task"], settings)
        self.rnn = dg.Recurrent(
            nn.LSTM(self.task.features, WIDTH),
            readout=nn.Linear(WIDTH, sequences.BITS),
            horizon=settings["horizon"],
            loss=F.binary_cross_entropy_with_logits,
            optimizer=lambda p: torch.optim.Adam(p, settings.get("rate", RATE)),
            monitor=0,
            **ARMS[settings["arm"]],
        )
        self.row = {**settings, "iterations": 0, "seconds": 0.0, "bits": 1.0, "at level": 0, "solved at": {}}
        self.row |= {"curve": []}
        if self.file.exists():
            self._take_up()

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        ended = self.settings["task"] == "recall" and self.row["solved at"]
        return bool(ended) or self.row["iterations"] >= self.settings["most"]

    def run(self, iterations: int) -> None:
        """Go on for so many batches at most, and keep what came of it."""
        started = time.perf_counter()
        for _ in range(iterations):
            if self.done:
                break
            self._once(started)
        self.row["seconds"] += time.perf_counter() - started
        self._keep()

    def _once(self, started: float) -> None:
        row, batch = self.row, self.task.batch()
        loss = float(self.rnn.run(batch.x, batch.target, mask=batch.mask).loss) / 0.693147
        row["iterations"] += 1
        row["at level"] += 1
        row["bits"] = 0.9 * row["bits"] + 0.1 * loss
        if row["iterations"] % 100 == 0:
            seconds = row["seconds"] + time.perf_counter() - started
            row["curve"].append([row["iterations"], round(seconds, 1), self._solved(), round(row["bits"], 4)])
        if row["bits"] < sequences.SOLVED:
            row["solved at"][str(self._solved() if self.task.harder() else "all")] = row["iterations"]
            row["bits"], row["at level"] = 1.0, 0

    def _solved(self) -> int:
        return self.task.solved if isinstance(self.task, sequences.Copy) else 0

    def _keep(self) -> None:
        KEPT.mkdir(parents=True, exist_ok=True)
        self.rnn.save(self.file)
        self.file.with_suffix(".json").write_text(json.dumps({"row": self.row, "task": vars(self.task)}))

    def _take_up(self) -> None:
        kept = json.loads(self.file.with_suffix(".json").read_text())
        self.row = kept["row"]
        vars(self.task).update(kept["task"])
        self.rnn.load(self.file)


def _name(settings: dict[str, Any]) -> str:
    words = (f"{key}={value}" for key, value in settings.items() if key not in ("most", "slice"))
    return "_".join(words).replace(" ", "").replace(",", "-").replace("+", "-")


def write(suite: str, done: list[Job]) -> None:
    """The rows of all jobs that have begun."""
    rows = [job.row for job in done if job.row["iterations"]]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"recurrent_{suite}.json"
    file.write_text(json.dumps({"machine": machine(), "rows": [_short(row) for row in rows]}, indent=1) + "\n")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """At most 100 points of a curve."""
    curve = row["curve"]
    return {**row, "curve": curve[:: max(1, len(curve) // 100)]}


def run(suite: str, minutes: float) -> None:
    """Let the unfinished jobs take turns."""
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * minutes
    all_jobs = [Job(settings) for settings in jobs(suite)]
    while left := [job for job in all_jobs if not job.done]:
        least = min(job.row["iterations"] for job in left)
        job = next(job for job in left if job.row["iterations"] == least)
        job.run(job.settings["slice"])
        write(suite, all_jobs)
        row = job.row
        print(f"{_name(job.settings)}: {row['iterations']} {row['bits']:.3f} {row['solved at']} {row['seconds']:.0f} s")
        if time.monotonic() > until:
            return


@click.command()
@click.argument("suite", type=click.Choice(["recall", "copy", "repeat"]))
@click.option("--minutes", default=1e9, help="Stop after so many.")
def main(suite: str, minutes: float) -> None:
    """Run a suite, or go on with it."""
    run(suite, minutes)


if __name__ == "__main__":
    main()
