"""Modules that take windows of a stream, several steps of time at once."""

from torch import nn


class WindowModule(nn.Module):
    """Takes windows, several steps of time at once. Its targets are one per step, so none can be a label for heads."""

    batch_first: bool = True  # windows are [batch, time, ...], as messages between agents must be
