"""Networks of agents that several tests share, what they are given, and what is compared."""

import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg


class Cell(nn.Module):
    """A message and a guess, of an input and what another one said."""

    def __init__(self, heard=4, said=5, inputs=3):
        super().__init__()
        self.hidden, self.guess = nn.Linear(inputs + heard, said), nn.Linear(said, 2)

    def forward(self, x, heard):
        said = torch.tanh(self.hidden(torch.cat([x, heard], 1)))
        return {"said": said, "guess": self.guess(said)}


def squared(output, target):
    return (output["guess"] - target).square().mean()


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


class Collect(torch.optim.Optimizer):
    """Moves nothing, and adds up the gradients that it is stepped with."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["sum"] = self.state[p].get("sum", 0) + p.grad


def chain(**options):
    """Three layers as agents; the last has the loss."""
    torch.manual_seed(1)
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)], nn.Linear(6, 3))
    net = dg.Network(
        optimizer=options.pop("optimizer", sgd), **{k: options.pop(k) for k in ("seed", "log") if k in options}
    )
    p = options.pop("p_update", 1.0)
    for i, layer in enumerate(layers):
        net.add(f"f{i}", layer, loss=F.cross_entropy if i == 2 else None, p_update=p)
    for i in range(2):
        net.connect(f"f{i}.output", f"f{i + 1}.input", **options)
    return net, layers


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batches(count, size=8):
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        x = torch.randn(size, 6, generator=generator)
        yield x, x[:, :3].argmax(1)


def circle(**options):
    """Three agents with clocks of their own, in two circles, one of them with a delay of two."""
    torch.manual_seed(3)
    net = dg.Network(optimizer=adam, **options)
    net.add("a", Cell(heard=4, said=5), loss=squared, p_update=0.7)
    net.add("b", Cell(heard=15, said=4), every=2, loss=squared)
    net.add("c", Cell(heard=4, said=5), every=3, phase=1, p_update=0.5)
    net.connect("a.said", "flat.stacked", policy=dg.stack(3))
    net.add("flat", Flat())
    net.connect("flat.output", "b.heard", delay=1)
    net.connect("b.said", ["a.heard", "c.heard"], delay=2, policy="mean", initial=(4,))
    net.add("back", nn.Linear(5, 2), loss=F.mse_loss)
    net.connect("c.said", "back.input")
    return net


class Flat(nn.Module):
    def forward(self, stacked):
        return stacked.flatten(1)


def given(count, start=0):
    generator = torch.Generator().manual_seed(start)
    for _ in range(count):
        x, y = torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)
        yield {"a.x": x, "b.x": x, "c.x": x}, {"a": y, "b": y, "back": y}


def everything(net):
    return [t for module in net.modules().values() for t in module.state_dict().values() if isinstance(t, torch.Tensor)]


class Moody(nn.Module):
    """Fails when it is told to."""

    def __init__(self):
        super().__init__()
        self.layer, self.bad = nn.Linear(6, 6), False

    def forward(self, x):
        if self.bad:
            raise ValueError("not today")
        return self.layer(x)


def fork(**options):
    """a feeds b and c; b may fail, before c has read."""
    torch.manual_seed(0)
    net = dg.Network(optimizer=sgd, log=True)
    net.add("a", nn.Linear(6, 6)).add("b", Moody(), loss=F.mse_loss).add("c", nn.Linear(6, 6), loss=F.mse_loss)
    net.connect("a.output", "b.x", **options)
    net.connect("a.output", "c.input", **options)
    return net, torch.ones(2, 6), {"b": torch.zeros(2, 6), "c": torch.zeros(2, 6)}


class Late(nn.Module):
    """Hears the last tick's message beside what it sees."""

    def __init__(self, out=3):
        super().__init__()
        self.layer = nn.Linear(12, out)

    def forward(self, x, heard):
        return self.layer(torch.cat((x, heard), 1))
