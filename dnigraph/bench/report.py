"""What the ways of learning came to: a table, rows as plain data, and whether decoupling pays."""

import io
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .arms import Contestant

LAST = 0.1  # the share of the steps over whose losses the mean is taken
ERRORS = 3.0  # standard errors of a difference of losses that is more than noise
MEMORY, TIME = 0.8, 0.95  # shares of backprop's below which a way of learning saves some
WIDTH = 124


@dataclass(frozen=True)
class Outcome:
    """What one way of learning came to.

    Attributes:
        loss: the mean over the last tenth of the steps, each before its update, in train mode.
        loss_in_time: the same when backprop had used up its time; that of its own end where it needs less.
        test_loss: in eval mode on the test batches; None without any.
        seconds: of a step, the median.
        ratio: to backprop's, the median over rounds.
        held: bytes that autograd holds at most in a step.
        cosines: of each estimate with the gradient that came for it later, in the last step that was measured.
        weights: cosines of the gradients of each part's weights with the true ones, on the last batch.
        losses: of all steps.
    """

    arm: str
    control: bool
    loss: float
    loss_in_time: float
    test_loss: float | None
    seconds: float
    ratio: float
    held: int
    capture_seconds: float
    cosines: dict[str, float]
    weights: dict[str, float]
    losses: list[float] = field(repr=False)

    @classmethod
    def of(
        cls, one: Contestant, base: Contestant, test_loss: float | None, weights: dict[str, float]
    ) -> "Outcome":  # fmt: skip
        """From what a contestant has noted; `base`: the one with backprop."""
        ratio = median([own / other for own, other in zip(one.seconds, base.seconds, strict=True)] or [1.0])
        cosines = {name: m["cosine"] for name, m in one.metrics.items() if "cosine" in m}
        return cls(
            one.arm.name, one.arm.control, smoothed(one.losses), smoothed(one.losses, 1 / max(ratio, 1.0)), test_loss,
            median(one.seconds or [0.0]), ratio, one.held, one.capture_seconds, cosines, weights, one.losses,
        )  # fmt: skip


def smoothed(losses: Sequence[float], share: float = 1.0) -> float:
    """The mean loss over the last tenth of this share of the steps."""
    end = max(1, round(len(losses) * share))
    return mean(losses[end - window(end) : end])


def window(steps: int) -> int:
    """How many losses a mean is taken over."""
    return max(1, min(steps, math.ceil(LAST * steps)))


def better(one: Outcome, other: Outcome) -> bool:
    """Whether a loss is below another by more than noise. Both have seen the same batches: differences are paired."""
    if not (math.isfinite(one.loss) and math.isfinite(other.loss)):
        return math.isfinite(one.loss)
    count = window(len(one.losses))
    apart = [b - a for a, b in zip(one.losses[-count:], other.losses[-count:], strict=True)]
    error = stdev(apart) / math.sqrt(count) if count > 1 else math.inf
    return mean(apart) > ERRORS * error


@dataclass(frozen=True)
class BenchReport:
    """The ways of learning side by side, backprop first. `print(report)` shows the table and what it says.

    Attributes:
        real: whether the data was the user's; on random data no loss says anything.
        stopped: whether the time was up before all steps were made.
    """

    model: str
    parts: int
    steps: int
    outcomes: tuple[Outcome, ...]
    real: bool
    stopped: bool
    device: str
    threads: int

    def __getitem__(self, arm: str) -> Outcome:
        """The outcome of an arm, by name."""
        return next(outcome for outcome in self.outcomes if outcome.arm == arm)

    def __str__(self) -> str:
        file = io.StringIO()
        Console(file=file, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip()

    def __rich__(self) -> RenderableType:
        told = ", the time was up" if self.stopped else ""
        head = f"{self.model} in {self.parts} parts, {self.steps} steps on the same batches{told} ({self.device})"
        table = Table(title=head, title_justify="left", box=SIMPLE_HEAD)
        heads = ["", "loss", "in time", "test", "ms (x backprop)", "held (x backprop)", "cos at cuts", "weights"]
        for i, name in enumerate(heads):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for outcome in self.outcomes:
            table.add_row(*self._cells(outcome))
        return Group(table, *(Text(line) for line in self.verdict))

    def _cells(self, one: Outcome) -> list[str]:
        lowest = next(iter(one.weights.values()), None)
        return [
            f"control: {one.arm}" if one.control else one.arm,
            f"{one.loss:.4g}" if self.real else "",
            f"{one.loss_in_time:.4g}" if self.real else "",
            "" if one.test_loss is None else f"{one.test_loss:.4g}",
            f"{1000 * one.seconds:.2f} ({one.ratio:.2f})",
            f"{one.held / 2**20:.2f} MiB ({self._memory(one):.2f})",
            " ".join(f"{cosine:.2f}" for cosine in list(one.cosines.values())[:3]) if self.real else "",
            "" if lowest is None or not self.real else f"{lowest:.2f}",
        ]

    def _memory(self, one: Outcome) -> float:
        base = self.outcomes[0].held
        return one.held / base if base else 1.0

    @property
    def verdict(self) -> list[str]:
        """What the numbers say, in plain words, a line each."""
        base, *others = self.outcomes
        tried = [one for one in others if not one.control]
        if not tried:
            return []
        if not self.real:
            cheap = min(tried, key=lambda one: one.held)
            return [
                "The data is random, so the losses say nothing: give data of your own to see whether the parts learn.",
                f"{cheap.arm} holds least: {self._cost(cheap)}.",
            ]
        controls = [one for one in others if one.control]
        learned = [one for one in tried if all(better(one, control) for control in controls)]
        lines = [f"{one.arm}: {self._learning(one, controls)}; {self._cost(one)}." for one in tried]
        return [*lines, self._pays(learned, base)]

    def _learning(self, one: Outcome, controls: Sequence[Outcome]) -> str:
        if not math.isfinite(one.loss):
            return "its loss is not finite"
        beaten = [control for control in controls if better(one, control)]
        if len(beaten) == len(controls):
            near = "" if better(self.outcomes[0], one) else ", and its loss is as good as backprop's within noise"
            return f"the parts learn more than all controls{near}"
        best = min((c for c in controls if c not in beaten), key=lambda control: control.loss)
        worse = "does worse than" if better(best, one) else "does no better than"
        return f"it {worse} the control {best.arm!r} ({one.loss:.4g} and {best.loss:.4g})"

    def _cost(self, one: Outcome) -> str:
        return f"{one.ratio:.2f} of backprop's time for a step, {self._memory(one):.2f} of what it holds"

    def _pays(self, learned: Sequence[Outcome], base: Outcome) -> str:
        if not learned:
            return (
                "Decoupling does not pay for this model with these cuts: no boundary learns more than the controls, "
                "which cost nothing. Cut elsewhere or less often, give what stands on the cuts the label "
                "(condition=...), or keep backprop."
            )
        saves = [one for one in learned if self._memory(one) < MEMORY or one.ratio < TIME]
        pick = min(saves or learned, key=lambda one: one.loss)
        gap = "" if not better(base, pick) else f" at a loss of {pick.loss:.4g} for backprop's {base.loss:.4g}"
        if not saves:
            return (
                f"In one process decoupling saves nothing here, and {pick.arm} learns best{gap}: it pays only "
                "where parts run side by side (dg.Distributed, threads)."
            )
        gains = [f"{self._memory(pick):.2f} of the memory"] if self._memory(pick) < MEMORY else []
        gains += [f"{pick.ratio:.2f} of the time for a step"] if pick.ratio < TIME else []
        return f"Decoupling pays with {pick.arm}{gap}: {' and '.join(gains)}."

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each way of learning, as plain data, with where it was measured."""
        origin = {
            "model": self.model, "parts": self.parts, "steps": self.steps, "real data": self.real,
            "stopped": self.stopped, "device": self.device, "threads": self.threads, "torch": torch.__version__,
            "python": platform.python_version(),
        }  # fmt: skip
        return [
            {
                **origin, "arm": one.arm, "control": one.control, "loss": one.loss, "loss in time": one.loss_in_time,
                "test loss": one.test_loss, "seconds of a step": one.seconds, "x backprop": one.ratio,
                "bytes held": one.held, "seconds to capture": one.capture_seconds, "cosines at cuts": one.cosines,
                "cosines of weights": one.weights, "losses": one.losses,
            }
            for one in self.outcomes
        ]  # fmt: skip

    def save(self, path: "str | Path") -> None:
        """Write the rows as JSON Lines."""
        lines = [json.dumps(row, ensure_ascii=False) for row in self.rows]
        Path(path).write_text("".join(f"{line}\n" for line in lines))
