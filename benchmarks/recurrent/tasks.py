"""Tasks in time: each has a net of its own, makes its own batches, and knows its present difficulty.

Shapes: x [time, batch, features], target [time, batch, ...], mask [time]: the steps at which an answer is asked.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.demo import images
from dnigraph.demo.texts import load_text

BITS, BATCH, WIDTH, RATE = 4, 32, 64, 1e-3  # where a task says nothing else
SOLVED = 0.15  # bits of error per bit of the answer; guessing gives 1


@dataclass(frozen=True)
class Batch:
    """Sequences side by side."""

    x: Tensor
    target: Tensor
    mask: Tensor


class Task(ABC):
    """What a job trains on. Its plain attributes are kept on disk with the job."""

    rate = RATE
    stream = False  # whether it goes on for ever; then a batch is one window
    scored = False  # whether `score` says something

    @abstractmethod
    def net(self) -> dict[str, Any]:
        """The step module and what belongs to it, for `dg.Recurrent`."""

    @abstractmethod
    def batch(self, horizon: int) -> Batch:
        """The next sequences."""

    def harder(self) -> bool:
        """Make the task harder after it was solved; False: it has only one level."""
        return False

    @property
    def solved(self) -> int:
        """How much is solved, in units of the task."""
        return 0

    def score(self, rnn: dg.Recurrent) -> dict[str, float]:
        """Scores on unseen data; empty for tasks whose training data are always new."""
        return {}


class Bits(Task):
    """Tasks on symbols of four bits: an LSTM, and the bits read from it."""

    width, side_by_side, forget = WIDTH, BATCH, 0.0

    def net(self) -> dict[str, Any]:
        core = nn.LSTM(BITS + 2, self.width)
        with torch.no_grad():  # gates: input, forget, cell, output
            core.bias_hh_l0[self.width : 2 * self.width] += self.forget
        return {"step": core, "readout": nn.Linear(self.width, BITS), "loss": F.binary_cross_entropy_with_logits}


class Recall(Bits):
    """Four bits, `blanks` empty steps, a cue, at which the bits are asked for.

    A window that holds the cue does not reach back to the bits, so truncated backprop cannot learn what to keep.
    """

    def __init__(self, blanks: int) -> None:
        self.blanks = blanks

    def batch(self, horizon: int) -> Batch:
        long = self.blanks + 2
        bits = torch.randint(2, (BATCH, BITS)).float()
        x = torch.zeros(long, BATCH, BITS + 2)
        x[0, :, :BITS], x[0, :, BITS], x[-1, :, BITS + 1] = bits, 1, 1
        return Batch(x, bits.expand(long, -1, -1), torch.arange(long) == long - 1)


class Copy(Bits):
    """`length` symbols of four bits, a delimiter, then the symbols again; as often as `repeats` says.

        in      a b c | . . .        with two repeats     a b c 2 . . . . . .
        out           - a b c                                   - a b c a b c

    It grows by one symbol (with repeats: in turns by a symbol and by a repeat) whenever it is solved.

    An untrained LSTM with half-open forget gates keeps 3% of a symbol for five steps; with the customary bias of
    1 it is 20%, and there is something that a head can see.
    """

    width, side_by_side, forget = 128, 64, 1.0

    def __init__(self, repeated: bool = False) -> None:
        self.repeated, self.length, self.repeats = repeated, 1, 1

    def batch(self, horizon: int) -> Batch:
        symbols = torch.randint(2, (self.length, self.side_by_side, BITS)).float()
        answer = symbols.repeat(self.repeats, 1, 1)
        asked = self.length + 1
        x = torch.zeros(asked + len(answer), self.side_by_side, BITS + 2)
        x[: self.length, :, :BITS], x[: self.length, :, BITS] = symbols, 1
        x[self.length, :, BITS + 1] = self.repeats / 10 if self.repeated else 1
        target = torch.cat((torch.zeros(asked, self.side_by_side, BITS), answer))
        return Batch(x, target, torch.arange(len(x)) >= asked)

    def harder(self) -> bool:
        if self.repeated and self.length > self.repeats:
            self.repeats += 1
        else:
            self.length += 1
        return True

    @property
    def solved(self) -> int:
        """Symbols of the longest answer that was solved."""
        if not self.repeated:
            return self.length - 1
        if self.length > self.repeats:
            return (self.length - 1) * self.repeats
        return self.length * (self.repeats - 1)


class Reader(nn.Module):
    """Reads characters; scores for the next one."""

    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(characters, 32), nn.LSTM(32, width)
        self.out = nn.Linear(width, characters)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Shapes: x [time, batch] -> [time, batch, characters], for a whole window."""
        y, state = self.rnn(self.table(x), state)
        return self.out(y), state


class Characters(Task):
    """The next character of a text, in 32 endless streams; the score is bits per character on unseen text."""

    rate, stream, scored, width, judged = 2e-3, True, True, 128, 4000

    def __init__(self, name: str) -> None:
        self.name, self.at = name, 0

    def net(self) -> dict[str, Any]:
        self._load()
        return {"step": Reader(self.characters, self.width), "windowed": True, "loss": F.cross_entropy}

    def batch(self, horizon: int) -> Batch:
        if self.at + horizon + 1 > len(self.train):
            self.at = 0
        piece = self.train[self.at : self.at + horizon + 1]
        self.at += horizon
        return Batch(piece[:-1], piece[1:], torch.ones(horizon, dtype=torch.bool))

    @torch.no_grad()
    def score(self, rnn: dg.Recurrent) -> dict[str, float]:
        read, total, state = rnn.core.module, 0.0, None
        for begin in range(0, self.judged, 500):
            scores, state = read(self.valid[begin : begin + 500], state)
            total += float(F.cross_entropy(scores.flatten(0, 1), self.valid[begin + 1 : begin + 501].flatten()))
        return {"bits per character": total / (self.judged / 500) / log(2)}

    def _load(self) -> None:
        text = load_text(self.name)
        self.characters = len(text.characters)
        self.train, self.valid = (_side_by_side(part) for part in (text.train, text.valid))


class Rows(Task):
    """A digit of MNIST, one row of 28 pixels a step; the class is asked for after the last one."""

    scored = True

    def __init__(self) -> None:
        self.seen = 0

    def net(self) -> dict[str, Any]:
        mnist = images.load("mnist")
        self.train, self.labels = mnist.train_images[:, 0].transpose(0, 1), mnist.train_labels
        self.test, self.test_labels = mnist.test_images[:, 0].transpose(0, 1), mnist.test_labels
        return {"step": nn.LSTM(28, WIDTH), "readout": nn.Linear(WIDTH, 10), "loss": F.cross_entropy}

    def batch(self, horizon: int) -> Batch:
        picked = torch.randint(len(self.labels), (BATCH,))
        self.seen += BATCH
        return Batch(self.train[:, picked], self.labels[picked].expand(28, -1), torch.arange(28) == 27)

    @torch.no_grad()
    def score(self, rnn: dg.Recurrent) -> dict[str, float]:
        hidden, _ = rnn.core.module(self.test)
        wrong = rnn.core.read(hidden[-1]).argmax(-1) != self.test_labels
        return {"test error %": 100 * float(wrong.float().mean())}


def _side_by_side(text: Tensor) -> Tensor:
    """The text in 32 columns. Shapes: [N] -> [N // 32, 32]."""
    long = len(text) // BATCH
    return text[: long * BATCH].view(BATCH, long).t().contiguous()


def make(task: str, settings: dict[str, Any]) -> Task:
    """The task of a name."""
    if task == "recall":
        return Recall(settings["blanks"])
    if task == "characters":
        return Characters(settings["text"])
    return Rows() if task == "rows" else Copy(repeated=task == "repeat copy")
