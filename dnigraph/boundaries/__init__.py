"""Boundaries: the modules on crossings, which decide what gradient the producer gets."""

from .boundary import Boundary, BoundaryError, BoundaryFactory, CrossingSpec, Seen, Visit, sum_in_order
from .choices import (
    BoundaryChoice,
    auglocal,
    auto,
    blend,
    delayed,
    dfa,
    dni,
    infopro,
    local_loss,
    make_boundary,
    oracle,
    refresh,
    silent,
    warm_up,
)

__all__ = [
    "Boundary",
    "BoundaryChoice",
    "BoundaryError",
    "BoundaryFactory",
    "CrossingSpec",
    "Seen",
    "Visit",
    "auglocal",
    "auto",
    "blend",
    "delayed",
    "dfa",
    "dni",
    "infopro",
    "local_loss",
    "make_boundary",
    "oracle",
    "refresh",
    "silent",
    "sum_in_order",
    "warm_up",
]
