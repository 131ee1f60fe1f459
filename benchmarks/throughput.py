"""How many samples a second do two processes learn from, one half of a model in each, beside pipelines that wait?

Three models cut in the middle: eight layers of an MLP of width 1024, a convolutional net, a small transformer. One
process with one thread and with two; both halves at once without a message between them, which nothing can beat; GPipe
and 1F1B of `torch.distributed.pipelining`; and `dg.Distributed` with each answer that can come back: heads trained on
the true gradient in every step, the true gradient itself some steps late, a local loss, nothing, and lock step. All
arms take turns in one job of torchrun's launcher, one thread in each process where nothing else is said. Beside each
figure stands the share of the processor that other programs took meanwhile, in cores. With `--disturbed` a program that
does nothing useful shares the core of the second process.
"""

import itertools
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import dnigraph as dg

from . import rows, tables
from .rows import Row

SEED, LATE, WARM_UP = 0, 2, 3
ROUNDS, STEPS = 8, 12  # blocks of each arm, and steps of a block
Block = Callable[[int], None]  # makes so many steps, and ends when all of them have been learned from


class Case:
    """A model as a sequence, the layer behind which it is cut, and a batch.

    Attributes:
        classes: of the label that heads see.
        micro: the numbers of microbatches that the pipelines are given.
    """

    def __init__(
        self, layers: list[nn.Module], middle: int, x: Tensor, y: Tensor, classes: int, head: str,
        condition: dg.Condition | None = None,
    ):  # fmt: skip
        self.layers, self.middle, self.x, self.y, self.classes, self.head = layers, middle, x, y, classes, head
        self.condition = condition or dg.one_hot(classes)

    def model(self) -> nn.Sequential:
        """The whole model."""
        return nn.Sequential(*self.layers)

    def half(self, rank: int) -> nn.Sequential:
        """The layers of one process."""
        return nn.Sequential(*(self.layers[self.middle :] if rank else self.layers[: self.middle]))


def mlp() -> Case:
    """8 layers of 1024, batch 256."""
    layers = [nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()) for _ in range(7)] + [nn.Linear(1024, 1024)]
    return Case([*layers], 4, torch.randn(256, 1024), torch.randint(10, (256,)), 10, "low-rank")


def conv() -> Case:
    """8 convolutions of 64 channels on 16x16, batch 64."""
    widths = [3, *[64] * 8]
    layers: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in itertools.pairwise(widths)
    ]
    layers[-1].append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)))  # type: ignore[operator]
    return Case(layers, 4, torch.randn(64, 3, 16, 16), torch.randint(10, (64,)), 10, "auto")


def transformer() -> Case:
    """4 blocks of width 128 on 64 tokens, batch 16; the last layer predicts a token at each position."""
    blocks: list[nn.Module] = [
        nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True) for _ in range(4)
    ]
    layers = [nn.Sequential(nn.Embedding(64, 128), blocks[0]), *blocks[1:3]]
    layers.append(nn.Sequential(blocks[3], nn.Linear(128, 64)))
    tokens = torch.randint(64, (16, 65))
    return Case(layers, 2, tokens[:, :-1], tokens[:, 1:], 64, "auto", dg.embedded(64, 32))


CASES = {"mlp": mlp, "conv": conv, "transformer": transformer}


def made(name: str) -> Case:
    """A new copy of a case, the same in each process."""
    torch.manual_seed(SEED)
    return CASES[name]()


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the last axis."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of every arm."""
    return torch.optim.SGD(parameters, 1e-3)


def alone(case: Case, threads: int, rank: int) -> Block:
    """Backprop in the first process; the second does nothing."""
    model = case.model()
    adam = optimizer(model.parameters())

    def block(steps: int) -> None:
        if rank:
            return
        torch.set_num_threads(threads)
        for _ in range(steps):
            adam.zero_grad()
            loss(model(case.x), case.y).backward()
            adam.step()
        torch.set_num_threads(1)

    return block


def apart(case: Case, rank: int) -> Block:
    """Both halves at once, without messages: each reads the same value, and learns from the same gradient, always."""
    half = case.half(rank)
    adam = optimizer(half.parameters())
    entered, gradient = case.x, None
    with torch.no_grad():
        if rank:
            entered = case.half(0)(case.x)
        else:
            gradient = 1e-3 * torch.randn_like(half(case.x))

    def block(steps: int) -> None:
        for _ in range(steps):
            adam.zero_grad()
            value = entered.requires_grad_() if rank else entered
            if gradient is None:
                loss(half(value), case.y).backward()
            else:
                half(value).backward(gradient)
            adam.step()

    return block


def pipeline(case: Case, schedule: str, micro: int, rank: int) -> Block:
    """A schedule of torch's pipelines, with so many microbatches."""
    from torch.distributed import pipelining

    half = case.half(rank)
    adam = optimizer(half.parameters())
    stage = pipelining.PipelineStage(half, rank, 2, torch.device("cpu"))
    run = getattr(pipelining, schedule)(stage, n_microbatches=micro, loss_fn=loss)

    def block(steps: int) -> None:
        for _ in range(steps):
            adam.zero_grad()
            run.step(target=case.y) if rank else run.step(case.x)
            adam.step()

    return block


def ours(case: Case, late: int = LATE, head: str | None = None, **options: Any) -> Block:
    """The two halves as parts of `dg.Distributed`."""
    dm = dg.decouple(
        case.model(), [str(case.middle - 1)], (case.x,), condition=case.condition, head=head or case.head,
        check=False, **options,
    )  # fmt: skip
    run = dg.Distributed(
        dm, loss=loss, optimizer=optimizer, monitor=0, late=late, ranks={"part_0": 0, "part_1": 1}, patience=60.0
    )

    def block(steps: int) -> None:
        for _ in range(steps):
            run.step(case.x, target=case.y)
        run.settle()

    return block


def arms(name: str, rank: int) -> dict[str, Block]:
    """All arms of a case, each with a model of its own. The first is what the others are compared with."""
    return {
        "one process, 1 thread": alone(made(name), 1, rank),
        "one process, 2 threads": alone(made(name), 2, rank),
        "both halves, no messages": apart(made(name), rank),
        "GPipe, 4 microbatches": pipeline(made(name), "ScheduleGPipe", 4, rank),
        "1F1B, 2 microbatches": pipeline(made(name), "Schedule1F1B", 2, rank),
        "1F1B, 4 microbatches": pipeline(made(name), "Schedule1F1B", 4, rank),
        "cDNI, head trained in each step": ours(made(name), boundary=dg.dni(guard=False)),
        "true gradient, late (delayed)": ours(made(name), boundary="delayed"),
        "local loss": ours(made(name), boundary="local-loss"),
        "silence": ours(made(name), boundary="silent"),
        "oracle, lock step": ours(made(name), late=0, boundary="oracle"),
    }


def measured(name: str, rounds: int, steps: int, seconds: float, disturbed: bool) -> list[Row]:
    """Time all arms of a case in turns; this runs in both processes, and the first one's rows are the result."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    cores = sorted(os.sched_getaffinity(0))[:2]
    own = arms(name, rank)
    for block in own.values():
        block(WARM_UP)
        dist.barrier()
    blocks: list[Row] = []
    until = time.monotonic() + seconds
    with _busy(cores[-1]) if disturbed and rank == 0 else nullcontext():
        for turn in range(rounds):
            for arm, block in own.items():
                blocks.append({"arm": arm, "turn": turn, **_one(block, steps)})
            late = torch.tensor(float(time.monotonic() > until))
            dist.broadcast(late, 0)
            if late:
                break
    dist.barrier()
    dist.destroy_process_group()
    return blocks


def _one(block: Block, steps: int) -> Row:
    """Milliseconds of a step, and the cores that other programs kept busy meanwhile."""
    dist.barrier()
    busy, own, begun = _busy_seconds(), time.process_time(), time.perf_counter()
    block(steps)
    own = time.process_time() - own
    dist.barrier()
    seconds = time.perf_counter() - begun
    spent = torch.tensor(own)
    dist.all_reduce(spent)
    others = max(0.0, _busy_seconds() - busy - float(spent)) / seconds
    return {"ms": 1000 * seconds / steps, "others": others, "processor ms": 1000 * own / steps}


def _busy_seconds() -> float:
    """What all cores of the machine have worked, in seconds; 0 where the system does not say it."""
    file = Path("/proc/stat")
    if not file.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, *_ = map(int, file.read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _busy(core: int) -> Any:
    """A program that keeps a core busy."""
    program = multiprocessing.get_context("spawn").Process(target=_spin, args=(core,), daemon=True)
    program.start()
    try:
        yield
    finally:
        program.kill()
        program.join()


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


def launched(name: str, rounds: int, steps: int, seconds: float, disturbed: bool) -> list[Row]:
    """The rows of a case, from two processes that torchrun's launcher starts."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        run_id=f"throughput-{name}", max_restarts=0, start_method="spawn",
    )  # fmt: skip
    blocks = elastic_launch(config, measured)(name, rounds, steps, seconds, disturbed)[0]
    times = {arm: [b["ms"] for b in own] for (arm,), own in tables.groups(blocks, "arm").items()}
    base = next(iter(times.values()))
    made_rows = []
    for (arm,), own in tables.groups(blocks, "arm").items():
        ratios = [b / ms for b, ms in zip(base, times[arm], strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        made_rows.append(
            {
                "model": name,
                "disturbed": disturbed,
                "arm": arm,
                "ms": median(times[arm]),
                "throughput ratio": median(ratios),
                "ratio quartiles": f"{low:.2f}-{high:.2f}",
                "blocks": len(ratios),
                "processor ms, first process": median(b["processor ms"] for b in own),
                "cores taken by others": median(b["others"] for b in own),
                "seed": SEED,
            }
        )
    return made_rows


def table(results: list[Row]) -> str:
    """Throughput by model, over that of one process with one thread."""
    cells = {(row["arm"], row["model"], row["disturbed"]): row for row in results}
    columns = [key for key in ((m, d) for d in (False, True) for m in CASES) if any(k[1:] == key for k in cells)]
    heads = ("samples a second, x one process with 1 thread (quartiles)", *(_title(*key) for key in columns))
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in results):
        found = [cells.get((arm, *key)) for key in columns]
        lines.append(
            (arm, *("" if r is None else f"{r['throughput ratio']:.2f} ({r['ratio quartiles']})" for r in found))
        )
    return tables.markdown(heads, lines)


def _title(model: str, disturbed: bool) -> str:
    return f"{model}, a core disturbed" if disturbed else model


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(CASES)), help="Repeatable; all without it.")
@click.option("--rounds", default=ROUNDS, show_default=True, help="Blocks of each arm.")
@click.option("--steps", default=STEPS, show_default=True, help="Steps of a block.")
@click.option("--seconds", default=600.0, show_default=True, help="Time for the rounds of one model.")
@click.option("--disturbed", is_flag=True, help="With a busy program on the second process's core.")
def main(models: tuple[str, ...], rounds: int, steps: int, seconds: float, disturbed: bool) -> None:
    """Run all arms and write the results."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    file = rows.results("throughput")
    for name in models or CASES:
        made_rows = launched(name, rounds, steps, seconds, disturbed)
        for row in made_rows:
            rows.put(file, row, ("model", "disturbed", "arm"))
        lines = [list(row.values())[2:-1] for row in made_rows]
        title = f"{name}: one training step on two processes{', a core disturbed' * disturbed}"
        Console(width=140).print(tables.console(title, list(made_rows[0])[2:-1], lines))
    print(f"-> {file}")


if __name__ == "__main__":
    main()
