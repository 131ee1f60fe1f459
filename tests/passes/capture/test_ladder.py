"""The rungs of the ladder by name, and what they need."""

import pytest
import torch
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.errors import CaptureError


def test_an_unknown_rung_is_named_with_those_there_are():
    with pytest.raises(CaptureError, match=r"there is no capture 'recrd'; there are auto, record.*nearest: record"):
        capture(nn.Linear(4, 4), (torch.ones(3, 4),), {}, "recrd")


def test_a_capture_without_an_example_must_be_symbolic():
    with pytest.raises(CaptureError, match="needs one example call"):
        capture(nn.Linear(4, 4), None, None)

    assert capture(nn.Sequential(nn.Linear(4, 4)), None, None, "symbolic").rung == "symbolic"
