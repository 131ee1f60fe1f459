"""A recurrent network as a network of models: one agent that sends itself its state, from window to window."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dnigraph.boundaries import Boundary, CrossingSpec, Visit
from dnigraph.boundaries.silent import silent
from dnigraph.conditions import Context
from dnigraph.network.network import Network

from .credit import guessed
from .errors import RecurrentError
from .inputs import Seen
from .layout import Layout
from .learner import Learner
from .making import first_leaves
from .options import Strengths
from .window import Window, make_window, run_window, window_loss

if TYPE_CHECKING:
    from .runner import Recurrent

CORE, STATE = "core", "state"


class Span(nn.Module):
    """One window: outputs, and the state behind it in rows, from inputs and the state that was sent.

    Shapes: x as in `Recurrent.step`, state [batch, width]; what of a state carries no gradient comes as "rest_0", ...
    """

    def __init__(self, rnn: "Recurrent", layout: Layout) -> None:
        super().__init__()
        self.core = rnn.core
        self.initial = rnn.initial if isinstance(rnn.initial, nn.Module) else None
        self._rnn, self._layout = [rnn], layout  # in a list: what it holds is no part of this module

    def forward(self, x: Any, state: Tensor | None = None, **rest: Any) -> dict[str, Any]:
        rnn, layout = self._rnn[0], self._layout
        window = make_window(self.core, rnn.options.horizon, x, None, None, None, None, None)
        first = first_leaves(self.core, layout, rnn.initial, window)
        leaves = first if state is None else _leaves(layout, state, rest, first)
        passed = run_window(self.core, layout, leaves, first, window, early=False)
        found = {"output": passed.output, STATE: layout.rows(layout.live_leaves(passed.last))}
        if isinstance(rnn.loss, str):
            found["loss"] = window_loss(rnn.loss, passed.output, window, rnn.options.horizon)[0]
        return found | {f"rest_{i}": leaf for i, leaf in enumerate(passed.last) if i not in layout.live}


class Horizon(Boundary):
    """What `Recurrent` has at a window's end: its head and all that holds it, behind the face of a boundary."""

    kind = "horizon"

    def __init__(self, spec: CrossingSpec, context: Context, learner: Learner, strengths: Strengths) -> None:
        assert learner.estimator is not None, "it has a head"
        rows = (spec.shape[spec.batch_dim or 0], learner.layout.width)  # whatever the inputs' first axis is
        super().__init__(replace(spec, shape=rows, batch_dim=0), context)
        self.estimator, self.options, self.strengths = learner.estimator, learner.options, strengths
        self.head_name = self.estimator.head.name
        self.register_buffer("visits", torch.tensor(learner.windows))
        self.visits: Tensor

    def visit(self, value: Tensor) -> Visit:
        """The estimate, centred and capped. The target comes a window later, and `again` learns from it."""
        scale = 0.0 if int(self.visits) < self.options.warm_up else self.strengths.scale
        self.visits += 1
        view, label = self._seen(value)
        estimate = self.estimator.predict(view, label, self.strengths.cap)
        given = guessed(self.options, estimate, None, (scale, scale)).core
        now = torch.zeros_like(value) if given is None else given.to(value.dtype)
        return Visit((value,), (now,), lambda target: (None,))

    def again(self, value: Tensor) -> Visit:
        view, label = self._seen(value)
        estimate = self.estimator.head(view, label)

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            if target is None:
                return None, None
            return None, self.estimator.regress(estimate.detach(), target)[0]

        return Visit((value, estimate), (None, None), settle)

    @property
    def waits(self) -> bool:
        """Never."""
        return False

    def _seen(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        pieces = torch.split(value.detach(), list(self.estimator.layout.widths), -1)
        return self.estimator.view_of(pieces), self.estimator.label(self.context.label, len(value))


def network_of(rnn: "Recurrent", x: Any, label: Any, seed: int, log: bool) -> Network:
    """The network that computes and learns what `rnn` does with a stream.

    Raises:
        RecurrentError: an option has no counterpart in a network, or nothing is known of the state.
    """
    learner = _learner(rnn, x, label)
    _refuse(rnn, learner)
    layout, options = learner.layout, rnn.options
    module = Span(rnn, layout)
    clip = rnn._choices[2]
    net = Network(seed=seed, log=log)
    net.add(
        CORE, module, loss="loss" if isinstance(rnn.loss, str) else _loss(rnn), optimizer=_optimizers(learner),
        clip=clip.get("core", clip.get("*")),
    )  # fmt: skip
    boundaries: dict[str, Any] = {"silent": silent(), "oracle": "oracle"}
    strengths = rnn._strengths()
    boundary = boundaries.get(options.boundary, lambda spec, context, head: Horizon(spec, context, learner, strengths))
    condition = None if learner.estimator is None else learner.estimator.head.condition
    net.connect(f"{CORE}.{STATE}", f"{CORE}.{STATE}", delay=1, boundary=boundary, condition=condition)
    for i in set(range(len(layout.axes))) - set(layout.live):
        initial = _first(layout, i)
        net.connect(f"{CORE}.rest_{i}", f"{CORE}.rest_{i}", delay=1, boundary=None, initial=initial)
    return net


def _learner(rnn: "Recurrent", x: Any, label: Any) -> Learner:
    if x is None and rnn._learner is None:
        raise RecurrentError(
            ["no window has been run, so nothing is known of the state"], "show a window: rnn.network(x)"
        )
    if rnn._learner is not None:
        return rnn._learner
    return rnn._prepared(make_window(rnn.core, rnn.options.horizon, x, None, None, None, None, label))


def _refuse(rnn: "Recurrent", learner: Learner) -> None:
    """What a network cannot do as `Recurrent` does it."""
    options, (scale, discount, _) = rnn.options, rnn._strengths()
    clip = rnn._choices[2]
    wrong = [
        f"{name}={getattr(options, name)!r}" for name in ("auxiliary", "blend", "traces") if getattr(options, name)
    ]
    wrong += ["boundary='shuffled'"] if options.boundary == "shuffled" else []
    wrong += ["update='sequence'"] if options.update == "sequence" and options.boundary != "oracle" else []
    wrong += ["scheduler=..."] if rnn._choices[1] is not None else []
    wrong += ["a clip for the heads"] if clip.get("heads") is not None else []
    if options.has_head:
        wrong += [f"scale={scale} and discount={discount}: they must be equal"] if scale != discount else []
        head = None if learner.estimator is None else learner.estimator.head
        wrong += ['condition="input"'] if head is not None and isinstance(head.condition, Seen) else []
    if wrong:
        raise RecurrentError([f"a network has no counterpart of {words}" for words in wrong], "leave it out")


def _leaves(layout: Layout, state: Tensor, rest: Mapping[str, Any], first: list[Any]) -> list[Any]:
    """The leaves of a state that was sent in rows."""
    live = dict(zip(layout.live, layout.split(state, layout.live_leaves(first)), strict=True))
    return [live[i] if i in live else rest[f"rest_{i}"] for i in range(len(first))]


def _first(layout: Layout, i: int) -> Callable[[int | None], Any]:
    return lambda batch: layout.first(batch or 1)[i]


def _loss(rnn: "Recurrent") -> Callable[[Any, Any], Tensor]:
    def of(made: Mapping[str, Any], target: Any) -> Tensor:
        shape = next(t.shape for t in pytree.tree_leaves(made["output"]) if isinstance(t, Tensor))
        length, batch = shape[rnn.core.time], shape[1 - rnn.core.time]
        window = Window(None, target, None, None, None, None, length, batch)
        loss, share, _ = window_loss(rnn.loss, made["output"], window, rnn.options.horizon)
        assert loss is not None, "there is a target, and no mask"
        return loss if share == 1 else loss * share

    of.__name__ = getattr(rnn.loss, "__name__", type(rnn.loss).__name__)
    return of


def _optimizers(learner: Learner) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """The optimisers of the run, with all that they know."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        wanted = set(parameters)
        return next(group.optimizer for group in learner.groups.values() if wanted <= set(group.parameters))

    return make
