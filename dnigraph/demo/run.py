"""The demo: a small ResNet, cut into 4 parts, learns real images in every way that there is, beside the controls."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from ..bench.arms import BACKPROP, Arm, Contestant, controls
from ..bench.batches import Batch
from ..decouple import decouple
from ..draw import draw as draw_graph
from ..heads.conditions import one_hot
from ..proof.probe import probe
from . import images

CUTS = ["layer1", "layer2", "layer3"]
STEPS = {"digits": 500, "mnist": 400, "fashion-mnist": 400, "cifar10": 300}  # about two minutes on two cores in all
LEARNING_RATE = 1e-3


class Block(nn.Module):
    """Two convolutions beside a skip connection."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        self.skip = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: [batch, inside, H, W] -> [batch, outside, H / stride, W / stride]."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """Four residual blocks and a classifier."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.layer1 = Block(16, 16, 1)
        self.layer2 = Block(16, 32, 2)
        self.layer3 = Block(32, 32, 1)
        self.layer4 = Block(32, 64, 2)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: [batch, channels, H, W] -> [batch, classes]."""
        h = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.fc(h.mean((2, 3)))  # type: ignore[no-any-return]  # a module call


def arms(steps: int) -> list[Arm]:
    """Every way of learning, and the controls without which no figure of theirs says anything."""
    return [
        Arm(BACKPROP, None),
        Arm("auto: through later layers", "auto"),
        Arm("local loss", "local-loss"),
        Arm("cDNI: heads see the label", "dni"),
        Arm("DNI: heads do not", "dni", labelled=False),
        *controls(steps),
    ]


@dataclass
class Outcome:
    """What an arm came to."""

    arm: Arm
    accuracy: float  # on the test images, eval mode
    train_loss: float  # on the training images, eval mode
    seconds: float  # per step, median
    saved: int  # peak bytes that autograd held in one step
    crossings: dict[str, float]
    weights: dict[str, float]


def run(
    name: str, steps: int | None, batch: int, seed: int, drawing: Path, console: Console | None = None
) -> list[Outcome]:
    """Train every arm on the same batches from the same weights, and print what came of it.

    Raises:
        DataError: the images cannot be had here.
    """
    console = console or Console()
    console.width = max(console.width, 116)  # the tables need it, also where there is no terminal
    found = images.load(name)
    steps = steps or STEPS[name]
    example = found.train_images[:batch]
    first = decouple(_model(found, seed), CUTS, (example,), condition=one_hot(len(found.classes)))
    console.print(f"\n{name}: {len(found.train_images)} images to learn from, {len(found.test_images)} to test on\n")
    console.print(str(first.plan), markup=False, highlight=False)
    drawing.parent.mkdir(parents=True, exist_ok=True)
    draw_graph(first, drawing)
    console.print(f"\nthe cut graph is drawn in {drawing}\n")
    ways = arms(steps)
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(ways) * steps)
        outcomes = []
        for arm in ways:
            bar.update(task, description=arm.name)
            outcomes.append(_train(arm, found, steps, batch, seed, lambda: bar.advance(task)))
    console.print(_table(outcomes))
    _explain(console, outcomes)
    return outcomes


def _model(found: images.Images, seed: int) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(found.train_images.shape[1], len(found.classes))


def _train(arm: Arm, found: images.Images, steps: int, batch: int, seed: int, tick: Callable[[], None]) -> Outcome:
    x, y = found.train_images[:batch], found.train_labels[:batch]
    one = Contestant(
        arm,
        _model(found, seed),
        CUTS,
        Batch((x,), {}, y),
        F.cross_entropy,
        _adam,
        one_hot(len(found.classes)),
        False,
        {},
    )
    for i, (x, y) in enumerate(_batches(found, steps, batch, seed)):
        one.step(Batch((x,), {}, y), timed=i < steps - 1)  # counting bytes slows a step down: it is not timed
        tick()
    look = None if one.run is None or arm.control else probe(one.dm, x, target=y, loss=F.cross_entropy)
    accuracy, _ = _evaluate(one.model, found.test_images, found.test_labels)
    _, loss = _evaluate(one.model, found.train_images[:2000], found.train_labels[:2000])
    nothing: dict[str, float] = {}
    crossings, weights = (look.crossings, look.weights) if look else (nothing, nothing)
    return Outcome(arm, accuracy, loss, median(one.seconds or [0.0]), one.held, crossings, weights)


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, LEARNING_RATE)


def _batches(found: images.Images, steps: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picked = torch.randint(len(found.train_labels), (batch,), generator=generator)
        yield found.train_images[picked], found.train_labels[picked]


@torch.no_grad()
def _evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy and loss in eval mode."""
    model.eval()
    out = torch.cat([model(chunk) for chunk in torch.split(x, 1000)])
    model.train()
    return float((out.argmax(1) == y).float().mean()), float(F.cross_entropy(out, y))


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(title="learned from the same batches, from the same weights")
    for head in ("", "test", "loss", "ms", "x bp", "held", "cos at cuts", "cos weights"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    base = outcomes[0]
    for o in outcomes:
        low = next(iter(o.weights.values()), None)
        table.add_row(
            ("control: " if o.arm.control else "") + o.arm.name,
            f"{100 * o.accuracy:.1f}%",
            f"{o.train_loss:.3f}",
            f"{1000 * o.seconds:.1f}",
            f"{o.seconds / base.seconds:.2f}" if base.seconds else "",
            f"{o.saved / 2**20:.2f} MiB",
            " ".join(f"{cosine:.2f}" for cosine in o.crossings.values()),
            "" if low is None else f"{low:.2f}",
        )
    return table


def _explain(console: Console, outcomes: list[Outcome]) -> None:
    console.print(
        "test: accuracy on the test images. loss: on training images. ms: a step; x bp: the same beside backprop's.\n"
        "held: the most that autograd held in a step. cos at cuts: between the gradient that a boundary hands down\n"
        "and the true one, on the last batch. cos weights: the same for part_0's weights, which learning follows.\n"
        "A way of learning is worth its name only where it beats the controls; more cuts cost more.\n"
        "In one process nothing runs at the same time: the gain is memory, the price is the heads' time.",
        markup=False,
        highlight=False,
    )
