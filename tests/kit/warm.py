"""Imported by the process that ranks are forked from: what a first step imports, each would import for itself."""

import warnings

import torch
import torch.nn.functional as F

import dnigraph as dg
from kit.models import CONDITION, Chain, labels

torch.set_num_threads(1)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    dm = dg.decouple(Chain(), "bn", (torch.randn(4, 6),), condition=CONDITION)
    dg.Local(dm, loss=F.cross_entropy, optimizer=torch.optim.Adam).step(torch.randn(4, 6), target=labels(4))
    dm.network(loss=F.cross_entropy).tick(torch.randn(4, 6), labels(4))
