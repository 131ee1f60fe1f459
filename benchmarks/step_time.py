"""How much longer is a training step with boundaries than with backprop, and than the shortest DNI loop by hand?

An MLP 784-256-256-10 with BatchNorm, batch 256, Adam, one thread, 1 and 2 cuts. The hand-written loop has the same head
(a linear one) as the two arms that are compared with it; the other arms show what other heads cost.
"""

import warnings
from collections.abc import Callable
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnigraph as dg

from . import tables
from .rows import Row
from .timing import alternate, as_row, report

HEAD = dg.dni(guard=False)  # what stands still costs nothing: its estimate is followed here in any case
BATCH, WIDTH, CLASSES = 256, 256, 10
LEARNING_RATE, SEED = 3e-4, 0
ROUNDS, REPEATS = 40, 10  # REPEATS steps between two looks at the clock: one takes only milliseconds


def layers() -> list[nn.Module]:
    """The layers of the MLP, as three blocks."""
    sizes = [(784, WIDTH), (WIDTH, WIDTH)]
    hidden = [nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in sizes]
    return [*hidden, nn.Linear(WIDTH, CLASSES)]


def model() -> nn.Sequential:
    """The MLP."""
    torch.manual_seed(SEED)
    return nn.Sequential(*layers())


def adam(parameters: Any) -> torch.optim.Adam:
    """The optimiser of every arm."""
    return torch.optim.Adam(parameters, LEARNING_RATE)


def backprop(x: Tensor, y: Tensor) -> Callable[[], Any]:
    """The plain training step."""
    net = model()
    optimizer = adam(net.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def by_hand(x: Tensor, y: Tensor, cuts: int) -> Callable[[], Any]:
    """What somebody would write for this one model: a linear head on each cut, one forward pass of it a step."""
    blocks = [nn.Sequential(*part) for part in _grouped(list(model()), cuts)]
    heads = [nn.Linear(WIDTH, WIDTH) for _ in range(cuts)]
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    optimizers = [adam(block.parameters()) for block in blocks]
    head_optimizers = [adam(head.parameters()) for head in heads]

    def step() -> None:
        entered, waiting = x, None
        for i, block in enumerate(blocks):
            optimizers[i].zero_grad()
            h = block(entered)
            if i < cuts:
                estimate = heads[i](h.detach())
                h.backward(estimate.detach() / BATCH)
            else:
                F.cross_entropy(h, y).backward()
            optimizers[i].step()
            if waiting is not None:
                head_optimizers[i - 1].zero_grad()
                F.mse_loss(waiting, entered.grad * BATCH).backward()
                head_optimizers[i - 1].step()
            if i < cuts:
                entered, waiting = h.detach().requires_grad_(), estimate

    return step


def drop_in(x: Tensor, y: Tensor, cuts: int, **options: Any) -> Callable[[], Any]:
    """Ours in an ordinary training loop."""
    dm = _decoupled(x, cuts, **options)
    optimizer = adam(dm.parameters())

    def step() -> None:
        optimizer.zero_grad()
        with dm.conditioned(y):
            loss = F.cross_entropy(dm(x), y)
        loss.backward()
        optimizer.step()

    return step


def local(x: Tensor, y: Tensor, cuts: int, **options: Any) -> Callable[[], Any]:
    """Ours, part by part."""
    runner = dg.Local(_decoupled(x, cuts, **options), loss=F.cross_entropy, optimizer=adam)
    return lambda: runner.step(x, target=y)


def _grouped(blocks: list[nn.Module], cuts: int) -> list[list[nn.Module]]:
    return [[blocks[0]], [blocks[1]], [blocks[2]]] if cuts == 2 else [[blocks[0]], blocks[1:]]


def _decoupled(x: Tensor, cuts: int, **options: Any) -> dg.DecoupledModule:
    condition = options.pop("condition", dg.one_hot(CLASSES))
    return dg.decouple(model(), ["0", "1"][:cuts], (x,), condition=condition, **{"boundary": HEAD, **options})


def table(results: list[Row]) -> str:
    """Ratios to backprop by arm and number of cuts."""
    ratios = {(row["arm"], row["cuts"]): f"{row['ratio']:.2f} ({row['ratio quartiles']})" for row in results}
    arms = dict.fromkeys(row["arm"] for row in results)
    heads = ("training step, MLP 784-256-256-10, batch 256", "1 cut, x backprop (quartiles)", "2 cuts")
    return tables.markdown(heads, [(arm, ratios[arm, 1], ratios[arm, 2]) for arm in arms])


@click.command()
@click.option("--rounds", default=ROUNDS, help="In each of which all arms take turns; at least 2.")
def main(rounds: int) -> None:
    """Run all arms and write the results."""
    warnings.simplefilter("ignore", dg.UnconditionedWarning)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    x, y = torch.randn(BATCH, 784), torch.randint(CLASSES, (BATCH,))
    rows = []
    for cuts in (1, 2):
        same = {"head": "linear", "condition": None}  # the same head as the loop by hand
        arms = {
            "plain backprop": backprop(x, y),
            "DNI by hand, linear head": by_hand(x, y, cuts),
            "drop-in, linear head": drop_in(x, y, cuts, **same),
            "Local, linear head": local(x, y, cuts, **same),
            "drop-in, auto head, label": drop_in(x, y, cuts),
            "Local, auto head, label": local(x, y, cuts),
            "Local, low-rank head, label": local(x, y, cuts, head="low-rank"),
            "Local, local loss": local(x, y, cuts, boundary="local-loss"),
        }
        rows += [{"cuts": cuts, **as_row(t)} for t in alternate(arms, rounds, REPEATS)]
    title = "one training step, MLP 784-256-256-10, batch 256, one thread; ratio to plain backprop"
    report(title, "step_time", rows, SEED)


if __name__ == "__main__":
    main()
