"""What a network must know of modules that take windows of a stream."""

from torch import nn


class WindowModule(nn.Module):
    """Takes windows, several steps of time at once. Its targets are one per step, so that none is a label for heads."""

    batch_first: bool = True  # windows are [batch, time, ...], as messages between agents must be
