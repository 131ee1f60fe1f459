"""What every head is: a network that predicts a gradient from a crossing's value, and perhaps from the label."""

import inspect
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..passes.errors import DniGraphError
from .conditions import Condition, condition_for
from .spec import CrossingSpec


class HeadError(DniGraphError, ValueError):
    """A head does not fit its crossing."""


class Head(nn.Module, ABC):
    """Predicts the gradient of one crossing, per sample and in units of its running size.

    Heads of this library predict exactly zero at first, because weight and bias of the last layer are zero. They learn
    `GAIN` times as fast as the model under the same Adam, because their target moves. The factor is built in, so that
    one optimiser over all parameters is enough: the boundary multiplies estimates by `GAIN` times the running size,
    and a layer in front of a normalisation, which undoes its scale, starts smaller by `GAIN`. In a short run
    (Fashion-MNIST, every layer cut, 1500 steps) the train loss was .347 without it and .326 with 3; 6 was no better.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, supplement, "Common details" (zero start).
    """

    condition: Condition | None  # encodes the label for it; None: it does not look at the label

    def __init__(self, name: str, condition: Condition | None) -> None:
        super().__init__()
        self.name, self.condition = name, condition  # the name is for the plan's table: "mlp 128"

    @abstractmethod
    def forward(self, value: Tensor, label: Tensor | None) -> Tensor:
        """The prediction. Shapes: value [*crossing], a label that `condition.check` let through -> [*crossing]."""


class Foreign(Head):
    """A user's module as a head: called with (value, encoded label) where it takes two arguments, else with (value).

    An optional second argument counts only if it is called `condition`: in many modules of torch it is a mask or a
    state.
    """

    def __init__(self, spec: CrossingSpec, module: nn.Module) -> None:
        takes_two, needs_two = _second_argument(module)
        condition = condition_for(spec) if takes_two else None
        super().__init__(type(module).__name__, condition)
        self.crossing, self.module = spec.name, module
        if needs_two and condition is None:
            raise HeadError(
                f"the head {self.name} of boundary '{spec.name}' takes (value, condition), but there is no condition: "
                "say what it shall see, condition=one_hot(10)"
            )
        if condition is None:
            self._try_on(spec)

    def forward(self, value: Tensor, label: Tensor | None) -> Tensor:
        if self.condition is not None and label is not None:
            return self._checked(value, self.module(value, self.condition.encode(label)))
        return self._checked(value, self.module(value))

    def _try_on(self, spec: CrossingSpec) -> None:
        """One run on zeros in eval mode, so that a misfit is found when the head is made and not hours later."""
        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            with torch.enable_grad():
                dtype = next((parameter.dtype for parameter in self.module.parameters()), spec.dtype)
                estimate = self(torch.zeros(spec.shape, dtype=dtype, device=spec.device), None)
            if not estimate.requires_grad and any(p.requires_grad for p in self.module.parameters()):
                raise HeadError(
                    f"the head {self.name} of boundary '{spec.name}' would never learn: no gradient comes from its "
                    "estimate to its parameters, as behind a detach() or under no_grad()"
                )
        except HeadError:
            raise
        except Exception as error:
            raise HeadError(
                f"the head {self.name} of boundary '{spec.name}' fails on a value of shape {list(spec.shape)}: {error}"
            ) from error
        finally:
            for module, training in modes.items():
                module.training = training

    def _checked(self, value: Tensor, estimate: object) -> Tensor:
        if isinstance(estimate, Tensor) and estimate.shape == value.shape and estimate.is_floating_point():
            return estimate
        got = f"a tensor of shape {list(estimate.shape)}" if isinstance(estimate, Tensor) else type(estimate).__name__
        raise HeadError(
            f"the head {self.name} of boundary '{self.crossing}' must give a gradient of the value's shape "
            f"{list(value.shape)}, but gave {got}"
        )


def _second_argument(module: nn.Module) -> tuple[bool, bool]:
    """Whether the module's forward takes the condition as a second argument, and whether it must be given one."""
    kinds = inspect.Parameter
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    needs = len(named) >= 2 and named[1].default is kinds.empty
    return needs or (len(named) >= 2 and named[1].name == "condition"), needs
