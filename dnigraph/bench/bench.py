"""`bench`: does decoupling pay for this model, on this machine, and with which boundary?"""

import json
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ..boundaries import BoundaryChoice
from ..engine.updates.rules import MakeOptimizer
from ..heads.conditions import ConditionChoice
from ..passes.cuts.specs import Cuts
from ..passes.errors import DniGraphError, bullets, is_number, is_whole
from ..runners.local import Loss
from .arms import Arm, Contestant, arms_of
from .batches import Batch, as_batch, endless
from .report import BenchReport, Outcome

LABELLED, BLIND = ("auto", "local-loss", "dni"), ("dni",)  # the boundaries where none are named
UNTIMED = (2, 3)  # steps in which memory is counted; those before them are there to warm up
KEEP = 20.0  # seconds between two looks at whether to keep the state
FILE = "progress.json"


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser where none is given."""
    return torch.optim.Adam(parameters, 1e-3)


def bench(
    model: nn.Module,
    cuts: Cuts,
    data: Iterable[Any],
    *,
    loss: Loss,
    optimizer: MakeOptimizer = adam,
    condition: ConditionChoice = None,
    boundaries: Sequence[str] | Mapping[str, BoundaryChoice] | None = None,
    test: Iterable[Any] = (),
    steps: int = 200,
    seconds: float = 600.0,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
    real: bool = True,
    check: bool = True,
    **options: Any,
) -> BenchReport:
    """Train copies of a model side by side: by backprop, with each boundary, and in the controls.

    All begin with the same weights and see the same batches. They take turns step by step, so that whatever the machine
    does meanwhile hits all of them alike. The controls learn without any estimate: nothing below the cuts; backprop for
    a sixth of the steps and then nothing; backprop in every 8th step and nothing between. The model itself, its mode
    and all random numbers stay as they are.

    Args:
        model, cuts: as in `decouple`.
        data: batches: tuples (input, ..., target), or dicts of the model's named arguments, whose "labels" are the
            target. It is read again and again until all steps are made.
        loss: a function of (output, target), or the name of the output's field that holds the loss.
        optimizer: makes an optimiser of a list of parameters; it is used for every part.
        condition: what stands on the cuts sees of the target: `dg.one_hot(10)`, `dg.embedded(vocabulary, width)`.
        boundaries: names, or a dict from names to boundaries. None: "auto", "local-loss" and "dni", or "dni" alone
            where there is no condition.
        test: batches whose loss in eval mode is reported.
        steps: of each way of learning; at least 10.
        seconds: after which no further round begins.
        seed: of what the model draws, the same in each way of learning.
        folder: where the state is kept. A bench that was stopped goes on from there.
        progress: whether to show a bar.
        real: False where the data is random, so that losses say nothing.
        check, options: as in `decouple`: `capture=`, `head=`.

    Raises:
        DniGraphError: an argument does not fit, the data yields no batch, the loss is not one number, or the folder has
            another bench. CutError, CaptureError, ...: as in `decouple`.

    Example:
        >>> report = dg.bench(model, "layer2", loader, loss=F.cross_entropy, condition=dg.one_hot(10), steps=300)
        >>> print(report)
        >>> report.save("bench.jsonl")
    """
    if boundaries is None:
        boundaries = BLIND if condition is None else LABELLED
    _refuse(model, steps, seconds, boundaries)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = endless(data, device)
    first = next(batches)
    tests = [as_batch(item).to(device) for item in test]
    arms = arms_of(boundaries, steps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        contestants = [Contestant(arm, model, cuts, first, loss, optimizer, condition, check, options) for arm in arms]
        kept = _Kept(folder, arms, steps, seed, contestants)
        done = kept.load(contestants)
        begun = time.monotonic()
        batch = first
        with _bar(progress, arms, steps, done) as advance:
            start = done
            for i, batch in enumerate(islice(_from(first, batches), start, steps), start):
                if i > start and time.monotonic() - begun > seconds:
                    break
                _round(contestants, batch, i, seed, advance)
                done = i + 1
                kept.save_now_and_then(contestants, done)
        kept.save(contestants, done)
        outcomes = _outcomes(contestants, tests, batch)
    parts = max((len(c.dm.plan.parts) for c in contestants if hasattr(c.dm, "plan")), default=1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return BenchReport(
        type(model).__name__, parts, done, outcomes, real, done < steps, name, torch.get_num_threads()
    )  # fmt: skip


def _refuse(model: Any, steps: Any, seconds: Any, boundaries: Any) -> None:
    wrong = [] if isinstance(model, nn.Module) else [f"model is a {type(model).__name__}, not an nn.Module"]
    if not (is_whole(steps) and steps >= 10):
        wrong.append(f"steps={steps!r} (a whole number from 10 on)")
    if not (is_number(seconds) and seconds > 0):
        wrong.append(f"seconds={seconds!r} (a number above 0)")
    if isinstance(boundaries, str) or not isinstance(boundaries, Mapping | Sequence) or not len(boundaries):
        wrong.append(f"boundaries={boundaries!r} (names in a list, or a dict from names to boundaries)")
    if wrong:
        raise DniGraphError(f"bench does not take these arguments:{bullets(wrong)}")


def _from(first: Batch, rest: Iterable[Batch]) -> Iterable[Batch]:
    yield first
    yield from rest


def _round(contestants: Sequence[Contestant], batch: Batch, i: int, seed: int, advance: Callable[[str], None]) -> None:
    """One step of each, on one batch; in each round another one begins."""
    turn = i % len(contestants)
    for one in [*contestants[turn:], *contestants[:turn]]:
        advance(one.arm.name)
        torch.manual_seed(seed + i)  # what drops out is the same in all of them
        one.step(batch, timed=i not in UNTIMED)
        if i == 0:
            one.seconds.clear()  # the first step makes what later ones use


def _outcomes(contestants: Sequence[Contestant], tests: Sequence[Batch], last: Batch) -> tuple[Outcome, ...]:
    base = contestants[0]
    return tuple(
        Outcome.of(one, base, one.tested(tests) if tests else None, one.weight_cosines(last)) for one in contestants
    )


class _bar:
    """A progress bar, or nothing."""

    def __init__(self, shown: bool, arms: Sequence[Arm], steps: int, done: int):
        columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, disable=not shown)
        self._task = self._bar.add_task("", total=len(arms) * steps, completed=len(arms) * done)

    def __enter__(self) -> Callable[[str], None]:
        self._bar.start()
        return lambda name: self._bar.update(self._task, description=name, advance=1)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class _Kept:
    """The state of a bench in a folder, so that it can go on."""

    def __init__(
        self, folder: "str | Path | None", arms: Sequence[Arm], steps: int, seed: int,
        contestants: Sequence[Contestant],
    ):  # fmt: skip
        self.folder = None if folder is None else Path(folder)
        sizes = [f"{n} {tuple(p.shape)}" for n, p in contestants[0].model.named_parameters()]
        plans = [str(c.dm.plan.crossings) for c in contestants if hasattr(c.dm, "plan")]
        facts = json.dumps([[arm.name for arm in arms], steps, seed, sizes, plans])
        self.digest = zlib.crc32(facts.encode())
        self._saved = time.monotonic()

    def load(self, contestants: Sequence[Contestant]) -> int:
        """Go on from the folder. Returns how many steps were made."""
        if self.folder is None:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / FILE
        if not file.exists():
            return 0
        progress = json.loads(file.read_text())
        if progress["digest"] != self.digest:
            raise DniGraphError(
                f"{self.folder} has the state of another bench (other weights, cuts, boundaries, steps or seed): "
                "name another folder, or remove it"
            )
        for one in contestants:
            one.load(self.folder / progress["of"], progress["arms"][one.arm.name])
        return int(progress["done"])

    def save_now_and_then(self, contestants: Sequence[Contestant], done: int) -> None:
        """Save if the last time is long ago."""
        if self.folder is not None and time.monotonic() - self._saved > KEEP:
            self.save(contestants, done)

    def save(self, contestants: Sequence[Contestant], done: int) -> None:
        """Save all; a process that is stopped meanwhile leaves the state before."""
        if self.folder is None:
            return
        own = self.folder / f"after_{done}"
        own.mkdir(exist_ok=True)
        arms = {one.arm.name: one.save(own) for one in contestants}
        unfinished = self.folder / f"{FILE}.part"
        unfinished.write_text(json.dumps({"digest": self.digest, "done": done, "of": own.name, "arms": arms}))
        unfinished.replace(self.folder / FILE)
        for older in self.folder.glob("after_*"):
            if older != own:
                for file in older.iterdir():
                    file.unlink()
                older.rmdir()
        self._saved = time.monotonic()
