"""The main rung: record a model, and record it again to see whether the recording can be believed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from ...errors import CaptureError, FirstCallError, GuardMiss, StatefulModelError
from ...graph.captured_graph import CapturedGraph
from ...graph.equality import equal
from ...graph.pytrees import HOLE, Tree, flatten, unflatten
from ...sandbox.example import input_names, one_more_row, varied
from ...sandbox.object_graph import Holdings
from ...sandbox.rng import Luck, seed_all, standing
from ...sandbox.snapshot import Snapshot, fresh_copies, tensor_names, untouched
from .compare import difference
from .symbols import is_live, unwrap
from .tracer import Recorder


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedGraph:
    """A recording of `model(*args, **kwargs)` that other runs agree with. The model is left as it was.

        run ─► record ─► record other inputs ─► run ─► record ─► replay the first recording
                 └──────── alike? ──────┴────── │ ────────┘               │
                                                └──── equal results? ─────┘

    The other inputs have one more row: what a recording took for granted of them shows. Each run has other seeds, of
    Python and numpy too: recordings may differ only behind a guard. The second run starts from the state that the other
    inputs left in the model: the results, buffers and random numbers of the replay must be the same.

    Raises:
        CaptureError: the model does something that no graph can stand for, or decides by what is not in its inputs.
    """
    if lazy := [name for name, p in model.named_parameters() if is_lazy(p)]:
        raise FirstCallError([f"'{lazy[0]}' has no size yet: call the model once before"])
    leaves, spec = flatten((args, kwargs))
    with untouched(model) as before:
        session, hooks = _Session(model, args, kwargs, spec, before), _hooks(model)
        held = Holdings.of(model).tensors
        session.first = session.run_plainly(leaves)  # the model's own errors come up here
        _refuse_hooks_for_one_call(model, hooks)
        gets_ready = before.rearranged()
        session.caches = {key: t for key, t in Holdings.of(model).tensors.items() if key not in held}
        recording = session.settled_or_from_the_start(leaves)
        if gets_ready:
            session.refuse_what_the_first_call_decides(leaves)
        return recording


class _ReadsCache(Exception):
    """A recording reads what the first call of the model made."""


_PLAIN_SEED = 1
_Seed = int | Luck | None

_Flat = tuple[list[Any], pytree.TreeSpec]


@dataclass
class _Run:
    """What a run gave."""

    results: list[Any]
    buffers: list[torch.Tensor]
    random: torch.Tensor

    def difference(self, other: "_Run") -> str | None:
        """What two runs do not have in common, in a word."""
        if not equal(self.results, other.results):
            return "results"
        if not equal(self.buffers, other.buffers):
            return "buffers"
        return None if torch.equal(self.random, other.random) else "random numbers"


class _Session:
    """The runs of one model with one kind of call."""

    def __init__(self, model: nn.Module, args: Any, kwargs: Any, spec: pytree.TreeSpec, before: Snapshot):
        self.model, self.spec, self.before, self.names = model, spec, before, tensor_names(model)
        self.inputs = input_names(model, args, kwargs)
        self.lucky = False  # whether the model draws random numbers of Python or numpy
        self.first: _Run | None = None  # of a plain run of the model as it was found
        self.caches: dict[int, torch.Tensor] = {}  # what the first call made and the model keeps
        self.sets: set[tuple[int, str]] | None = None  # the attributes that calls after the first set

    def settled_or_from_the_start(self, leaves: list[Any]) -> CapturedGraph:
        """The proven recording of a call after the first, or of a first one where those read what it made."""
        try:
            return self.proven(leaves, Snapshot(self.model), settled=True)
        except _ReadsCache:  # it may have been made from parameters: write down how, and make it anew in every replay
            self.before.restore()
        try:
            return self.proven(leaves, self.before, settled=False)
        except CaptureError as error:
            said = (
                "the first call makes what later calls read, and no graph can make it anew: call the model once before"
            )
            raise StatefulModelError([*error.reasons, said]) from error

    def proven(self, leaves: list[Any], state: Snapshot, settled: bool) -> CapturedGraph:
        """The recording from a state of the model, where all others agree with it.

        Args:
            settled: the model has run on such inputs before, so that a change in it now means a change in every call.
        """
        try:
            recording, first = self.recorded(leaves, None, settled)
        except CaptureError:
            if settled and self.caches:
                raise _ReadsCache from None
            raise
        if settled and any(id(t) in self.caches for t in recording.constants.values()):
            raise _ReadsCache
        state.restore()
        if self.lucky:
            self._try_luck(recording, leaves, state, settled)
        self.compare_with_others(recording, leaves)
        plain = self._run_after_others(leaves)
        if settled and self.first is not None and (what := self.first.difference(plain)):
            raise StatefulModelError(
                [f"the first call of the model gives other {what} than later ones: call the model once before"]
            )
        state.restore()
        _agree(recording, self.recorded(leaves, 3, settled)[0], "the same input")
        self.compare_replay(recording, leaves, first, plain)
        return recording

    def refuse_what_the_first_call_decides(self, leaves: list[Any]) -> None:
        """See whether a model that makes something in its first call makes the same of any inputs, and any weights.

        Weights are at rest in eval mode.

        Raises:
            CaptureError: a call gives other results after another than as the first one.
        """
        runs = []
        for other in (None, self._taken(leaves)):
            self.before.restore()
            if other is not None:
                self.run_plainly(other)
            try:
                runs.append(self.run_plainly(leaves, other_weights=self.model.training))
            except Exception:  # with other weights it may fail; after other inputs, see below
                return
        if what := runs[0].difference(runs[1]):
            said = "call the model once before, if that is when it gets ready"
            raise StatefulModelError(
                [f"what the first call makes of its inputs or weights decides the {what} of later ones: {said}"]
            )

    def _taken(self, leaves: list[Any]) -> list[Any]:
        """Other inputs, as far from these as the model takes them."""
        for other in (one_more_row(leaves), varied(leaves)):
            try:
                if other is not None:
                    self.run_plainly(other)
                    return other
            except Exception:
                continue
        return leaves

    def _try_luck(self, recording: CapturedGraph, leaves: list[Any], state: Snapshot, settled: bool) -> None:
        """Record with the lowest and the highest numbers that Python and numpy draw: a branch that is rare shows."""
        for luck in Luck:
            _agree(recording, self.recorded(leaves, luck, settled)[0], "other random numbers of Python or numpy")
            state.restore()

    def run_plainly(self, leaves: list[Any], other_weights: bool = False) -> _Run:
        """Run the model as it is."""
        self._start(_PLAIN_SEED)
        if other_weights:
            for p in self.model.parameters():
                p.data.mul_(0.875) if p.is_floating_point() else None
        args, kwargs = unflatten(fresh_copies(leaves), self.spec)
        return self._gave(flatten(self.model(*args, **kwargs))[0])

    def _run_after_others(self, leaves: list[Any]) -> _Run:
        """Run the model as it is, in the state that other inputs left it in."""
        try:
            return self.run_plainly(leaves)
        except Exception as error:  # it has run on these before
            said = f"after a call with other inputs it fails: {type(error).__name__}: {error}"
            raise StatefulModelError([f"the model keeps state between calls: {said}"]) from error

    def recorded(self, leaves: list[Any], seed: "_Seed", settled: bool) -> tuple[CapturedGraph, _Run]:
        """One recording. Where sizes serve as keys the first try dies; in the second they are hashable, and guarded."""
        try:
            return self._record(leaves, seed, settled, hashable=False)
        except TypeError as error:
            if "unhashable type: a size" not in str(error):
                raise _dead(error) from error
        except CaptureError:
            raise
        except Exception as error:
            raise _dead(error) from error
        try:
            return self._record(leaves, seed, settled, hashable=True)
        except CaptureError:
            raise
        except Exception as error:
            raise _dead(error) from error

    def compare_with_others(self, first: CapturedGraph, leaves: list[Any]) -> None:
        """Record on one more row; where the model does not take that, on other values of the same sizes."""
        for other, said in ((one_more_row(leaves), "one more row"), (varied(leaves), "other values")):
            try:
                run = self.recorded(other, seed=2, settled=False) if other is not None else None
            except Exception:
                continue  # the model does not take these
            if run is not None:
                _agree(first, run[0], said)
                return

    def compare_replay(self, recording: CapturedGraph, leaves: list[Any], first: _Run, plain: _Run) -> None:
        """Run the graph on the random numbers of the plain run.

        Raises:
            CaptureError: its results, buffers or random numbers are others than those of the model.
        """
        try:
            replay, expected = self._replayed(recording, leaves, _PLAIN_SEED), plain
        except GuardMiss:  # random numbers decide: with these it would be recorded anew
            replay, expected = self._replayed(recording, leaves, None), first
        if what := expected.difference(replay):
            raise StatefulModelError([f"run again, the graph gives other {what} than the model"])

    def _replayed(self, recording: CapturedGraph, leaves: list[Any], seed: int | None) -> _Run:
        self._start(seed)
        inputs = [leaf for leaf in fresh_copies(leaves) if isinstance(leaf, torch.Tensor)]
        try:
            results = recording.module(self.model).forward(*inputs)
        except GuardMiss:
            raise
        except Exception as error:
            raise CaptureError([f"run again, the graph fails: {type(error).__name__}: {error}"]) from error
        return self._gave(flatten(recording.outputs.build(results))[0])

    def _record(self, leaves: list[Any], seed: "_Seed", settled: bool, hashable: bool) -> tuple[CapturedGraph, _Run]:
        self._start(seed)
        args, kwargs = unflatten(fresh_copies(leaves), self.spec)
        recorder = Recorder(self.model, self.names, hashable)
        recorder.calls.allowed = None if settled else self.sets
        given = flatten((args, kwargs))
        for name, leaf in zip(self.inputs, given[0], strict=True):
            if isinstance(leaf, torch.Tensor):
                recorder.tape.placeholder(name, leaf)
        recorder.tape.guard_twins()
        stood = standing()
        try:
            with recorder.attached():
                out = self.model(*args, **kwargs)
                with recorder.tape.aside():
                    _refuse_changed_inputs(given, flatten((args, kwargs)), self.inputs)
                    found, out_spec = flatten(out)
                    run = self._gave(found)
            self.lucky |= standing() != stood
            if self.before.drew():
                raise StatefulModelError(["the model draws from a random number generator of its own"])
            recorder.finish([v for v in found if is_live(v)], settled)
            if settled:
                self.sets = recorder.calls.sets
            tree = Tree(out_spec, tuple(HOLE if is_live(v) else v for v in found))
            sets, constants = frozenset(recorder.calls.touched), recorder.tape.constants
            writes, spoils = self._written(constants), _spoilt(leaves, given)
            return CapturedGraph(recorder.tape.graph, "record", tree, constants, sets, writes, spoils), run
        finally:
            recorder.tape.release()

    def _written(self, constants: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
        """The names of parameters, plain tensors and constants that the run wrote to."""
        names = self.names | {id(tensor): name for name, tensor in constants.items()}
        buffers = {id(b) for b in self.model.buffers()}
        return tuple(names[id(t)] for t in self.before.written() if id(t) in names and id(t) not in buffers)

    def _start(self, seed: "_Seed") -> None:
        self.before.rewind()
        if isinstance(seed, Luck):
            seed.draw()
        elif seed is not None:
            seed_all(seed)

    def _gave(self, found: list[Any]) -> _Run:
        results = [v.detach() if isinstance(v, torch.Tensor) else unwrap(v) for v in found]
        return _Run(results, [b.clone() for b in self.model.buffers()], torch.get_rng_state())


def _hooks(model: nn.Module) -> dict[str, list[int]]:
    return {path: [*m._forward_pre_hooks, *m._forward_hooks] for path, m in model.named_modules()}


def _refuse_hooks_for_one_call(model: nn.Module, before: dict[str, list[int]]) -> None:
    now = _hooks(model)
    if gone := [path for path, keys in before.items() if not set(keys) <= set(now.get(path, ()))]:
        place = f"'{gone[0]}'" if gone[0] else "the model"
        raise FirstCallError([f"a hook of {place} is gone after one call: call the model once before"])


def _refuse_changed_inputs(before: _Flat, after: _Flat, names: list[str]) -> None:
    """What a graph gives back are results; it does not reach into the lists and caches that it was given."""
    same = before[1] == after[1] and len(before[0]) == len(after[0])
    changed = [
        n for n, x, y in zip(names, before[0], after[0], strict=False) if isinstance(x, torch.Tensor) and x is not y
    ]
    if changed or not same:
        what = f"'{changed[0]}'" if changed else "one of its inputs"
        raise StatefulModelError([f"the model puts something else into {what}, a container that belongs to the caller"])


def _spoilt(leaves: list[Any], given: _Flat) -> tuple[int, ...]:
    """Which of the tensors among the inputs hold other numbers after the run."""
    pairs = [(x, y) for x, y in zip(leaves, given[0], strict=True) if isinstance(x, torch.Tensor)]
    return tuple(i for i, (x, y) in enumerate(pairs) if not equal(x, y))


def _agree(first: CapturedGraph, other: CapturedGraph, on: str) -> None:
    if place := difference(first, other):
        raise StatefulModelError(
            [
                f"two recordings on {on} differ at {place}: something here is no function of the inputs "
                "(Python or numpy randomness, a counter, state kept between calls)"
            ]
        )


def _dead(error: Exception) -> CaptureError:
    return CaptureError([f"the model runs, but not while it is recorded: {type(error).__name__}: {error}"])
