"""A local loss in place of a predicted gradient: a small classifier on the crossing trains the part below it."""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads.conditions import Condition, Context, condition_for, is_soft
from ..heads.convolution import LAYERS
from ..heads.layers import Hidden
from .boundary import Boundary, BoundaryError, CrossingSpec, Visit

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class LocalLoss(Boundary):
    """An auxiliary classifier on the crossing trains the producer; nothing from above does.

        value ─► classifier ─► loss(·, label) ─► gradient of classifier and producer, at once

    Shapes: value [batch, D], [batch, C, *positions] or [batch, tokens, D]; label [batch] or [batch, classes], for
    tokens also [batch, tokens], for maps also [batch, *label positions], to whose size the scores are interpolated.

    Source: Belilovsky et al. 2020, arXiv 1901.08164 (decoupled greedy learning).
    """

    kind = "local-loss"

    def __init__(
        self, spec: CrossingSpec, context: Context, classes: int | None, loss: Loss, hidden: int | None
    ) -> None:
        super().__init__(spec, context)
        self.condition = _Label()
        self.loss = loss
        self.classes = _classes(spec, classes)
        self.classifier = Classifier(spec, self.classes, hidden).to(spec.device)
        self.head_name = self.classifier.name
        self._seen: Tensor | None = None

    def visit(self, value: Tensor) -> Visit:
        """The loss is a root beside the value. Its gradient is one, and its graph leads to the producer."""
        self.expect_width(value)
        label = self.label_beside(value, self.condition)
        loss = self._loss(value, label)
        self._seen = loss.detach()
        one, by = torch.ones_like(loss), self.context.scale()
        return Visit((value, loss), (None, one if by is None else one * by), lambda target: (None, None))

    def again(self, value: Tensor) -> Visit:
        """Nothing: it has learned in its visit, and an answer teaches it nothing."""
        return Visit((value,), (None,), lambda target: (None,))

    @property
    def waits(self) -> bool:
        """Never: the loss is known at once."""
        return False

    @property
    def needs_label(self) -> bool:
        """Always."""
        return True

    def metrics(self) -> dict[str, float]:
        """The local loss of the last visit."""
        return self.measured()()

    def measured(self) -> Callable[[], dict[str, float]]:
        seen = self._seen
        return lambda: {} if seen is None else {"local_loss": float(seen)}

    def _loss(self, value: Tensor, label: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(value.device.type):
            value = value.to(self.classifier.output.weight.dtype)
        if not is_soft(label) and self.spec.kind == "maps" and label.ndim == value.ndim and label.shape[1] == 1:
            label = label.squeeze(1)  # one channel of classes, as pictures of labels have it
        label = label.long() if label.dtype == torch.bool else label
        scores = self._scores(value, label)
        if scores.ndim > 2:  # per position
            scores, label = scores.flatten(0, -2), label.flatten(0, scores.ndim - 2)
        if is_soft(label) and scores.shape == (*label.shape, 1):  # one number to regress on
            scores = scores.squeeze(-1)
        try:
            loss = self.loss(scores, label)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise BoundaryError(
                f"the local loss of boundary '{self.spec.name}' fails on scores {list(scores.shape)} and a label "
                f"{list(label.shape)} of {label.dtype} ({error}): it takes a label [batch], a number for each token or "
                f"for each position of a map, from 0 to {self.classes - 1}, or soft ones [batch, {self.classes}]; give "
                "the heads one of that form, label=..., or a loss of yours, boundary=dg.local_loss(classes, loss=...): "
                "lambda s, y: F.cross_entropy(s, y, ignore_index=255), say, or F.mse_loss"
            ) from error
        if not isinstance(loss, Tensor) or loss.ndim:
            got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise BoundaryError(f"the local loss of boundary '{self.spec.name}' must be one number, not {got}")
        return loss

    def _scores(self, value: Tensor, label: Tensor) -> Tensor:
        """Shapes: [batch, classes]; [batch, *label positions, classes] where there is a label for each position."""
        if is_soft(label) and label.shape[1:] == (self.classes,):
            return self.classifier(value, False)  # type: ignore[no-any-return]  # a module call
        if self.spec.kind == "maps" and label.ndim == value.ndim - 1:
            scores = self.classifier(value, True)
            if scores.shape[1:-1] != label.shape[1:]:
                mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[value.ndim]
                scores = F.interpolate(scores.movedim(-1, 1), label.shape[1:], mode=mode).movedim(1, -1)
            return scores  # type: ignore[no-any-return]  # the same
        return self.classifier(value, label.ndim > 1 and label.shape[:2] == value.shape[:2])  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """One hidden layer, averaged over positions where the label has none, and scores of the classes.

    features   Linear ─► Normalise ─► ReLU ─► Linear
    maps       conv 3x3 ─► Normalise ─► ReLU ─► mean over positions ─► Linear
    tokens     as features, per token, or the mean over tokens ─► Linear
    """

    def __init__(self, spec: CrossingSpec, classes: int, hidden: int | None) -> None:
        super().__init__()
        self.width, units = spec.width, hidden or spec.width
        self.maps = spec.kind == "maps"
        layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d = nn.Linear(spec.width, units, False)
        if self.maps:
            layer = LAYERS[len(spec.shape)][0](spec.width, units, 3, padding=1, bias=False)
        self.hidden = Hidden(layer)
        self.output = nn.Linear(units, classes)
        self.name = f"classifier {units}"

    def forward(self, value: Tensor, per_position: bool) -> Tensor:
        """Shapes: [batch, classes], or [batch, *positions, classes] per position."""
        if self.maps:
            units = self.hidden(value)
            units = units.movedim(1, -1) if per_position else units.flatten(2).mean(2)
        else:
            units = self.hidden(value.reshape(-1, self.width))
            if value.ndim > 2:
                units = units.view(*value.shape[:-1], -1)
                units = units if per_position else units.flatten(1, -2).mean(1)
        scores: Tensor = self.output(units)
        return scores


class _Label(Condition):
    """A label for the loss. It is checked, and not encoded."""

    def encode(self, label: Tensor) -> Tensor:
        return label


def _classes(spec: CrossingSpec, classes: int | None) -> int:
    if classes is not None:
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
            raise BoundaryError(f"local_loss: classes must be a positive whole number, not {classes!r}")
        return classes
    condition = condition_for(spec)
    if condition is None:
        raise BoundaryError(
            f"boundary '{spec.name}' cannot tell how many classes its local loss has: say local_loss(classes=10), "
            "or give the condition that the label fits, condition=one_hot(10)"
        )
    return condition.labels or condition.width
