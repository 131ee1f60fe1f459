"""The learner, made when the first window shows what the state looks like."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..engine.updates.makers import BARE
from ..engine.updates.rules import Rules
from ..heads import HeadChoice
from ..heads.bottleneck import in_time
from ..heads.conditions import ConditionChoice
from ..passes.sandbox.rng import random_state, set_random_state
from ..passes.sandbox.snapshot import untouched
from .auxiliary import Auxiliary
from .core import Core, Initial, first_state
from .eligibility_traces import Traces
from .estimator import Estimator
from .input_condition import make_condition
from .layout import Layout, find_layout
from .learner import Learner
from .options import Options
from .recurrent_error import RecurrentError
from .window import Loss, Window, slice_time


def make_learner(
    core: Core, options: Options, loss: Loss, initial: Initial | None,
    head: HeadChoice, condition: "ConditionChoice | str", rules: Rules, window: Window,
) -> Learner:  # fmt: skip
    """A learner for states like those of this window. Heads draw from torch's random state, which is put back.

    Raises:
        RecurrentError, HeadError, ConditionError: a choice does not fit.
    """
    layout = layout_of(core, initial, window)
    kept = random_state()
    try:
        estimator = make_estimator(core, layout, options, head, condition, window)
        learner = Learner(core, layout, options, loss, estimator)
        if options.head.auxiliary:
            learner.auxiliary = Auxiliary(layout.width, _like(core))
    finally:
        set_random_state(kept)
    if estimator is not None and options.head.traces is not None:
        learner.traces = Traces(estimator, options.head.traces)
    owned = {"core": core, "auxiliary": learner.auxiliary, "initial": initial, "head": estimator}
    modules = {name: module for name, module in owned.items() if isinstance(module, nn.Module)}
    parameters = [p for name, module in modules.items() if name != "head" for p in module.parameters()]
    grouped = {"core": parameters, "heads": [] if estimator is None else list(estimator.parameters())}

    def named() -> list[tuple[str, nn.Parameter]]:
        return [pair for name, module in modules.items() for pair in module.named_parameters(name)]

    groups = {name: rules.group(name, found, named, f"the {name}") for name, found in grouped.items()}
    learner.groups = {name: group for name, group in groups.items() if group is not None}
    return learner


@contextmanager
def choices_explained() -> Iterator[None]:
    """An error of Python's or torch's, where the user's choices are made into modules, is one of this library.

    Raises:
        RecurrentError: one of them cannot be made.
    """
    try:
        yield
    except Exception as error:
        if type(error) not in BARE:
            raise
        words = f"a head, a condition, a first state or a schedule cannot be made: {type(error).__name__}: {error}"
        raise RecurrentError([words], "look at head=, condition=, initial=, scheduler=") from error


def make_estimator(
    core: Core, layout: Layout, options: Options, head: HeadChoice, condition: "ConditionChoice | str", window: Window
) -> Estimator | None:
    """The head at a window's end; None where the options ask for none.

    Raises:
        RecurrentError, HeadError, ConditionError: a choice does not fit.
    """
    if not options.has_head:
        return None
    seen = make_condition(condition, options.horizon, window)
    chosen = in_time() if head == "auto" else head
    return Estimator(layout, options.head, _like(core), chosen, seen, core.bounded)


def _like(core: Core) -> Tensor:
    """A tensor of the core's device and precision."""
    return next((p for p in core.parameters() if p.is_floating_point()), torch.zeros(()))


def layout_of(core: Core, initial: Initial | None, window: Window) -> Layout:
    """The layout of the states, from one step on two and on three copies of a sequence. Nothing is changed."""

    def sample(count: int) -> Any:
        index = torch.zeros(count, dtype=torch.long)

        def some(t: Tensor) -> Tensor:
            return t.index_select(1 - core.time, index.to(t.device))

        first = slice_time(window.x, core.time, 0, 1)
        return pytree.tree_map_only(Tensor, some, first)

    def state(count: int) -> Any:
        label = window.label[:1].expand(count, *window.label.shape[1:]) if isinstance(window.label, Tensor) else None
        with torch.no_grad(), core.labelled(label):
            return first_state(core, initial, sample(count), count)

    with untouched(core):
        return find_layout(state(2), state(3))


def first_leaves(core: Core, layout: Layout, initial: Initial | None, window: Window) -> list[Any]:
    """Leaves of the state in which the window's sequences begin; those that learn keep their graph."""
    if initial is not None:
        return layout.leaves(initial(window.batch))
    return layout.first(window.batch)
