"""What stands on a crossing without a boundary."""

import torch

from dnigraph.decoupled.specialization import Through


def test_a_value_goes_through_once_for_each_consumer():
    value = torch.ones(2)

    assert Through()(value) is value
    for count in (2, 3):
        passed = Through()(value, count)
        assert len(passed) == count and all(one is value for one in passed)
