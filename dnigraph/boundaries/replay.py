"""Earlier batches from which a head learns once more."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST = 2**28  # bytes of a batch from a file that stores fewer: labels may be repeated views


class Replay(nn.Module):
    """The last `size` batches of one crossing: value, label and target in units of the scale, oldest first.

    They are buffers (`value_0`, `label_0`, `target_0`, ...), so a checkpoint holds them and a resumed run equals one
    that never stopped. A batch of another shape (longer sequences, larger pictures) drops the others.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def loss(self, estimate: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor | None:
        """The sum of the regression losses of the remembered batches; None where there are none yet.

        All of them go through the head in one pass. So each parameter's gradient gets one further summand, and the
        order of summation is the same in all runners.
        """
        count = len(self)
        if count == 0:
            return None
        value, label, target = (self._joined(part) for part in ("value", "label", "target"))
        assert value is not None and target is not None
        return F.mse_loss(estimate(value, label), target) * count

    def remember(self, value: Tensor, label: Tensor | None, target: Tensor) -> None:
        """Keep a batch; the oldest one goes where there are `size` already. One that is not finite is not kept."""
        if not bool(target.isfinite().all()):
            return
        batch = {"value": value.clone(), "label": label, "target": target}
        if len(self) and not self._matches(batch):
            self._buffers.clear()
        kept = [self._batch(i) for i in range(len(self))][-(self.size - 1) :] if self.size > 1 else []
        for i, entry in enumerate([*kept, batch]):
            for part, tensor in entry.items():
                self._buffers[f"{part}_{i}"] = tensor

    @property
    def entries(self) -> list[str]:
        """The names that its state may have: how many of them there are, and of which sizes, hangs on what was seen."""
        return [f"{part}_{i}" for i in range(self.size) for part in ("value", "label", "target")]

    def __len__(self) -> int:
        return sum(name.startswith("value_") for name in self._buffers)

    def _batch(self, i: int) -> dict[str, Tensor | None]:
        return {part: self._buffers.get(f"{part}_{i}") for part in ("value", "label", "target")}

    def _joined(self, part: str) -> Tensor | None:
        tensors = [tensor for i in range(len(self)) if (tensor := self._buffers.get(f"{part}_{i}")) is not None]
        return torch.cat(tensors) if tensors else None

    def _matches(self, batch: dict[str, Tensor | None]) -> bool:
        return all(_form(old) == _form(new) for old, new in zip(self._batch(0).values(), batch.values(), strict=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._buffers.clear()
        for i in range(self.size):  # no other names are ours: torch says of them that it does not expect them
            for part in ("value", "label", "target"):
                name = f"{prefix}{part}_{i}"
                saved = state_dict.get(name)
                if isinstance(saved, torch.Tensor) and _inflates(saved):
                    args[-1].append(f"{name} repeats a few numbers until there are {saved.nbytes} bytes")
                elif isinstance(saved, torch.Tensor):
                    self._buffers[f"{part}_{i}"] = torch.empty_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _inflates(tensor: Tensor) -> bool:
    """Whether a view repeats what is stored until a copy of it would fill the memory."""
    return tensor.nbytes > max(MOST, 16 * tensor.untyped_storage().nbytes())


def _form(tensor: Tensor | None) -> tuple[object, ...]:
    return () if tensor is None else (tensor.shape[1:], tensor.dtype)
