"""What a crossing is, by its shape."""

import pytest
import torch

from dnigraph.heads.spec import CrossingSpec


@pytest.mark.parametrize(
    ("shape", "line", "kind", "width"),
    [
        ((), False, "features", 1),
        ((8,), False, "features", 1),
        ((8, 6), False, "features", 6),
        ((8, 6), True, "features", 6),
        ((8, 5, 6), False, "tokens", 6),
        ((8, 5, 6), True, "maps", 5),
        ((8, 4, 7, 6), False, "maps", 4),
        ((8, 4, 3, 7, 6), False, "maps", 4),
        ((8, 4, 3, 7, 6, 2), False, "tokens", 2),
    ],
)
def test_a_shape_says_where_its_features_are(shape, line, kind, width):
    spec = CrossingSpec("layer2", shape, torch.float32, torch.device("cpu"), line=line)

    assert (spec.kind, spec.width) == (kind, width)
