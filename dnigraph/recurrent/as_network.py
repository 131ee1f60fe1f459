"""A recurrent network as a network of models: one agent that sends itself its state, from window to window."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ..boundaries import Boundary, CrossingSpec
from ..boundaries.choices import silent
from ..engine.updates.groups import Group
from ..engine.updates.rules import Rules, lacks
from ..heads import HeadChoice
from ..heads.conditions import Context
from ..network.network import Network
from .core import Initial
from .estimator import Estimator
from .horizon import Horizon
from .input_condition import Seen
from .layout import Layout
from .learner import Learner
from .options import ORACLE, Ending, Options
from .recurrent_error import RecurrentError
from .span import STATE, Span, WindowLoss

CORE = "core"


def network_of(
    learner: Learner, initial: Initial | None, rules: Rules, ending: Ending, batch_first: bool | None, seed: int,
    log: bool,
) -> Network:  # fmt: skip
    """The network that computes and learns what `learner` does with a stream.

    Raises:
        RecurrentError: an option has no counterpart in a network.
    """
    _refuse(learner, rules, ending)
    core, options, layout, clip = learner.core, learner.options, learner.layout, rules.clip
    loss = WindowLoss(learner.loss, options.horizon)
    span = Span(core, initial, layout, loss, core.batch_first if batch_first is None else batch_first)
    net = Network(seed=seed, log=log)
    net.add(
        CORE, span, loss="loss" if loss.field_of_output else _Loss(span), optimizer=_Optimizers(learner.groups, rules),
        clip=clip.get("core", clip.get("*")),
    )  # fmt: skip
    boundary: Any = {"silent": silent(), "bptt": ORACLE}.get(options.boundary)
    if learner.estimator is not None:
        boundary = _Horizons(learner.estimator, options, ending)
    net.connect(f"{CORE}.{STATE}", f"{CORE}.{STATE}", delay=1, boundary=boundary)
    for i in set(range(len(layout.axes))) - set(layout.live):
        initial = _first(layout, i)
        net.connect(f"{CORE}.rest_{i}", f"{CORE}.rest_{i}", delay=1, boundary=None, initial=initial)
    return net


def _refuse(learner: Learner, rules: Rules, ending: Ending) -> None:
    """Refuse options that have no counterpart in a network."""
    options = learner.options
    scale, discount, _ = options.strengths(ending.known)
    given = {"auxiliary": options.head.auxiliary or None, "traces": options.head.traces}
    given |= {name: value or None for name, value in asdict(options.schedule).items()}
    wrong = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    wrong += ["boundary='shuffled'"] if options.boundary == "shuffled" else []
    wrong += ["update='sequence'"] if options.update == "sequence" and options.boundary != "bptt" else []
    wrong += ["scheduler=..."] if rules.scheduler is not None else []
    wrong += ["a clip for the heads"] if rules.of("heads")[2] is not None else []
    if options.has_head:
        wrong += [f"scale={scale} and discount={discount}: they must be equal"] if scale != discount else []
        left = options.head.listen_after - learner.windows
        wrong += [f"the {left} windows that are left of listen_after"] if left > 0 else []
        head = None if learner.estimator is None else learner.estimator.head
        wrong += ['condition="input"'] if head is not None and isinstance(head.condition, Seen) else []
    if wrong:
        raise RecurrentError([f"a network has no counterpart of {words}" for words in wrong], "leave it out")


def _first(layout: Layout, i: int) -> Callable[[int | None], Any]:
    return lambda batch: layout.first(batch or 1)[i]


class _Loss:
    """The span's loss, under the name of the user's. A class and no closure, so that copies of a network copy it."""

    def __init__(self, span: Span) -> None:
        self.span = span
        loss = span.window_loss.loss
        self.__name__ = getattr(loss, "__name__", type(loss).__name__)

    def __call__(self, made: Any, target: Any) -> Any:
        return self.span.loss(made, target)


class _Horizons:
    """Makes the boundary at a window's end."""

    def __init__(self, estimator: Estimator, options: Options, ending: Ending) -> None:
        self.estimator, self.options, self.ending = estimator, options, ending

    def __call__(self, spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
        return Horizon(spec, context, self.estimator, self.options, self.ending)


class _Optimizers:
    """The optimisers of the run, with their state; new ones for heads on other links, as the user makes them."""

    def __init__(self, groups: Mapping[str, Group], rules: Rules) -> None:
        self.groups, self.rules = groups, rules

    def __call__(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        wanted = set(parameters)
        for group in self.groups.values():
            if wanted <= set(group.parameters):
                return group.optimizer
        make, _, _ = self.rules.of("heads")
        if make is None:
            raise self.rules.error(lacks("the heads"))
        made: torch.optim.Optimizer = make(parameters)
        return made
