"""An exported graph is believed only after runs beside the model: another tool made it, and it may be wrong."""

from typing import Any

from torch import nn

from ..errors import CaptureError, GuardMiss
from ..graph.captured_graph import CapturedGraph
from ..graph.pytrees import Nesting, flatten, unflatten
from ..sandbox.example import input_names
from ..sandbox.object_graph import ObjectGraph
from ..sandbox.rng import seed_all
from ..sandbox.runs import BackwardError, ModelCall, Run, graph_call, model_call, observe, send_all
from ..sandbox.snapshot import Snapshot, Structure, fresh_copies, untouched
from .record.side_effects import refuse_changed_containers, refuse_exported


class Trial:
    """Runs of one model with one kind of call."""

    def __init__(self, model: nn.Module, spec: Nesting):
        self.model, self.spec, self.call = model, spec, model_call(model, spec)

    def refuse_state(self, leaves: list[Any]) -> Run:
        """Run the model twice and see what the second run, which is returned, changes in it and in its arguments.

        Raises:
            CaptureError: it sets attributes or fills containers in every call, which these graphs do not.
        """
        before = Snapshot.of(self.model)
        self._observe(self.call, leaves)
        before.rewind()
        after_one_call = Structure(ObjectGraph.of(self.model))
        args, kwargs = unflatten(fresh_copies(leaves), self.spec)
        given = flatten((args, kwargs))
        run = self._observe(lambda _: self.model(*args, **kwargs), leaves)
        refuse_changed_containers(given, flatten((args, kwargs)), input_names(self.model, args, kwargs))
        changes = [*after_one_call.changes(), *before.draws()]
        before.rewind()
        refuse_exported(changes)
        return run

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
            reason = str(error).partition(":")[0]
            raise CaptureError([f"no gradient can be sent back from all results, to compare it: {reason}"]) from error
