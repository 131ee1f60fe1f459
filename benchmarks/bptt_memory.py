"""What does exact backprop through time cost in a window's memory?

An LSTM of 64 units on sequences of 960 steps, batch 32, a loss at each step: one graph of the whole sequence, and
`boundary="bptt"` in windows of 8 and 40 steps, which stores each window's first state, runs the windows again from the
last to the first, and holds the graph of one at a time. The gradients are equal. Memory is what autograd holds at most
during a step (each storage once, parameters apart), and the states that are stored.
"""

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

WIDTH, INPUTS, STEPS, BATCH = 64, 16, 960, 32
ROUNDS, SEED = 12, 0
STATES = ("h", "c")


def sgd(parameters: Any) -> torch.optim.SGD:
    """The optimiser of every arm."""
    return torch.optim.SGD(parameters, 1e-3)


def net() -> tuple[nn.LSTM, nn.Linear]:
    """The same in every arm."""
    torch.manual_seed(SEED)
    return nn.LSTM(INPUTS, WIDTH), nn.Linear(WIDTH, 1)


def plain(x: Tensor, y: Tensor) -> tuple[Callable[[], Any], list[Tensor], int]:
    """One graph of the whole sequence; its parameters, and no bytes that are stored beside it."""
    core, readout = net()
    parameters = [*core.parameters(), *readout.parameters()]
    optimizer = sgd(parameters)

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(readout(core(x)[0]), y).backward()
        optimizer.step()

    return step, list(parameters), 0


def windows(x: Tensor, y: Tensor, horizon: int) -> tuple[Callable[[], Any], list[Tensor], int]:
    """Ours, in windows of so many steps; its parameters, and the bytes of the states that it stores."""
    core, readout = net()
    rnn = dg.Recurrent(core, horizon=horizon, readout=readout, loss=F.mse_loss, optimizer=sgd, boundary="bptt",
                       clip=None, monitor=0)  # fmt: skip
    stored = STEPS // horizon * len(STATES) * BATCH * WIDTH * x.element_size()
    return lambda: rnn.run(x, y), list(rnn.parameters()), stored


def peak_mib(step: Callable[[], Any], parameters: list[Tensor], stored: int) -> float:
    """The MiB that one step holds at most."""
    step()
    with dg.saved_bytes(excluding=parameters) as count:
        step()
    return (count.peak + stored) / 2**20


def table(results: list[Row]) -> str:
    """Memory and time by arm."""
    heads = (
        "backprop through 960 steps, LSTM 64, batch 32",
        "held, peak",
        "x one graph",
        "time x one graph (quartiles)",
    )
    lines = [
        (r["arm"], f"{r['MiB']:.1f} MiB", f"{r['MiB ratio']:.2f}", f"{r['ratio']:.2f} ({r['ratio quartiles']})")
        for r in results
    ]
    return tables.markdown(heads, lines)


@click.command()
@click.option("--rounds", default=ROUNDS, help="In each of which all arms take turns; at least 2.")
def main(rounds: int) -> None:
    """Run all arms and write the results."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    x, y = torch.randn(STEPS, BATCH, INPUTS), torch.randn(STEPS, BATCH, 1)
    arms = {"one graph": plain(x, y), "bptt, T=8": windows(x, y, 8), "bptt, T=40": windows(x, y, 40)}
    peaks = {name: peak_mib(*arm) for name, arm in arms.items()}
    timings = alternate({name: step for name, (step, *_) in arms.items()}, rounds)
    rows = [{**as_row(t), "MiB": peaks[t.arm], "MiB ratio": peaks[t.arm] / peaks["one graph"]} for t in timings]
    report("backprop through 960 steps, one thread; ratios to one graph", "bptt_memory", rows, SEED)


if __name__ == "__main__":
    main()
