"""When the true gradient stands in for what a boundary hands down: at first, every so often, or as a share."""

from dataclasses import dataclass, fields, replace

from torch import Tensor

from ..passes.errors import is_number, is_whole


@dataclass(frozen=True)
class Schedule:
    """The share of the true gradient in each visit. The producer waits for it, and its activations are kept so long."""

    warm_up: int = 0  # visits at first that get the true gradient, while the boundary already learns
    refresh: int = 0  # every so many visits get the true gradient; 0: none
    blend: float = 0.0  # share of the true gradient in all others; the rest is the boundary's: BP(lambda)

    def misfits(self) -> list[str]:
        """A line for each option that is out of its range."""
        counts = {"warm_up": self.warm_up, "refresh": self.refresh}
        lines = [
            f"{name}={value!r} (a whole number from 0 on)" for name, value in counts.items() if not is_whole(value)
        ]
        if not is_number(self.blend) or not 0 <= self.blend <= 1:
            lines.append(f"blend={self.blend!r} (from 0, what the boundary says, to 1, backprop)")
        return lines

    def share(self, visit: int) -> float:
        """The share of the true gradient in a visit; the first one is 1. At 0 the producer need not wait."""
        refreshes = self.refresh > 0 and visit % self.refresh == 0
        return 1.0 if refreshes or visit <= self.warm_up else self.blend

    def over(self, other: "Schedule") -> "Schedule":
        """This one's options where they are set, else the other's."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}
        return replace(other, **own)


def weakened(value: Tensor, share: float) -> Tensor:
    """The value itself, whose gradient is multiplied by a share on its way back."""
    seen = value.view_as(value)
    seen.register_hook(lambda gradient: gradient * share)  # type: ignore[no-untyped-call]  # torch's own has no types
    return seen
