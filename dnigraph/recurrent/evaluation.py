"""What a recurrent model is worth on sequences that it does not learn from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from ..passes.errors import nearest
from ..passes.sandbox.rng import random_state, set_random_state
from .carried_state import Place, begin, behind
from .core import Core, Initial
from .layout import Layout
from .learner_factory import first_leaves, layout_of
from .recurrent_error import RecurrentError
from .stream import Stream, make_stream
from .tally import Tally
from .window import Loss, Window, run_window, window_loss

FIELDS = ("x", "target", "mask", "reset", "lengths", "label")  # of a batch
BATCHES = "a batch is x, (x, target), (x, target, mask), or a dict with " + ", ".join(FIELDS)


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: the mean over all entries that count, of all batches together; nan if none does.
        output: of all steps, where it was asked for; of several batches a list.
        metrics: the same mean of each function that was given.
        entries: how many count: steps of sequences.
    """

    loss: Tensor
    output: Any
    metrics: dict[str, float]
    entries: int


class Evaluator:
    """Runs sequences in eval mode and without graphs, window by window, from first states of their own."""

    def __init__(
        self, core: Core, initial: Initial | None, layout: Layout | None, horizon: int, loss: Loss,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None,
    ) -> None:  # fmt: skip
        self.core, self.initial, self.layout, self.horizon = core, initial, layout, horizon
        self.measured: dict[str, Loss] = {"": loss, **_checked(metrics)}

    def run(self, batches: Iterable[Mapping[str, Any]], ends: bool, state: Any, outputs: bool) -> Evaluation:
        """Go through all batches."""
        tallies, kept, place = {name: Tally() for name in self.measured}, [], None
        with _aside([self.core, self.initial]), torch.no_grad():
            for batch in batches:
                stream = make_stream(self.core, **{name: batch.get(name) for name in FIELDS}, ends=ends)
                pieces, place = self._pass(stream, place, state, tallies)
                state = None
                if outputs:
                    kept.append(pytree.tree_map(lambda *t: torch.cat(t, self.core.time), *pieces))
        found = {name: float(tally.mean()) for name, tally in tallies.items() if name}
        return Evaluation(tallies[""].mean(), kept if outputs else None, found, tallies[""].count)

    def _pass(
        self, stream: Stream, place: Place | None, state: Any, tallies: Mapping[str, Tally]
    ) -> tuple[list[Any], Place | None]:
        pieces = []
        for window in stream.windows(self.core, self.horizon):
            if self.layout is None:
                self.layout = layout_of(self.core, self.initial, window)
            first = first_leaves(self.core, self.layout, self.initial, window)
            given = None if state is None else self.layout.leaves(state)
            place, state = begin(self.layout, place, given, first, window), None
            passed = run_window(self.core, self.layout, place.leaves, first, window, early=False)
            self._measure(passed.output, window, tallies)
            pieces.append(passed.output)
            place = behind(window, passed.last, None, None)
        return pieces, place

    def _measure(self, output: Any, window: Window, tallies: Mapping[str, Tally]) -> None:
        for name, measure in self.measured.items():
            found, _, count = window_loss(measure, output, window, self.horizon)
            tallies[name].add(found, count)


def batches_of(x: Any, rest: Mapping[str, Any]) -> tuple[Iterable[Mapping[str, Any]], bool]:
    """The batches, and whether they came from a loader.

    Raises:
        RecurrentError: targets and the like stand beside a loader, which has them in its batches.
    """
    given = {name: value for name, value in rest.items() if value is not None}
    if isinstance(x, Tensor | tuple | Mapping | PackedSequence) or not isinstance(x, Iterable):
        return [{"x": x, **given}], False
    if given:
        raise RecurrentError([f"{', '.join(given)} given beside a loader"], f"let its batches have them: {BATCHES}")
    return map(_batch, x), True


def _batch(found: Any) -> Mapping[str, Any]:
    """What a loader gave, by name.

    Raises:
        RecurrentError: it has names that a batch has not.
    """
    if isinstance(found, Mapping) and "x" in found:
        strange = [f"a batch has no {name!r}{nearest(str(name), FIELDS)}" for name in found if name not in FIELDS]
        if strange:
            raise RecurrentError(strange, BATCHES)
        return found
    if isinstance(found, tuple | list) and not isinstance(found, PackedSequence):
        if not 1 <= len(found) <= 3:
            raise RecurrentError([f"a loader gave {len(found)} values"], BATCHES)
        return dict(zip(FIELDS, found, strict=False))
    return {"x": found}


def _checked(metrics: Any) -> dict[str, Loss]:
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping) and all(isinstance(n, str) and n and callable(f) for n, f in metrics.items()):
        return dict(metrics)
    way = "it maps names to functions of (output, target), each [entries, ...], that return a mean"
    raise RecurrentError([f"metrics={metrics!r}"], way)


@contextmanager
def _aside(modules: Iterable[Any]) -> Iterator[None]:
    """A block in eval mode. Behind it modes, buffers and the random state are as they were, also after an error."""
    roots = [module for module in modules if isinstance(module, nn.Module)]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    buffers = [(b, b.clone()) for root in roots for b in root.buffers()]
    random, whole = random_state(), [root.training for root in roots]
    for root in roots:
        root.eval()
    try:
        yield
    finally:
        for root, training in zip(roots, whole, strict=True):
            root.train(training)
        for module, training in modes:  # a part that the user froze in eval mode stays so
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        set_random_state(random)
