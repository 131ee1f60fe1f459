"""Does a net learn whose layers update now and then, in no common order, or without waiting for their inputs?

MNIST (Fashion-MNIST where it cannot be had), a 4-layer fully connected net of width 256 with BatchNorm, every layer
cut (3 cuts), batch 256, Adam 1e-3 without decay, `TICKS` batches for every arm. Each layer learns in a tick with
probability p, independently of the others. In the arm "backprop" a layer that does not learn stops the gradient for
those below, so that the lowest hears with p^4; the other arms are the library's defaults and the controls. "Forward
unlocked": every layer runs on a prediction of its input, too. Errors are means of four evaluations of the real net in
eval mode, at 85, 90, 95 and 100% of the ticks. Nothing was tuned on these seeds.

Rows are kept as they come, and a run in the middle at every tenth: what is stopped goes on where it was.

    python -m benchmarks.asynchrony                  until it is done
    python -m benchmarks.asynchrony --minutes 20     so long, and the next time further
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F

import dnigraph as dg
from dnigraph.demo import images as data

from .every_layer_cut import batches, evaluate, net
from .timing import RESULTS, report

TICKS, BATCH, MARKS = 3000, 256, (0.85, 0.9, 0.95, 1.0)
KEPT = Path(__file__).parent.parent / "out" / "asynchrony"
FILE = RESULTS / "asynchrony.json"
LABEL = dg.one_hot(10)
FROZEN = "no backprop"  # only the last layer learns; a layer that nothing ever reaches would be refused
ARMS: dict[str, dict[str, Any]] = {
    "cDNI": {"condition": LABEL},
    "backprop": {"boundary": "oracle"},
    "DNI": {},
    "cDNI, forward unlocked": {"condition": LABEL, "unlock": "forward"},
    "local loss": {"boundary": "local-loss", "condition": LABEL},
    FROZEN: {"boundary": dg.silent()},
    "backprop for 500 ticks, then freeze": {"boundary": dg.silent(warm_up=500)},
    "backprop in every 8th tick, nothing between": {"boundary": dg.silent(refresh=8)},
    "DNI, forward unlocked": {"unlock": "forward"},
}
SEEDS = (101, 102, 103)


def jobs() -> list[tuple[str, float, int]]:
    """Arm, p and seed, in the order in which they are run: what matters most first."""
    first = [("cDNI", p) for p in (1.0, 0.2, 0.05)] + [("cDNI, forward unlocked", 1.0)]
    first += [("backprop", p) for p in (1.0, 0.2, 0.05)] + [(arm, 0.5) for arm in ("cDNI", "backprop")]
    rest = [(arm, 1.0) for arm in ARMS if arm not in dict(first)] + [("cDNI, forward unlocked", 0.2)]
    rest += [("DNI", p) for p in (0.5, 0.2, 0.05)]
    return [(arm, p, seed) for group in (first, rest) for seed in SEEDS for arm, p in group]


class Job:
    """One arm with one seed, which can be left and taken up again."""

    def __init__(self, arm: str, p: float, seed: int, images: data.Images, ticks: int) -> None:
        self.arm, self.p, self.seed, self.ticks, self.images = arm, p, seed, ticks, images
        self.x, self.test = (v.flatten(1) for v in (images.train_images, images.test_images))
        self.file = KEPT / f"{images.name}_{arm}_{p}_{seed}_{ticks}.pt".replace(" ", "-").replace(",", "")
        self.done, self.seconds, self.curve = 0, 0.0, list[Any]()

    def run(self, until: float) -> dict[str, Any] | None:
        """Go on until the end, and return the row; None: the time was up before."""
        torch.manual_seed(self.seed)
        model = net()
        dm = dg.decouple(model, ["0", "1", "2"], (self.x[:BATCH],), check=False, **ARMS[self.arm])
        if self.arm == FROZEN:
            model[:-1].requires_grad_(False)
        agents = dm.network(loss=F.cross_entropy, p_update=self.p, seed=self.seed)
        if self.file.exists():
            agents.load(self.file, self.x[:BATCH])
            kept = json.loads(self.file.with_suffix(".json").read_text())
            self.done, self.seconds, self.curve = agents.ticks, kept["seconds"], kept["curve"]
        else:
            agents.validate(self.x[:BATCH])
        marks = {int(self.ticks * mark) for mark in MARKS} | set(range(250, self.ticks, 250))
        started = time.process_time() - self.seconds
        for i, (x, y) in enumerate(batches(self.x, self.images.train_labels, self.ticks, self.seed), 1):
            if i <= self.done:
                continue
            agents.tick(x, y)
            if i in marks:
                self._look(model, i, time.process_time() - started)
            if i % (self.ticks // 10) == 0:
                self._keep(agents, time.process_time() - started)
                if time.monotonic() > until and i < self.ticks:
                    return None
        return self._row()

    def _look(self, model: torch.nn.Module, tick: int, seconds: float) -> None:
        error = evaluate(model, self.test, self.images.test_labels)[0]
        loss = evaluate(model, self.x[:10000], self.images.train_labels[:10000])[1]
        self.curve.append([tick, round(seconds, 1), error, loss])

    def _keep(self, agents: dg.Network, seconds: float) -> None:
        KEPT.mkdir(parents=True, exist_ok=True)
        agents.save(self.file)
        self.file.with_suffix(".json").write_text(json.dumps({"seconds": seconds, "curve": self.curve}))
        self.seconds = seconds

    def _row(self) -> dict[str, Any]:
        last = {int(self.ticks * mark) for mark in MARKS}
        points = [point for point in self.curve if point[0] in last]
        error, loss = (sum(point[i] for point in points) / len(points) for i in (2, 3))
        row = {"arm": self.arm, "p": self.p, "seed": self.seed, "test error %": error, "train loss": loss}
        return {**row, "ticks": self.ticks, "seconds": round(self.seconds, 1), "data": self.images.name}


def load() -> data.Images:
    """MNIST, or what there is."""
    try:
        return data.load("mnist")
    except data.DataError:
        return data.load("fashion-mnist")


def run(minutes: float = 1e9, ticks: int = TICKS) -> None:
    """Run what is not there yet, and write the results after every row."""
    torch.set_num_threads(1)
    images, until = load(), time.monotonic() + 60 * minutes
    rows = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    for arm, p, seed in jobs():
        if (arm, p, seed, ticks, images.name) in {(r["arm"], r["p"], r["seed"], r["ticks"], r["data"]) for r in rows}:
            continue
        row = Job(arm, p, seed, images, ticks).run(until)
        if row is None or time.monotonic() > until:
            if row is not None:
                rows.append(row)
                report("4 layers, every layer cut", rows, "asynchrony")
            return
        rows.append(row)
        report("4 layers, every layer cut", rows, "asynchrony")


@click.command()
@click.option("--minutes", default=1e9, help="Stop after so many.")
@click.option("--ticks", default=TICKS, help="Batches for each arm.")
def main(minutes: float, ticks: int) -> None:
    """Run the arms, or go on with them."""
    run(minutes, ticks)


if __name__ == "__main__":
    main()
