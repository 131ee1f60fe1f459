"""The runner of recurrent networks: windows of a stream, one after the other, with credit over their ends."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..boundaries import Boundary, BoundaryChoice
from ..engine.updates.makers import BARE
from ..engine.updates.rules import MakeOptimizer, MakeScheduler
from ..heads import HeadChoice
from ..heads.conditions import ConditionChoice
from ..network import Network
from ..passes.graph.pytrees import map_tensors
from ..passes.sandbox.journal import all_or_nothing
from ..runners.checkpoint import load_checkpoint, restore_random, save_checkpoint, taken_up
from ..runners.local import StepResult
from .as_network import network_of
from .carried_state import Place, begin, behind, mended
from .core import Core, Initial, check_beside, failed, make_core
from .evaluation import Evaluation, Evaluator, batches_of
from .feedback import fed_back
from .learner import Learned, Learner
from .learner_factory import choices_explained, first_leaves, make_learner
from .options import Ending, Options, Strengths, make_options
from .recurrent_error import RecurrentError, all_at_once
from .run_checkpoint import fitting, state_of, take_up
from .stored_windows import Stored, count_finished, sweep
from .stream import make_stream
from .tally import Tally
from .update_rules import check_rules, rules_of
from .window import Loss, Window, make_window

MANY = 200  # stored windows at which the user is warned: longer than most sequences


class Recurrent:
    """Trains a step module on streams, window by window; a head predicts the gradient of all later losses.

        window 0 ──state──► window 1 ──state──► window 2 ─ ...        no graph goes over a │
                 ◄─estimate         ◄─estimate         ◄─ estimate    the head learns from the next window's start

    One optimiser step per window (where windows are stored for the true gradient, one when as many sequences have ended
    as there are side by side, or all end together); no graph is kept longer than a window. The estimate that a window
    consumes is centred over the batch and capped. A window whose gradient is not finite is skipped and counted.

    Every entry (a step of a sequence) weighs 1 / (horizon * batch) in what is learned from, wherever windows are cut: a
    whole window counts as the mean over its entries, one of half as many steps, or whose mask leaves half of them, as
    half its mean. So a loss at one step of T has 1/T of its mean's gradient; SGD and `clip` see that, Adam does not.
    What `step` and `run` return is the mean over the entries that count.

    Args:
        step: `nn.LSTM`, `nn.GRU` or `nn.RNN`, run on whole windows; a cell of these, or any module
            (x, state) -> (y, state), run step by step, with any nesting of state tensors.
        horizon: steps of time in a window, T.
        loss: a function of (output, target), each [entries, ...], that returns their mean; or the name of an output's
            field that holds one loss per entry.
        optimizer: makes an optimiser of a list of parameters; or a dict with "core" and "heads". The head learns
            `gain` times as fast under the same one.
        readout: a module behind `step`, from its outputs to those that the loss looks at.
        feedback: for a model that is no step module (also a decoupled one): names of inputs, each with the name or
            position of the output that it is fed from, one step later.
        windowed: the user's module takes whole windows [time, batch, ...].
        batch_first: windows are [batch, time, ...]; None: as the module says.
        initial: makes the first state of so many sequences; it may be a module, and learns then. None: zeros.
        head, condition: as in `decouple`; "auto" is linear, with a bottleneck where the state is wider than 256.
            `condition="input"`: the head also sees the inputs of the window before it.
        boundary: what stands at a window's end: "dni", "silent" (truncated backprop), "bptt" (exact backprop through
            time in a window's memory: windows are stored, without graphs, until their sequence ends, and run a second
            time; "oracle", its name on a cut, holds here, too), "shuffled" (the control); `dg.dni_in_time(...)`.
            `dg.blend(boundary, share)`, `dg.warm_up(boundary, windows)` and `dg.refresh(boundary, every)` go around
            "dni" and "silent" as they do on a cut, and store windows for the true gradient: a blend is BP(lambda).
        update: "window", or "sequence": gradients add up until a sequence ends.
        clip: the largest norm of the core's gradient, or a dict of numbers.
        scheduler: as in `Local`; stepped with its optimiser.
        monitor: compute metrics every `monitor` windows; 0: never.

    Raises:
        RecurrentError: arguments do not fit; all of them are listed.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, section 2.1 and supplement A; Pemberton & Costa 2024, arXiv
    2401.07044 (traces). Defaults: measured, see the README.
    """

    def __init__(
        self,
        step: nn.Module,
        *,
        horizon: int,
        loss: Loss,
        optimizer: MakeOptimizer | Mapping[str, MakeOptimizer],
        readout: nn.Module | None = None,
        feedback: Mapping[str, str | int] | None = None,
        windowed: bool = False,
        batch_first: bool | None = None,
        initial: Initial | None = None,
        head: HeadChoice = "auto",
        condition: "ConditionChoice | str" = None,
        boundary: BoundaryChoice = "dni",
        update: str = "window",
        clip: float | Mapping[str, float] | None = 1.0,
        scheduler: MakeScheduler | Mapping[str, MakeScheduler] | None = None,
        monitor: int = 8,
    ):
        self.options: Options
        self.core: Core
        self.options, self.core, *_ = all_at_once(
            lambda: make_options(horizon, boundary, update),
            lambda: make_core(fed_back(step, feedback), readout, windowed is True, batch_first),
            lambda: check_rules(loss, optimizer, scheduler, clip, monitor),
            lambda: check_beside(initial, windowed, batch_first, readout),
        )
        self.loss, self.initial, self.monitor = loss, initial, monitor
        self._head, self._condition = head, condition
        self.rules = rules_of(optimizer, scheduler, clip)
        self._refuse_nested()
        self.steps, self.skipped = 0, 0  # windows so far; updates that were skipped
        self._ending = Ending()
        self._learner: Learner | None = None  # made when the first window shows the state
        self._place: Place | None = None  # None: all sequences begin anew
        self._given: Any = None  # the state in which the next window begins, as the user said
        self._stored: list[Stored] = []
        self._heard_of_entries = False  # whether an entry has counted, or the user knows that none has
        self._dropped = False  # whether the user has been told that stored windows were dropped
        self._waiting: dict[str, Any] | None = None  # a checkpoint, until there is a learner

    def step(
        self, x: Any, target: Any = None, *, mask: Tensor | None = None, reset: Tensor | None = None,
        ends: bool | Tensor = False, label: Any = None,
    ) -> StepResult:  # fmt: skip
        """One window of at most `horizon` steps: forward, backward, update. The state goes on to the next one.

        Args:
            mask: bool, one per step or per entry: whose loss counts. None: all.
            reset: bool, one per sequence (which begin anew with this window) or one per entry (which begin anew at a
                step inside it).
            ends: which sequences end with this window: no later loss depends on them, and new ones begin with the
                next window. True: all.
            label: what the heads look at beside the state, where they have a condition.

        Shapes: x, target, mask [time, batch, ...], or [batch, time, ...] where the module is batch first.

        Raises:
            RecurrentError: the window does not fit; all misfits are listed. Whatever is raised, also by the module, the
                loss or an optimiser: the place in the stream is that of before the call.
        """
        self._refuse_idle()
        window = make_window(self.core, self.options.horizon, x, target, mask, reset, ends, label)
        learned = self._step(window)
        tally = Tally()
        tally.add(learned.loss, learned.count)
        if window.mask is not None:
            self._tell_of_nothing("this window", tally.count)
        return StepResult(tally.mean(), _detached(learned.forward.output), learned.reports)

    def run(
        self, x: Any, target: Any = None, *, mask: Tensor | None = None, reset: Tensor | None = None,
        lengths: Any = None, ends: bool = True, label: Any = None, outputs: bool = False,
    ) -> StepResult:  # fmt: skip
        """Whole sequences, of any length, window by window. Packed sequences come as they are.

        Args:
            lengths: [batch], of sequences that are padded.
            ends: the sequences end with the last step; False: the next call goes on with them.
            outputs: also return the outputs of all steps; else the last window's.

        Returns: the mean loss over all entries that count, and the metrics of the last window that has some.

        Raises:
            RecurrentError: the sequences do not fit; all misfits are listed.
        """
        self._refuse_idle()
        for name, value in (("ends", ends), ("outputs", outputs)):
            if not isinstance(value, bool):
                way = "ends here is True or False, for all; lengths= says how long each sequence is"
                raise RecurrentError([f"{name}={value!r} is no bool"], way)
        stream = make_stream(self.core, x, target, mask, reset, lengths, ends, label)
        self.ending = self.ending or ends
        tally, kept = Tally(), []
        reports: dict[str, dict[str, float]] = {}
        for window in stream.windows(self.core, self.options.horizon):
            learned = self._step(window, whole=ends)
            tally.add(learned.loss, learned.count)
            reports = learned.reports or reports
            if outputs or window.last:
                kept.append(_detached(learned.forward.output))
        if stream.whole.mask is not None:
            self._tell_of_nothing("these sequences", tally.count)
        output = kept[0] if len(kept) == 1 else pytree.tree_map(lambda *t: torch.cat(t, self.core.time), *kept)
        return StepResult(tally.mean(), output, reports)

    def evaluate(
        self, x: Any, target: Any = None, *, mask: Tensor | None = None, reset: Tensor | None = None,
        lengths: Any = None, label: Any = None, state: Any = None, ends: bool = True, outputs: bool = False,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    ) -> Evaluation:  # fmt: skip
        """Loss and outputs on sequences that are not learned from, in eval mode, window by window.

        Nothing of the run is touched: its place in the stream, weights, modes, buffers, the random state.

        Args:
            x: sequences, as in `run`; or a loader, anything to loop over that is no tensor, tuple or dict: its batches
                are x, (x, target), (x, target, mask) or dicts with the names of these arguments.
            state: in which the first sequences begin; None: as `initial` says.
            ends: each batch's sequences end with it; False: the next batch goes on with them, as a stream's windows do.
            outputs: also return the outputs of all steps; of a loader, those of each batch in a list.
            metrics: more functions like the loss; a function of (output, target), each [entries, ...].

        Raises:
            RecurrentError: sequences, loader or metrics do not fit.

        Example:
            >>> accuracy = lambda scores, y: (scores.argmax(-1) == y).float().mean()
            >>> found = rnn.evaluate(loader, metrics={"accuracy": accuracy})
            >>> print(float(found.loss), found.metrics["accuracy"], found.entries)
        """
        for name, value in (("ends", ends), ("outputs", outputs)):
            if not isinstance(value, bool):
                raise RecurrentError([f"{name}={value!r} is no bool"], "say True or False")
        rest = {"target": target, "mask": mask, "reset": reset, "lengths": lengths, "label": label}
        batches, many = batches_of(x, rest)
        layout = None if self._learner is None else self._learner.layout
        evaluator = Evaluator(self.core, self.initial, layout, self.options.horizon, self.loss, metrics)
        found = evaluator.run(batches, ends, state, outputs)
        return found if many or not outputs else replace(found, output=found.output[0])

    @property
    def state(self) -> Any:
        """The state behind the last window, detached; None where all sequences begin anew."""
        return None if self._place is None or self._learner is None else self._learner.layout.state(self._place.leaves)

    @property
    def ending(self) -> bool:
        """Whether it is known that the sequences of this stream end."""
        return self._ending.known

    @ending.setter
    def ending(self, known: bool) -> None:
        self._ending.known = known

    @property
    def strengths(self) -> Strengths:
        """How strongly an estimate counts now; it changes once the first sequence has ended."""
        return self.options.strengths(self.ending)

    def reset(self, state: Any = None) -> None:
        """All sequences begin anew with the next window, in the state that is given, else as `initial` says.

        Windows that are stored until their sequences end are dropped, with a warning: they have not learned.
        """
        if self._stored and not self._dropped:
            self._dropped = True
            warnings.warn(
                f"reset() drops {len(self._stored)} windows from which nothing has been learned: they wait for true "
                "gradients, which come when their sequences end, so end them before: step(..., ends=True)",
                stacklevel=2,
            )
        self._stored, self._place, self._given = [], None, state
        if self._waiting is not None:
            self._waiting |= {"stored": [], "place": None, "given": state}

    def network(
        self, x: Any = None, *, label: Any = None, batch_first: bool | None = None, seed: int = 0, log: bool = False
    ) -> Network:
        """The same as a `Network`: an agent "core" that sends itself its state, with what stands at a window's end.

        A tick is a window of a stream: `net.tick(x, target, ends=...)` gives the numbers of
        `step(x, target, ends=...)`, for all sequences at once. It knows no masks and resets, a state that is not finite
        stays so until the sequences end, and the loss that it tells of a window shorter than the horizon is its share
        of a whole one. Module, head, optimisers, and whether sequences end are those of this runner; the place in the
        stream is the network's own, and begins anew. So use one of the two, or call `reset()` before you come back to
        this one.

        Args:
            x, label: an example of a window, as `step` takes it, where none has been run.
            batch_first: windows, targets and outputs of the agent are [batch, time, ...]; None: as the module says.
                What is connected to other agents must be batch first, as all messages are.
            seed, log: as in `Network`.

        Raises:
            RecurrentError: an option has no counterpart in a network (`auxiliary`, `traces`, what goes around a
                boundary, `scheduler`, `boundary="shuffled"`, `condition="input"`, a clip for the heads, updates per
                sequence, `listen_after` that is not over, `scale` that is not `discount`); all of them are listed.
        """
        window = None if x is None else make_window(self.core, self.options.horizon, x, None, None, None, None, label)
        return network_of(self.prepared(window), self.initial, self.rules, self._ending, batch_first, seed, log)

    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters: the module's, and the head's once the first window has shown the state."""
        return list(dict.fromkeys(p for module in self.modules().values() for p in module.parameters()))

    def modules(self) -> dict[str, nn.Module]:
        """All modules by name: "core", and if there are such "initial", "head", "auxiliary"."""
        learner = self._learner
        beside = {} if learner is None else {"head": learner.estimator, "auxiliary": learner.auxiliary}
        found = {"core": self.core, "initial": self.initial, **beside}
        return {name: module for name, module in found.items() if isinstance(module, nn.Module)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write modules, optimisers, the place in the stream and random states to a file, atomically."""
        save_checkpoint(path, {"recurrent": self._waiting or self._state()})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote, also in mid-stream, with the numbers of never having stopped.

        Raises:
            CheckpointError: the file is no such checkpoint.
            RecurrentError: it belongs to another model. All differences are listed, and nothing has changed.
        """
        state = load_checkpoint(path, {"recurrent"})
        with taken_up(path), self._undone_on_failure():
            self._take_up(state["recurrent"])
        restore_random(state)

    def _take_up(self, state: Mapping[str, Any]) -> None:
        self._waiting = fitting(self.modules(), self._learner, self.options, state)
        self._given = self._waiting.get("given")
        for name, module in self.modules().items():
            if name in ("core", "initial"):  # at once: a user may want to look at them before the first window
                module.load_state_dict(self._waiting["modules"][name])
        self.steps, self.skipped, self.ending = (self._waiting[name] for name in ("steps", "skipped", "ending"))
        if not self._waiting["groups"]:
            self._learner = None  # the file is of before the first window
        if self._learner is not None or not self._waiting["groups"]:
            self._resume()

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """If the block fails, the run is put back as it was."""
        fields, known, learner = dict(vars(self)), self.ending, self._learner
        state = copy.deepcopy(state_of(self.modules(), learner, self.options, None, ()))
        try:
            yield
        except BaseException:
            vars(self).update(fields)
            self.ending = known
            take_up(self.modules(), learner, self.options, state)
            raise

    def _state(self) -> dict[str, Any]:
        """Everything that the next window depends on."""
        state = state_of(self.modules(), self._learner, self.options, self._place, self._stored)
        own = {"given": self._given, "steps": self.steps, "skipped": self.skipped, "ending": self.ending}
        return {**state, **own}

    @all_or_nothing
    def _step(self, window: Window, whole: bool = False) -> Learned:
        """One window. If it fails, the run is where it was before, without gradients of it.

        Args:
            whole: it is one of whole sequences, which learn together when the last of them has ended.
        """
        learner = self.prepared(window)
        with self._explained(window), self._undone_on_failed_step(learner):
            self.ending = self.ending or window.ends is not None
            layout = learner.layout
            first = first_leaves(self.core, layout, self.initial, window)
            given = None if self._given is None else _detached(layout.leaves(self._given))
            place = begin(layout, self._place, given, first, window)
            seen = learner.seen(window)
            look = self.monitor > 0 and (self.steps + 1) % self.monitor == 0
            share = self.options.share(self.steps + 1)
            stores = share > 0 or bool(self._stored)  # what follows a stored window must wait with it
            if stores:
                learned = self._store(learner, Stored.of(window, place, seen, share), first, whole, look)
            else:
                learned = learner.window(window, place, first, seen, self.strengths, None, look)
            self._refuse_frozen(learner)
            learner.unheld.look()
            self.steps += 1
            self._given = None
            self._place = behind(window, learned.forward.last, seen, learned.view)
            if learned.swept if stores else self.options.update == "window" or window.ends is not None:
                self._update(learner, learned, look)
        return learned

    @contextmanager
    def _explained(self, window: Window) -> Iterator[None]:
        """An error of torch's in the first window, whose shapes fit nothing, is one of this library; later ones pass.

        Raises:
            RecurrentError: the module or the loss cannot take the window.
        """
        try:
            yield
        except Exception as error:
            if self.steps == 0 and type(error) in BARE:
                learner = self._learner
                leaves = [] if learner is None else learner.layout.first(window.batch)
                raise failed(self.core, window.x, leaves, error) from error
            error.add_note(f"in window {self.steps} of the stream")
            raise

    def _refuse_frozen(self, learner: Learner) -> None:
        """Refuse to go on where nothing of the core has an optimiser.

        Raises:
            RecurrentError: all of it was frozen when the first window came.
        """
        if "core" not in learner.groups:
            frozen = any(True for _ in self.core.parameters())
            what = (
                "all parameters of the step module and the readout are frozen" if frozen else "there are no parameters"
            )
            way = "unfreeze something, requires_grad_(True), before the run is made; or run the module itself"
            raise RecurrentError([f"nothing learns: {what}"], way)

    @contextmanager
    def _undone_on_failed_step(self, learner: Learner) -> Iterator[None]:
        """If the block fails, the place in the stream and what has been counted are as before, and its gradients gone.

        Gradients that add up over a sequence are those of the windows before. Weights that an optimiser has moved
        before it failed stay so.
        """
        fields, stored, known = dict(vars(self)), list(self._stored), self.ending
        adding = self.options.update == "sequence"
        gradients = [(p, p.grad if p.grad is None else p.grad.clone()) for p in self.parameters()] if adding else []
        undo = learner.remembered()
        try:
            yield
        except BaseException:
            vars(self).update(fields)
            self._stored, self.ending = stored, known
            undo()
            for group in learner.groups.values():
                group.forget()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            raise

    def _store(self, learner: Learner, stored: Stored, first: list[Any], whole: bool, look: bool) -> Learned:
        """Run a window without a graph and store it; sweep back once as many sequences have ended as there are."""
        window = stored.window
        if learner.estimator is not None and not window.all_end:
            learner.estimator.label(stored.seen, window.batch)  # a missing label is an error now, not at the end
        learned = learner.ahead(window, stored.place, first)
        finished = count_finished(window, stored.place, self._stored[-1].window if self._stored else None)
        self._stored.append(replace(stored, finished=finished))
        if window.all_end or (not whole and sum(s.finished for s in self._stored) >= window.batch):
            swept, self._stored = sweep(learner, self._stored, first, self.strengths, look)
            learned.metrics, learned.swept = swept.metrics, True
        elif len(self._stored) == MANY:
            warnings.warn(
                f"{MANY} windows are kept, since a sequence began in the first of them and has not ended: step(..., "
                "ends=...) says which end. What has not ended has not learned anything yet",
                stacklevel=4,
            )
        return learned

    def _update(self, learner: Learner, learned: Learned, look: bool) -> None:
        """Step the optimisers."""
        core = learner.update(learned.loss)
        if core["skipped"]:
            self.skipped += 1
            self._place = mended(learner.layout, self._place)
        if look or core["skipped"]:
            learned.reports = {"core": {**core, "skipped": float(self.skipped)}, "horizon": learned.metrics}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recurrent":
        other: Recurrent = object.__new__(type(self))
        memo[id(self)] = other
        vars(other).update(copy.deepcopy(vars(self), memo))
        for copied, own in zip(
            other.parameters(), self.parameters(), strict=True
        ):  # gradients that add up over an unfinished sequence
            copied.grad = None if own.grad is None else own.grad.clone()
        return other

    def _refuse_idle(self) -> None:
        """Refuse steps in which nothing could learn."""
        if not self.core.training:
            raise RecurrentError(
                ["the module is in eval mode"], "call rnn.core.train(); or rnn.evaluate(...), which learns nothing"
            )
        if torch.is_inference_mode_enabled():
            raise RecurrentError(["nothing can learn under torch.inference_mode()"], "step outside of it")

    def _refuse_nested(self) -> None:
        """Refuse options with two backward passes if boundaries inside the module learn in each."""
        if not any(isinstance(module, Boundary) for module in self.core.modules()):
            return
        (scale, discount, _), o = self.options.strengths(ending=True), self.options
        given = {
            f"boundary={o.boundary!r}": o.boundary in ("bptt", "shuffled"),
            f"traces={o.head.traces}": o.head.traces is not None,
            f"listen_after={o.head.listen_after}": bool(o.head.listen_after),
            f"scale={scale} that is not discount={discount}": scale != discount,
            **{f"{name}={value}": bool(value) for name, value in asdict(o.schedule).items()},
        }
        wrong = [name for name, two_passes in given.items() if two_passes]
        if wrong:
            raise RecurrentError(
                [
                    f"{name} needs two passes through each window, and in the second one the boundaries inside the "
                    "decoupled step module would learn again"
                    for name in wrong
                ],
                "take boundary='dni' or 'silent' without these options; or give the plain module, dm.recouple()",
            )

    def _tell_of_nothing(self, what: str, count: int) -> None:
        """Warn once if no entry has counted from the beginning on. Later, windows without any are part of a stream."""
        if not count and not self._heard_of_entries:
            warnings.warn(
                f"no entry of {what} counts, since the mask is False everywhere: its loss is nan, and it learns at "
                "most from what comes later. True says whose loss counts",
                stacklevel=3,
            )
        self._heard_of_entries = True

    def prepared(self, window: Window | None = None) -> Learner:
        """The learner, made now if this is the first window.

        Raises:
            RecurrentError: nothing is known of the state yet.
        """
        if self._learner is None and window is None:
            raise RecurrentError(
                ["no window has been run, so nothing is known of the state"], "show a window: rnn.network(x)"
            )
        if self._learner is None and window is not None:
            with choices_explained():
                self._learner = make_learner(
                    self.core, self.options, self.loss, self.initial, self._head, self._condition, self.rules, window
                )
            try:
                if self._waiting is not None:
                    with taken_up("the file that load was given"):
                        self._resume()
            except BaseException:
                self._learner = None  # so that another file can be loaded
                raise
        assert self._learner is not None, "it has been made"
        return self._learner

    def _resume(self) -> None:
        """Load the waiting checkpoint into the learner."""
        assert self._waiting is not None, "a checkpoint waits"
        self._place, self._stored = take_up(self.modules(), self._learner, self.options, self._waiting)
        self._waiting = None


def _detached(output: Any) -> Any:
    return map_tensors(Tensor.detach, output)
