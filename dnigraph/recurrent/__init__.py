"""Credit through time: recurrent networks whose windows learn from synthetic gradients."""

from .dni_in_time import dni_in_time
from .recurrent import Recurrent
from .recurrent_error import RecurrentError
from .unrolled import unroll

__all__ = ["Recurrent", "RecurrentError", "dni_in_time", "unroll"]
