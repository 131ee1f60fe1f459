"""Complex values over a cut: spectra in the middle of a model, with every boundary that sees real numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.runners import RUNNERS
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


class Spectral(nn.Module):
    """Learned weights of frequencies between two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)
        self.weights = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x):
        spectrum = dg.cut(torch.fft.rfft(torch.tanh(self.first(x))), name="spectrum")
        return self.last(torch.fft.irfft(spectrum * self.weights, n=8))


class Filtered(nn.Module):
    """The same on maps."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 5)
        self.weights = nn.Parameter(torch.randn(3, 6, 4, dtype=torch.complex64))

    def forward(self, x):
        spectrum = dg.cut(torch.fft.rfft2(self.first(x)), name="spectrum")
        return self.last(torch.fft.irfft2(spectrum * self.weights, s=(6, 6)).relu().mean((2, 3)))


MODELS = {"features": (Spectral, (16, 6)), "maps": (Filtered, (16, 1, 6, 6))}


def made(kind, boundary):
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    x, y = torch.randn(shape), torch.arange(shape[0]) % 5
    return dg.decouple(make(), None, (x,), boundary=boundary, condition=dg.one_hot(5)), x, y


@pytest.mark.parametrize(
    "boundary", [dg.dni(guard=False), "local-loss", "infopro", "oracle", dg.dni(warm_up=2, blend=0.5, replay=1)]
)
@pytest.mark.parametrize("kind", MODELS)
def test_all_runners_agree_bitwise_where_complex_values_cross(kind, boundary):
    dm, x, y = made(kind, boundary)
    ends = []
    for make in RUNNERS.values():
        run = make(copy.deepcopy(dm))
        for i in range(5):
            run.step([x[: 16 - i % 2]], y[: 16 - i % 2])
        ends.append({k: v for k, v in run.dm.state_dict().items() if isinstance(v, torch.Tensor)})

    assert all(torch.equal(end[key], value) for end in ends for key, value in ends[0].items())
    assert not torch.equal(dm.original.first.weight, ends[0]["first.weight"])


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_learns_the_gradient_of_a_complex_value(kind):
    def loss_after(boundary):
        dm, x, y = made(kind, boundary)
        run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.Adam(p, 3e-3))
        results = [run.step(x, target=y) for _ in range(300)]
        return float(results[-1].loss), results[-1].metrics

    (silent, _), (loss, metrics) = loss_after("silent"), loss_after("dni")

    assert loss < 0.8 * silent
    assert metrics["spectrum"]["cosine"] > 0.5


def test_layers_that_take_complex_numbers_cannot_be_an_auxiliary_network():
    with pytest.raises(dg.BoundaryError, match=r"'spectrum'.*complex numbers.*local-loss"):
        made("features", "auglocal")
