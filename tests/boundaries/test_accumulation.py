"""How many visits the accumulated gradients of a head hold, on the processor and on an accelerator."""

import pytest
import torch

from dnigraph.boundaries.accumulation import _unless_zero


@pytest.mark.parametrize(
    ("gradients", "visits"),
    [
        ([], 0),
        ([torch.zeros(2)], 0),
        ([torch.zeros(2), torch.tensor([0.0, 1.0])], 3),
        ([torch.tensor([1.0]), torch.zeros(2)], 3),
        ([torch.zeros(2, 2).to_sparse()], 3),  # it is not looked at
    ],
)
def test_gradients_that_are_zero_hold_no_visit(gradients, visits):
    assert _unless_zero(3, gradients) == visits


def test_on_an_accelerator_the_answer_stays_there():
    count = _unless_zero(3, [torch.ones(2, device="meta"), torch.zeros(3, device="meta")])

    assert isinstance(count, torch.Tensor) and count.device.type == "meta" and count.shape == ()
    assert count.dtype == torch.int64
