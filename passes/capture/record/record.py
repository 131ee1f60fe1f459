"""The main rung: record a model, and believe the recording only after other runs agree with it."""

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ...errors import CaptureError, FirstCallError, GuardMiss, StatefulModelError
from ...graph.captured_graph import CapturedGraph
from ...sandbox.example import one_more_row, varied
from ...sandbox.rng import ExtremeDraws
from ...sandbox.runs import Run
from ...sandbox.snapshot import Snapshot, untouched
from .compare import difference
from .first_call import CALL_BEFORE, SEED, FirstCall
from .session import Recording, Session
from .side_effects import Attributes


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedGraph:
    """A recording of `model(*args, **kwargs)` that other runs agree with. The model is left as it was.

        run ─► [1] record ─► [3] record other inputs ─► [4] run ─► [5] record ─► [6] replay the first recording
                 └────────────── alike? ──────┴─────────── │ ─────────┘               │
                                                           └────── equal results? ────┘

    The other inputs have one more row: what a recording took for granted of them shows. Each run has other seeds, of
    Python and numpy too: recordings may differ only behind a guard. The second run starts from the state that the other
    inputs left in the model: the results, buffers and random numbers of the replay must be the same.

    Raises:
        CaptureError: the model does something that no graph can stand for, or decides by what is not in its inputs.
    """
    if lazy := [name for name, p in model.named_parameters() if is_lazy(p)]:
        raise FirstCallError([f"'{lazy[0]}' has no size yet: {CALL_BEFORE}"])
    with untouched(model) as before:
        session = Session(model, args, kwargs, before)
        first_call = FirstCall(session)
        captured = _later_or_first(session, first_call)
        first_call.refuse_decisions()
        return captured


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

    Args:
        first_call: the run that led to this state: what changes in the model now changes in every call. None: there is
            none.
        allowed: the attributes that replays may set; None: all.
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
    _record_other_inputs(session, graph, first.attributes if settled else allowed)
    try:
        plain = session.plain(leaves, SEED)
    except Exception as error:  # it has run on these inputs before
        words = f"after a call with other inputs it fails: {type(error).__name__}: {error}"
        raise StatefulModelError([f"the model keeps state between calls: {words}"]) from error
    if first_call is not None:
        first_call.refuse_other_results(plain)
    state.restore()

    # [5] Record the same input again: what is decided by something else may show now.
    _refuse_difference(graph, session.recorded(leaves, 3, settled, allowed), "the same input")

    # [6] Replay the first recording on the random numbers of the run in [4].
    _compare_replay(session, first, plain)
    return graph


def _recorded(session: Session, first_call: FirstCall | None, allowed: Attributes | None) -> Recording:
    """The recording that is to be proven, with the random states as they were found."""
    try:
        recording = session.recorded(session.leaves, None, first_call is not None, allowed)
    except CaptureError:
        if first_call is not None and first_call.caches:
            raise _ReadsFirstCall(None) from None
        raise
    if first_call is not None and first_call.is_read_by(recording.captured):
        raise _ReadsFirstCall(recording.attributes)
    return recording


def _record_other_inputs(session: Session, graph: CapturedGraph, allowed: Attributes | None) -> None:
    """One more row; where the model does not take that, other values of the same sizes."""
    others = {"one more row": one_more_row(session.leaves), "other values": varied(session.leaves)}
    for words, inputs in others.items():
        try:
            other = None if inputs is None else session.recorded(inputs, 2, allowed=allowed)
        except Exception:
            continue  # the model does not take these
        if other is not None:
            _refuse_difference(graph, other, words)
            return


def _compare_replay(session: Session, first: Recording, plain: Run) -> None:
    try:
        replay, expected = session.replayed(first.captured, session.leaves, SEED), plain
    except GuardMiss:  # random numbers decide: with these it would be recorded anew
        replay, expected = session.replayed(first.captured, session.leaves, None), first.run
    if wrong := expected.differences(replay):
        raise StatefulModelError([f"run again, the graph gives other {wrong[0]} than the model"])


def _refuse_difference(first: CapturedGraph, other: Recording, inputs: str) -> None:
    if place := difference(first, other.captured):
        causes = "Python or numpy randomness, a counter, state kept between calls"
        reason = f"something here is no function of the inputs ({causes})"
        raise StatefulModelError([f"two recordings on {inputs} differ at {place}: {reason}"])
