"""Credit through time: recurrent networks whose windows learn from synthetic gradients."""

from .recurrent import Recurrent
from .recurrent_error import RecurrentError

__all__ = ["Recurrent", "RecurrentError"]
