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


@pytest.mark.parametrize(
    ("shape", "line", "real"),
    [
        ((), False, (1, 2)),
        ((8,), False, (8, 2)),
        ((8, 6), False, (8, 12)),
        ((8, 5, 6), False, (8, 5, 12)),
        ((8, 5, 6), True, (8, 10, 6)),
        ((8, 4, 7, 6), False, (8, 8, 7, 6)),
        ((8, 4, 3, 7, 6), False, (8, 8, 3, 7, 6)),
    ],
)
def test_the_parts_of_complex_numbers_are_features_beside_each_other(shape, line, real):
    whole = CrossingSpec("layer2", shape, torch.complex64, torch.device("cpu"), line=line)
    value = torch.randn(shape, dtype=torch.complex64)

    spec = whole.real
    parts = spec.parts(value)

    assert (spec.shape, spec.dtype, spec.of_complex) == (real, torch.float32, True)
    assert spec.width == 2 * whole.width
    assert parts.shape == real and parts.dtype == torch.float32
    at = 1 if spec.kind == "maps" else len(real) - 1
    assert parts.sum().allclose(value.real.sum() + value.imag.sum())
    assert parts.select(at, 0).sum().allclose(value.real.select(at, 0).sum() if len(shape) > 1 else value.real.sum())
    assert spec.joined(parts, value.shape).equal(value)
    assert spec.joined(spec.parts(value.conj()), value.shape).equal(value.conj())


def test_a_real_crossing_has_no_parts():
    spec = CrossingSpec("layer2", (8, 6), torch.float32, torch.device("cpu"))

    assert spec.real is spec and not spec.of_complex
