"""Boundaries: the modules on crossings, which decide what gradient the producer gets."""

from .boundary import Boundary, BoundaryError, BoundaryFactory, CrossingSpec, Visit, sum_in_order
from .choices import BoundaryChoice, dni, local_loss, make_boundary, oracle

__all__ = [
    "Boundary",
    "BoundaryChoice",
    "BoundaryError",
    "BoundaryFactory",
    "CrossingSpec",
    "Visit",
    "dni",
    "local_loss",
    "make_boundary",
    "oracle",
    "sum_in_order",
]
