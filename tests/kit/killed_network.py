"""A network run that saves itself every third tick and is killed in the middle: python killed_network.py FILE TICKS."""

import sys
import warnings

import torch

import dnigraph as dg
from kit.networks import circle, given


def run(file, ticks):
    """Go on from the file, if it is there, until so many ticks are done."""
    net, data = circle(log=True), list(given(ticks))
    if file.exists():
        net.load(file, data[0][0])
    for i, (inputs, targets) in enumerate(data):
        if i < net.ticks:
            continue
        if i == 5:
            net.pause("c")
        if i == 11:
            net.resume("c")
        net.tick(inputs, targets)
        if net.ticks % 3 == 0:
            net.save(file)
        print(net.ticks, flush=True)
    return net


if __name__ == "__main__":
    from pathlib import Path

    warnings.simplefilter("ignore", dg.UnconditionedWarning)
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]))
