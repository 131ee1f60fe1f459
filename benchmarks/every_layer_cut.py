"""Does a deep net learn when every layer is cut?

Fashion-MNIST, a 4-layer fully connected net of width 256 with BatchNorm, every layer cut (3 cuts), batch 256, Adam
1e-3, 3000 steps. cDNI is compared with backprop, with the local loss, and with the control without which no figure
means anything: backprop for 500 steps, then the lower parts are frozen. Test error saturates here, so the train loss
(10,000 images, eval mode) is shown too. Both are means of four evaluations at 85, 90, 95 and 100% of the steps. Each
row is written as soon as it is there; a run that was stopped continues with the next one.
"""

from collections.abc import Callable
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.demo import images as data

from . import classifier, rows, tables
from .classifier import BATCH
from .rows import Row

STEPS, SEEDS = 3000, (0, 1)  # 13 epochs
ARMS: dict[str, Any] = {
    "backprop": None,
    "backprop for 500 steps, then freeze": dg.silent(warm_up=500),
    "cDNI": dg.dni(guard=False),
    "local loss": "local-loss",
}


def stepper(arm: str, model: nn.Module, x: Tensor) -> Callable[[Tensor, Tensor], Any]:
    """One training step of an arm."""
    boundary = ARMS[arm]
    if boundary is None:
        boundary, cuts = "oracle", []
    else:
        cuts = ["0", "1", "2"]
    dm = dg.decouple(model, cuts, (x,), boundary=boundary, condition=dg.one_hot(10), check=False)
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.Adam(p, 1e-3), monitor=0)
    return lambda x, y: run.step(x, target=y)


def trained(arm: str, seed: int, images: data.Images, steps: int) -> Row:
    """One row."""
    x = images.train_images.flatten(1)
    torch.manual_seed(seed)
    model = classifier.net()
    step = stepper(arm, model, x[:BATCH])
    scores = []
    for i, batch in enumerate(classifier.batches(x, images.train_labels, steps, seed), 1):
        step(*batch)
        if i in classifier.marks(steps):
            scores.append(classifier.error_and_loss(model, images))
    error, loss = (sum(values) / len(values) for values in zip(*scores, strict=True))
    return {"arm": arm, "seed": seed, "steps": steps, "test error %": error, "train loss": loss}


def table(results: list[Row]) -> str:
    """Test error and train loss by arm."""
    seeds = len({row["seed"] for row in results})
    heads = (f"Fashion-MNIST, every layer cut, {seeds} seeds: mean (least-most)", "test error %", "train loss")
    return tables.markdown(
        heads,
        [
            (arm, *(tables.spread(own, score, ".3g") for score in ("test error %", "train loss")))
            for (arm,), own in tables.groups(results, "arm").items()
        ],
    )


@click.command()
@click.option("--steps", default=STEPS, help="Batches for each arm.")
def main(steps: int) -> None:
    """Run what is not there yet; rows are written as they come."""
    torch.set_num_threads(1)
    images = data.load("fashion-mnist")
    file = rows.results("every_layer_cut")
    done = set(tables.groups(rows.read(file), "arm", "seed", "steps"))
    for seed in SEEDS:
        for arm in ARMS:
            if (arm, seed, steps) not in done:
                row = trained(arm, seed, images, steps)
                rows.put(file, row, ("arm", "seed", "steps"))
                print(rows.rounded(row, 4), flush=True)


if __name__ == "__main__":
    main()
