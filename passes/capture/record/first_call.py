"""What the first call of a model decides for later ones: caches that it fills, statistics of its inputs, lost hooks.

A capture may be the first call of a model. What later calls read of it must be made anew in every replay, or else
depend on nothing that changes.
"""

from typing import Any

from ...errors import FirstCallError, StatefulModelError
from ...graph.captured_graph import CapturedGraph
from ...sandbox.example import one_more_row, varied
from ...sandbox.object_graph import ObjectGraph
from ...sandbox.runs import Run
from ...sandbox.snapshot import Kind
from .session import Session

SEED = 1  # of plain runs, any number; recordings have others, so that what Python draws shows
CALL_BEFORE = "call the model once before"
_OTHER_WEIGHTS = 0.875  # what weights are multiplied by: near enough to one that the model still runs


class FirstCall:
    """A plain run, the first of a session, and what it left in the model."""

    def __init__(self, session: Session):
        self._session, model, before = session, session.model, session.before
        self.run = session.plain(session.leaves, SEED)  # the model's own errors come up here
        self._changed_the_model = False
        lost = set()  # tables that entries are gone from
        for change in before.changes():
            self._changed_the_model |= change.kind in (Kind.ATTRIBUTE, Kind.CONTAINER)
            if change.kind is Kind.CONTAINER and isinstance(change.old, dict) and change.old.keys() - change.new.keys():
                lost.add(id(change.holder))
        for path, module in model.named_modules() if lost else ():
            if id(module._forward_pre_hooks) in lost or id(module._forward_hooks) in lost:
                place = f"'{path}'" if path else "the model"
                raise FirstCallError([f"a hook of {place} is gone after one call: {CALL_BEFORE}"])
        self._tensors = ObjectGraph.of(model).tensors  # keeps them alive, so that their ids stay theirs
        self.caches = self._tensors.keys() - before.graph.tensors.keys()

    def is_read_by(self, captured: CapturedGraph) -> bool:
        """Whether a graph reads a tensor that this call made."""
        return not self.caches.isdisjoint(map(id, captured.constants.values()))

    def refuse_other_results(self, later: Run) -> None:
        """Check that a later run gives what the first one gave.

        Raises:
            StatefulModelError: it does not.
        """
        if wrong := self.run.differences(later):
            words = f"the first call of the model gives other {wrong[0]} than later ones: {CALL_BEFORE}"
            raise StatefulModelError([words])

    def refuse_decisions(self) -> None:
        """Check that what this call made does not depend on its inputs nor, in train mode, on the present weights.

        Raises:
            StatefulModelError: a call gives other results after a first call with other inputs or weights.
        """
        if not self._changed_the_model:
            return
        session, runs = self._session, []
        scale = _OTHER_WEIGHTS if session.model.training else 1.0  # weights are at rest in eval mode
        for other in (None, self._other_inputs()):
            session.before.restore()
            if other is not None:
                session.plain(other, SEED)
            try:
                runs.append(session.plain(session.leaves, SEED, scale))
            except Exception:  # with other weights it may fail; after other inputs, `prove` has run it
                return
        if wrong := runs[0].differences(runs[1]):
            words = f"what the first call makes of its inputs or weights decides the {wrong[0]} of later ones"
            raise StatefulModelError([f"{words}: {CALL_BEFORE}, if that is when it gets ready"])

    def _other_inputs(self) -> list[Any]:
        """Other inputs, as far from the example as the model takes them."""
        for other in (one_more_row(self._session.leaves), varied(self._session.leaves)):
            try:
                if other is not None:
                    self._session.plain(other, SEED)
                    return other
            except Exception:
                continue
        return self._session.leaves
