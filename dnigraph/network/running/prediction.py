"""Synthetic inputs: a receiver predicts a message in place of waiting for it."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...heads.layers import GAIN, Hidden
from ...passes.errors import nearest
from ...runners.optimizers import Group
from ..description.link import SyntheticChoice
from ..description.network_error import NetworkError
from .arrivals import Entry, Reading
from .channel import Answer, Message
from .inbox import Inbox


class Predictor(nn.Module):
    """Predicts a message from inputs of the network: one hidden layer, as wide as the message, at least 64.

        inputs, each flattened, side by side ─► Linear ─► Normalise ─► ReLU ─► Linear x GAIN ─► message

    Like a head, it follows a moving target and learns `GAIN` times as fast as the model under the same Adam. On MNIST
    (4 layers, all unlocked, 1000 batches, one seed) the test error was 5.5% without that and 3.1% with it.

    Shapes: each input [batch, ...], the message [batch, *features].

    Source: Jaderberg et al. 2017, arXiv 1608.05343, section 2.3 (complete unlock).
    """

    def __init__(self, seen: list[Tensor], like: Tensor) -> None:
        super().__init__()
        self.shape = like.shape[1:]
        width, hidden = sum(v[0].numel() for v in seen), min(max(self.shape.numel(), 64), 1024)
        self.hidden = Hidden(nn.Linear(width, hidden, bias=False))
        self.output = nn.Linear(hidden, self.shape.numel())
        with torch.no_grad():
            self.output.weight.div_(GAIN)
            self.output.bias.div_(GAIN)

    def forward(self, *seen: Tensor) -> Tensor:
        rows = torch.cat([v.flatten(1).to(self.output.weight.dtype) for v in seen], 1)
        found: Tensor = self.output(self.hidden(rows)).mul(GAIN)
        return found.view(len(rows), *self.shape)


class Foretold(Inbox):
    """An inbox that is read before its message has come.

        begin   the receiver reads what the predictor says, and learns at once; the gradient answers the message
        end     the real message has come: the predictor learns from it

    If no message was sent for this tick, the predictor learns nothing.
    """

    predictor: nn.Module
    names: tuple[str, ...]  # of the network's inputs that the predictor sees
    group: Group | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._said: tuple[int, Tensor] | None = None  # the tick of the message, and the prediction with its graph

    def foretell(self, tick: int, given: Mapping[str, Any]) -> Reading:
        """Predict the message for this tick."""
        sent = tick - self.delay
        with torch.enable_grad():
            said = self.predictor(*(given[name] for name in self.names))
        self._said = (sent, said)
        return Reading(said.detach(), [Entry(Message(sent, None, True), open=1, closed=True)])

    def compare(self, tick: int) -> None:
        """Train the predictor on the message that it predicted, and answer all others.

        The newest message stays in the inbox, in case the network goes on in eval mode.
        """
        said, self._said = self._said, None
        while self.coming and self.coming[0].sent + self.delay <= tick:
            message = self.coming.popleft()
            self.entries = [Entry(message, closed=True, answered=True)]
            if said is not None and message.sent == said[0]:
                self._learn(said[1], message.value)
            elif message.wants:
                self.ready.append(Answer(message.sent, -1, None))

    def _learn(self, said: Tensor, real: Tensor) -> None:
        loss = F.mse_loss(said, real.to(said.dtype))
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own has no types
        if self.group is not None:
            self.group.update()


def make_predictor(
    choice: SyntheticChoice, inputs: Mapping[str, Any], like: Tensor
) -> tuple[nn.Module, tuple[str, ...]]:
    """The chosen predictor, and the names of the network's inputs that it reads.

    Raises:
        NetworkError: there are no such inputs, or none with floating-point numbers.
    """
    real = [name for name, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point() and v.dim()]
    asked = (choice,) if isinstance(choice, str) else tuple(choice) if isinstance(choice, tuple | list) else tuple(real)
    if strange := [name for name in asked if name not in real]:
        said = ", ".join(f"{name!r}{nearest(name, real)}" for name in strange)
        raise NetworkError([f"synthetic=: no input of the network with floating-point numbers is called {said}"])
    if not asked:
        raise NetworkError(["synthetic=: the network has no input with floating-point numbers to predict from"])
    seen = [inputs[name] for name in asked]
    make = choice if callable(choice) else Predictor
    return make(seen, like).to(like.device), asked
