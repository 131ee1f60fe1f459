"""The runs that a proof is made of: the model as it is, the model recorded, and a graph in its place."""

from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from ...errors import CaptureError, GuardMiss
from ...graph.captured_graph import CapturedGraph
from ...graph.pytrees import flatten
from ...sandbox.example import input_names
from ...sandbox.rng import ExtremeDraws, fingerprint, seed_all
from ...sandbox.runs import Run, graph_call, model_call, observe
from ...sandbox.snapshot import Snapshot, tensor_names
from .side_effects import Attributes
from .symbols import UnhashableSizeError, unwrap
from .tracer import Tracer

Seed = int | ExtremeDraws | None  # None: the random states are those that were found


class Recording(NamedTuple):
    """A graph, and the run that it was recorded in."""

    captured: CapturedGraph
    run: Run
    attributes: Attributes  # that replays of the graph set
    draws: bool  # whether the model drew random numbers of Python or numpy


class Session:
    """Runs of one model with one kind of call. Each starts from the numbers of the snapshot `before`."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], before: Snapshot):
        self.model, self.before = model, before
        self.leaves, self.spec = flatten((args, kwargs))
        self.input_names, self.tensor_names = input_names(model, args, kwargs), tensor_names(model)

    def plain(self, leaves: list[Any], seed: Seed, weight_scale: float = 1.0) -> Run:
        """Run the model as it is, or with all its weights a little smaller."""
        self._start(seed)
        if weight_scale != 1.0:
            for p in self.model.parameters():
                if p.is_floating_point():
                    p.data.mul_(weight_scale)
        return observe(model_call(self.model, self.spec), self.model, leaves)

    def recorded(
        self, leaves: list[Any], seed: Seed, settled: bool = False, allowed: Attributes | None = None
    ) -> Recording:
        """Record the model. Where sizes serve as keys the first try dies; in the second they are guarded instead.

        Args:
            settled, allowed: as in `SideEffects`.
        """
        try:
            return self._recorded(leaves, seed, settled, allowed, hashable=False)
        except UnhashableSizeError:
            return self._recorded(leaves, seed, settled, allowed, hashable=True)

    def replayed(self, captured: CapturedGraph, leaves: list[Any], seed: Seed) -> Run:
        """Run the graph.

        Raises:
            GuardMiss: it does not hold for these random numbers.
            CaptureError: it fails.
        """
        self._start(seed)
        try:
            return observe(graph_call(captured, self.model), self.model, leaves)
        except GuardMiss:
            raise
        except Exception as error:
            raise CaptureError([f"run again, the graph fails: {type(error).__name__}: {error}"]) from error

    def _recorded(
        self, leaves: list[Any], seed: Seed, settled: bool, allowed: Attributes | None, hashable: bool
    ) -> Recording:
        self._start(seed)
        tracer = Tracer(self.model, self.tensor_names, hashable, allowed, settled)
        calls: list[tuple[Any, Any]] = []  # one: the inputs and the results

        def call(inputs: list[Any]) -> Any:
            results = tracer.run(inputs, self.spec, self.input_names)
            calls.append((inputs, results))
            return results

        random_before = fingerprint()
        try:
            run = observe(call, self.model, leaves)
            draws = fingerprint() != random_before
            ((inputs, results),) = calls
            captured = tracer.finish(results, self.before, leaves, inputs)
            run = replace(run, results=unwrap(run.results))
            return Recording(captured, run, tracer.side_effects.attributes, draws)
        except (CaptureError, UnhashableSizeError):
            raise
        except Exception as error:
            words = f"the model runs, but not while it is recorded: {type(error).__name__}: {error}"
            raise CaptureError([words]) from error
        finally:
            tracer.writer.release()

    def _start(self, seed: Seed) -> None:
        self.before.rewind()
        if isinstance(seed, ExtremeDraws):
            seed.set()
        elif seed is not None:
            seed_all(seed)
