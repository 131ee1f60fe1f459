"""Heads: the networks that predict gradients, chosen by a word, by options, or written by the user."""

from .head import Head, HeadError
from .selection import HeadChoice, HeadFactory, conv, linear, low_rank, make_head, mlp, tokens
from .spec import CrossingSpec

__all__ = [
    "CrossingSpec",
    "Head",
    "HeadChoice",
    "HeadError",
    "HeadFactory",
    "conv",
    "linear",
    "low_rank",
    "make_head",
    "mlp",
    "tokens",
]
