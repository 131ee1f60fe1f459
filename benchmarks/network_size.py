"""Does a tick of a network cost the same per link, however many agents there are?

Agents of 40 weights with two inputs and a loss, 100 to 3,000 of them with about two links each: a chain (each feeds the
next two), a random graph with circles, and a star (one feeds all others with one message; they feed each other in a
ring, and the last one feeds the first). Every link from agent to agent has a linear head; batches of 2, plain SGD.

Timed are wiring (add, connect), the start (validate: the wiring, a trial run, heads and optimisers), and a tick. Linear
means that the microseconds per link stay the same; ratios are to the network of 100 agents. Python's garbage collector,
which now and then looks through all objects that there are, is part of it. Seconds are of processor time on one thread,
medians over the rounds, in each of which all sizes take turns.
"""

import random
import warnings
from statistics import median

import click
import torch
from torch import Tensor, nn

import dnigraph as dg

from . import tables
from .compile_time import timed
from .rows import Row
from .timing import report

HEAD = dg.dni(guard=False)  # what stands still costs nothing: its estimate is followed here in any case
WIDTH, BATCH = 4, 2  # small: the time is that of the network, not of tensors
SIZES = (100, 300, 1000, 3000)
ROUNDS, TICKS, SEED = 5, 3, 0
Edges = list[tuple[int, list[int], str]]  # from, to, and the input that is fed


class Small(nn.Module):
    """Shapes: one, other [batch, WIDTH] -> [batch, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.tanh(self.one(one) + self.other(other))


def chain(agents: int) -> Edges:
    """Each feeds the next two."""
    near: Edges = [(i, [i + 1], "one") for i in range(agents - 1)]
    return near + [(i, [i + 2], "other") for i in range(agents - 2)]


def tangle(agents: int) -> Edges:
    """Each hears of two that are drawn at random, itself among them."""
    chance = random.Random(0)
    return [(chance.randrange(agents), [i], port) for port in ("one", "other") for i in range(agents)]


def star(agents: int) -> Edges:
    """The first feeds all; they feed each other in a ring, and the last one feeds the first."""
    ring: Edges = [(i, [i % (agents - 1) + 1], "other") for i in range(1, agents)]
    return [(0, list(range(1, agents)), "one"), (agents - 1, [0], "one"), *ring]


def network(agents: int, edges: Edges) -> dg.Network:
    """So many small agents, wired."""
    net = dg.Network(optimizer=lambda p: torch.optim.SGD(p, 0.01))
    for i in range(agents):
        net.add(f"n{i}", Small(), loss=nn.functional.mse_loss)
    for begin, ends, port in edges:
        net.connect(
            f"n{begin}.output", [f"n{end}.{port}" for end in ends], head="linear", boundary=HEAD, initial=(WIDTH,)
        )
    return net


def case(edges: Edges, agents: int) -> dict[str, float]:
    """Seconds of one network's wiring, start and tick."""
    networks: list[dg.Network] = []
    wiring = timed(lambda: networks.append(network(agents, edges)))
    net = networks[0]
    free = {name: torch.ones(BATCH, WIDTH) for name in net.inputs}
    targets = {f"n{i}": torch.zeros(BATCH, WIDTH) for i in range(agents)}
    start = timed(lambda: net.validate(free))
    net.tick(free, targets)  # not timed: it makes the states of the optimisers, and links with a delay are still empty
    tick = timed(lambda: [net.tick(free, targets) for _ in range(TICKS)]) / TICKS
    return {"wiring": wiring, "start": start, "tick": tick}


def rows(rounds: int, sizes: tuple[int, ...]) -> list[Row]:
    """A row for each shape and size."""
    shapes: dict[tuple[str, int], Edges] = {
        (make.__name__, n): make(n) for make in (chain, tangle, star) for n in sizes
    }
    seconds: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in shapes}
    for _ in range(rounds):
        for key, edges in shapes.items():
            seconds[key].append(case(edges, key[1]))
    smallest: dict[str, dict[str, float]] = {}  # microseconds per link, by shape
    measured: list[Row] = []
    for (name, agents), times in seconds.items():
        links = sum(len(ends) for _, ends, _ in shapes[name, agents])
        each = {phase: median(1e6 * one[phase] / links for one in times) for phase in times[0]}
        base = smallest.setdefault(name, each)
        row = {"arm": name, "agents": agents, "links": links, "tick, ms": each["tick"] * links / 1000}
        row |= {f"{phase}, us/link": us for phase, us in each.items()}
        measured.append(row | {f"{phase}, ratio": us / base[phase] for phase, us in each.items()})
    return measured


def table(results: list[Row]) -> str:
    """A tick's time, and the ratios per link."""
    heads = ("small agents, one thread", "agents", "links", "a tick", "per link", "x 100 agents", "wiring", "start")
    lines = []
    for row in results:
        ratios = [f"{row[f'{phase}, ratio']:.2f}" for phase in ("tick", "wiring", "start")]
        sizes = (row["arm"], f"{row['agents']:,}", f"{row['links']:,}")
        lines.append((*sizes, f"{row['tick, ms']:,.0f} ms", f"{row['tick, us/link']:.0f} us", *ratios))
    return tables.markdown(heads, lines)


@click.command()
@click.option("--rounds", default=ROUNDS, help="In each of which all sizes take turns.")
@click.option("--most", default=SIZES[-1], help="Agents of the largest network.")
def main(rounds: int, most: int) -> None:
    """Run all cases and write the results."""
    warnings.simplefilter("ignore", dg.UnconditionedWarning)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    case(chain(10), 10)  # so that no case pays for imports on first use
    measured = rows(rounds, tuple(size for size in SIZES if size <= most))
    report("networks of small agents, one thread; ratios per link to 100 agents", "network_size", measured, SEED)


if __name__ == "__main__":
    main()
