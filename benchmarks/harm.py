"""Does cutting a model do harm: is a boundary ever worse than silence, or than backprop for a while and then nothing?

Six small tasks, each with parts below cuts that could stand still: a GPT-2 (one cut, learns a text by heart), a fully
connected net (every layer cut), a CNN and a U-Net on Fashion-MNIST, a graph net, and a residual net that regresses. The
controls are silence (the parts below the cuts never learn) and the freeze control (backprop for the first sixth of the
steps, then silence). Scores are means of four evaluations at 85, 90, 95 and 100% of the steps: test error in per cent,
of the GPT-2 the train loss, of the regression the squared error in per cent of the target's variance.

Each row is written as soon as it is there, and a run that was stopped goes on with the next one. `--jobs N` runs N
processes of one thread. `--pack FILE` writes the few megabytes of data that all tasks need, and `--data FILE` reads
them where there is no network.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.demo import images, texts

from . import rows, tables
from .classifier import marks
from .rows import Row

SEEDS = (0, 1, 2)
TRAIN, TEST, LETTERS = 35_000, 5_000, 20_000  # images, and characters of the text
Data = dict[str, Tensor]
Batch = tuple[tuple[Tensor, ...], Tensor]  # what the model takes, and the target


# ---- the tasks


@dataclass(frozen=True)
class Task:
    """A model, where it is cut, and what it learns."""

    model: Callable[[Data], nn.Module]
    cuts: tuple[str, ...]
    batch: Callable[[Data, torch.Generator, bool], Batch]  # True: one of the test set
    loss: Callable[[Tensor, Tensor], Tensor]
    labels: Callable[[Data], int]  # how many classes, or numbers, a label has
    score: Callable[[Tensor, Tensor], Tensor]  # of one output
    steps: int
    rate: float
    unit: str = "test error %"
    tests: int = 8  # batches of an evaluation


def per_position(scores: Tensor, label: Tensor) -> Tensor:
    """The cross-entropy of tokens. Shapes: [batch, tokens, classes], [batch, tokens]."""
    return F.cross_entropy(scores.flatten(0, 1), label.flatten())


def error(scores: Tensor, label: Tensor) -> Tensor:
    """Per cent of wrong answers, classes on axis 1; where there is a background, 0, it is not counted."""
    wrong = (scores.argmax(1) != label).float()
    return 100 * (wrong.mean() if label.ndim == 1 else wrong[label > 0].mean())


class Block(nn.Module):
    """Attention and a network per token, each behind a LayerNorm. Shapes: [batch, tokens, width] -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = self.query_key_value(self.norm_1(x)).view(shape).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """GPT-2 with untied embeddings, drawn as its own are. Shapes: [batch, tokens] -> [batch, tokens, vocabulary]."""

    def __init__(self, vocabulary: int, width: int = 48, layers: int = 4, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0, 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        scores: Tensor = self.head(self.norm(h))
        return scores


def text_batch(data: Data, generator: torch.Generator, test: bool) -> Batch:
    """16 stretches of 64 characters, and the characters that follow."""
    text = data["text"]
    at = torch.randint(len(text) - 65, (16,), generator=generator)
    found = torch.stack([text[i : i + 65] for i in at.tolist()])
    return (found[:, :-1],), found[:, 1:]


def picked(data: Data, generator: torch.Generator, test: bool, count: int) -> tuple[Tensor, Tensor]:
    """Some images, and their labels."""
    x, y = (data["test_images"], data["test_labels"]) if test else (data["train_images"], data["train_labels"])
    at = torch.randint(len(x), (count,), generator=generator)
    return x[at].float().div(255).unsqueeze(1), y[at]


def fcn(data: Data) -> nn.Module:
    sizes = [(784, 128), (128, 128), (128, 128)]
    hidden = [nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in sizes]
    return nn.Sequential(*hidden, nn.Linear(128, 10))


def flat_batch(data: Data, generator: torch.Generator, test: bool) -> Batch:
    x, y = picked(data, generator, test, TEST if test else 128)
    return (x.flatten(1),), y


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def cnn(data: Data) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(convolution(1, 16), nn.MaxPool2d(2)),
        nn.Sequential(convolution(16, 16), nn.MaxPool2d(2)),
        convolution(16, 16),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def image_batch(data: Data, generator: torch.Generator, test: bool) -> Batch:
    x, y = picked(data, generator, test, 1000 if test else 64)
    return (x,), y


class UNet(nn.Module):
    """Down twice, up twice, with skip connections. Shapes: [batch, 1, 28, 28] -> [batch, 11, 28, 28]."""

    def __init__(self) -> None:
        super().__init__()
        self.down_1, self.down_2, self.middle = convolution(1, 8), convolution(8, 16), convolution(16, 16)
        self.up_2, self.up_1, self.out = convolution(32, 16), convolution(24, 16), nn.Conv2d(16, 11, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down_1(x)
        second = self.down_2(F.max_pool2d(first, 2))
        up = F.interpolate(self.middle(F.max_pool2d(second, 2)), scale_factor=2)
        up = F.interpolate(self.up_2(torch.cat((up, second), 1)), scale_factor=2)
        scores: Tensor = self.out(self.up_1(torch.cat((up, first), 1)))
        return scores


def segment_batch(data: Data, generator: torch.Generator, test: bool) -> Batch:
    """Four clothes of half the size, side by side; the label of a pixel is its clothing's, 1 to 10, or 0, nothing."""
    count = 64 if test else 16
    x, y = picked(data, generator, test, 4 * count)
    x = F.avg_pool2d(x, 2).view(count, 2, 2, 14, 14)
    label = (x > 0.15) * (y.view(count, 2, 2, 1, 1) + 1)
    whole = [t.permute(0, 1, 3, 2, 4).reshape(count, 28, 28) for t in (x, label)]
    noise = torch.randn(count, 28, 28, generator=generator)
    return ((whole[0] + 0.1 * noise).unsqueeze(1),), whole[1]


class GraphNet(nn.Module):
    """Three layers that average over neighbours. Shapes: nodes [nodes, 16], edges [nodes, nodes] -> [nodes, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_1, self.layer_2, self.layer_3 = nn.Linear(16, 48), nn.Linear(96, 48), nn.Linear(96, 48)
        self.norm_1, self.norm_2, self.norm_3 = (nn.BatchNorm1d(48) for _ in range(3))
        self.out = nn.Linear(48, 6)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        h = self.norm_1(self.layer_1(nodes)).relu()
        h = self.norm_2(self.layer_2(torch.cat((h, edges @ h), 1))).relu()
        h = self.norm_3(self.layer_3(torch.cat((h, edges @ h), 1))).relu()
        scores: Tensor = self.out(h)
        return scores


def graph_batch(data: Data, generator: torch.Generator, test: bool) -> Batch:
    """A new graph: nodes of six kinds, each with 16 noisy numbers, and more edges within a kind than between two."""
    y = torch.randint(6, (200,), generator=generator)
    nodes = data["kinds"][y] + 2.5 * torch.randn(200, 16, generator=generator)
    chance = torch.where(y[:, None] == y, 0.10, 0.02)
    edges = (torch.rand(200, 200, generator=generator) < chance).float().triu(1)
    edges = edges + edges.T
    return (nodes, edges / edges.sum(1, keepdim=True).clamp(min=1)), y


class Residual(nn.Module):
    """Shapes: [batch, width] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())  # type: ignore[no-any-return]  # a module call


def regressor(data: Data) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 64), *[Residual(64) for _ in range(3)], nn.LayerNorm(64), nn.Linear(64, 2))


def number_batch(data: Data, generator: torch.Generator, test: bool) -> Batch:
    """Two numbers that depend on twelve others through products and waves."""
    x = torch.randn(2000 if test else 128, 12, generator=generator)
    inner = x @ data["mixing"]
    y = torch.stack((inner[:, 0] * inner[:, 1] + (2 * inner[:, 2]).sin(), (inner[:, 3] * inner[:, 4]).tanh()), 1)
    return (x,), y


TASKS = {
    "GPT-2": Task(
        lambda data: GPT(int(data["text"].max()) + 1), ("blocks.1",), text_batch, per_position,
        lambda data: int(data["text"].max()) + 1, per_position, 300, 2e-3, "train loss",
    ),
    "FCN": Task(fcn, ("0", "1", "2"), flat_batch, F.cross_entropy, lambda data: 10, error, 1500, 1e-3, tests=1),
    "CNN": Task(cnn, ("0", "1"), image_batch, F.cross_entropy, lambda data: 10, error, 800, 2e-3, tests=4),
    "U-Net": Task(
        lambda data: UNet(), ("down_1", "down_2"), segment_batch, F.cross_entropy, lambda data: 11, error, 600, 2e-3
    ),
    "graph net": Task(
        lambda data: GraphNet(), ("relu", "relu_1"), graph_batch, F.cross_entropy, lambda data: 6, error, 600, 1e-3,
        tests=16,
    ),
    "regression": Task(
        regressor, ("1", "2"), number_batch, F.mse_loss, lambda data: 2,
        lambda out, y: 100 * (out - y).square().mean() / y.var(0).mean(), 1500, 1e-3, "squared error %", tests=1,
    ),
}  # fmt: skip


def loaded(file: Path | None) -> Data:
    """What the tasks learn from."""
    if file is not None:
        with np.load(file) as found:
            return {name: torch.from_numpy(found[name]) for name in found.files}
    clothes, text = images.load("fashion-mnist"), texts.load_text("king-james").train[:LETTERS]
    known = torch.unique(text)
    generator = torch.Generator().manual_seed(0)
    return {
        "train_images": (clothes.train_images[:TRAIN, 0] * 255).round().byte(),
        "train_labels": clothes.train_labels[:TRAIN].clone(),
        "test_images": (clothes.test_images[:TEST, 0] * 255).round().byte(),
        "test_labels": clothes.test_labels[:TEST].clone(),
        "text": torch.searchsorted(known, text),
        "kinds": torch.randn(6, 16, generator=generator),
        "mixing": torch.randn(12, 5, generator=generator) / 12**0.5,
    }


# ---- the arms


@dataclass(frozen=True)
class Arm:
    """What stands on the cuts, and whether it sees the label."""

    boundary: Callable[[Task], Any]
    label: bool = True


def local(task: Task) -> Any:
    """A local loss of the kind of the task's own."""
    return dg.local_loss(loss=F.mse_loss) if task.loss is F.mse_loss else "local-loss"


def later(task: Task) -> Any:
    """A local loss behind copies of later layers."""
    return dg.auglocal(loss=F.mse_loss if task.loss is F.mse_loss else F.cross_entropy)


ARMS = {
    "backprop": Arm(lambda task: "oracle"),
    "silence": Arm(lambda task: "silent"),
    "backprop for a sixth, then silence": Arm(lambda task: dg.silent(warm_up=task.steps // 6)),
    "DNI, unguarded": Arm(lambda task: dg.dni(guard=False), label=False),
    "DNI": Arm(lambda task: "dni", label=False),
    "cDNI, unguarded": Arm(lambda task: dg.dni(guard=False)),
    "cDNI": Arm(lambda task: "dni"),
    "local loss": Arm(local),
    "AugLocal": Arm(later),
    "auto": Arm(lambda task: "auto"),
    "auto, without a label": Arm(lambda task: "auto", label=False),
}


def trained(name: str, arm: str, seed: int, data: Data) -> Row:
    """One row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task, how = TASKS[name], ARMS[arm]
    torch.manual_seed(seed)
    model = task.model(data)
    generator = torch.Generator().manual_seed(seed)
    example, _ = task.batch(data, torch.Generator().manual_seed(seed), False)
    condition = dg.one_hot(task.labels(data)) if how.label else None
    dm = dg.decouple(model, list(task.cuts), example, boundary=how.boundary(task), condition=condition, check=False)
    run = dg.Local(dm, loss=task.loss, optimizer=lambda p: torch.optim.AdamW(p, task.rate, weight_decay=0), monitor=0)
    scores, losses = list[float](), list[float]()
    started = time.process_time()
    for step in range(1, task.steps + 1):
        inputs, target = task.batch(data, generator, False)
        losses.append(float(run.step(*inputs, target=target).loss))
        if step in marks(task.steps):
            scores.append(evaluated(task, model, data))
    seconds, tenth = time.process_time() - started, task.steps // 10
    train_loss = sum(losses[-tenth:]) / tenth
    metrics = {crossing: boundary.metrics() for crossing, boundary in dm.boundaries.items()}
    return {
        "task": name,
        "arm": arm,
        "seed": seed,
        "steps": task.steps,
        "score": train_loss if task.unit == "train loss" else sum(scores) / len(scores),
        "unit": task.unit,
        "train loss": train_loss,
        "seconds": seconds,
        "boundary": ", ".join(sorted({boundary.kind for boundary in dm.boundaries.values()})),
        "explained": {crossing: found["explained"] for crossing, found in metrics.items() if "explained" in found},
        "open": {crossing: found["open"] for crossing, found in metrics.items() if "open" in found},
    }


@torch.no_grad()
def evaluated(task: Task, model: nn.Module, data: Data) -> float:
    """The score in eval mode, on the same batches at all times."""
    generator = torch.Generator().manual_seed(1)
    model.eval()
    found = []
    for _ in range(task.tests):
        inputs, target = task.batch(data, generator, True)
        found.append(task.score(model(*inputs), target))
    model.train()
    return float(torch.stack(found).mean())


# ---- the rows

_data: Data = {}


def _share(data: Data) -> None:
    _data.update(data)


def _row(key: tuple[str, str, int]) -> Row:
    try:
        return trained(*key, _data)
    except Exception as failure:  # the other rows are made all the same
        return {"task": key[0], "arm": key[1], "seed": key[2], "failed": f"{type(failure).__name__}: {failure}"}


def made(keys: list[tuple[str, str, int]], data: Data, jobs: int) -> Iterator[Row]:
    """The rows, as they are ready."""
    if jobs == 1:
        _share(data)
        yield from map(_row, keys)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _share, (data,)) as pool:
        yield from pool.imap_unordered(_row, keys)


def table(results: list[Row]) -> str:
    """The scores, and the train losses, by arm and task."""
    return "\n".join(_table(results, score) for score in ("score", "train loss"))


def _table(results: list[Row], score: str) -> str:
    found = tables.groups([row for row in results if score in row], "arm", "task")
    names = [f"{name}, {TASKS[name].unit if score == 'score' else score}" for name in TASKS]
    lines = [
        (arm, *(tables.spread(found[arm, task], score, ".3g") if (arm, task) in found else "-" for task in TASKS))
        for arm in ARMS
        if any((arm, task) in found for task in TASKS)
    ]
    seeds = len({row["seed"] for row in results})
    return tables.markdown((f"six tasks, {seeds} seeds: mean (least-most)", *names), lines)


@click.command()
@click.option("--jobs", default=1, help="Processes, of one thread each.")
@click.option("--minutes", default=60.0, help="No row is awaited for longer.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="A file that --pack wrote.")
@click.option("--pack", type=click.Path(path_type=Path), help="Write the data, and end.")
@click.option("--task", "tasks", multiple=True, type=click.Choice(list(TASKS)), help="Only these.")
@click.option("--arm", "arms", multiple=True, type=click.Choice(list(ARMS)), help="Only these.")
def main(
    jobs: int, minutes: float, data: Path | None, pack: Path | None, tasks: tuple[str, ...], arms: tuple[str, ...]
) -> None:
    """Run what is not there yet; rows are written as they come."""
    if pack is not None:
        np.savez_compressed(pack, **{name: value.numpy() for name, value in loaded(data).items()})
        return
    file = rows.results("harm")
    done = set(tables.groups([row for row in rows.read(file) if "score" in row], "task", "arm", "seed"))
    keys = [(t, a, s) for s in SEEDS for t in tasks or TASKS for a in arms or ARMS if (t, a, s) not in done]
    until = time.monotonic() + 60 * minutes
    for row in made(keys, loaded(data), jobs):
        rows.put(file, row, ("task", "arm", "seed"))
        print(rows.rounded(row, 4), flush=True)
        if time.monotonic() > until:
            return
    print(table(rows.read(file)))


if __name__ == "__main__":
    main()
