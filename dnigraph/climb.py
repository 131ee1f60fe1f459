"""The way along the capture ladder: the first rung that gives a graph which passes the check is the one to stand on."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import fx, nn

from .decoupled.choices import Choices
from .decoupled.module import DecoupledModule, in_mode
from .decoupled.on_graphs import CapturedModule
from .decoupled.on_hooks import HookedModule, HooksWarning, hooked_plan
from .decoupled.specialization import specialize
from .passes.capture.ladder import capture as run_capture
from .passes.capture.ladder import rungs
from .passes.capture.module_graph import RUNG as HOOKS
from .passes.capture.module_graph import observe
from .passes.cuts.specs import Cuts
from .passes.errors import CaptureError, CutError, DniGraphError, Restless, Unready
from .passes.graph.pytrees import flatten
from .passes.plan.plan import LEAK, Plan
from .passes.sandbox.snapshot import one_at_a_time
from .proof.check import CheckError
from .proof.check import check as run_check

T = TypeVar("T")
NO_EXAMPLE = "it needs one example call: pass example_args=(x,)"


@dataclass
class Climb:
    """One model and one call of it, on the way along the ladder to the first rung that holds."""

    model: nn.Module
    args: Any
    kwargs: Any
    cuts: Cuts
    how: str
    refused: list[str] = field(default_factory=list)  # why the rungs above are not used, a line each

    def first(self, make: Callable[[str], T]) -> T:
        """What is made on the first rung on which it can be made, and passes the check."""
        with one_at_a_time, in_mode(self.model, training=True), torch.enable_grad():
            restless, misfit = False, None
            for how in rungs(self.how):
                if restless and how != HOOKS:
                    continue
                try:
                    return make(how)
                except CaptureError as error:
                    self.refused += [r if r.startswith(f"{how}: ") else f"{how}: {r}" for r in error.reasons]
                    restless |= isinstance(error, Restless)
                    if isinstance(error, Unready):
                        break
                except CutError as error:
                    if self.how != "auto" or how == HOOKS or not self.refused:
                        raise misfit or error from None
                    misfit = error  # a lower rung may see modules that a higher one does not
                    self.refused.append(f"{how}: {'; '.join(error.misfits)}")
                except CheckError as error:
                    if self.how != "auto" or how == HOOKS:
                        raise
                    self.refused.append(f"{how}: the graph is not the same function: {error.report.worst}")
        raise CaptureError(self.refused)

    def plan(self, how: str) -> Plan:
        """The plan on a rung."""
        if how == HOOKS:
            return self._hooked_plan(self._observed())
        captured = run_capture(self.model, self.args, self.kwargs, how)
        if self.args is None:
            raise CaptureError([NO_EXAMPLE])
        return self._told(specialize(captured, self.model, self.cuts, _tensors((self.args, self.kwargs))).plan)

    def decoupled(self, how: str, choices: Choices, check: bool) -> DecoupledModule:
        """The decoupled model on a rung, proven where that is asked for."""
        dm = self._hooked(choices) if how == HOOKS else self._captured(how, choices)
        choices.check_names(dm.plan.crossings)
        if check:
            run_check(dm, *self.args, **self.kwargs)
        for leak in dm.plan.notes_of(LEAK):
            warnings.warn(f"on hooks, {leak}; see dm.plan.notes", HooksWarning, stacklevel=4)
        return dm

    def _captured(self, how: str, choices: Choices) -> DecoupledModule:
        captured = run_capture(self.model, self.args, self.kwargs, how)
        later = "auto" if how == "record" and self.how == "auto" else how  # for other modes and ways
        dm = CapturedModule(self.model, self.cuts, later, choices.make)
        dm.training = True
        try:
            dm.add(captured, self.args, self.kwargs, self.refused)
        except DniGraphError:
            raise
        except Exception as error:  # the model has run: another rung may do
            said = str(error).partition("\n")[0]
            raise CaptureError([f"the graph cannot be run node by node: {type(error).__name__}: {said}"]) from error
        return dm

    def _hooked(self, choices: Choices) -> DecoupledModule:
        graph = self._observed()
        return HookedModule(self.model, graph, self._hooked_plan(graph), choices.make)

    def _observed(self) -> fx.Graph:
        if self.args is None:
            raise CaptureError([NO_EXAMPLE])
        return observe(self.model, self.args, self.kwargs)

    def _hooked_plan(self, graph: fx.Graph) -> Plan:
        try:
            return self._told(hooked_plan(graph, self.model, self.cuts))
        except CutError as error:
            why = f", because {self.refused[0]}" if self.refused else ""
            raise CutError(error.misfits, where=f"the model, which is only known by its modules{why}") from error

    def _told(self, plan: Plan) -> Plan:
        return replace(plan, notes=(*self.refused, *plan.notes))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in flatten(value)[0] if isinstance(leaf, torch.Tensor)]
