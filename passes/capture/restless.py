"""Refusals that end the climb."""

from ..errors import CaptureError


class Restless(CaptureError):
    """The model decides by what is not in its inputs: randomness of Python or numpy, a counter, state between calls.

    No graph can stand for its next call, whoever makes it.
    """


class Unready(CaptureError):
    """The first call makes the model what it is. The user has but to make that call."""
