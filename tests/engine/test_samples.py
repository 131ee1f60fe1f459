"""What an input reads before a message has come."""

import pytest
import torch

from dnigraph.engine.description.samples import batch_of, entered, first_value

ROW = torch.tensor([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("initial", "batch", "value"),
    [
        ((2,), 3, torch.zeros(3, 2)),
        ((2,), None, torch.zeros(1, 2)),
        (ROW, 3, ROW.expand(3, 2)),
        (ROW.expand(3, 2), 3, ROW.expand(3, 2)),
        (ROW.expand(2, 2), 3, ROW.expand(2, 2)),  # of another batch: left for the module to refuse
        (torch.tensor(5.0), 3, torch.tensor(5.0)),
        (lambda batch: torch.full((batch, 1), 7.0), 2, torch.full((2, 1), 7.0)),
    ],
)
def test_a_first_value_has_the_size_of_the_batch(initial, batch, value):
    assert first_value(initial, batch, None).equal(value)


def test_a_first_value_that_is_no_tensor_stays_as_it_is():
    assert first_value(lambda batch: f"start of {batch}", 3, None) == "start of 3"


def test_a_first_value_of_floats_takes_the_precision_of_the_weights_and_one_of_numbers_does_not():
    like = torch.zeros(1, dtype=torch.float64)

    assert first_value((2,), 1, like).dtype == torch.float64
    assert first_value(torch.tensor([[1]]), 1, like).dtype == torch.int64


@pytest.mark.parametrize("learns", [True, False])
def test_a_value_enters_without_its_graph_and_asks_for_a_gradient_where_it_can(learns):
    made = torch.ones(2, requires_grad=True) * 2

    assert entered(made, learns).requires_grad is learns and entered(made, learns).is_leaf
    assert entered(made.to(torch.cfloat), learns).requires_grad is learns
    assert entered(torch.ones(2, dtype=torch.int64), learns).requires_grad is False
    assert entered("word", learns) == "word"


def test_the_batch_is_that_of_the_first_tensor_with_dimensions():
    assert batch_of([3, torch.tensor(1.0), torch.ones(4, 2), torch.ones(5)]) == 4
    assert batch_of(["word", torch.tensor(1.0)]) is None
