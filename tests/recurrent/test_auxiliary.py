"""The reader of the auxiliary task."""

import pytest
import torch

from dnigraph.heads.bottleneck import RANK, WIDE
from dnigraph.recurrent.auxiliary import Auxiliary


@pytest.mark.parametrize(("width", "weights"), [(WIDE, WIDE * WIDE + WIDE), (WIDE + 1, (2 * RANK + 1) * (WIDE + 1))])
def test_the_reader_of_a_wide_state_has_a_bottleneck_starts_at_zero_and_learns(width, weights):
    reader, view = Auxiliary(width, torch.zeros(1)), torch.randn(3, width)

    loss = reader.loss(view, torch.full((3, width), 2.0))
    loss.backward()

    assert sum(p.numel() for p in reader.parameters()) == weights
    assert float(loss.detach()) == 4
    assert any(p.grad.ne(0).any() for p in reader.parameters())


@pytest.mark.parametrize(("dtype", "own"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_the_reader_has_the_precision_of_the_core_or_a_better_one(dtype, own):
    assert {p.dtype for p in Auxiliary(3, torch.zeros(1, dtype=dtype)).parameters()} == {own}
