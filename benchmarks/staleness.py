"""What do late gradients cost?

Fashion-MNIST, a 4-layer fully connected net of width 256 with BatchNorm, every layer cut (3 cuts), batch 256, Adam
1e-3, 1500 steps. The parts hear of their crossings 1 to 64 steps late, as in a pipeline that nobody waits in:
`Local(late=k)` is the arithmetic of as many processes. With `delayed` a part that is n crossings below the loss learns
from the true gradient of n * k steps before, with the weights of that step (stashed), or with those that it has by
then; "looking ahead" is Nesterov's method with a momentum of 0.99 (NAdam), which arXiv 2505.01099 found to correct
for late gradients. A head learns from such a gradient, and its part at once from the estimate; a local loss waits for
nothing, so that no delay can harm it. Beside them stand backprop, silence, and backprop for 500 steps after which the
lower parts are frozen. Means of four evaluations at 85, 90, 95 and 100% of the steps. Each row is written as soon as it
is there; a run that was stopped continues with the next one.
"""

from functools import partial
from typing import Any

import click
import torch
import torch.nn.functional as F

import dnigraph as dg
from dnigraph.demo import images as data

from . import classifier, rows, tables
from .classifier import BATCH
from .jobs import spread_out
from .rows import Row

STEPS, SEEDS = 1500, (0, 1, 2)
DELAYS = (1, 4, 16, 64)
AHEAD = ", looking ahead"  # in the names of arms
ARMS: dict[str, tuple[Any, tuple[int, ...]]] = {  # the boundary, and the delays that make a difference
    "backprop": ("oracle", (0,)),
    f"backprop{AHEAD}": ("oracle", (0,)),
    "delayed, weights stashed": (dg.delayed(), DELAYS),
    "delayed, weights as they are": (dg.delayed(stash=False), DELAYS),
    f"delayed, weights stashed{AHEAD}": (dg.delayed(), DELAYS),
    f"delayed, weights as they are{AHEAD}": (dg.delayed(stash=False), DELAYS),
    "cDNI": (dg.dni(guard=False), (0, *DELAYS)),
    "local loss": ("local-loss", (0,)),
    "backprop for 500 steps, then freeze": (dg.silent(warm_up=500), (0,)),
    "silence": ("silent", (0,)),
}


def trained(arm: str, late: int, seed: int, steps: int) -> Row:
    """One row."""
    images = data.load("fashion-mnist")
    x = images.train_images.flatten(1)
    torch.manual_seed(seed)
    model = classifier.net()
    boundary, _ = ARMS[arm]
    dm = dg.decouple(model, ["0", "1", "2"], (x[:BATCH],), boundary=boundary, condition=dg.one_hot(10), check=False)
    method: Any = partial(torch.optim.NAdam, betas=(0.99, 0.999)) if arm.endswith(AHEAD) else torch.optim.Adam
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: method(p, lr=1e-3), monitor=0, late=late)
    scores = []
    for i, (batch, labels) in enumerate(classifier.batches(x, images.train_labels, steps, seed), 1):
        run.step(batch, target=labels)
        if i in classifier.marks(steps):
            scores.append(classifier.error_and_loss(model, images))
    error, loss = (sum(values) / len(values) for values in zip(*scores, strict=True))
    return {"arm": arm, "late": late, "seed": seed, "steps": steps, "test error %": error, "train loss": loss}


def table(results: list[Row]) -> str:
    """Test error by arm and delay."""
    seeds = len({row["seed"] for row in results})
    delays = sorted({row["late"] for row in results})
    heads = (f"test error % after {results[0]['steps']} steps, {seeds} seeds: mean (least-most)", *map(_title, delays))
    lines = []
    for (arm,), own in tables.groups(results, "arm").items():
        by_delay = {late: rows for (late,), rows in tables.groups(own, "late").items()}
        cells = (tables.spread(by_delay[d], "test error %", ".3g") if d in by_delay else "" for d in delays)
        lines.append((arm, *cells))
    return tables.markdown(heads, lines)


def _title(late: int) -> str:
    return f"{late} steps late" if late else "on time"


@click.command()
@click.option("--steps", default=STEPS, show_default=True, help="Batches for each arm.")
@click.option("--jobs", default=1, show_default=True, help="Rows made side by side, each in a process of one thread.")
@click.option("--seconds", default=float("inf"), help="After which no further row is begun.")
def main(steps: int, jobs: int, seconds: float) -> None:
    """Run what is not there yet; rows are written as they come."""
    data.load("fashion-mnist")  # fetched once, not by each process
    file, key = rows.results("staleness"), ("arm", "late", "seed", "steps")
    done = set(tables.groups(rows.read(file), *key))
    settings = [(arm, late, seed, steps) for seed in SEEDS for arm, (_, delays) in ARMS.items() for late in delays]
    for row in spread_out(trained, [setting for setting in settings if setting not in done], jobs, seconds):
        rows.put(file, row, key)
        print(rows.rounded(row, 4), flush=True)


if __name__ == "__main__":
    main()
