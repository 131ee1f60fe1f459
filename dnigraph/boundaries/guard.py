"""First do no harm: whether a head's estimates are worth learning from, judged by the targets that come after them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FIRST, DECAY = 64, 0.95  # visits that are all looked at, and the decay of the running means in them
EVERY, LATER = 4, 0.9  # behind them every so many are, and the decay there: a look takes 0.2 ms
FADE = 0.75  # of what is explained, in a visit whose target never came
MOST = 2.0  # a ratio above it counts as this: one odd batch closes nothing that is good
OPENS = (0.3, 0.1)  # the shares of the gradient, and of the weights' gradient, above which a closed guard opens
CLOSES = (0.15, 0.05)  # those at or below which an open one closes
READ = 8  # visits from one decision to the next on an accelerator
COLUMNS = 32  # features or channels that are looked at
ROWS = 2048  # samples, tokens or positions that are looked at


class Guard(nn.Module):
    """Says whether the producer of a value shall learn from estimates of its gradient.

        estimate (made before its target is known) ─┐
        target   (comes later) ─────────────────────┴─► share explained, of the gradient and of the weights' gradient
                                                            above `OPENS`: the producer learns;  down to `CLOSES`: not

    An adaptive optimiser makes steps of full size of any gradient, however small or noisy, so that a part whose
    estimates say nothing walks away from where it was good: worse than a part that stands still. A closed guard hands
    down no gradient at all, as a silent boundary does, which stops every optimiser.

    Two shares are held against each other, 1 - |error|^2 / |target|^2, each as a running mean of what every batch says:

        of the gradient             error, target                      [rows, features]
        of the weights' gradient    error^T [value, 1], target^T [value, 1]       what a linear layer on the value would
                                                                       get as its gradient, summed over the batch

    The second one is needed: where the gradients of the samples nearly cancel each other, an estimate explains 95% of
    them and nothing of their sum (a small GPT-2 at its plateau: .95 and -.67).

    Below a closed guard nobody gets a target, and so nobody's estimates are believed: along a chain of cuts the guards
    open from the loss downwards.

    Shapes: error, estimate, value [batch, *features], maps [batch, channels, *positions].
    """

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.maps = maps
        self.register_buffer("missed", torch.ones(2))  # running means of |error|^2 / |target|^2
        self.register_buffer("opened", torch.zeros((), dtype=torch.bool))
        self.missed: Tensor
        self.opened: Tensor
        self._known: bool | None = None  # `opened`, on an accelerator, where a read waits for the device

    @property
    def open(self) -> bool:
        """Whether the producer learns."""
        if self._at_hand:  # as it is: it may have been loaded, or sent by another process
            return bool(self.opened)
        if self._known is None:
            self._known = bool(self.opened)
        return self._known

    @property
    def _at_hand(self) -> bool:
        """Whether a read of the buffers waits for no device."""
        return self.opened.device.type == "cpu"

    def look(self, error: Tensor, estimate: Tensor, value: Tensor, size: Tensor, visits: int) -> None:
        """A target has come.

        Args:
            error: estimate minus target.
            size: the target's 2-norm; where it is zero or not finite nothing is learned.
            visits: how many there were. On an accelerator it decides in every 8th.
        """
        if visits > FIRST and visits % EVERY:
            return
        if torch.is_autocast_enabled(error.device.type):  # which would round, where a step runs in it
            with torch.autocast(error.device.type, enabled=False):
                missed, told = self._missed(error, estimate, value)
        else:
            missed, told = self._missed(error, estimate, value)
        usable = told & size.isfinite() & size.gt(0)
        self.missed.lerp_(missed.where(usable, self.missed), 1 - (DECAY if visits <= FIRST else LATER))
        self._decide(visits)

    def nothing_came(self, visits: int) -> None:
        """The value's consumers sent no target."""
        self.missed.lerp_(torch.ones_like(self.missed), 1 - FADE)
        self._decide(visits)

    def set(self, opened: bool) -> None:
        """Open or close it, until the next decision."""
        self.opened.fill_(opened)
        self._known = None

    def forget(self) -> None:
        """Its buffers were written to by others."""
        self._known = None

    def measured(self) -> Callable[[], dict[str, float]]:
        """The shares now, to be read later: "explained" of the gradient, "explained_weights" of the weights' gradient,
        and "open", 1 or 0.
        """
        missed, opened = self.missed.clone(), self.open

        def read() -> dict[str, float]:
            gradient, weights = missed.tolist()
            return {"explained": 1 - gradient, "explained_weights": 1 - weights, "open": float(opened)}

        return read

    def _missed(self, error: Tensor, estimate: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """|error|^2 / |target|^2 of the gradient and of the weights' gradient, and whether they can be used."""
        wrong, said, seen = (self._rows(t) for t in (error, estimate, value.to(error.dtype)))
        both = torch.cat((wrong, said - wrong), 1)  # error and target, side by side
        of_weights = torch.cat((both.T @ seen, both.sum(0).unsqueeze(1)), 1)  # the second: of a bias
        squares = torch.stack((both.square().sum(0), of_weights.square().sum(1))).view(2, 2, -1).sum(-1).float()
        missed = (squares[:, 0] / squares[:, 1]).clamp(max=MOST)
        return missed, missed.isfinite().all() & squares[:, 1].gt(0).all()

    def _rows(self, tensor: Tensor) -> Tensor:
        """What is looked at: [rows, features]."""
        if self.maps:
            tensor = tensor[:, :COLUMNS].flatten(2)
            step = -(-tensor.shape[0] * tensor.shape[2] // ROWS)
            return tensor[:, :, ::step].movedim(1, 2).flatten(0, 1)
        rows = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim > 1 else 1)
        return rows[:: -(-len(rows) // ROWS), :COLUMNS]

    def _decide(self, visits: int) -> None:
        if not self._at_hand and visits % READ:
            return
        limits = CLOSES if self.open else OPENS
        opens = all(1 - missed > limit for missed, limit in zip(self.missed.tolist(), limits, strict=True))
        if opens != self.open:
            self.set(opens)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Guard":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        self.missed, self._known = self.missed.float(), None
        return self
