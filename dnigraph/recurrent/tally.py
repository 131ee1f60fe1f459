"""The mean over all entries of several windows."""

import torch
from torch import Tensor


class Tally:
    """Adds up means of windows, each by the number of its entries."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def add(self, mean: Tensor | None, count: int) -> None:
        """Add a window; None: no entry of it counts."""
        if mean is not None:
            self.total = self.total + mean.detach() * count
            self.count += count

    def mean(self) -> Tensor:
        """The mean; nan if no entry counted."""
        return self.total / self.count if self.count else torch.tensor(float("nan"))
