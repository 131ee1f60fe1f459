"""The refusal that is final: the next call of the model may be another one."""

from ..errors import CaptureError


class Restless(CaptureError):
    """The model decides by what is not in its inputs: randomness of Python or numpy, a counter, state between calls."""
