"""Boundaries: what stands on a crossing and says which gradient the producer gets."""

from .boundary import Boundary, BoundaryError, CrossingSpec, Visit, sum_in_order
from .choices import BoundaryChoice, BoundaryFactory, dni, local_loss, make_boundary, oracle

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
