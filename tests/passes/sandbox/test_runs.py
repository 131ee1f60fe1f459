"""One run observed: everything that it shows is compared, and a difference has its word."""

import pytest
import torch
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.graph.pytrees import flatten
from dnigraph.passes.sandbox.rng import seed_all
from dnigraph.passes.sandbox.runs import BackwardError, graph_call, model_call, near, observe, send_all
from dnigraph.passes.sandbox.snapshot import untouched

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Its dials each change one thing that a run shows."""

    def __init__(self):
        super().__init__()
        self.fc, self.plain = nn.Linear(4, 4), torch.ones(4)
        self.register_buffer("seen", torch.zeros(()))
        self.dials = set()

    def forward(self, x):
        self.seen += 2 if "buffers" in self.dials else 1
        h = self.fc(x)
        if "gradients" in self.dials:
            h = h * 2 - h.detach()
        if "random numbers" in self.dials:
            torch.rand(1)
        if "plain" in self.dials:
            self.plain.add_(1)
        h = h + ("results" in self.dials)
        return (h,) if "structure of results" in self.dials else h


def observed(model, sends=send_all):
    spec = flatten(((X,), {}))[1]
    with untouched(model) as before:
        seed_all(1)
        return observe(model_call(model, spec), model, [X], sends, before)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("what", ["structure of results", "results", "gradients", "buffers", "random numbers"])
def test_whatever_differs_between_two_runs_has_its_word(what, exact):
    model = Model()
    plain = observed(model)
    assert plain.differences(observed(model), exact) == []

    model.dials.add(what)

    assert plain.differences(observed(model), exact) == [what]


def test_a_plain_tensor_that_was_written_to_counts_as_a_buffer():
    model = Model()
    model.dials.add("plain")

    assert observed(model).buffers["plain"].eq(2).all()
    assert model.plain.eq(1).all()


def test_without_a_backward_pass_there_are_no_gradients_and_those_of_the_model_stay():
    model = Model()
    model.fc.weight.grad = torch.ones(4, 4)

    assert observed(model, sends=None).gradients == {}
    assert model.fc.weight.grad.eq(1).all()


def test_a_graph_is_observed_as_its_model_is():
    model = Model()
    captured = capture(model, (X,), {}, "record")

    with untouched(model) as before:
        seed_all(1)
        run = observe(graph_call(captured, model), model, [X], send_all, before)

    assert observed(model).differences(run) == []


def test_results_that_cannot_send_a_gradient_back_are_an_error_of_its_own():
    def spoils(inputs):
        y = model.fc(inputs[0])
        z = y**2
        y.add_(1)
        return z

    model = Model()
    with pytest.raises(BackwardError):
        observe(spoils, model, [X], send_all)


@pytest.mark.parametrize("dtype, apart", [(torch.float64, 1e-9), (torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_near_is_relative_to_the_largest_number_and_depends_on_the_type(dtype, apart):
    x = torch.tensor([1.0, 100.0, float("nan")], dtype=torch.float64)

    assert near(x.to(dtype), (x * (1 + apart / 100)).to(dtype))
    assert not near(x.to(dtype), (x * (1 + apart * 10)).to(dtype))
    assert not near(x.to(dtype), x.to(dtype).nan_to_num(0))
