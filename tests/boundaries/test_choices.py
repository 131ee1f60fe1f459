"""From the user's choices to boundaries, by name and by factory."""

import pytest
import torch
from kit.boundaries import BATCH, CLASSES, WIDTH, boundary
from torch import nn

from dnigraph.boundaries import (
    BoundaryError,
    CrossingSpec,
    make_boundary,
)
from dnigraph.heads import mlp
from dnigraph.heads.conditions import Context, one_hot


@pytest.mark.parametrize(
    ("choice", "kind", "head"),
    [("dni", "dni", "mlp 6"), ("oracle", "oracle", None), ("local-loss", "local-loss", "classifier 6")],
)
def test_a_boundary_says_what_it_is(choice, kind, head):
    crossing = boundary(choice, mlp(hidden=6), condition=one_hot(CLASSES))

    assert (crossing.kind, crossing.head_name) == (kind, head)
    assert crossing.head_parameters == sum(p.numel() for p in crossing.parameters())
    assert "layer2" in repr(crossing)


def test_an_unknown_boundary_is_named_with_its_neighbours():
    with pytest.raises(BoundaryError, match=r"no boundary 'oracel'; nearest: oracle.*dni, oracle, local-loss"):
        boundary("oracel")


@pytest.mark.parametrize("choice", [3, nn.Linear(1, 1)])
def test_a_boundary_that_is_neither_name_nor_factory_is_refused(choice):
    with pytest.raises(BoundaryError, match="a name or a factory"):
        boundary(choice)


def test_a_factory_must_make_a_boundary():
    with pytest.raises(BoundaryError, match="'layer2' must make a Boundary, but made Linear"):
        boundary(lambda spec, context, head: nn.Linear(1, 1))


def test_complex_values_are_refused_with_the_way_out():
    spec = CrossingSpec("spectrum", (BATCH, WIDTH), torch.complex64, torch.device("cpu"))

    with pytest.raises(ValueError, match=r"'spectrum'.*real numbers.*oracle"):
        make_boundary("dni", spec, Context())
    value = torch.randn(BATCH, WIDTH, dtype=torch.complex64, requires_grad=True)
    make_boundary("oracle", spec, Context())(value * 1).abs().sum().backward()
    assert value.grad is not None
