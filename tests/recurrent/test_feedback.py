"""Edges from outputs of a model to its inputs."""

import types
from typing import NamedTuple

import pytest
import torch
from torch import nn

import dnigraph as dg
from dnigraph.recurrent.feedback import Feedback


class Found(NamedTuple):
    answer: torch.Tensor
    memory: torch.Tensor


class Model(nn.Module):
    """Makes an output of some form of its input and the memory."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x, memory=None):
        return self.form(x, x if memory is None else memory + x)


@pytest.mark.parametrize(
    ("form", "source"),
    [
        (Found, "memory"),
        (lambda x, m: (x, m), 1),
        (lambda x, m: (x, m), -1),
        (lambda x, m: (m, x), -2),
        (lambda x, m: [x, m], 1),
        (lambda x, m: {"new": m}, "new"),
        (lambda x, m: types.SimpleNamespace(kept=m), "kept"),
    ],
)
def test_an_edge_begins_at_a_name_a_position_or_an_attribute(form, source):
    step, x = Feedback(Model(form), {"memory": source}), torch.ones(2, 3)

    _, state = step(x, None)
    _, state = step(x, state)

    assert state["memory"].equal(2 * x)


@pytest.mark.parametrize(
    ("form", "source", "words"),
    [
        (lambda x, m: (x, m), 2, "no output '2'; there are 0, 1"),
        (lambda x, m: (x, m), -3, "no output '-3'; there are 0, 1"),
        (lambda x, m: m, "newer", "no output 'newer'; it returns a single tensor"),
        (lambda x, m: {"mew": m}, "new", "no output 'new'; there are mew; nearest: mew"),
    ],
)
def test_an_edge_that_begins_nowhere_is_named_with_what_there_is(form, source, words):
    with pytest.raises(dg.RecurrentError, match=words):
        Feedback(Model(form), {"memory": source})(torch.ones(2, 3), None)
