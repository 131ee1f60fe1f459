"""The runner in one process: a part runs forward, backward and its update before the next part runs."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..decoupled.module import DecoupledModule
from ..decoupled.on_graphs import CapturedModule
from ..passes.errors import DniGraphError
from ..passes.graph.pytrees import field_of
from .checkpoint import load_checkpoint, restore_random, save_checkpoint
from .optimizers import MakeOptimizer, MakeScheduler, Updates
from .step import Step

Loss = Callable[[Any, Any], Tensor] | str


@dataclass(frozen=True)
class StepResult:
    """The result of one step."""

    loss: Tensor  # one number, detached
    output: Any  # what the model returned, detached
    metrics: dict[str, dict[str, float]]  # by boundary; empty in steps that are not monitored


class Local:
    """Trains a decoupled model part by part.

        part_0 ─ forward ─ backward on its heads' estimates ─ update ─► part_1 ─ ... ─► the last part ─ loss
                                      heads learn when the targets come back ◄──────────────┘

    A part's activations are freed as soon as it has learned. A part whose gradient is not known at once (an oracle, a
    warm-up, an output that the loss reads) keeps them until it is. With the same seed and optimiser the weights are
    bitwise those of drop-in training.

    Args:
        dm: a decoupled model.
        loss: a function of (output, target), or the name of the output's field that holds the loss.
        optimizer: makes an optimiser of a list of parameters; or a dict from part names, patterns, or "heads" to such
            functions, with "*" for the rest.
        scheduler: makes a learning rate schedule of an optimiser; or such a dict. Each is stepped once a step.
        clip: the largest norm of the gradient of a part; or such a dict of numbers.
        monitor: metrics are computed every so many steps; 0: never.

    Raises:
        DniGraphError: an argument does not fit the model.
    """

    def __init__(
        self,
        dm: DecoupledModule,
        *,
        loss: Loss,
        optimizer: MakeOptimizer | Mapping[str, MakeOptimizer],
        scheduler: MakeScheduler | Mapping[str, MakeScheduler] | None = None,
        clip: float | Mapping[str, float] | None = None,
        monitor: int = 1,
    ):
        if not isinstance(dm, DecoupledModule):
            raise DniGraphError(f"Local trains what decouple(...) returns, not a {type(dm).__name__}")
        if not isinstance(dm, CapturedModule):
            raise DniGraphError(
                "Local runs a model part by part, and this one runs whole, on hooks (dm.plan.notes says why): train it "
                "drop-in, with loss.backward() and an optimiser of dm.parameters()"
            )
        if dm.unlock == "forward":
            raise DniGraphError(
                "Local runs the parts one after the other, and this model was unlocked forward, so that none waits for "
                "another: run it as net = dm.network(loss=..., optimizer=...); net.tick(x, y)"
            )
        self.dm, self.loss, self.monitor = dm, loss, monitor
        self.updates = Updates(dm, optimizer, scheduler, clip)
        self.steps = 0

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> StepResult:
        """One step of training on one batch. The target goes to the loss, and to the heads that look at the label.

        Raises:
            DniGraphError: the model is in eval mode, or the loss is not one number.
            GuardMiss: data made the model take another path in the middle of the step.
        """
        if not self.dm.training:
            raise DniGraphError("the model is in eval mode: call dm.train() before run.step(...)")
        with torch.enable_grad(), self.dm.conditioned(target):
            specialization, inputs = self.dm.choose(*args, **kwargs)
            self.updates.begin(specialization)
            boundaries = self.dm.boundaries
            step = Step(specialization, boundaries, self.updates)
            output = specialization.build(step.forward(inputs))
            loss = self._loss(output, target)
            step.backward(loss)
        self.updates.end_step()
        self.steps += 1
        look = self.monitor and self.steps % self.monitor == 0
        metrics = {name: b.metrics() for name, b in boundaries.items()} if look else {}
        return StepResult(loss.detach(), _detached(output), metrics)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write model, heads, optimisers, schedules, step and random states to a file, atomically."""
        state = {"model": self.dm.state_dict(), "updates": self.updates.state_dict(), "steps": self.steps}
        save_checkpoint(path, state)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote, with the same numbers as without a stop.

        Raises:
            CheckpointError: the file is no such checkpoint.
            DniGraphError: it belongs to other cuts.
        """
        state = load_checkpoint(path, {"model", "updates", "steps"})
        self.dm.load_state_dict(state["model"])
        self.updates.load_state_dict(state["updates"])
        self.steps = state["steps"]
        restore_random(state)

    def _loss(self, output: Any, target: Any) -> Tensor:
        loss: Any
        if callable(self.loss):
            loss = self.loss(output, target)
        else:
            loss = field_of(output, self.loss)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise DniGraphError(f"loss={self.loss!r} must give one number in a tensor, not {kind}")
        return loss


def _detached(output: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.detach(), output)
