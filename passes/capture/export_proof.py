"""An exported graph is believed only after runs beside the model: another tool made it, and it may be wrong."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import CaptureError, GuardMiss
from ..graph.captured_graph import CapturedGraph
from ..sandbox.object_graph import Holdings
from ..sandbox.rng import seed_all
from ..sandbox.runs import BackwardError, ModelCall, Run, graph_call, model_call, observe, send_all
from ..sandbox.snapshot import Snapshot, untouched


class Trial:
    """Runs of one model with one kind of call."""

    def __init__(self, model: nn.Module, spec: pytree.TreeSpec):
        self.model, self.call = model, model_call(model, spec)

    def refuse_state(self, leaves: list[Any]) -> None:
        """Run the model twice and see what the second run changes in it.

        Raises:
            CaptureError: it sets attributes or fills containers in every call, which these graphs do not.
        """
        before = Snapshot(self.model)
        self._observe(self.call, leaves)
        before.rewind()
        held = Holdings.of(self.model)
        objects = [(o, dict(vars(o))) for o in held.objects.values()]
        sizes = [(c, len(c)) for c in held.containers.values()]
        self._observe(self.call, leaves)
        names = [n for o, before in objects for n, v in before.items() if _is_other(v, vars(o).get(n))]
        if names:
            raise CaptureError([f"the model sets '{names[0]}' in every call, which an exported graph does not"])
        if before.drew():
            raise CaptureError(["the model draws from a random number generator of its own"])
        before.rewind()
        if any(len(c) != n for c, n in sizes):
            raise CaptureError(
                ["the model collects things in a container in every call, which an exported graph does not"]
            )

    def takes(self, leaves: list[Any]) -> bool:
        """Whether the model itself runs on these inputs."""
        try:
            self._run(self.call, leaves, 1)
        except Exception:
            return False
        return True

    def compare(self, captured: CapturedGraph, leaves: list[Any], seed: int) -> None:
        """Run the model and the graph on the same numbers.

        Raises:
            CaptureError: they differ, and no guard says so.
        """
        try:
            actual = self._run(graph_call(captured, self.model), leaves, seed)
        except GuardMiss:
            return
        except Exception as error:
            raise CaptureError([f"the exported graph fails: {type(error).__name__}: {error}"]) from error
        if wrong := self._run(self.call, leaves, seed).differences(actual, exact=False):
            raise CaptureError([f"the exported graph gives other {', '.join(wrong)} than the model"])

    def _run(self, call: ModelCall, leaves: list[Any], seed: int) -> Run:
        with untouched(self.model):
            seed_all(seed)
            return self._observe(call, leaves)

    def _observe(self, call: ModelCall, leaves: list[Any]) -> Run:
        try:
            return observe(call, self.model, leaves, send_all)
        except BackwardError as error:
            said = str(error).partition(":")[0]
            raise CaptureError([f"no gradient can be sent back from all results, to compare it: {said}"]) from error


def _is_other(old: Any, new: Any) -> bool:
    if isinstance(old, int | float | bool | str):
        return type(old) is not type(new) or old != new
    return isinstance(old, torch.Tensor | np.ndarray) and new is not old
