"""The label, and how it is encoded for a head: what makes a DNI a conditioned DNI (cDNI).

Without the label the best estimate of a gradient is only the miscalibration of the layers above; with it, one cut is
within noise of backprop. So it takes one argument: `condition=one_hot(10)`.

Source: Jaderberg et al. 2017, arXiv 1608.05343, section 3.1 (cDNI).
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..passes.errors import DniGraphError, is_whole
from ..passes.sandbox.journal import undone
from .seen import Seen
from .spec import CrossingSpec

NOTHING = Seen()


class ConditionError(DniGraphError, ValueError):
    """The label does not fit the condition of a boundary."""


class Context:
    """What all boundaries of one decoupled model share: what they see of the present step, and the loss's scale.

    Each thread sees its own step, so two threads can run one model on two batches. A copy of a context is a new one
    that sees nothing: a copied model is another model.
    """

    def __init__(self) -> None:
        self._of_this_thread = threading.local()
        self.siblings: Callable[[], Mapping[str, Any]] = dict  # of a boundary that is made now, by the crossings' names
        self.loss_scale: Any = None  # a GradScaler, a number, or None: see `scale` and `scale_by`
        self._told = set[str]()

    def scale_by(self, scale: Any) -> None:
        """Set what the loss is multiplied by before its backward pass: a `GradScaler`, a number, or None.

        Raises:
            DniGraphError: it is something else.
        """
        fits = scale is None or (callable(getattr(scale, "get_scale", None)) and hasattr(scale, "is_enabled"))
        if isinstance(scale, Tensor):
            fits = scale.numel() == 1
        elif isinstance(scale, int | float):
            fits = 0 < scale < float("inf")
        if not fits:
            raise DniGraphError(
                f"loss_scale is a GradScaler, a positive number, a tensor with one, or None, not {scale!r}"
            )
        self.loss_scale = scale

    def scale(self) -> Tensor | float | None:
        """The present factor by which the loss is multiplied before its backward pass; None: it is not.

        That of a `GradScaler` is read where it lies: its `get_scale` waits for the device.
        """
        given = self.loss_scale
        if given is None or isinstance(given, int | float | Tensor):
            return given
        if not given.is_enabled():
            return None
        scale = getattr(given, "_scale", None)  # None before the first loss was scaled
        return scale if isinstance(scale, Tensor) else float(given.get_scale())

    def tells(self, what: str) -> bool:
        """Whether this is the first time that something is to be told of this model."""
        first = what not in self._told
        self._told.add(what)
        return first

    @property
    def seen(self) -> Seen:
        """What the boundaries see at present, in this thread."""
        return getattr(self._of_this_thread, "seen", NOTHING)

    @property
    def label(self) -> Any:
        """The label of the innermost `conditioned` block of this thread; None outside."""
        return self.seen.label

    def conditioned(self, label: Any) -> AbstractContextManager[None]:
        """Every boundary of the model sees `label` inside the block. Blocks nest; an exception ends them, too."""
        return self.showing(Seen(label))

    @contextmanager
    def showing(self, seen: Seen) -> Iterator[None]:
        """Every boundary of the model sees this inside the block. Blocks nest; an exception ends them, too."""
        before = self.seen
        with undone(partial(setattr, self._of_this_thread, "seen", before)):
            self._of_this_thread.seen = seen
            yield

    def __reduce__(self) -> tuple[type["Context"], tuple[()]]:
        return Context, ()


class Condition(nn.Module, ABC):
    """Encodes a label for heads: `width` numbers for each entry of the label.

    A condition with weights gives every head its own copy (`own`), so that heads stay independent of each other.
    """

    width: int
    labels: int | None = None  # how many different labels there are, where they are numbered

    @abstractmethod
    def encode(self, label: Tensor) -> Tensor:
        """The code of a label that `check` accepted. Shapes: [*label] -> [*label, width]."""

    def forward(self, label: Tensor) -> Tensor:
        return self.encode(label)

    def own(self) -> "Condition":
        """The condition that one head may train for itself."""
        return self

    def check(self, label: Any, batch: int | None, name: str) -> Tensor:
        """The label, when it can be encoded beside a batch of `batch` samples (None: no batch to compare with).

        Raises:
            ConditionError: the label is missing, no tensor, or of another batch.
        """
        if label is None:
            raise ConditionError(
                f"boundary '{name}' looks at the label: run the forward pass inside `with dm.conditioned(label):`, or "
                "give run.step(...) a target= or a label="
            )
        if not isinstance(label, Tensor):
            raise ConditionError(
                f"boundary '{name}' needs the label as a tensor, not as {type(label).__name__}: give the heads one of "
                "their own, run.step(..., label=tensor) or dm.conditioned(tensor)"
            )
        if batch is not None and (label.ndim == 0 or len(label) != batch):
            got = "a single number" if label.ndim == 0 else f"{len(label)} samples"
            raise ConditionError(
                f"boundary '{name}': the label has {got} (shape {list(label.shape)}), the batch has {batch}: give "
                "the heads a label with an entry for each of them, label=... (of graphs: y[batch], so that each "
                "node sees its graph's)"
            )
        if label.numel() == 0 or label.layout != torch.strided:
            form = "has no entries" if label.numel() == 0 else f"is {str(label.layout).removeprefix('torch.')}"
            raise ConditionError(
                f"boundary '{name}': the label {form} (shape {list(label.shape)}): give the heads a dense one with an "
                "entry for each sample, label=..."
            )
        return label


class Numbered(Condition):
    """A label that counts from 0 to `labels` - 1; `ignore` marks the entries that have none."""

    labels: int

    def __init__(self, labels: int, ignore: int) -> None:
        super().__init__()
        self.labels, self.ignore = labels, ignore
        self._seen_in_range = False

    def check(self, label: Any, batch: int | None, name: str) -> Tensor:
        tensor = super().check(label, batch, name)
        if tensor.is_floating_point() or tensor.is_complex():
            kind = f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
            raise ConditionError(
                f"boundary '{name}': {self._expected()}, not {kind}: give the heads one of that form, label=... (for a "
                "regression on n numbers: condition=one_hot(n) and a label [batch, n])"
            )
        self._check_range(tensor, name)
        return tensor

    def index(self, label: Tensor) -> Tensor:
        """The row of a table of `labels` + 1 rows that belongs to each entry; the last row is for ignored ones."""
        label = label.long()
        return label.where(label != self.ignore, self.labels)

    def _check_range(self, label: Tensor, name: str) -> None:
        """On an accelerator only the first label is checked: each check makes the host wait for the device."""
        if label.device.type != "cpu" and self._seen_in_range:
            return
        low, high = _range(label)
        if low < 0 or high >= self.labels:
            low, high = _range(label[label.long() != self.ignore])
        if low < 0 or high >= self.labels:
            raise ConditionError(
                f"boundary '{name}': {self._expected()}, but this label goes from {low} to {high}"
                f"; entries equal to {self.ignore} count as unlabelled: give the mark that your labels have as ignore="
            )
        self._seen_in_range = True

    def _expected(self) -> str:
        return f"{self} takes whole numbers from 0 to {self.labels - 1}"


class OneHot(Numbered):
    """One number per class: 1 for the class of the label, 0 for the others. Made by `one_hot`."""

    def __init__(self, classes: int, ignore: int) -> None:
        super().__init__(classes, ignore)
        self.width = classes

    def check(self, label: Any, batch: int | None, name: str) -> Tensor:
        if is_soft(label) and label.ndim == 1 and self.width == 1:
            label = label.unsqueeze(-1)  # one number to regress on
        if is_soft(label) and label.ndim > 1 and label.shape[-1] == self.width:
            soft = Condition.check(self, label, batch, name)
            self._check_finite(soft, name)
            return soft
        return super().check(label, batch, name)

    def _check_finite(self, label: Tensor, name: str) -> None:
        """As `_check_range`, of numbers: one that is not finite would spoil the head and all below it."""
        if label.device.type != "cpu" and self._seen_in_range:
            return
        if not bool(label.isfinite().all()):
            raise ConditionError(
                f"boundary '{name}': numbers in the label are not finite: give the heads a label without them, "
                "label=target.nan_to_num(), say"
            )
        self._seen_in_range = True

    def encode(self, label: Tensor) -> Tensor:
        if is_soft(label):
            return label.float()
        return F.one_hot(self.index(label), self.labels + 1)[..., :-1].float()

    def _expected(self) -> str:
        return f"{super()._expected()}, or soft labels [batch, {self.width}]"

    def __repr__(self) -> str:
        return f"one_hot({self.labels})"


class Embedded(Numbered):
    """A learned vector per label. Made by `embedded`."""

    def __init__(self, vocabulary: int, width: int, ignore: int) -> None:
        super().__init__(vocabulary, ignore)
        self.width = width
        self.table = nn.Embedding(vocabulary + 1, width, padding_idx=vocabulary)

    def encode(self, label: Tensor) -> Tensor:
        vectors: Tensor = self.table(self.index(label))
        return vectors

    def own(self) -> "Embedded":
        return Embedded(self.labels, self.width, self.ignore)

    def __repr__(self) -> str:
        return f"embedded({self.labels}, {self.width})"


class Encoded(Condition):
    """A user's module, with a `width`, that turns the label into [*batch, width]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.width = int(module.width)  # type: ignore[arg-type]  # checked by `condition_for`

    def encode(self, label: Tensor) -> Tensor:
        form = f"a label of shape {list(label.shape)} and {label.dtype}"
        try:
            encoded: Any = self.module(label)
        except Exception as error:
            raise ConditionError(f"the condition {self!r} fails on {form}: {type(error).__name__}: {error}") from error
        if (
            isinstance(encoded, Tensor)
            and encoded.ndim
            and encoded.shape[-1] == self.width
            and len(encoded) == len(label)
        ):
            return encoded
        got = f"shape {list(encoded.shape)}" if isinstance(encoded, Tensor) else type(encoded).__name__
        raise ConditionError(
            f"the condition {self!r} must make [batch, ..., {self.width}], as its width says, of {form}, but made {got}"
        )

    def __repr__(self) -> str:
        return f"{type(self.module).__name__}({self.width})"


ConditionChoice: TypeAlias = Condition | Callable[[CrossingSpec], nn.Module] | None


def one_hot(classes: int, *, ignore: int = -100) -> Condition:
    """Heads see the label as one of `classes` classes.

    Shapes: the label is [batch], [batch, tokens] or a map [batch, *positions] of whole numbers, or soft,
    [batch, classes] of floats: a distribution, several classes at once, or numbers to regress on ([batch] for one).
    Where the label has other positions than the crossing, the head sees its mean. Entries equal to `ignore` (what
    `cross_entropy` ignores, too) say nothing.

    Raises:
        ConditionError: `classes` is not a positive whole number.
    """
    return OneHot(_positive("one_hot: classes", classes), ignore)


def embedded(vocabulary: int, width: int, *, ignore: int = -100) -> Condition:
    """Heads see a learned vector of `width` numbers for each of `vocabulary` labels; each head learns its own.

    Shapes: the label is [batch] or [batch, tokens] of whole numbers. Entries equal to `ignore` say nothing.

    Raises:
        ConditionError: a size is not a positive whole number.
    """
    return Embedded(_positive("embedded: vocabulary", vocabulary), _positive("embedded: width", width), ignore)


def condition_for(spec: CrossingSpec) -> Condition | None:
    """The condition that the head of this crossing owns; None where it has none.

    Raises:
        ConditionError: the choice is neither a condition nor a factory of modules with a `width`.
    """
    choice = spec.condition
    if choice is None or isinstance(choice, Condition):
        return choice.own() if choice is not None else None
    if isinstance(choice, nn.Module) or not callable(choice):
        raise ConditionError(
            f"a condition is one_hot(classes), embedded(vocabulary, width) or a callable that makes a module for a "
            f"crossing, not {type(choice).__name__}; wrap a ready module: condition=lambda spec: module"
        )
    try:
        module = choice(spec)
    except DniGraphError:
        raise
    except Exception as cause:
        raise ConditionError(
            f"the condition factory for boundary '{spec.name}' fails: {type(cause).__name__}: {cause}; it is called "
            "with the crossing: condition=lambda spec: module"
        ) from cause
    if isinstance(module, Condition):
        return module
    if not isinstance(module, nn.Module) or not isinstance(getattr(module, "width", None), int):
        raise ConditionError(
            f"the condition made for boundary '{spec.name}' must be an nn.Module with a whole number `width`, "
            f"the size of the last axis that it gives; it is {type(module).__name__}"
        )
    return Encoded(module)


def is_soft(label: object) -> bool:
    """Whether a label is a distribution over classes and not a class."""
    return isinstance(label, Tensor) and label.is_floating_point()


def _range(label: Tensor) -> tuple[int, int]:
    if label.numel() == 0 or label.dtype == torch.bool:
        return 0, int(label.any())
    low, high = label.aminmax()
    return int(low), int(high)


def _positive(what: str, number: object) -> int:
    if not is_whole(number, 1):
        raise ConditionError(f"{what} must be a positive whole number, not {number!r}")
    return number
