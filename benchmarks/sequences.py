"""Tasks in time: sequences whose answer needs what was seen many steps before. Each makes its own batches.

Shapes: x [time, batch, features], target [time, batch, bits], mask [time]: the steps at which an answer is asked.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BITS, BATCH = 4, 32
SOLVED = 0.15  # bits of error per bit of the answer; guessing gives 1


@dataclass(frozen=True)
class Batch:
    """One batch of sequences."""

    x: Tensor
    target: Tensor
    mask: Tensor


class Recall:
    """Four bits, `blanks` empty steps, a cue, at which the bits are asked for.

    A window that holds the cue does not reach back to the bits, so truncated backprop cannot learn what to keep.
    """

    features = BITS + 2

    def __init__(self, blanks: int) -> None:
        self.blanks = blanks

    def batch(self) -> Batch:
        long = self.blanks + 2
        bits = torch.randint(2, (BATCH, BITS)).float()
        x = torch.zeros(long, BATCH, self.features)
        x[0, :, :BITS], x[0, :, BITS], x[-1, :, BITS + 1] = bits, 1, 1
        return Batch(x, bits.expand(long, -1, -1), torch.arange(long) == long - 1)

    def level(self) -> dict[str, int]:
        """How hard it is now."""
        return {"blanks": self.blanks}

    def harder(self) -> bool:
        """No: it is solved or not."""
        return False


class Copy:
    """`length` symbols of four bits, a delimiter, then the symbols again; as often as `repeats` says.

        in      a b c | . . .        with two repeats     a b c 2 . . . . . .
        out           - a b c                                   - a b c a b c

    It grows by one symbol (with repeats: in turns by a symbol and by a repeat) whenever it is solved.
    """

    features = BITS + 2

    def __init__(self, repeated: bool = False) -> None:
        self.repeated, self.length, self.repeats = repeated, 1, 1

    def batch(self) -> Batch:
        symbols = torch.randint(2, (self.length, BATCH, BITS)).float()
        answer = symbols.repeat(self.repeats, 1, 1)
        asked = self.length + 1
        x = torch.zeros(asked + len(answer), BATCH, self.features)
        x[: self.length, :, :BITS], x[: self.length, :, BITS] = symbols, 1
        x[self.length, :, BITS + 1] = self.repeats / 10 if self.repeated else 1
        target = torch.cat((torch.zeros(asked, BATCH, BITS), answer))
        return Batch(x, target, torch.arange(len(x)) >= asked)

    def level(self) -> dict[str, int]:
        """How hard it is now."""
        return {"length": self.length, "repeats": self.repeats}

    def harder(self) -> bool:
        """Ask for more."""
        if self.repeated and self.length > self.repeats:
            self.repeats += 1
        else:
            self.length += 1
        return True

    @property
    def solved(self) -> int:
        """The longest answer that was solved, in symbols."""
        if not self.repeated:
            return self.length - 1
        if self.length > self.repeats:
            return (self.length - 1) * self.repeats
        return self.length * (self.repeats - 1)


def make(task: str, settings: dict[str, Any]) -> Recall | Copy:
    """The task of a name."""
    return Recall(settings["blanks"]) if task == "recall" else Copy(repeated=task == "repeat copy")
