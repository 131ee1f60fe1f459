"""Credit through time: recurrent networks whose windows learn from synthetic gradients."""

from .recurrent_error import RecurrentError
from .runner import Recurrent

__all__ = ["Recurrent", "RecurrentError"]
