"""Step modules, streams and optimisers for the tests of recurrent networks."""

import inspect

import torch
from torch import nn

import dnigraph as dg
from dnigraph.heads import Head

IN, OUT, WIDE, BATCH, LONG = 3, 2, 5, 4, 12


def mse(output, target):
    return (output - target).square().mean()


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.0)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


class Custom(nn.Module):
    """A step with a nested state: a memory, a trace of it, and a count that carries no gradient."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(IN + WIDE, WIDE), nn.Linear(WIDE, OUT)

    def forward(self, x, state=None):
        if state is None:
            zeros = x.new_zeros(len(x), WIDE)
            state = {"memory": zeros, "more": (zeros.clone(), torch.zeros(len(x), dtype=torch.long))}
        trace, count = state["more"]
        memory = torch.tanh(self.inner(torch.cat((x, state["memory"]), -1))) + 0.5 * trace
        return self.out(memory), {"memory": memory, "more": (0.9 * trace + 0.1 * memory, count + 1)}


class Whole(nn.Module):
    """A user's model that takes whole windows."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(IN, WIDE, num_layers=2), nn.Linear(WIDE, OUT)

    def forward(self, x, state=None):
        y, state = self.rnn(x, state)
        return self.out(y), state


STEPS = {
    "lstm": lambda: (nn.LSTM(IN, WIDE), {"readout": nn.Linear(WIDE, OUT)}),
    "lstm of two layers": lambda: (nn.LSTM(IN, WIDE, num_layers=2), {"readout": nn.Linear(WIDE, OUT)}),
    "lstm, batch first": lambda: (nn.LSTM(IN, WIDE, batch_first=True), {"readout": nn.Linear(WIDE, OUT)}),
    "lstm with projections": lambda: (nn.LSTM(IN, WIDE, proj_size=3), {"readout": nn.Linear(3, OUT)}),
    "gru": lambda: (nn.GRU(IN, WIDE), {"readout": nn.Linear(WIDE, OUT)}),
    "rnn": lambda: (nn.RNN(IN, WIDE, nonlinearity="relu"), {"readout": nn.Linear(WIDE, OUT)}),
    "lstm cell": lambda: (nn.LSTMCell(IN, WIDE), {"readout": nn.Linear(WIDE, OUT)}),
    "gru cell": lambda: (nn.GRUCell(IN, WIDE), {"readout": nn.Linear(WIDE, OUT)}),
    "custom": lambda: (Custom(), {}),
    "whole windows": lambda: (Whole(), {"windowed": True}),
}


IN_TIME = frozenset(inspect.signature(dg.dni_in_time).parameters)


def bounded(options):
    """Arguments of a run, from some among which options of `dg.dni_in_time`, and a `blend` around it, may stand."""
    rest = dict(options)
    own = {name: rest.pop(name) for name in IN_TIME & set(rest)}
    share = rest.pop("blend", None)
    if not own and share is None:
        return rest
    assert "boundary" not in rest, "it is made of these options"
    boundary = dg.dni_in_time(**own)
    return {**rest, "boundary": boundary if share is None else dg.blend(boundary, share)}


def made(name="lstm", dtype=torch.double, seed=0, **options):
    """A run; see `bounded`."""
    if seed is not None:
        torch.manual_seed(seed)
    step, more = STEPS[name]()
    settings = {"horizon": 3, "loss": mse, "optimizer": sgd, "clip": None, **more, **bounded(options)}
    settings["readout"] = settings["readout"].to(dtype) if settings.get("readout") is not None else None
    return dg.Recurrent(step.to(dtype), **settings)


def data(rnn=None, long=LONG, batch=BATCH, dtype=torch.double, seed=1):
    if seed is not None:
        torch.manual_seed(seed)
    x, y = torch.randn(long, batch, IN, dtype=dtype), torch.randn(long, batch, OUT, dtype=dtype)
    return (x.transpose(0, 1), y.transpose(0, 1)) if rnn is not None and rnn.core.batch_first else (x, y)


class Kept:
    """Remembers the gradients of every optimiser step, and steps not."""

    def __init__(self):
        self.found = []

    def __call__(self, parameters):
        kept = self

        class Optimizer(torch.optim.SGD):
            def step(self):
                kept.found.append([None if p.grad is None else p.grad.clone() for p in parameters])

        return Optimizer(parameters, 0.0)

    def total(self):
        columns = zip(*self.found, strict=True)
        return [sum(g for g in column if g is not None) for column in columns]


def gradients(rnn, kept, x, y, **options):
    rnn.run(x, y, **options)
    return kept.total()


def whole_gradients(rnn, x, y, mask=None):
    """Backprop through time over the whole sequence, by hand."""
    output, state, time = [], None, rnn.core.time
    if isinstance(rnn.core.module, nn.RNNBase) or not hasattr(rnn.core, "once"):
        hidden, _ = rnn.core.module(x, None)
    else:
        for at in x.unbind(time):
            h, state = rnn.core.once(at, state)
            output.append(h)
        hidden = torch.stack(output, time)
    y_hat = rnn.core.read(hidden)
    if mask is not None:
        y_hat, y = y_hat[mask], y[mask]
    return torch.autograd.grad(mse(y_hat, y), [*rnn.core.parameters()], allow_unused=True)


def near(found, wanted, factor=1.0, tolerance=1e-12):
    found, wanted = ([torch.zeros(1) if g is None else g for g in some] for some in (found, wanted))
    return all(torch.allclose(a, b * factor, atol=tolerance, rtol=1e-10) for a, b in zip(found, wanted, strict=True))


class Known(Head):
    """Says what it is told."""

    def __init__(self, say):
        super().__init__("known", None)
        self.say, self.dummy = say, nn.Parameter(torch.zeros(1))

    def forward(self, value, label):
        return self.say(value)
