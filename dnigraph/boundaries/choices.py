"""From the user's choices to boundaries: by name, by a factory with options, one for all crossings or one for each."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import nn

from ..heads import HeadChoice
from ..heads.conditions import Context, Numbered, condition_for
from ..heads.spec import Layers
from ..passes.errors import DniGraphError, is_number, is_whole, nearest
from ..passes.plan.plan import Crossing
from .auxiliary_networks import Decoder
from .boundary import Boundary, BoundaryError, BoundaryFactory, CrossingSpec
from .direct_feedback import DirectFeedback
from .dni import Dni, Options
from .fresh_layers import evenly
from .local_loss import Auxiliary, LocalLoss, Loss, suited
from .oracle import Oracle
from .schedule import Schedule
from .silent import Silent
from .surroundings import Surroundings, lacking, unmet

BoundaryChoice: TypeAlias = "str | BoundaryFactory"


class UnconditionedWarning(UserWarning):
    """Heads that cannot see the label: no recipe is known with which they beat freezing the lower parts."""


class Choices:
    """The user's choices for the crossings of a model: each is one for all, or a dict from names (or globs) to some."""

    def __init__(self, head: Any, condition: Any, boundary: Any):
        self.head, self.condition, self.boundary = head, condition, boundary

    def make(self, crossing: Crossing, meta: Mapping[str, Any], context: Context, around: Surroundings) -> Boundary:
        """The boundary of a crossing.

        Args:
            meta: what is known of the node that makes its value.
            around: what surrounds it in the model.

        Raises:
            BoundaryError: it cannot be made, or it needs what there is not here.
        """
        choice, head = _chosen(self.boundary, crossing.name, "auto"), _chosen(self.head, crossing.name, "auto")
        boundary = make_boundary(choice, around.describe(self.spec(crossing, meta), crossing), context, head)
        if (misfit := unmet(boundary)) is not None:
            raise BoundaryError(misfit)
        boundary.spec = replace(boundary.spec, after=None)  # it would keep the model's graph
        return boundary

    def spec(self, crossing: Crossing, meta: Mapping[str, Any]) -> CrossingSpec:
        """What the factories are told of a crossing."""
        shape, at = crossing.shape or (), meta.get("batch_dim", 0)
        condition = self.condition if at is not None else None  # without a batch dimension no label belongs to its rows
        if at is None and len(shape) > 3:
            at = 0  # rows such as the regions of images: a batch whose size differs from call to call
        if at is None:
            shape = (1, *shape)
        elif shape:
            shape = (shape[at], *shape[:at], *shape[at + 1 :])
        line = meta.get("channels_first", False)
        return CrossingSpec(crossing.name, shape, meta["dtype"], meta["device"], condition, at, line)

    def check_names(self, crossings: Iterable[Crossing]) -> None:
        """Refuse a choice for a crossing that does not exist.

        Raises:
            DniGraphError: with the nearest names.
        """
        names = [crossing.name for crossing in crossings if crossing.gradient]
        for what, choice in (("head", self.head), ("boundary", self.boundary)):
            if isinstance(choice, Mapping):
                strange = [key for key in choice if not any(fnmatchcase(name, key) for name in names)]
                if strange:
                    listed = ", ".join(f"{key!r}{nearest(key, names)}" for key in strange)
                    known = ", ".join(names) or "none"
                    raise DniGraphError(f"{what}=: no crossing is called {listed}; there are {known}")


def _chosen(choice: Any, name: str, default: str) -> Any:
    if not isinstance(choice, Mapping):
        return choice
    if name in choice:
        return choice[name]
    return next((value for pattern, value in choice.items() if fnmatchcase(name, pattern)), default)


def make_boundary(choice: BoundaryChoice, spec: CrossingSpec, context: Context, head: HeadChoice = "auto") -> Boundary:
    """The boundary that `choice` makes for this crossing.

    `choice` is a name in `NAMED`, one of those as a function with options (`dni(warm_up=100)`), or any callable
    `(spec, context, head) -> Boundary`.

    Raises:
        BoundaryError: there is no such boundary, or the callable made something else.
        HeadError: the head does not fit.
    """
    if isinstance(choice, str) and choice not in NAMED:
        raise BoundaryError(
            f"there is no boundary '{choice}'{nearest(choice, NAMED)}; choose one of {', '.join(NAMED)}, "
            "or give a factory (spec, context, head) -> Boundary"
        )
    if isinstance(choice, nn.Module) or not (isinstance(choice, str) or callable(choice)):
        raise BoundaryError(
            f"a boundary is a name or a factory (spec, context, head) -> Boundary, not {type(choice).__name__}"
        )
    factory = NAMED[choice]() if isinstance(choice, str) else choice
    try:
        boundary = factory(spec, context, head)
    except DniGraphError:
        raise
    except Exception as cause:
        raise BoundaryError(
            f"the boundary factory for '{spec.name}' fails: {type(cause).__name__}: {cause}; it is called with "
            "(spec, context, head)"
        ) from cause
    if not isinstance(boundary, Boundary):
        raise BoundaryError(
            f"the boundary factory for '{spec.name}' must make a Boundary, but made {type(boundary).__name__}"
        )
    try:
        inspect.signature(boundary.visit).bind(None, None)
    except TypeError as cause:
        way = "it is called with (value, seen): def visit(self, value, seen)"
        raise BoundaryError(f"boundary '{spec.name}': {type(boundary).__name__}.visit: {cause}; {way}") from cause
    return boundary


def dni(
    *,
    warm_up: int = 0,
    refresh: int = 0,
    blend: float = 0.0,
    replay: int = 0,
    decay: float = 0.99,
    guard: bool | None = None,
) -> BoundaryFactory:
    """A head predicts the gradient. The options trade waiting for quality.

    Args:
        warm_up: in the first so many steps the producer waits for the true gradient while the head already learns.
        refresh: every so many steps the producer gets the true gradient; 0: never.
        blend: the producer waits, and gets this share of what comes from above and the rest from the head, BP(lambda);
            1 is backprop.
        replay: the head also learns from the last so many batches in every step.
        decay: how slowly the running size of the targets forgets.
        guard: while the estimates explain too little of the gradients that come after them, the producer gets none, as
            with "silent", and you are told once. False: it follows them from the first step on, whatever they are.
            None: True on a cut, False on a link that is wired in a `Network`. At a window's end of `Recurrent` there is
            no guard. docs/first-do-no-harm.md says why.

    Raises:
        BoundaryError: an option is out of its range.
    """
    options, schedule = Options(replay, decay, guard), Schedule(warm_up, refresh, blend)
    if misfits := schedule.misfits() + options.misfits():
        raise BoundaryError(f"dni: these options do not fit: {', '.join(misfits)}")
    made = Made("dni", lambda spec, context, head: Dni(spec, context, head, options), options)
    return Scheduled(made, schedule)


def warm_up(boundary: BoundaryChoice, steps: int) -> BoundaryFactory:
    """Any boundary, behind the true gradient in the first so many steps, in which the boundary already learns.

    Args:
        boundary: "local-loss", a factory, one that is scheduled already: they go into each other.

    Raises:
        BoundaryError: the number of steps is none.

    Example:
        >>> dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(10), boundary=dg.warm_up("local-loss", 500))
    """
    return _checked(boundary, Schedule(warm_up=steps), "warm_up")


def refresh(boundary: BoundaryChoice, every: int) -> BoundaryFactory:
    """Any boundary, with the true gradient every so many steps.

    Raises:
        BoundaryError: the number of steps is none.

    Example:
        >>> control = dg.warm_up(dg.refresh("silent", 8), 500)
    """
    return _checked(boundary, Schedule(refresh=every), "refresh")


def blend(boundary: BoundaryChoice, share: float) -> BoundaryFactory:
    """Any boundary, of which the producer gets one part, and `share` of the true gradient: BP(lambda).

    Raises:
        BoundaryError: the share is not from 0 to 1.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, supplement A.

    Example:
        >>> dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(10), boundary=dg.blend("local-loss", 0.1))
    """
    return _checked(boundary, Schedule(blend=share), "blend")


def silent(*, warm_up: int = 0, refresh: int = 0) -> BoundaryFactory:
    """Nothing is handed down: the control beside every other boundary.

    Args:
        warm_up: in the first so many steps the producer gets the true gradient ("train, then freeze").
        refresh: every so many steps it gets the true gradient, and nothing in between; 0: never.

    Raises:
        BoundaryError: an option is out of its range.
    """
    made = Made("silent", lambda spec, context, head: Silent(spec, context))
    return _checked(made, Schedule(warm_up, refresh), "silent")


def _checked(boundary: BoundaryChoice, schedule: Schedule, name: str) -> BoundaryFactory:
    if misfits := schedule.misfits():
        raise BoundaryError(f"{name}: these options do not fit: {', '.join(misfits)}")
    return Scheduled(boundary, schedule)


@dataclass(frozen=True)
class Made:
    """A factory that says what it makes: `Recurrent` reads it, and makes its own of that kind."""

    name: str  # as in `NAMED`
    make: BoundaryFactory
    options: Any = None

    def __call__(self, spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
        return self.make(spec, context, head)


@dataclass(frozen=True)
class Scheduled:
    """The factory of a boundary that follows a schedule, whatever boundary that is. It can be read, too."""

    boundary: BoundaryChoice
    schedule: Schedule

    def __call__(self, spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
        made = make_boundary(self.boundary, spec, context, head)
        if self.schedule != Schedule():
            made.follow(self.schedule)
        return made


def oracle() -> BoundaryFactory:
    """The true gradient: backprop through the same machinery."""
    return Made("oracle", lambda spec, context, head: Oracle(spec, context))


def delayed(*, stash: bool = True) -> BoundaryFactory:
    """The true gradient when it comes, some steps late: what a pipeline that nobody waits in learns.

    How late is said by who runs it, `dg.Local(dm, late=k)` or `dm.network(late=k)`. Where nothing is late (drop-in,
    `late=0`) it is the oracle, bitwise.

    Args:
        stash: a part learns with the weights that it had when it sent the value, so that its gradient is a true one of
            that step (PipeDream, which keeps k copies of the weights). False: with those that it has by then, and the
            activations of that step; no copies are kept.

    Raises:
        BoundaryError: stash is neither True nor False.

    Source: Narayanan et al. 2019, PipeDream, arXiv 1806.03377 (weight stashing).

    Example:
        >>> dm = dg.decouple(model, ["layer1", "layer2"], (x,), boundary=dg.delayed(stash=False))
        >>> run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.1), late=1)
    """
    if not isinstance(stash, bool):
        raise BoundaryError(f"delayed: these options do not fit: stash={stash!r} (True or False)")
    return Made("delayed", lambda spec, context, head: Oracle(spec, context, "delayed", stash))


def local_loss(classes: int | None = None, loss: Loss = F.cross_entropy, hidden: int | None = None) -> BoundaryFactory:
    """An auxiliary classifier with a hidden layer of `hidden` units trains the producer, and nothing from above does.

    Args:
        classes: how many scores the classifier gives; None: as many labels as the condition knows.
        loss: of (scores, label), one number. Scores and label are flattened where each token has a label.
        hidden: units of the hidden layer; None: the crossing's width.

    Nothing from above reaches it, so it does not know by what you divide your loss: where an update comes after n
    micro-batches, divide this one too, `loss=lambda s, y: F.cross_entropy(s, y) / n`.
    """
    return lambda spec, context, head: LocalLoss(spec, context, classes, loss, hidden)


def auglocal(
    layers: int = 2, *, classes: int | None = None, loss: Loss = F.cross_entropy, hidden: int = 0
) -> BoundaryFactory:
    """A local loss whose auxiliary network is made of later layers of the model, with parameters of its own.

        value ─► a few of the layers behind the cut, evenly spaced ─► classifier ─► loss(·, label)

    The layers are copies: those with `reset_parameters` are reset, other weights drawn as a linear layer's, and scales
    and shifts keep the model's numbers. Where two that follow each other do not fit, a linear map (on maps a 1x1
    convolution, behind an average to the layer's grid) stands between them. The model's last layer is not among them:
    the classifier takes its place. It needs a graph of the model, so it is not to be had on hooks.

    Args:
        layers: how many of the layers behind the cut, at most: fewer are left behind later cuts, as in the paper's
            pyramid. The last one before the model's classifier is always among them.
        classes, loss: as in `local_loss`.
        hidden: units of a hidden layer of the classifier; 0: it has none.

    Raises:
        BoundaryError: an option is out of its range.

    Source: Ma et al. 2024, ICLR, arXiv 2402.17318.

    Example:
        >>> dm = dg.decouple(model, "layer1", (x,), condition=dg.one_hot(10), boundary=dg.auglocal(layers=2))
    """
    if not is_whole(layers) or layers == 0 or not is_whole(hidden):
        wrong = [f"layers={layers!r} (a whole number from 1 on)"] if not is_whole(layers) or layers == 0 else []
        wrong += [] if is_whole(hidden) else [f"hidden={hidden!r} (a whole number of units; 0: none)"]
        raise BoundaryError(f"auglocal: these options do not fit: {', '.join(wrong)}")

    def make(spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
        if spec.after is None:
            raise BoundaryError(lacking(spec, "auglocal", {"after"}) or "")
        if spec.dtype.is_complex:
            raise BoundaryError(
                f"boundary '{spec.name}': the layers behind it take complex numbers, and the classifier of an auglocal "
                "real ones: take another boundary here, boundary='local-loss'"
            )
        return LocalLoss(spec, context, classes, loss, hidden, layers=_copies(spec, spec.after, layers))

    return Made("auglocal", make)


def _copies(spec: CrossingSpec, after: Layers, count: int) -> Auxiliary:
    """Copies of some layers behind a crossing."""
    module, gives = after.fresh(chosen := evenly(count, len(after)), spec.shape)
    return Auxiliary(module, gives, " + ".join(after.names()[i] for i in chosen) or "no layers")


def infopro(
    weight: float = 0.1, *, classes: int | None = None, loss: Loss = F.cross_entropy, hidden: int | None = None,
    input: str | int | None = None, decoder: int = 12,
) -> BoundaryFactory:  # fmt: skip
    """An information-preserving local loss: a classifier, and a decoder that rebuilds the model's input from the value.

        loss of the classifier + weight * (squared error of the rebuilt input) / (variance of the input)

    Early parts trained by a plain local loss throw away what later parts would need; the decoder keeps it. Here it is
    the squared error that is minimised and not the cross-entropy of pixels, since inputs need not be from 0 to 1.

    Args:
        weight: of the decoder's error. The default was not tuned.
        classes, loss, hidden: of the classifier, as in `local_loss`.
        input: which of the model's inputs, by name or position; None: the first one with floating-point numbers of
            which the value is made.
        decoder: units or channels of the decoder's hidden layer.

    Raises:
        BoundaryError: an option is out of its range.

    Source: Wang et al. 2021, ICLR, arXiv 2101.10832.

    Example:
        >>> dm = dg.decouple(model, "layer1", (x,), condition=dg.one_hot(10), boundary=dg.infopro(weight=0.5))
    """
    wrong = [] if is_number(weight) and 0 <= weight < float("inf") else [f"weight={weight!r} (a number from 0 on)"]
    wrong += [] if is_whole(decoder) and decoder else [f"decoder={decoder!r} (a whole number of units from 1 on)"]
    if wrong:
        raise BoundaryError(f"infopro: these options do not fit: {', '.join(wrong)}")

    def make(spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
        made = Decoder(spec.real, weight, input, decoder)
        return LocalLoss(spec, context, classes, loss, hidden, decoder=made)

    return Made("infopro", make)


def dfa(scale: float = 1.0) -> BoundaryFactory:
    """Direct feedback alignment: the error at the model's outputs, through a fixed random matrix, is the gradient.

    The part below waits for the loss and for nothing else: parts need not learn in any order. Where the output has a
    position for each of the value's (tokens), or both are maps, the matrix is the same at all positions.

    Args:
        scale: of the feedback; the entries of the matrix have the standard deviation scale / sqrt(outputs).

    Raises:
        BoundaryError: the scale is no positive number.

    Source: Nøkland 2016, arXiv 1609.01596.

    Example:
        >>> dm = dg.decouple(model, ["layer1", "layer2"], (x,), boundary=dg.dfa())
    """
    if not is_number(scale) or not 0 < scale < float("inf"):
        raise BoundaryError(f"dfa: these options do not fit: scale={scale!r} (a positive number)")
    return Made("dfa", lambda spec, context, head: DirectFeedback(spec, context, scale))


def auto() -> BoundaryFactory:
    """What is to be had decides: with a label of classes or numbers a local loss, else a guarded head.

        condition=one_hot(...) or embedded(...)
            there are layers behind the value      auglocal, with copies of two of them
            none, on hooks, of complex values      local-loss, with a hidden layer
        another condition, or a head= of yours     dni, whose head sees the label
        no condition                               dni, whose head does not

    This is the order of what they were worth on six tasks, beside silence and the freeze control (benchmarks/harm.py).
    A head is guarded, `dni(guard=True)`: where it explains too little, the part below stands still.

    The loss of a local loss is chosen by the label: cross-entropy for classes and distributions, the squared error for
    other numbers. A label with positions that the value does not have (the map of a U-Net at a flat crossing) is
    averaged over them.

    Example:
        >>> dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(10), boundary="auto")
    """

    def make(spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
        condition = condition_for(spec)
        made: Boundary
        if isinstance(condition, Numbered) and head == "auto":
            after = None if spec.dtype.is_complex else spec.after
            layers = _copies(spec, after, 2) if after is not None and len(after) else None
            hidden = None if layers is None else 0
            made = LocalLoss(spec, context, None, suited(condition), hidden, layers=layers)
        else:
            made = Dni(spec, context, head)
        made.chosen = "auto"
        return made

    return Made("auto", make)


NAMED: dict[str, Callable[[], BoundaryFactory]] = {
    "auto": auto,
    "dni": dni,
    "oracle": oracle,
    "local-loss": local_loss,
    "silent": silent,
    "delayed": delayed,
    "dfa": dfa,
    "auglocal": auglocal,
    "infopro": infopro,
}


def warn_unconditioned(boundaries: Mapping[str, Boundary], train: str, stacklevel: int) -> None:
    """Warn of heads that cannot see the label. `train` says how to give it."""
    blind = []
    for name, boundary in boundaries.items():
        if boundary.kind == "dni" and boundary.spec.condition is None:
            blind.append(name)
    if blind:
        warnings.warn(
            f"heads on {', '.join(blind[:3])}{', ...' if len(blind) > 3 else ''} cannot see the label; without it a "
            "head's best estimate is only the miscalibration of the parts above. Pass condition=dg.one_hot(classes), "
            f"and {train}",
            UnconditionedWarning,
            stacklevel=stacklevel,
        )
