"""The runner in one process: a part runs forward, backward and its update before the next part runs."""

import inspect
import os
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..boundaries.watch import TrainingWarning
from ..decoupled.module import DecoupledModule
from ..decoupled.on_graphs import CapturedModule
from ..decoupled.specialization import Specialization
from ..engine.lock_step import LockStep
from ..engine.updates.makers import BARE, Detached, run_misfits
from ..engine.updates.misfits import settings_misfits, state_misfits
from ..engine.updates.optimizers import Updates
from ..engine.updates.rules import MakeOptimizer, MakeScheduler
from ..passes.errors import CheckpointError, DniGraphError, bullets, is_whole
from ..passes.graph.pytrees import field_of, map_tensors
from ..passes.sandbox.journal import all_or_nothing
from .checkpoint import load_checkpoint, restore_random, save_checkpoint
from .late import LateSteps

Loss = Callable[[Any, Any], Tensor] | str
_LOOKS = 16  # steps between two looks at losses on an accelerator, which each wait for it
TARGET: Any = object()  # in place of a label: the heads see the target


@dataclass(frozen=True)
class StepResult:
    """The result of one step."""

    loss: Tensor  # one number, detached
    output: Any  # what the model returned, detached
    measured: Mapping[str, Callable[[], dict[str, float]] | dict[str, float]]  # on its device until it is read

    @cached_property
    def metrics(self) -> dict[str, dict[str, float]]:
        """This step's metrics by boundary; empty in steps that are not monitored."""
        return {name: seen() if callable(seen) else seen for name, seen in self.measured.items()}


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
        monitor: every so many steps the boundaries are measured, and `StepResult.metrics` has that step's numbers; a
            read of them waits for an accelerator, the measuring does not. 0: never.
        late: how many steps later than it could each part hears of its crossings: what a pipeline that nobody waits in
            would learn, tried in one process. With oracles the gradients are true and late, and go with the weights of
            their step (PipeDream, arXiv 1806.03377); a part k crossings below the loss learns k * late steps late.
            Gradients that are not finite then move nothing. 0: at once.

    One thread at a time: a step, a save or a load waits until another thread is through with its own.

    Raises:
        DniGraphError: an argument does not fit the model; all that do not are listed.

    Example:
        >>> dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(10))
        >>> run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda params: torch.optim.Adam(params, 1e-3))
        >>> loss = run.step(x, target=y).loss
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
        late: int = 0,
    ):
        if not isinstance(dm, DecoupledModule):
            inner = getattr(dm, "module", None)
            wrapped = isinstance(inner, DecoupledModule)
            way = ": hand over the model inside, .module, or train it drop-in, with loss.backward()" if wrapped else ""
            raise DniGraphError(f"Local trains what decouple(...) returns, not a {type(dm).__name__}{way}")
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
        misfits = run_misfits(loss, optimizer, scheduler, clip, monitor)
        if not is_whole(late):
            misfits.append(f"late={late!r} (a whole number of steps from 0 on)")
        if misfits:
            raise DniGraphError(f"Local does not take these arguments:{bullets(misfits)}")
        self.dm, self.loss, self.monitor = dm, loss, monitor
        self.updates = Updates(dm, optimizer, scheduler, clip)
        self.steps = 0
        self._lock = threading.RLock()
        self._spoilt: Tensor | bool = False  # whether a loss was not finite, since that was looked at
        self._told_spoilt, self._detached = False, Detached()
        self._late = LateSteps(dm, self._loss, self.updates, late) if late else None

    def step(self, *args: Any, target: Any = None, label: Any = TARGET, **kwargs: Any) -> StepResult:
        """One step of training on one batch.

        Args:
            args, kwargs: the model's own.
            target: what the loss is called with beside the output, in any form; the loss may also do without.
            label: what heads with a `condition` look at: a tensor with the batch first. Without it they see the label
                of a `dm.conditioned(...)` block around the call, and outside of such a block the target.

        Raises:
            DniGraphError: the model is in eval mode, the call does not fit its signature, or the loss is not one
                number.
            ConditionError: a head looks at the label, and it is missing or does not fit.
            GuardMiss: data made the model take another path in the middle of the step.
        """
        with self._lock:
            return self._step(args, kwargs, target, label)

    @all_or_nothing
    def _step(self, args: Any, kwargs: Any, target: Any, label: Any) -> StepResult:
        self.dm.follow()
        if not self.dm.training:
            raise DniGraphError("the model is in eval mode: call dm.train() before run.step(...)")
        if self.steps == 0:
            _warn_of_other_processes()
        if label is TARGET:
            label = target if self.dm.context.label is None else self.dm.context.label
        with torch.enable_grad():
            specialization, inputs = self._choose(args, kwargs)
            if label is None:
                self.dm.boundary_set.refuse_blind()
            seen = self.dm.boundary_set.seen(label, specialization.plan.inputs, inputs)
            with self.dm.context.showing(seen):
                self.updates.begin(specialization)
                boundaries = self.dm.boundaries
                look = self.monitor and (self.steps + 1) % self.monitor == 0
                for boundary in boundaries.values() if look else ():
                    boundary.measure_next()
                if self._late is not None:
                    loss, output = self._late.step(specialization, inputs, target, label)
                    self._look_at(loss)
                else:
                    step = LockStep(specialization, boundaries, self.updates, seen.outputs)
                    output = specialization.build(step.forward(inputs))
                    loss = self._loss(output, target)
                    self._detached.look(loss, output, stacklevel=4)
                    self._look_at(loss)
                    step.backward(loss)
        self.updates.end_step(loss.detach())
        self.steps += 1
        visited = {crossing.name for crossing in specialization.plan.crossings}  # on another way they have old numbers
        measured = {n: b.measured() if n in visited else dict for n, b in boundaries.items() if look}
        return StepResult(loss.detach(), _detached(output), measured)

    def settle(self) -> None:
        """With `late`: let every part learn now from what is under way, as at the end of the training."""
        with self._lock:
            if self._late is not None:
                self._late.settle()

    def optimizer(self) -> torch.optim.Optimizer:
        """One optimiser that stands for all of this run's, for a trainer that counts, schedules and saves optimisers.

        Its `step(closure)` calls the closure and returns what that returns: `run.step` has updated the weights then.
        Its groups are those of the run's optimisers; its state dict has their states, the schedules' and the number of
        steps. In Lightning, with `automatic_optimization = False`:

            def configure_optimizers(self): return self.run.optimizer()
            def training_step(self, batch, i): self.optimizers().step(lambda: self.run.step(x, target=y).loss)
        """
        return StandIn(self)

    def state_dict(self) -> dict[str, Any]:
        """The states of the optimisers and schedules, and the number of steps: all but the model's own state.

        Raises:
            CheckpointError: with `late`, answers are under way: `settle` first.
        """
        with self._lock:
            if self._late is not None:
                self._late.refuse_open()
            return {"updates": self.updates.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            CheckpointError: it is of another model or of other optimisers; then nothing has changed.
        """
        with self._lock:
            if misfits := self._misfits(state):
                raise CheckpointError(f"the state does not fit this run:{bullets(misfits)}")
            self._take_up(state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write model, heads, optimisers, schedules, step and random states to a file, atomically.

        Raises:
            CheckpointError: with `late`, answers are under way: `settle` first.
        """
        with self._lock:
            state = {"model": self.dm.state_dict(), "boundaries": self._settings(), **self.state_dict()}
            save_checkpoint(path, state)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote, with the same numbers as without a stop.

        Raises:
            CheckpointError: the file is no such checkpoint, or belongs to another model, other cuts, heads or
                optimisers. All differences are listed, and nothing has changed.
        """
        with self._lock:
            self.restore(self.fitting(path))

    def fitting(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """What `load` would load. Nothing changes.

        Raises:
            CheckpointError: as in `load`.
        """
        state = load_checkpoint(path, {"model", "updates", "steps"})
        late = self.dm.one_sided(state["model"]) if isinstance(state["model"], Mapping) else set()
        misfits = [
            *state_misfits(self.dm.state_dict(), state["model"], late, self.dm.varying()),
            *self._misfits(state, late),
        ]
        misfits += settings_misfits(self._settings(), state.get("boundaries"))
        if misfits:
            raise CheckpointError(f"{path} does not fit this run:{bullets(misfits)}")
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `fitting` returned."""
        self.dm.load_state_dict(state["model"])
        self._take_up(state)
        restore_random(state)

    def _take_up(self, state: Mapping[str, Any]) -> None:
        self.updates.load_state_dict(state["updates"])
        self.steps = state["steps"]
        if self._late is not None:
            self._late.clear()

    def _misfits(self, state: Mapping[str, Any], late: Collection[str] = ()) -> list[str]:
        steps, updates = state.get("steps"), state.get("updates")
        misfits = [] if isinstance(updates, Mapping) else ["it has no states of optimisers"]
        if not is_whole(steps):
            misfits.append(f"its number of steps is {steps!r}")
        return misfits or self.updates.misfits(state["updates"], {*late, *self.dm.boundary_set.waiting})

    def _settings(self) -> dict[str, dict[str, Any]]:
        """What each boundary was made with."""
        return {name: {"kind": b.kind, **b.all_settings()} for name, b in self.dm.boundaries.items()}

    def _choose(self, args: Any, kwargs: Any) -> tuple[Specialization, list[Any]]:
        try:
            return self.dm.choose(*args, **kwargs)
        except TypeError as error:
            signature = inspect.signature(self.dm.original.forward)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as misfit:
                words = f"run.step(...) takes the arguments of the model, {signature}, and target= for the loss"
                raise DniGraphError(f"{words}: {misfit}") from error
            raise

    def _look_at(self, loss: Tensor) -> None:
        """Tell, once, of a loss that is not finite, before the parts learn from it where that costs no waiting."""
        if self._told_spoilt:
            return
        loss = loss.detach()
        self._spoilt = loss.isfinite().logical_not() | self._spoilt
        if (loss.is_cpu or self.steps % _LOOKS == 0) and self._spoilt:
            self._told_spoilt = True
            which = f"is {float(loss)}" if loss.is_cpu else f"was not finite in one of the last {_LOOKS} steps"
            warnings.warn(
                f"the loss {which}, in step {self.steps + 1}: the weights above the last cut become so, too. Heads "
                "learn nothing from it. Look at this batch, lower the learning rate, or leave out of the loss what is "
                "not finite; run.load(path) goes back to a checkpoint",
                TrainingWarning,
                stacklevel=5,
            )

    def _loss(self, output: Any, target: Any) -> Tensor:
        loss: Any
        if callable(self.loss):
            try:
                loss = self.loss(output, target)
            except Exception as error:
                if type(error) not in BARE:
                    raise
                given = f"the output is {_kind(output)}, the target {_kind(target)}"
                way = "; give it by name, run.step(x, target=y)" if target is None else ""
                raise DniGraphError(f"the loss fails: {type(error).__name__}: {error}; {given}{way}") from error
        else:
            loss = field_of(output, self.loss)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise DniGraphError(f"loss={self.loss!r} must give one number in a tensor, not {kind}")
        return loss


class StandIn(torch.optim.Optimizer):
    """One optimiser in place of all optimisers of a run. See `Local.optimizer`."""

    def __init__(self, run: Local):
        groups = [group for one in run.updates.groups.values() for group in one.optimizer.param_groups]
        super().__init__([p for group in groups for p in group["params"]], {})
        self.param_groups = groups  # the very groups: a schedule of them is heeded
        self._run = run

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Call the closure, which steps the run."""
        return None if closure is None else closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: a step of the run begins without gradients."""

    def state_dict(self) -> dict[str, Any]:
        """The run's."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The run's."""
        self._run.load_state_dict(state_dict)


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _warn_of_other_processes() -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        warnings.warn(
            f"this is one of {distributed.get_world_size()} processes, and Local trains the model of its own process "
            "only: their weights drift apart. For one model over all of them train drop-in: "
            "DistributedDataParallel(dm), loss.backward() and an optimiser of dm.parameters()",
            stacklevel=5,
        )


def _detached(output: Any) -> Any:
    return map_tensors(Tensor.detach, output)
