"""Record one real run of a model as an `fx.Graph`.

    model(x) ──runs──► torch calls ──TorchCalls──► nodes of the GraphWriter
                 ├───► modules, hooks, autograd functions ──ModuleCalls──► nodes
                 └───► what changed in the model ──SideEffects──► nodes, or a refusal

A leaf module (`nn.Linear`, ...) is one call of the user's own module: its hooks, buffers and train mode stay alive.

Why none of torch's own tracers:
`make_fx` records aten calls with the sizes of the example as constants, and leaves no module to call or to cut at.
`fx.Tracer` has no values, so that it ends at the first `if` or `range` that looks at a tensor or a size.
Dynamo compiles the code instead of running it, breaks graphs at what it does not know, and guards what no graph shows.
"""

import builtins
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import Function

from ...errors import CaptureError, GuardMiss, StatefulModelError
from ...graph.captured_graph import CapturedGraph
from ...graph.digest import TooLargeError, digest
from ...graph.equality import equal
from ...graph.pytrees import HOLE, Nesting, Tree, flatten, unflatten
from ...graph.walk import ATOMS
from ...sandbox.example import input_names
from ...sandbox.journal import undone
from ...sandbox.object_graph import GENERATORS
from ...sandbox.rng import ExtremeDraws, fingerprint, seed_all
from ...sandbox.runs import Run, graph_call, model_call, observe
from ...sandbox.snapshot import Snapshot, tensor_names
from .calls import ModuleCalls, TorchCalls, Unreported
from .side_effects import Attributes, SideEffects, refuse_changed_containers
from .symbols import UnhashableSizeError, is_live, unwrap
from .writer import GraphWriter

_patching = threading.RLock()  # the patches are global: one recording at a time

Seed = int | ExtremeDraws | None  # None: the random states are those that were found


class Tracer:
    """Everything that listens to one run of `model`: `run`, then `finish`, then `writer.release`.

    `thorough`: also look for operations that no call reports.
    """

    def __init__(
        self,
        model: nn.Module,
        names: dict[int, str],
        hashable: bool,
        allowed: Attributes | None,
        settled: bool,
        thorough: bool = False,
    ):
        self.model, self.writer = model, GraphWriter(names, hashable)
        self.side_effects = SideEffects(model, self.writer, allowed, settled)
        self._torch_calls = TorchCalls(self.writer)
        self._unreported = Unreported(self.writer) if thorough else contextlib.nullcontext()
        self._module_calls = ModuleCalls(self.writer, self.side_effects.paths)

    def run(self, leaves: list[Any], spec: Nesting, names: list[str]) -> Any:
        """Run the model on these inputs and write what it does. `names`: what the inputs are called."""
        args, kwargs = unflatten(leaves, spec)
        inputs, held = flatten((args, kwargs)), digests(leaves, names)
        self.writer.inputs(names, inputs[0])
        with self._attached():
            results = self.model(*args, **kwargs)
        if changed := [name for name, before in held.items() if before != digests(leaves, names).get(name)]:
            raise StatefulModelError([f"the model changes its argument '{changed[0]}', which belongs to the caller"])
        refuse_changed_containers(inputs, flatten((args, kwargs)), names)
        self._inputs, self._results = leaves, results
        return results

    def finish(self, before: Snapshot, leaves: list[Any]) -> CapturedGraph:
        """Write the side effects of the run, and close the graph. `before`, `leaves`: model and inputs as they were.

        Raises:
            CaptureError: no graph can do what the run did.
        """
        self._torch_calls.finish()
        if self.writer.unreported is not None:
            raise CaptureError([f"{self.writer.unreported} that torch does not report"])
        values, structure = flatten(self._results)
        for value in values:
            if not is_live(value) and self.writer.reaches(value):
                kind = type(value).__name__
                raise CaptureError([f"a {kind} among the results holds tensors or sizes of this call"])
        nodes = self.writer.arguments([v for v in values if is_live(v)])
        self.side_effects.write(before.draws())
        self.writer.graph.output(tuple(nodes))

        constants, sets = self.writer.constants, frozenset(self.side_effects.sets)
        names = self.writer.names | {id(tensor): name for name, tensor in constants.items()}
        for b in self.model.buffers():
            names.pop(id(b), None)
        writes = tuple([names[id(t)] for t in before.written() if id(t) in names])
        tree = Tree(structure, tuple([HOLE if is_live(v) else v for v in values]))
        tensors = [(x, y) for x, y in zip(leaves, self._inputs, strict=True) if isinstance(x, torch.Tensor)]
        written = tuple([i for i, pair in enumerate(tensors) if not equal(*pair)])
        return CapturedGraph(self.writer.graph, "record", tree, constants, sets, writes, written)

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """Send what this thread does through the tracer; other threads notice nothing."""
        # The stance first: it imports Dynamo, which remembers the builtins that it finds for the rest of the process.
        stance = torch.compiler.set_stance("force_eager")
        patches = (
            (nn.Module, "__call__", self._call),
            (Function, "apply", self._apply),
            (torch.jit.ScriptFunction, "__call__", self._script),
            (nn.Parameter, "__new__", self._parameter),
            (builtins, "len", self._len),
        )
        with _patching, stance:
            originals = [(owner, name, vars(owner)[name]) for owner, name, _ in patches]

            def restore() -> None:
                self.writer.open = False
                for original in originals:
                    setattr(*original)

            with undone(restore):
                for owner, name, patch in patches:
                    setattr(owner, name, patch(vars(owner)[name]))
                with self._unreported, self._torch_calls:
                    yield

    def _call(self, original: Any) -> Any:
        return lambda module, *args, **kwargs: self._module_calls.module(original, module, args, kwargs)

    def _apply(self, original: Any) -> Any:
        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            bound = original.__get__(None, cls)  # looked up now, `cls.apply` would be this patch
            return self._module_calls.function(bound, cls, args, kwargs)

        return classmethod(apply)

    def _script(self, original: Any) -> Any:
        def call(script: Any, *args: Any, **kwargs: Any) -> Any:
            return self._module_calls.function(original.__get__(script), type(script), args, kwargs)

        return call

    def _parameter(self, original: Any) -> Any:
        """A parameter that the run makes of another tensor, as a deep copy of a layer does: torch reports no call."""

        def new(cls: type, data: Any = None, *args: Any, **kwargs: Any) -> Any:
            writer = self.writer
            made_of_known = writer.listening and isinstance(data, torch.Tensor) and writer.known(data) is not None
            with writer.aside():
                parameter = original.__get__(None, cls)(cls, data, *args, **kwargs)
            if made_of_known:
                writer.bind(parameter, writer.write(cls, (data, *args), kwargs))
            return parameter

        return staticmethod(new)

    def _len(self, original: Any) -> Any:
        def length(value: Any) -> Any:
            on_tensor = self.writer.listening and isinstance(value, torch.Tensor) and value.dim()
            return value.size(0) if on_tensor else original(value)

        return length


DRAWN = "a graph draws from the default ones only"


def digests(leaves: list[Any], names: list[str]) -> dict[str, Any]:
    """What the arguments hold that are neither tensors nor plain, by name.

    Raises:
        CaptureError: one holds too much to be looked at in every call.
    """
    held = {}
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, torch.Tensor) and type(leaf) not in ATOMS:
            try:
                held[name] = digest(leaf)
            except TooLargeError as error:
                raise CaptureError([f"the argument '{name}' cannot be told apart from others: {error}"]) from error
    return held


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
        for leaf in self.leaves:
            if isinstance(leaf, GENERATORS):
                kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
                raise StatefulModelError([f"an argument is a random number generator, a {kind}: {DRAWN}"])
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
        self,
        leaves: list[Any],
        seed: Seed,
        settled: bool = False,
        allowed: Attributes | None = None,
        thorough: bool = False,
    ) -> Recording:
        """Record the model. Where sizes serve as keys the first try dies; in the second they are guarded instead.

        `settled`, `allowed`: as in `SideEffects`; `thorough`: as in `Tracer`.
        """
        options = (allowed, settled, thorough)
        try:
            return self._recorded(leaves, seed, False, options)
        except UnhashableSizeError:
            return self._recorded(leaves, seed, True, options)

    def replayed(self, captured: CapturedGraph, leaves: list[Any], seed: Seed) -> Run:
        """Run the graph. Raises `GuardMiss` if these random numbers are not its own, `CaptureError` if it fails."""
        self._start(seed)
        try:
            return observe(graph_call(captured, self.model), self.model, leaves)
        except GuardMiss:
            raise
        except Exception as error:
            raise CaptureError([f"run again, the graph fails: {type(error).__name__}: {error}"]) from error

    def _recorded(self, leaves: list[Any], seed: Seed, hashable: bool, options: Any) -> Recording:
        self._start(seed)
        tracer = Tracer(self.model, self.tensor_names, hashable, *options)
        random_before = fingerprint()
        try:
            run = observe(lambda inputs: tracer.run(inputs, self.spec, self.input_names), self.model, leaves)
            draws = fingerprint() != random_before
            captured = tracer.finish(self.before, leaves)
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
