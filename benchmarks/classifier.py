"""A net of four layers that learns images: what `every_layer_cut` and `asynchrony` have in common."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnigraph.demo import images

WIDTH, BATCH = 256, 256
MARKS = (0.85, 0.9, 0.95, 1.0)  # of a run: a score is the mean over these, since single evaluations swing


def net() -> nn.Sequential:
    """Four layers; the modules "0", "1" and "2" are the places to cut."""
    sizes = [(784, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)]
    hidden = [nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in sizes]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 10))


def digits() -> images.Images:
    """MNIST; Fashion-MNIST, which has the same form, where it cannot be had."""
    try:
        return images.load("mnist")
    except images.DataError:
        return images.load("fashion-mnist")


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


def marks(steps: int) -> set[int]:
    """The steps of a run that are evaluated for its row."""
    return {int(steps * mark) for mark in MARKS}


def means(curve: list[list[float]], steps: int) -> list[float] | None:
    """The mean of each number of the curve over the marks, without batches and seconds; None before the last mark."""
    points = [point[2:] for point in curve if point[0] in marks(steps)]
    if len(points) < len(marks(steps)):
        return None
    return [sum(values) / len(values) for values in zip(*points, strict=True)]


def error_and_loss(model: nn.Module, data: images.Images) -> tuple[float, float]:
    """Test error in per cent, and the loss on 10,000 of the images that it learns from."""
    error, _ = evaluate(model, data.test_images.flatten(1), data.test_labels)
    _, loss = evaluate(model, data.train_images[:10_000].flatten(1), data.train_labels[:10_000])
    return error, loss
