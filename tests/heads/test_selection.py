"""Which head a choice makes of which crossing."""

import pytest
import torch

from dnigraph.heads import CrossingSpec, HeadError, conv, make_head, mlp
from dnigraph.heads.selection import WIDE


def spec(*shape):
    return CrossingSpec("layer2", shape, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((8, WIDE - 1), f"mlp {(WIDE - 1) // 2}"),
        ((8, WIDE), "low-rank 64"),
        ((8, 128), "mlp 64"),
        ((8, 130), "mlp 65"),
        ((8, 64), "mlp 64"),
        ((8, 7), "mlp 8"),
        ((8, 9), "mlp 9"),
        ((8, 5, 16), "tokens 16"),
        ((8, 64, 7, 7), "conv 3x3 64 x 64"),
        ((8, 65, 7, 9), "conv 3x3 64 x 64"),
        ((8, 4, 8, 9), "conv 3x3 4 x 4 / 2"),
        ((8, 4, 20, 15), "conv 3x3 4 x 4 / 2"),
        ((8, 4, 16, 20), "conv 3x3 4 x 4 / 4"),
    ],
)
def test_the_head_is_as_large_as_its_crossing_needs(shape, name):
    assert make_head("auto", spec(*shape)).name == name


def test_sizes_of_ones_own_are_taken_down_to_one():
    assert make_head(mlp(hidden=1, layers=3), spec(8, 6)).name == "mlp 1 x 1 x 1"
    assert make_head(conv(channels=1, layers=1, kernel=1, coarse=1), spec(8, 4, 9, 9)).name == "conv 1x1 1"
    for make in (lambda: mlp(hidden=0), lambda: mlp(layers=True), lambda: conv(coarse=1.0), lambda: conv(kernel=2)):
        with pytest.raises(HeadError):
            make()
