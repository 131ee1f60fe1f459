"""Does a deep net learn when every layer is cut?

Fashion-MNIST, a 4-layer fully connected net of width 256 with BatchNorm, every layer cut (3 cuts), batch 256, Adam
1e-3, 3000 steps. Beside cDNI stand backprop, the local loss and the control without which no figure means anything:
backprop for 500 steps, then the lower parts are frozen. Test error saturates here, so the train loss (10,000 images,
eval mode) is shown too. Both are means of four evaluations at 85, 90, 95 and 100% of the steps. Rows are kept as they
come: a run that is stopped goes on where it was.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.demo import images as data

from .timing import RESULTS, report

WIDTH, BATCH, STEPS, SEEDS = 256, 256, 3000, (0, 1)
MARKS = (0.85, 0.9, 0.95, 1.0)
ARMS: dict[str, Any] = {
    "backprop": None,
    "backprop for 500 steps, then freeze": dg.silent(warm_up=500),
    "cDNI": "dni",
    "local loss": "local-loss",
}


def net() -> nn.Sequential:
    """Four layers; the modules "0", "1" and "2" are the places to cut."""
    sizes = [(784, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)]
    hidden = [nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in sizes]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 10))


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


def batches(x: Tensor, y: Tensor, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of whole epochs in random order, the same for every arm."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(x), generator=generator)
        picked, order = order[:BATCH], order[BATCH:]
        yield x[picked], y[picked]


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Error in per cent and loss, in eval mode."""
    model.eval()
    out = torch.cat([model(chunk) for chunk in torch.split(x, 2000)])
    model.train()
    return 100 * float((out.argmax(1) != y).float().mean()), float(F.cross_entropy(out, y))


def trained(arm: str, seed: int, images: data.Images, steps: int) -> dict[str, Any]:
    """One row."""
    x, test = (v.flatten(1) for v in (images.train_images, images.test_images))
    torch.manual_seed(seed)
    model = net()
    step = stepper(arm, model, x[:BATCH])
    errors, losses = [], []
    marks = {int(steps * mark) for mark in MARKS}
    for i, batch in enumerate(batches(x, images.train_labels, steps, seed), 1):
        step(*batch)
        if i in marks:
            errors.append(evaluate(model, test, images.test_labels)[0])
            losses.append(evaluate(model, x[:10000], images.train_labels[:10000])[1])
    mean = [sum(values) / len(values) for values in (errors, losses)]
    return {"arm": arm, "seed": seed, "test error %": mean[0], "train loss": mean[1], "steps": steps}


def main(steps: int = STEPS) -> None:
    """Run what is not there yet, and write the results after every row."""
    torch.set_num_threads(1)
    images = data.load("fashion-mnist")
    file = RESULTS / "every_layer_cut.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    done = {(row["arm"], row["seed"], row["steps"]) for row in rows}
    for seed in SEEDS:
        for arm in ARMS:
            if (arm, seed, steps) not in done:
                rows.append(trained(arm, seed, images, steps))
                report(f"Fashion-MNIST, every layer cut, {steps} steps", rows, "every_layer_cut")


if __name__ == "__main__":
    main()
