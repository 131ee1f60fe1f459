"""What does decoupling save in activation memory, and at what price in time?

A 16-layer convolutional net, in 2, 4 and 8 parts, against backprop and against `torch.utils.checkpoint` with as many
segments. Memory is what autograd holds at most during one step (each storage once, parameters apart).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

import dnigraph as dg

from . import tables
from .rows import Row
from .timing import alternate, as_row, report

HEAD = dg.dni(guard=False)  # what stands still costs nothing: its estimate is followed here in any case
LAYERS, CHANNELS, SIZE, BATCH, CLASSES = 16, 32, 16, 64, 10
ROUNDS, SEED = 12, 0


class ConvNet(nn.Module):
    """16 layers of 3x3 convolution, BatchNorm and ReLU, a mean and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *[CHANNELS] * LAYERS]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
                for i, o in pairwise(widths)
            )
        )
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: [batch, 3, H, W] -> [batch, classes]."""
        return self.fc(self.layers(x).mean((2, 3)))  # type: ignore[no-any-return]  # a module call


def adam(parameters: Any) -> torch.optim.Adam:
    """The optimiser of every arm."""
    return torch.optim.Adam(parameters, 1e-3)


def backprop(x: Tensor, y: Tensor, segments: int = 0) -> tuple[Callable[[], Any], list[Tensor]]:
    """The plain step, or with checkpointing in so many segments."""
    torch.manual_seed(SEED)
    net = ConvNet()
    optimizer = adam(net.parameters())

    def step() -> None:
        optimizer.zero_grad()
        if segments:
            out = net.fc(checkpoint_sequential(net.layers, segments, x, use_reentrant=False).mean((2, 3)))
        else:
            out = net(x)
        F.cross_entropy(out, y).backward()
        optimizer.step()

    return step, list(net.parameters())


def local(x: Tensor, y: Tensor, parts: int, **options: Any) -> tuple[Callable[[], Any], list[Tensor]]:
    """Ours, in so many parts."""
    torch.manual_seed(SEED)
    cuts = [f"layers.{LAYERS // parts * i - 1}" for i in range(1, parts)]
    dm = dg.decouple(ConvNet(), cuts, (x,), condition=dg.one_hot(CLASSES), check=False, **{"boundary": HEAD, **options})
    runner = dg.Local(dm, loss=F.cross_entropy, optimizer=adam, monitor=0)
    return lambda: runner.step(x, target=y), list(dm.parameters())


def peak_mib(step: Callable[[], Any], parameters: list[Tensor]) -> float:
    """The largest number of MiB that autograd keeps during one step."""
    step()
    step()
    with dg.saved_bytes(excluding=parameters) as count:
        step()
    return count.peak / 2**20


def table(results: list[Row]) -> str:
    """Memory and time by arm."""
    heads = ("16-layer conv net, batch 64", "activations held, peak", "x backprop", "time x backprop")
    return tables.markdown(
        heads,
        [(row["arm"], f"{row['MiB']:.1f} MiB", f"{row['MiB ratio']:.2f}", f"{row['ratio']:.2f}") for row in results],
    )


@click.command()
@click.option("--rounds", default=ROUNDS, help="In each of which all arms take turns; at least 2.")
def main(rounds: int) -> None:
    """Run all arms and write the results."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    x, y = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(CLASSES, (BATCH,))
    arms = {"backprop": backprop(x, y)}
    for parts in (2, 4, 8):
        arms[f"checkpoint, {parts} segments"] = backprop(x, y, parts)
        arms[f"Local, {parts} parts, auto heads"] = local(x, y, parts)
        arms[f"Local, {parts} parts, local loss"] = local(x, y, parts, boundary="local-loss")
    peaks = {name: peak_mib(*arm) for name, arm in arms.items()}
    timings = alternate({name: step for name, (step, _) in arms.items()}, rounds)
    base = peaks["backprop"]
    rows = [{**as_row(t), "MiB": peaks[t.arm], "MiB ratio": peaks[t.arm] / base} for t in timings]
    report("16-layer conv net, batch 64, one thread; ratios to backprop", "memory", rows, SEED)


if __name__ == "__main__":
    main()
