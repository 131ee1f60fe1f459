"""A local loss in place of a predicted gradient: a small classifier on the crossing trains the part below it."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads.conditions import Condition, Context, Numbered, OneHot, condition_for, is_soft
from ..passes.errors import is_whole
from .auxiliary_networks import MODES, Classifier, Decoder
from .boundary import Boundary, BoundaryError, CrossingSpec, Seen, Visit

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Auxiliary(nn.Module):
    """The layers in front of the classifier. Shapes: the crossing's -> `gives`, [batch, ...].

    Copies of the model's layers may drop out at random, as these do: the random state is put back, so that the model
    draws the numbers that it would draw by itself.

    Args:
        name: for the plan's table.
    """

    def __init__(self, layers: nn.Module, gives: tuple[int, ...], name: str) -> None:
        super().__init__()
        self.layers, self.gives, self.name = layers, gives, name
        self.dtype = next((p.dtype for p in layers.parameters() if p.is_floating_point()), None)

    def forward(self, value: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._run(value)
        with torch.random.fork_rng([] if value.device.type == "cpu" else [value.device], device_type=value.device.type):
            return self._run(value)

    def _run(self, value: Tensor) -> Tensor:
        if self.dtype is None or torch.is_autocast_enabled(value.device.type):
            return self.layers(value)  # type: ignore[no-any-return]  # a module call
        return self.layers(value.to(self.dtype)).to(value.dtype)  # type: ignore[no-any-return]  # the same


class LocalLoss(Boundary):
    """An auxiliary network on the crossing trains the producer; nothing from above does.

        value ─► layers, if any ─► classifier ─► loss(·, label) ─► gradient of the network and the producer, at once
          └────► decoder, if any ─► squared error to the model's input, times a weight ──┘ +

    Shapes: value [batch, D], [batch, C, *positions] or [batch, tokens, D]; label [batch] or [batch, classes], for
    tokens also [batch, tokens], for maps also [batch, *label positions], to whose size the scores are interpolated.

    Source: Belilovsky et al. 2020, arXiv 1901.08164 (decoupled greedy learning). With layers: Ma et al. 2024, arXiv
    2402.17318 (AugLocal). With a decoder: Wang et al. 2021, arXiv 2101.10832 (InfoPro).
    """

    kind = "local-loss"
    waits = False
    real = True

    def __init__(
        self, spec: CrossingSpec, context: Context, classes: int | None, loss: Loss, hidden: int | None,
        layers: Auxiliary | None = None, decoder: Decoder | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, context)
        self.condition = _Label()
        self.loss = loss
        self.classes = _classes(spec, classes)
        seen = self.spec if layers is None else replace(self.spec, shape=layers.gives)
        self.maps = seen.kind == "maps"
        self.layers, self.decoder = layers, decoder
        self.classifier = Classifier(seen, self.classes, hidden)
        self.head_name = self.classifier.name if layers is None else f"{layers.name}, {self.classifier.name}"
        if layers is not None:
            self.kind = "auglocal"
        if decoder is not None:
            self.kind, self.head_name = "infopro", f"{self.head_name}, {decoder.name}"
        self.to(spec.device)
        self._seen: dict[str, Tensor] = {}

    @property
    def needs(self) -> Collection[str]:
        """The label; for layers of the model these, for a decoder the model's inputs."""
        more = {"after": self.layers, "inputs": self.decoder}
        return {"label", *(need for need, part in more.items() if part is not None)}

    def visit(self, value: Tensor, seen: Seen) -> Visit:
        """The loss is a root beside the value. Its gradient is one, and its graph leads to the producer."""
        self.expect_width(value)
        label = self.label_beside(value, seen.label, self.condition)
        own = value
        if not torch.is_autocast_enabled(value.device.type):
            own = value.to(self.classifier.output.weight.dtype)
        loss = self._loss(own, label)
        self._seen = {"local_loss": loss.detach()}
        if self.decoder is not None:
            error = self.decoder.error(own, seen.inputs)
            self._seen["reconstruction"] = error.detach()
            loss = loss + self.decoder.weight * error
        one, by = torch.ones_like(loss), self.context.scale()
        return Visit((value, loss), (None, one if by is None else one * by), lambda target: (None, None))

    def again(self, value: Tensor, seen: Seen) -> Visit:
        """Nothing: it has learned in its visit, and an answer teaches it nothing."""
        return Visit((value,), (None,), lambda target: (None,))

    def metrics(self) -> dict[str, float]:
        """Of the last visit: the local loss, and the decoder's error relative to the input's variance."""
        return self.measured()()

    def measured(self) -> Callable[[], dict[str, float]]:
        seen = self._seen
        return lambda: {name: float(number) for name, number in seen.items()}

    def _loss(self, value: Tensor, label: Tensor) -> Tensor:
        value = value if self.layers is None else self.layers(value)
        if not is_soft(label) and self.maps and label.ndim == value.ndim and label.shape[1] == 1:
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
        if self.maps and label.ndim == value.ndim - 1:
            scores = self.classifier(value, True)
            if scores.shape[1:-1] != label.shape[1:]:
                mode = MODES[scores.ndim]
                scores = F.interpolate(scores.movedim(-1, 1), label.shape[1:], mode=mode).movedim(1, -1)
            return scores  # type: ignore[no-any-return]  # the same
        return self.classifier(value, label.ndim > 1 and label.shape[:2] == value.shape[:2])  # type: ignore[no-any-return]


def suited(condition: Numbered) -> Loss:
    """The loss that fits the labels of a condition: of classes and distributions the cross-entropy, of other numbers
    the squared error. Classes at positions that the scores do not have count as their mean.

    Shapes: scores [rows, classes] or [rows]; label [rows], [rows, *positions] of whole numbers, or as the scores.
    """

    def loss(scores: Tensor, label: Tensor) -> Tensor:
        if not is_soft(label) and label.ndim == 1:
            return F.cross_entropy(scores, label.long(), ignore_index=condition.ignore)
        if not is_soft(label):
            classes = OneHot(condition.labels, condition.ignore).encode(label).flatten(1, -2)
            label = classes.sum(1) / classes.sum((1, 2)).clamp(min=1).unsqueeze(1)
            return F.cross_entropy(scores, label)
        label = label.to(scores.dtype)
        shares = label.ndim > 1 and label.shape[-1] > 1 and bool(label.ge(0).all())
        shares = shares and bool(label.sum(-1).sub(1).abs().lt(1e-3).all())
        return F.cross_entropy(scores, label) if shares else F.mse_loss(scores, label)

    return loss


class _Label(Condition):
    """A label for the loss. It is checked, and not encoded."""

    def encode(self, label: Tensor) -> Tensor:
        return label


def _classes(spec: CrossingSpec, classes: int | None) -> int:
    if classes is not None:
        if not is_whole(classes, 1):
            raise BoundaryError(f"classes must be a positive whole number, not {classes!r}")
        return classes
    condition = condition_for(spec)
    if condition is None:
        raise BoundaryError(
            f"boundary '{spec.name}' cannot tell how many classes its local loss has: say local_loss(classes=10), "
            "or give the condition that the label fits, condition=one_hot(10)"
        )
    return condition.labels or condition.width
