"""What does a window cost with a head at its end, against truncated backprop?

An LSTM of 256 units, windows of 8 steps, 64 inputs and 64 classes, batch 32, Adam, gradients clipped, one thread. The
first arm is the usual loop, written by hand; arms take turns.
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

WIDTH, STEPS, BATCH, CLASSES = 256, 8, 32, 64
ROUNDS, SEED = 60, 0


def adam(parameters: Any) -> torch.optim.Adam:
    """The optimiser of every arm."""
    return torch.optim.Adam(parameters, 1e-3)


def by_hand(x: Tensor, y: Tensor) -> Callable[[], Any]:
    """Truncated backprop as one writes it."""
    torch.manual_seed(SEED)
    core, readout = nn.LSTM(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES)
    parameters = [*core.parameters(), *readout.parameters()]
    optimizer, states = adam(parameters), [None]  # after the last window

    def step() -> None:
        out, state = core(x, states[0])
        optimizer.zero_grad()
        F.cross_entropy(readout(out).flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        states[0] = tuple(t.detach() for t in state)

    return step


def ours(x: Tensor, y: Tensor, **options: Any) -> Callable[[], Any]:
    """A window of `dg.Recurrent`."""
    torch.manual_seed(SEED)
    core, readout = nn.LSTM(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES)
    rnn = dg.Recurrent(core, horizon=STEPS, readout=readout, loss=F.cross_entropy, optimizer=adam, **options)
    return lambda: rnn.step(x, y)


def table(results: list[Row]) -> str:
    """Ratios to the loop by hand, by arm."""
    heads = ("a window of 8 steps, LSTM 256, batch 32", "time x by hand (quartiles)")
    return tables.markdown(heads, [(row["arm"], f"{row['ratio']:.2f} ({row['ratio quartiles']})") for row in results])


@click.command()
@click.option("--rounds", default=ROUNDS, help="In each of which all arms take turns; at least 2.")
def main(rounds: int) -> None:
    """Run all arms and write the results."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    x, y = torch.randn(STEPS, BATCH, CLASSES), torch.randint(CLASSES, (STEPS, BATCH))
    arms = {
        "truncated, by hand": by_hand(x, y),
        "truncated": ours(x, y, boundary="silent"),
        "DNI": ours(x, y),
        "DNI + auxiliary": ours(x, y, boundary=dg.dni_in_time(auxiliary=True)),
        "DNI, two passes": ours(x, y, boundary=dg.dni_in_time(scale=0.3, discount=1.0)),
    }
    rows = [as_row(timing) for timing in alternate(arms, rounds)]
    title = "a window of 8 steps, LSTM 256, batch 32, one thread; ratios to the loop by hand"
    report(title, "window_time", rows, SEED)


if __name__ == "__main__":
    main()
