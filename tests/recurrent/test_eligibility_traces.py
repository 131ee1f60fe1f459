"""How each weight of the head contributed to an estimate, and how a state to the next."""

import pytest
import torch
from torch import nn

import dnigraph as dg
from dnigraph.recurrent.dni_in_time import InTime
from dnigraph.recurrent.eligibility_traces import Traces, jacobian
from dnigraph.recurrent.estimator import Estimator
from dnigraph.recurrent.layout import find_layout

LAYOUT = find_layout(torch.zeros(2, 3), torch.zeros(3, 3))


@pytest.mark.parametrize("condition", [None, dg.one_hot(2)], ids=str)
def test_the_sensitivities_are_those_of_each_sequence_by_itself(condition):
    torch.manual_seed(0)
    estimator = Estimator(LAYOUT, InTime(traces=0.5), torch.zeros(1), "mlp", condition, None)
    nn.init.normal_(estimator.head.output.weight)
    view, label = torch.randn(4, 3), None if condition is None else torch.tensor([0, 1, 1, 0])

    found = Traces(estimator, 0.5)._sensitivities(view, label)

    for row in range(4):
        estimate = estimator.head(view[row : row + 1], None if label is None else label[row : row + 1])
        for number in range(3):
            weights = dict(estimator.head.named_parameters())
            by_hand = torch.autograd.grad(estimate[0, number], list(weights.values()), retain_graph=True)
            for name, gradient in zip(weights, by_hand, strict=True):
                assert torch.allclose(found[name][row, number], gradient, atol=1e-6)


def test_the_jacobian_of_a_window_is_that_of_each_sequence():
    start, matrix = torch.randn(2, 3, requires_grad=True), torch.randn(3, 3)

    found = jacobian([start @ matrix.t()], [start], LAYOUT)

    assert torch.allclose(found, matrix.expand(2, 3, 3))
    assert jacobian([torch.ones(2, 3)], [start], LAYOUT).eq(0).all()
