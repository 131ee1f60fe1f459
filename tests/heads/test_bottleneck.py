"""The head of recurrent states."""

import pytest
import torch

from dnigraph.heads import CrossingSpec
from dnigraph.heads.bottleneck import RANK, WIDE, in_time


@pytest.mark.parametrize(
    ("width", "rank", "name"),
    [(WIDE, None, "linear"), (WIDE + 1, None, f"linear {RANK}"), (8, 3, "linear 3"), (1, None, "linear")],
)
def test_wide_states_have_a_bottleneck(width, rank, name):
    head = in_time(rank)(CrossingSpec("horizon", (2, width), torch.float32, torch.device("cpu")))

    assert head.name == name
    assert head(torch.ones(2, width), None).eq(0).all()


def test_the_bottleneck_is_scaled_up_by_what_it_lacks():
    torch.manual_seed(0)
    head = in_time(16)(CrossingSpec("horizon", (2, 1024), torch.float32, torch.device("cpu")))

    units = head.down(torch.randn(512, 1024))

    assert float(units.detach().std()) == pytest.approx(1024 / 16, rel=0.1)
