"""Can a fast network learn what a slow one needs of it, without waiting for it?

Two recurrent networks and one stream of MNIST digits (Fashion-MNIST where MNIST cannot be had: classes 1, 3, 5, ... are
then the odd ones). A sees each digit, and every T=4 ticks says how many of the last T were odd and sends B a message. B
hears of A alone, and every T*T ticks says how many of the last T*T digits were threes. A: Linear 128, BatchNorm, ReLU
per digit, LSTM 128 over the window, a message of 128 numbers within [-1, 1]; B: LSTM 128 over T messages. 64 streams,
Adam 1e-3, the same digits for every arm.

end to end          A waits for B: one update of A for every T*T ticks, with the sum of all losses
not connected       no gradient from B to A: the control
DNI, cDNI           A updates every T ticks, from its own loss and a head's estimate; B's answer comes up to 12 ticks
                    later. cDNI's head sees how many threes there were among the T digits of the message.
cDNI, unbounded     the same with a message without bounds, which can run away from a head that learns a quarter as
                    often as A does

Accuracy on test digits, the mean of four evaluations at 85, 90, 95 and 100% of the rounds (of T*T ticks); curves
against data and time in `two_clocks.svg`. Rows are kept as they come, and runs in the middle at every tenth.

    python -m benchmarks.two_clocks                  until it is done
    python -m benchmarks.two_clocks --minutes 20     so long, and the next time further
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.demo import images as data

from . import curves
from .asynchrony import load
from .timing import RESULTS, machine, report

T, STREAMS, ROUNDS, WIDTH = 4, 64, 3000, 128
MARKS = (0.85, 0.9, 0.95, 1.0)
KEPT = Path(__file__).parent.parent / "out" / "two_clocks"
FILE = RESULTS / "two_clocks.json"
UNBOUNDED = "cDNI, unbounded message"
ARMS: dict[str, dict[str, Any]] = {
    "cDNI": {"boundary": "dni", "condition": dg.one_hot(T + 1)},
    "end to end": {"boundary": "oracle"},
    "not connected": {"boundary": dg.silent()},
    "DNI": {"boundary": "dni"},
    UNBOUNDED: {"boundary": "dni", "condition": dg.one_hot(T + 1)},
}
SEEDS = (101, 102, 103)


class Fast(nn.Module):
    """Shapes: digits [batch, T, 784] -> odd [batch, T + 1], message [batch, WIDTH]."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.see = nn.Sequential(nn.Linear(784, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.odd, self.say = nn.Linear(WIDTH, T + 1), nn.Linear(WIDTH, WIDTH)

    def forward(self, digits: Tensor) -> dict[str, Tensor]:
        seen = self.see(digits.flatten(0, 1)).unflatten(0, digits.shape[:2])
        last = self.lstm(seen)[0][:, -1]
        message = self.say(last)
        return {"odd": self.odd(last), "message": message.tanh() if self.bounded else message}


class Slow(nn.Module):
    """Shapes: messages [batch, T, WIDTH] -> threes [batch, T * T + 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.threes = nn.LSTM(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, T * T + 1)

    def forward(self, messages: Tensor) -> Tensor:
        return self.threes(self.lstm(messages)[0][:, -1])  # type: ignore[no-any-return]


def network(arm: str, seed: int) -> dg.Network:
    """A and B on their clocks, joined as the arm says."""
    torch.manual_seed(seed)
    net = dg.Network(seed=seed)
    net.add("a", Fast(arm != UNBOUNDED), every=T, loss=lambda out, odd: F.cross_entropy(out["odd"], odd))
    net.add("b", Slow(), every=T * T, loss=F.cross_entropy)
    net.connect("digits", "a.digits", policy=dg.stack(T))
    net.connect("a.message", "b.messages", policy=dg.stack(T), **ARMS[arm])
    return net


def ticks(x: Tensor, y: Tensor) -> Iterator[tuple[Any, Any, Any]]:
    """A round: what each tick is given. Shapes: x [T * T, streams, 784], y [T * T, streams]."""
    for t in range(T * T):
        window = y[max(t + 1 - T, 0) : t + 1]
        targets, label = {}, None
        if (t + 1) % T == 0:
            targets["a"], label = (window % 2).sum(0), {"a": (window == 3).sum(0)}
        if t + 1 == T * T:
            targets["b"] = (y == 3).sum(0)
        yield {"digits": x[t]}, targets, label


def rounds(x: Tensor, y: Tensor, count: int, streams: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random digits, the same for every arm."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        picked = torch.randint(len(x), (T * T, streams), generator=generator)
        yield x[picked], y[picked]


class Job:
    """One arm with one seed, which can be left and taken up again."""

    def __init__(self, arm: str, seed: int, images: data.Images, count: int) -> None:
        self.arm, self.seed, self.count, self.images = arm, seed, count, images
        self.x, self.test = (v.flatten(1) for v in (images.train_images, images.test_images))
        self.file = KEPT / f"{images.name}_{arm.replace(' ', '-')}_{seed}_{count}.pt"
        self.done, self.seconds, self.curve = 0, 0.0, list[Any]()

    def run(self, until: float) -> dict[str, Any] | None:
        """Go on until the end, and return the row; None: the time was up before."""
        net = network(self.arm, self.seed)
        if self.file.exists():
            net.load(self.file, {"digits": self.x[:STREAMS]})
            kept = json.loads(self.file.with_suffix(".json").read_text())
            self.done, self.seconds, self.curve = kept["done"], kept["seconds"], kept["curve"]
        marks = {int(self.count * mark) for mark in MARKS} | set(range(0, self.count, max(1, self.count // 16)))
        started = time.process_time() - self.seconds
        for i, (x, y) in enumerate(rounds(self.x, self.images.train_labels, self.count, STREAMS, self.seed), 1):
            if i <= self.done:
                continue
            net.run(ticks(x, y))
            if i in marks:
                self.curve.append([i, round(time.process_time() - started, 1), *self._accuracy(net)])
            if i % (self.count // 10) == 0:
                self._keep(net, i, time.process_time() - started)
                if time.monotonic() > until and i < self.count:
                    return None
        return self._row()

    def _accuracy(self, net: dg.Network) -> list[float]:
        """Of A and B, in per cent."""
        right: dict[str, list[float]] = {"a": [], "b": []}
        for x, y in rounds(self.test, self.images.test_labels, 4, 500, 0):
            with net.aside():
                given = list(ticks(x, y))
                for (_, targets, _), found in zip(given, net.run(given), strict=True):
                    outputs = {"a": "odd", "b": "output"}
                    for name, target in targets.items():
                        guess = found.outputs[name][outputs[name]].argmax(1)
                        right[name].append(100 * float((guess == target).float().mean()))
        return [sum(values) / len(values) for values in right.values()]

    def _keep(self, net: dg.Network, done: int, seconds: float) -> None:
        KEPT.mkdir(parents=True, exist_ok=True)
        net.save(self.file)
        kept = {"done": done, "seconds": seconds, "curve": self.curve}
        self.file.with_suffix(".json").write_text(json.dumps(kept))
        self.seconds = seconds

    def _row(self) -> dict[str, Any]:
        last = {int(self.count * mark) for mark in MARKS}
        points = [point for point in self.curve if point[0] in last]
        a, b = (sum(point[i] for point in points) / len(points) for i in (2, 3))
        row = {"arm": self.arm, "seed": self.seed, "A accuracy %": a, "B accuracy %": b, "rounds": self.count}
        return {**row, "seconds": round(self.seconds, 1), "data": self.images.name, "curve": self.curve}


def write(rows: list[dict[str, Any]]) -> None:
    """The rows, for people without their curves, and the curves as a picture."""
    report("two clocks", [{k: v for k, v in row.items() if k != "curve"} for row in rows], "two_clocks")
    FILE.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    curves.lines([(row["arm"], row["curve"]) for row in rows], 3, "accuracy of B, %", RESULTS / "two_clocks.svg")


def run(minutes: float = 1e9, count: int = ROUNDS) -> None:
    """Run what is not there yet, and write the results after every row."""
    torch.set_num_threads(1)
    images, until = load(), time.monotonic() + 60 * minutes
    rows = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    done = {(row["arm"], row["seed"], row["rounds"], row["data"]) for row in rows}
    for seed, arm in ((seed, arm) for seed in SEEDS for arm in ARMS):
        if (arm, seed, count, images.name) in done:
            continue
        row = Job(arm, seed, images, count).run(until)
        if row is not None:
            write(rows := [*rows, row])
        if row is None or time.monotonic() > until:
            return


@click.command()
@click.option("--minutes", default=1e9, help="Stop after so many.")
@click.option("--rounds", "count", default=ROUNDS, help="Of T*T ticks, for each arm.")
def main(minutes: float, count: int) -> None:
    """Run the arms, or go on with them."""
    run(minutes, count)


if __name__ == "__main__":
    main()
