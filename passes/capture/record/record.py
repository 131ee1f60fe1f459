"""The main rung: record a model, and believe the recording only after other runs agree with it."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from ...errors import CaptureError, FirstCallError, GuardMiss, StatefulModelError
from ...graph.captured_graph import CapturedGraph
from ...graph.equality import equal
from ...graph.nodes import Call, guard
from ...graph.pytrees import flatten
from ...sandbox.example import other_inputs, other_sizes
from ...sandbox.object_graph import ObjectGraph
from ...sandbox.rng import ExtremeDraws
from ...sandbox.snapshot import Kind, Snapshot, untouched
from .side_effects import Attributes, ChangesOutsideError
from .tracer import Recording, Session
from .writer import PLAIN

SEED = 1  # of plain runs, any number; recordings have others, so that what Python draws shows
CALL_BEFORE = "call the model once before"
_OTHER_WEIGHTS = 0.875  # what weights are multiplied by: near enough to one that the model still runs


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedGraph:
    """A recording of `model(*args, **kwargs)` that other runs agree with. The model is left as it was.

                             ┌ for other values, and for one more row ┐
        run ─► [1] record ─► [3] record these ─► [4] run the example ─► [5] record ─► [6] replay the first recording
                 └─────────── alike? ─────┴─────────── │ ───────────────────┘               │
                                                       └──────────── equal results? ────────┘

    Other values of the same sizes show what a recording took for granted of numbers, one more row what it took for
    granted of sizes. Each is tried whatever a guard explained before. Each run has other seeds, of Python and numpy
    too: recordings may differ only behind a guard. The runs in [4] start from the state that the other inputs left in
    the model: the results, buffers and random numbers of the replay must be theirs.

    Raises:
        CaptureError: the model does something that no graph can stand for, or decides by what is not in its inputs.
    """
    if lazy := [name for name, p in model.named_parameters() if is_lazy(p)]:
        raise FirstCallError([f"'{lazy[0]}' has no size yet: {CALL_BEFORE}"])
    with untouched(model, flatten((args, kwargs))[0]) as before:
        session = Session(model, args, kwargs, before)
        first_call = FirstCall(session)
        captured = _later_or_first(session, first_call)
        first_call.refuse_decisions()
        return captured


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

    def refuse_decisions(self) -> None:
        """Check that what this call made does not depend on its inputs nor, in train mode, on the present weights.

        Raises:
            StatefulModelError: a call gives other results after a first call with other inputs or weights.
        """
        if not self._changed_the_model:
            return
        session, runs = self._session, []
        scale = _OTHER_WEIGHTS if session.model.training else 1.0  # weights are at rest in eval mode
        for other in ([], *other_inputs(session.leaves).values(), *other_sizes(session.leaves)):
            session.before.restore()
            try:
                if other:
                    session.plain(other, SEED)
            except Exception:
                continue  # the model does not take these
            try:
                runs.append(session.plain(session.leaves, SEED, scale))
            except Exception:  # with other weights it may fail; after other inputs, `prove` has run it
                return
        for run in runs[1:]:
            if wrong := runs[0].differences(run):
                words = f"what the first call makes of its inputs or weights decides the {wrong[0]} of later ones"
                raise StatefulModelError([f"{words}: {CALL_BEFORE}, if that is when it gets ready"])


class _ReadsFirstCall(Exception):
    """A recording reads what the first call of the model made."""

    def __init__(self, attributes: Attributes | None):
        self.attributes = attributes  # those that later calls set


def _later_or_first(session: Session, first_call: FirstCall) -> CapturedGraph:
    """The proven recording of a later call; of the first call, if later ones read what it made."""
    try:
        return _proven(session, Snapshot.of(session.model), first_call)
    except _ReadsFirstCall as reads:  # what it made may come from parameters: each replay makes it anew
        session.before.restore()
        attributes = reads.attributes
    try:
        return _proven(session, session.before, None, attributes)
    except CaptureError as error:
        words = f"the first call makes what later calls read, and no graph can make it anew: {CALL_BEFORE}"
        raise StatefulModelError([*error.reasons, words]) from error


def _proven(
    session: Session, state: Snapshot, first_call: FirstCall | None, allowed: Attributes | None = None
) -> CapturedGraph:
    """The recording from a state of the model, where all other runs agree with it.

    `first_call`: the run that led to this state, so that what changes in the model now changes in every call, or None.
    `allowed`: the attributes that replays may set; None: all.
    """
    leaves, settled = session.leaves, first_call is not None

    # [1] Record.
    first = _recorded(session, first_call, allowed)
    graph = first.captured
    state.restore()

    # [2] If Python or numpy draw, record with their lowest and highest numbers: a branch that is rare shows.
    for extreme in ExtremeDraws if first.draws else ():
        other = session.recorded(leaves, extreme, settled, allowed)
        _refuse_difference(graph, other, "other random numbers of Python or numpy")
        state.restore()

    # [3] Record other inputs. [4] Run the model in the state that they left it in.
    plain, others = [], other_inputs(leaves)
    last = list(others)[-1]
    for what, inputs in others.items():
        again = _record_other_inputs(session, graph, what, inputs, first.attributes if settled else allowed)
        if what != last and not any(state.changes()):
            continue  # nothing is left that a run could heed, so that the run after the last ones will do
        try:
            plain.append(session.plain(leaves, SEED))
        except Exception as error:  # it has run on these inputs before
            words = f"after a call with other inputs it fails: {type(error).__name__}: {error}"
            raise StatefulModelError([f"the model keeps state between calls: {words}"]) from error
        if first_call is not None and (wrong := first_call.run.differences(plain[-1])):
            words = f"the first call of the model gives other {wrong[0]} than later ones: {CALL_BEFORE}"
            raise StatefulModelError([words])
        state.restore()

    # [5] Record the same input again: what is decided by something else may show now. Other values of the same sizes
    # have shown it already, if no guard ended the comparison.
    if again is None:
        again = session.recorded(leaves, 3, settled, allowed, thorough=True)
        _refuse_difference(graph, again, "the same input")
    graph = replace(graph, outputs=graph.outputs.renewing(again.captured.outputs.constants))

    # [6] Replay the first recording on the random numbers of the runs in [4].
    try:
        replay, expected = session.replayed(graph, leaves, SEED), plain
    except GuardMiss:  # random numbers decide: with these it would be recorded anew
        replay, expected = session.replayed(graph, leaves, None), [first.run]
    for run in expected:
        if wrong := run.differences(replay):
            raise StatefulModelError([f"run again, the graph gives other {wrong[0]} than the model"])
    return graph


def _recorded(session: Session, first_call: FirstCall | None, allowed: Attributes | None) -> Recording:
    """The recording that is to be proven, with the random states as they were found."""
    try:
        recording = session.recorded(session.leaves, None, first_call is not None, allowed)
    except ChangesOutsideError:
        raise
    except CaptureError:
        if first_call is not None and first_call.caches:
            raise _ReadsFirstCall(None) from None
        raise
    if first_call is not None and not first_call.caches.isdisjoint(map(id, recording.captured.constants.values())):
        raise _ReadsFirstCall(recording.attributes)
    return recording


def _record_other_inputs(
    session: Session, graph: CapturedGraph, what: str, inputs: list[Any], allowed: Attributes | None
) -> Recording | None:
    """The recording on other inputs, if it could be compared to its end."""
    try:
        other = session.recorded(inputs, 2, allowed=allowed, thorough=True)
    except Exception:
        return None  # the model does not take these
    return other if _refuse_difference(graph, other, what) else None


def _refuse_difference(first: CapturedGraph, other: Recording, inputs: str) -> bool:
    """Whether two recordings that agree were compared to their end, and not to a guard only."""
    place, explained = difference(first, other.captured)
    if place:
        causes = "Python or numpy randomness, a counter, state kept between calls"
        reason = f"something here is no function of the inputs ({causes})"
        raise StatefulModelError([f"two recordings on {inputs} differ at {place}: {reason}"])
    return not explained


def difference(one: CapturedGraph, other: CapturedGraph) -> tuple[str | None, bool]:
    """Where two recordings differ before a guard explains why, as one line, None if they agree; whether a guard did.

    A guard with another outcome explains everything behind it: on such data the graph refuses to run.
    """
    # Constants are written to the front when they are first met: their place in the order says nothing.
    nodes, others = ([n for n in g.graph.nodes if n.op != "get_attr"] for g in (one, other))
    partners = dict(zip(nodes, others, strict=False))

    def same(x: Any, y: Any) -> bool:
        """Whether two arguments are the same: nodes by their place, constants by their numbers, functions by name."""
        if isinstance(x, fx.Node) and isinstance(y, fx.Node):
            if x.op != "get_attr" or y.op != "get_attr":
                return partners.get(x) is y
            constant, other_constant = one.constants.get(str(x.target)), other.constants.get(str(y.target))
            if constant is None or other_constant is None:
                return x.target == y.target
            return equal(constant, other_constant)
        if isinstance(x, Call) and isinstance(y, Call):
            return x.__name__ == y.__name__ and x.mode == y.mode and same(x.slots, y.slots)
        if isinstance(x, slice) and isinstance(y, slice):
            return same((x.start, x.stop, x.step), (y.start, y.stop, y.step))
        if type(x) is not type(y):
            return False
        if isinstance(x, list | tuple):
            return len(x) == len(y) and all(map(same, x, y))
        if isinstance(x, dict):
            return list(x) == list(y) and all(map(same, x.values(), y.values()))
        if isinstance(x, (torch.Tensor, np.ndarray, *PLAIN)):
            return equal(x, y)
        return getattr(x, "__name__", None) == getattr(y, "__name__", None)  # other objects: not looked into

    for x, y in partners.items():
        if x.target is guard and y.target is guard and same(x.args[0], y.args[0]) and not same(x.args[1], y.args[1]):
            return None, True
        if x.op != y.op or not same((x.target, x.args, x.kwargs), (y.target, y.args, y.kwargs)):
            return f"{_spelled(x)} against {_spelled(y)}", False
    place = None if same(one.outputs.constants, other.outputs.constants) else "a constant among the results"
    if one.outputs.spec != other.outputs.spec:
        place = "the structure of the results"
    return "one of them is longer" if len(nodes) != len(others) else place, False


def _spelled(node: fx.Node) -> str:
    what = getattr(node.target, "__name__", str(node.target))
    return f"{what}({', '.join(map(str, node.args[:3]))}{', ...' if len(node.args) > 3 else ''})"
