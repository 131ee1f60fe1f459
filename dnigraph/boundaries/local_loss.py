"""A local loss in place of a predicted gradient: a small classifier on the crossing trains the part below it."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..heads.conditions import Condition, Context, condition_for, is_soft
from ..heads.convolution import LAYERS
from ..heads.layers import Hidden
from .boundary import Boundary, BoundaryError, CrossingSpec, Visit

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class LocalLoss(Boundary):
    """An auxiliary classifier on the crossing trains the producer; nothing from above does.

        value ─► classifier ─► loss(·, label) ─► gradient of classifier and producer, at once

    Shapes: value [batch, D], [batch, C, *positions] or [batch, tokens, D]; label [batch], for tokens also
    [batch, tokens].

    Source: Belilovsky et al. 2020, arXiv 1901.08164 (decoupled greedy learning).
    """

    kind = "local-loss"

    def __init__(
        self, spec: CrossingSpec, context: Context, classes: int | None, loss: Loss, hidden: int | None
    ) -> None:
        super().__init__(spec, context)
        self.condition = _Label()
        self.loss = loss
        self.classifier = Classifier(spec, _classes(spec, classes), hidden).to(spec.device)
        self.head_name = self.classifier.name
        self._seen: Tensor | None = None

    def visit(self, value: Tensor) -> Visit:
        """The loss is a root beside the value. Its gradient is one, and its graph leads to the producer."""
        self.expect_width(value)
        label = self.label_beside(value, self.condition)
        loss = self._loss(value, label)
        self._seen = loss.detach()
        return Visit((value, loss), (None, torch.ones_like(loss)), lambda target: (None, None))

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
        return {} if self._seen is None else {"local_loss": float(self._seen)}

    def _loss(self, value: Tensor, label: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(value.device.type):
            value = value.to(self.classifier.output.weight.dtype)
        soft = is_soft(label) and label.shape[1:] == (self.classifier.output.out_features,)
        scores = self.classifier(value, label.ndim > 1 and label.shape[:2] == value.shape[:2] and not soft)
        if scores.ndim > 2:  # per token
            scores, label = scores.flatten(0, 1), label.flatten(0, 1)
        loss = self.loss(scores, label)
        if loss.ndim:
            raise BoundaryError(
                f"the local loss of boundary '{self.spec.name}' must be one number, not {list(loss.shape)}"
            )
        return loss


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
        """Shapes: [batch, classes], or [batch, tokens, classes] per position of tokens."""
        if self.maps:
            units = self.hidden(value).flatten(2).mean(2)
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
