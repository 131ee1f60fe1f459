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
against data and time in `results/curves/`.

    python -m benchmarks.two_clocks                  until it is done
    python -m benchmarks.two_clocks --minutes 20     so long, and the next time further
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.demo.images import Images

from . import classifier, tables
from .jobs import Job, Training, take_turns
from .rows import Row, read, results

T, STREAMS, ROUNDS, WIDTH = 4, 64, 3000, 128
HEAD = dg.dni(guard=False)  # as the paper has it: its estimate is followed, whatever it is worth
UNBOUNDED = "cDNI, unbounded message"  # all other arms bound it
ARMS: dict[str, dict[str, Any]] = {
    "cDNI": {"boundary": HEAD, "condition": dg.one_hot(T + 1)},
    "end to end": {"boundary": "oracle"},
    "not connected": {"boundary": dg.silent()},
    "DNI": {"boundary": HEAD},
    UNBOUNDED: {"boundary": HEAD, "condition": dg.one_hot(T + 1)},
}
SEEDS = (101, 102, 103)  # on which nothing was chosen


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
    """The inputs, targets and labels of each tick of a round. Shapes: x [T * T, streams, 784], y [T * T, streams]."""
    for t in range(T * T):
        window = y[max(t + 1 - T, 0) : t + 1]
        targets, label = {}, None
        if (t + 1) % T == 0:
            targets["a"], label = (window % 2).sum(0), {"a": (window == 3).sum(0)}
        if t + 1 == T * T:
            targets["b"] = (y == 3).sum(0)
        yield {"digits": x[t]}, targets, label


def random_rounds(x: Tensor, y: Tensor, count: int, streams: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random digits, the same for every arm."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        picked = torch.randint(len(x), (T * T, streams), generator=generator)
        yield x[picked], y[picked]


class Pair(Training):
    """A and B on one stream."""

    def __init__(self, arm: str, seed: int, images: Images, rounds: int) -> None:
        self.images, self.count = images, rounds
        self.network = network(arm, seed)
        self.rounds = random_rounds(images.train_images.flatten(1), images.train_labels, rounds, STREAMS, seed)

    def step(self) -> None:
        self.network.run(ticks(*next(self.rounds)))

    def point(self, steps: int) -> list[float] | None:
        """Accuracy of A and of B, in per cent."""
        seen = steps % max(1, self.count // 16) == 0 or steps in classifier.marks(self.count)
        return self._accuracy() if seen else None

    def scores(self, curve: list[list[float]]) -> Row | None:
        means = classifier.means(curve, self.count)
        return None if means is None else {"A accuracy %": means[0], "B accuracy %": means[1]}

    def save(self, file: Path) -> Row:
        self.network.save(file)
        return {}

    def load(self, file: Path, data: Row, steps: int) -> None:
        self.network.load(file, {"digits": self.images.train_images[:STREAMS].flatten(1)})
        for _ in range(steps):
            next(self.rounds)

    def _accuracy(self) -> list[float]:
        right: dict[str, list[float]] = {"a": [], "b": []}
        answers = {"a": "odd", "b": "output"}
        for x, y in random_rounds(self.images.test_images.flatten(1), self.images.test_labels, 4, 500, seed=0):
            with self.network.aside():
                round_ = list(ticks(x, y))
                for (_, targets, _), result in zip(round_, self.network.run(round_), strict=True):
                    for name, target in targets.items():
                        guess = result.outputs[name][answers[name]].argmax(1)
                        right[name].append(100 * float((guess == target).float().mean()))
        return [sum(values) / len(values) for values in right.values()]


def table(results: list[Row]) -> str:
    """Accuracy of A and B by arm."""
    heads = ("two clocks, accuracy %: mean (least-most), seeds", "A, odd of 4", "B, threes of 16")
    return tables.markdown(
        heads,
        [
            (arm, *(tables.over_seeds(own, f"{who} accuracy %", ".1f") for who in "AB"))
            for (arm,), own in tables.groups(results, "arm").items()
        ],
    )


@click.command()
@click.option("--minutes", default=1e9, help="Stop after so many.")
@click.option("--rounds", default=ROUNDS, help="Of T*T ticks, for each arm.")
def main(minutes: float, rounds: int) -> None:
    """Run the arms, or go on with them."""
    images = classifier.digits()
    names = ("arm", "seed", "rounds", "data")
    done = set(tables.groups(read(results("two_clocks")), *names))
    groups = []
    for seed, arm in product(SEEDS, ARMS):
        key = dict(zip(names, (arm, seed, rounds, images.name), strict=True))
        if tuple(key.values()) not in done:
            groups.append([Job(key, partial(Pair, arm, seed, images, rounds), rounds, max(1, rounds // 10))])
    take_turns("two_clocks", groups, minutes)


if __name__ == "__main__":
    main()
