"""Does a net learn whose layers update now and then, in no common order, or without waiting for their inputs?

MNIST (Fashion-MNIST where it cannot be had), a 4-layer fully connected net of width 256 with BatchNorm, every layer
cut (3 cuts), batch 256, Adam 1e-3 without decay, `TICKS` batches for every arm. Each layer learns in a tick with
probability p, independently of the others. In the arm "backprop" a layer that does not learn stops the gradient for
those below, so that the lowest gets one with probability p^4; the other arms are the library's defaults and the
controls. "Forward unlocked": every layer runs on a prediction of its input, too. Errors are means of four evaluations
of the real net in eval mode, at 85, 90, 95 and 100% of the ticks. Nothing was tuned on these seeds.

    python -m benchmarks.asynchrony                  until it is done
    python -m benchmarks.asynchrony --minutes 20     so long, and the next time further
"""

from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F

import dnigraph as dg
from dnigraph.demo.images import Images

from . import classifier, rows, tables
from .classifier import BATCH
from .jobs import Job, Training, take_turns
from .rows import Row

TICKS = 3000  # 13 epochs
RATES = (1.0, 0.5, 0.2, 0.05)  # the p of the table
LABEL = dg.one_hot(10)
FROZEN = "no backprop"  # only the last layer learns; a layer that nothing ever reaches would be refused
HEAD = dg.dni(guard=False)  # as the paper has it: its estimate is followed, whatever it is worth
ARMS: dict[str, dict[str, Any]] = {
    "cDNI": {"boundary": HEAD, "condition": LABEL},
    "backprop": {"boundary": "oracle"},
    "DNI": {"boundary": HEAD},
    "cDNI, forward unlocked": {"boundary": HEAD, "condition": LABEL, "unlock": "forward"},
    "local loss": {"boundary": "local-loss", "condition": LABEL},
    FROZEN: {"boundary": dg.silent()},
    "backprop for 500 ticks, then freeze": {"boundary": dg.silent(warm_up=500)},
    "backprop in every 8th tick, nothing between": {"boundary": dg.silent(refresh=8)},
    "DNI, forward unlocked": {"boundary": HEAD, "unlock": "forward"},
}
SEEDS = (101, 102, 103)  # on which nothing was chosen


def settings() -> list[tuple[str, float, int]]:
    """Arm, p and seed of every job, in the order in which they are run: what matters most first."""
    first = [("cDNI", p) for p in (1.0, 0.2, 0.05)] + [("cDNI, forward unlocked", 1.0)]
    first += [("backprop", p) for p in (1.0, 0.2, 0.05)] + [(arm, 0.5) for arm in ("cDNI", "backprop")]
    rest = [(arm, 1.0) for arm in ARMS if arm not in dict(first)] + [("cDNI, forward unlocked", 0.2)]
    rest += [("DNI", p) for p in (0.5, 0.2, 0.05)]
    return [(arm, p, seed) for group in (first, rest) for seed in SEEDS for arm, p in group]


class Layers(Training):
    """The layers of the net as agents."""

    def __init__(self, arm: str, p: float, seed: int, images: Images, ticks: int) -> None:
        self.images, self.ticks = images, ticks
        x = images.train_images.flatten(1)
        self.example = x[:BATCH]
        torch.manual_seed(seed)
        self.model = classifier.net()
        dm = dg.decouple(self.model, ["0", "1", "2"], (self.example,), check=False, **ARMS[arm])
        if arm == FROZEN:
            self.model[:-1].requires_grad_(False)
        self.network = dm.network(loss=F.cross_entropy, p_update=p, seed=seed)
        self.network.validate(self.example)
        self.batches = classifier.batches(x, images.train_labels, ticks, seed)

    def step(self) -> None:
        self.network.tick(*next(self.batches))

    def point(self, steps: int) -> list[float] | None:
        """Test error and train loss."""
        seen = steps % 250 == 0 or steps in classifier.marks(self.ticks)
        return list(classifier.error_and_loss(self.model, self.images)) if seen else None

    def scores(self, curve: list[list[float]]) -> Row | None:
        means = classifier.means(curve, self.ticks)
        return None if means is None else {"test error %": means[0], "train loss": means[1]}

    def save(self, file: Path) -> Row:
        self.network.save(file)
        return {}

    def load(self, file: Path, data: Row, steps: int) -> None:
        self.network.load(file)
        for _ in range(steps):
            next(self.batches)


def table(results: list[Row]) -> str:
    """Test errors by arm and p; below, what the arms reach on the data they learn from."""
    data, rates = ", ".join(dict.fromkeys(row["data"] for row in results)), [f"p = {p:g}" for p in RATES]
    by_arm, by_cell = tables.groups(results, "arm"), tables.groups(results, "arm", "p")

    def lines(score: str, form: str) -> list[list[str]]:
        cells = {arm: [by_cell.get((arm, p), []) for p in RATES] for (arm,) in by_arm}
        return [[arm, *(tables.over_seeds(rows, score, form) for rows in own)] for arm, own in cells.items()]

    heads = (f"4 layers, every layer cut, {data}: test error %, mean (least-most), seeds", *rates)
    errors = tables.markdown(heads, lines("test error %", ".2f"))
    return f"{errors}\n{tables.markdown(('the same runs: train loss', *rates), lines('train loss', '.3f'))}"


@click.command()
@click.option("--minutes", default=1e9, help="Stop after so many.")
@click.option("--ticks", default=TICKS, help="Batches for each arm.")
def main(minutes: float, ticks: int) -> None:
    """Run the arms, or go on with them."""
    images = classifier.digits()
    names = ("arm", "p", "seed", "ticks", "data")
    done = set(tables.groups(rows.read(rows.results("asynchrony")), *names))
    groups = []
    for arm, p, seed in settings():
        key = dict(zip(names, (arm, p, seed, ticks, images.name), strict=True))
        if tuple(key.values()) not in done:
            begin = partial(Layers, arm, p, seed, images, ticks)
            groups.append([Job(key, begin, ticks, max(1, ticks // 10))])
    take_turns("asynchrony", groups, minutes)


if __name__ == "__main__":
    main()
