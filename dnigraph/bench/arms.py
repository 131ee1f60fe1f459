"""The ways of learning that are compared, and one training step of each."""

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..boundaries import BoundaryChoice
from ..boundaries.choices import silent
from ..decouple import decouple
from ..decoupled.on_graphs import CapturedModule
from ..engine.updates.makers import run_misfits
from ..engine.updates.rules import MakeOptimizer
from ..heads.conditions import ConditionChoice
from ..passes.cuts.specs import Cuts
from ..passes.errors import DniGraphError
from ..passes.graph.pytrees import field_of, flatten
from ..proof.memory import saved_bytes
from ..proof.probe import probe
from ..runners.local import Local, Loss
from .batches import Batch

BACKPROP = "backprop"
EVERY = 8  # the control that has the true gradient now and then


@dataclass(frozen=True)
class Arm:
    """One way of learning.

    Attributes:
        boundary: None: plain backprop through the model as it is.
        labelled: whether what stands on the cuts sees the label.
        control: nothing is estimated in it: a boundary is worth its name only where it does better.
    """

    name: str
    boundary: "BoundaryChoice | None"
    labelled: bool = True
    control: bool = False


def arms_of(boundaries: Sequence[str] | Mapping[str, BoundaryChoice], steps: int) -> list[Arm]:
    """Backprop, the boundaries, and the controls."""
    named = boundaries if isinstance(boundaries, Mapping) else {name: name for name in boundaries}
    return [Arm(BACKPROP, None), *(Arm(name, boundary) for name, boundary in named.items()), *controls(steps)]


def controls(steps: int) -> list[Arm]:
    """What learns without any estimate: nothing below the cuts, backprop for a sixth of the steps, and now and then."""
    warm = max(1, steps // 6)
    return [
        Arm("silent", silent(), control=True),
        Arm(f"freeze after {warm} steps", silent(warm_up=warm), control=True),
        Arm(f"true every {EVERY}th step", silent(refresh=EVERY), control=True),
    ]


class Contestant:
    """A copy of the model that learns in one way.

    Args:
        first: a batch, the example of the cuts.
        check: whether to prove that the rewrite is the same function.
    """

    def __init__(
        self, arm: Arm, model: nn.Module, cuts: Cuts, first: Batch, loss: Loss, optimizer: MakeOptimizer,
        condition: ConditionChoice, check: bool, options: Mapping[str, Any],
    ):  # fmt: skip
        self.arm, self.loss = arm, loss
        self.model = copy.deepcopy(model).train()
        self.seconds: list[float] = []  # of each step that was timed
        self.losses: list[float] = []
        self.held = 0  # bytes that autograd held at most in a step
        self.metrics: dict[str, dict[str, float]] = {}
        self.run: Local | None = None
        begun = time.perf_counter()
        if arm.boundary is None:
            self.dm: Any = self.model
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # heads without a label and the rest: the report says what they come to
                self.dm = decouple(
                    self.model, cuts, first.args or None, first.kwargs or None, boundary=arm.boundary,
                    condition=condition if arm.labelled else None, check=check, **options,
                )  # fmt: skip
        self.capture_seconds = time.perf_counter() - begun
        if isinstance(self.dm, CapturedModule):
            self.run = Local(self.dm, loss=loss, optimizer=optimizer)
        else:
            if misfits := run_misfits(loss, optimizer, None, None, 0):
                raise DniGraphError("bench does not take these arguments: " + "; ".join(misfits))
            self.optimizer = optimizer(list(self.dm.parameters()))

    def step(self, batch: Batch, timed: bool) -> None:
        """Learn from a batch. A step that is not timed is one in which the memory is counted."""
        if timed:
            begun = time.perf_counter()
            loss = self._step(batch)
            self.seconds.append(time.perf_counter() - begun)
        else:
            there = [t for t in flatten((batch.args, dict(batch.kwargs), batch.target))[0] if isinstance(t, Tensor)]
            with saved_bytes(excluding=[*self.dm.parameters(), *there]) as count:
                loss = self._step(batch)
            self.held = max(self.held, count.peak)
        self.losses.append(loss)

    def _step(self, batch: Batch) -> float:
        """One step; the loss is read, which waits for an accelerator."""
        if self.run is not None:
            result = self.run.step(*batch.args, target=batch.target, **batch.kwargs)
            self.metrics = result.metrics
            return float(result.loss)
        self.optimizer.zero_grad()
        if self.dm is self.model:
            loss = self._loss_of(self.dm(*batch.args, **batch.kwargs), batch.target)
        else:
            with self.dm.conditioned(batch.target):
                loss = self._loss_of(self.dm(*batch.args, **batch.kwargs), batch.target)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own has no types
        self.optimizer.step()
        return float(loss.detach())

    def _loss_of(self, output: Any, target: Any) -> Tensor:
        loss: Any = field_of(output, self.loss) if isinstance(self.loss, str) else self.loss(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise DniGraphError(f"loss={self.loss!r} must give one number in a tensor, not {kind}")
        return loss

    def tested(self, batches: Sequence[Batch]) -> float:
        """The mean loss in eval mode."""
        self.model.eval()
        try:
            with torch.no_grad():
                losses = [float(self._loss_of(self.model(*b.args, **b.kwargs), b.target)) for b in batches]
        finally:
            self.model.train()
        return sum(losses) / len(losses)

    def weight_cosines(self, batch: Batch) -> dict[str, float]:
        """The cosines of the gradients of the parts' weights with the true ones; empty where nothing is estimated."""
        if self.run is None or self.arm.control:
            return {}
        return probe(self.dm, *batch.args, target=batch.target, loss=self.loss, **batch.kwargs).weights

    # ---- stopping and going on

    def save(self, folder: Path) -> dict[str, Any]:
        """Save the weights and optimisers, and return the rest as plain data."""
        if self.run is not None:
            self.run.save(folder / f"{self.file}.pt")
        else:
            state = {"model": self.dm.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / f"{self.file}.pt")
        return {"seconds": self.seconds, "losses": self.losses, "held": self.held, "metrics": self.metrics}

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Go on from what `save` has left."""
        if self.run is not None:
            self.run.load(folder / f"{self.file}.pt")
        else:
            state = torch.load(folder / f"{self.file}.pt", weights_only=True)
            self.dm.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.seconds, self.losses = list(progress["seconds"]), list(progress["losses"])
        self.held, self.metrics = progress["held"], progress["metrics"]

    @property
    def file(self) -> str:
        """The arm's name as a file name."""
        return "".join(c if c.isalnum() else "_" for c in self.arm.name)
