"""The trial run: what does not fit, before anything has learned."""

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Cell, Late, sgd, squared
from torch import nn

import dnigraph as dg


def test_everything_that_is_wrong_with_wiring_and_example_is_said_at_once():
    net = dg.Network().add("a", Cell(), loss=squared).add("b", nn.Linear(5, 2))
    net.connect("a.said", "b.inputs")
    net.connect("b.output", "b.input", delay=0)

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({"a.x": torch.ones(2, 3), "a.head": torch.ones(2, 4)})

    said = str(caught.value)
    for words in (
        "b.inputs: Linear has no input 'inputs'; nearest: input", "a circle without delay: b → b",
        "b can never learn", "there is no input 'a.head'; nearest: a.heard", "a.heard is fed by no link and not given",
    ):  # fmt: skip
        assert words in said


def test_what_fails_because_of_another_agent_is_not_called_a_circle():
    net = dg.Network().add("a", nn.Linear(6, 5)).add("b", nn.Linear(5, 2), loss=F.mse_loss)
    net.connect("a.output", "b.input")

    with pytest.raises(dg.NetworkError) as caught:
        net.tick(torch.ones(2, 7))

    assert len(caught.value.problems) == 1
    assert "a cannot take what it is given (input [2, 7])" in str(caught.value)


def test_a_circle_beside_an_input_says_what_it_needs():
    net = dg.Network(optimizer=sgd).add("a", Late(6), loss=lambda made, y: made.square().mean())
    net.connect("x", "a.x")
    net.connect("a.output", "a.heard")

    with pytest.raises(dg.NetworkError, match=r"in a circle: connect it with initial="):
        net.tick(torch.ones(2, 6), 0)


def test_all_missing_inputs_are_named_at_once():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", Late(), loss=F.mse_loss)
    net.connect("a.output", "b.heard")

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({})

    assert "a.input is fed by no link" in str(caught.value) and "b.x is fed by no link" in str(caught.value)


def test_an_error_of_this_library_is_quoted_in_full():
    rnn = dg.Recurrent(nn.GRU(6, 4), horizon=2, loss=F.mse_loss, optimizer=sgd)
    net = rnn.network(torch.ones(2, 3, 6))

    with pytest.raises(dg.NetworkError, match=r"the window has 5 steps, the horizon is 2"):
        net.validate(torch.ones(5, 3, 6))


def test_a_wrong_number_of_output_names_is_reported():
    net = dg.Network().add("a", nn.LSTM(2, 2), outputs=["x"], loss=lambda made, y: made[0].mean())

    with pytest.raises(dg.NetworkError, match="outputs names 1, and LSTM returns 2 values"):
        net.tick(torch.ones(3, 4, 2), 0)


def test_an_initial_value_of_another_shape_than_the_messages_is_named():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 5)).add("b", nn.Linear(5, 2), loss=F.mse_loss)
    net.connect("a.output", "b.input", delay=1, initial=(4,))

    with pytest.raises(dg.NetworkError) as caught:
        net.validate(torch.ones(2, 6))

    assert "a.output → b.input: initial is [2, 4], the messages are [2, 5]" in caught.value.problems


def test_an_input_of_the_network_that_is_not_given_is_named_with_its_reader():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 3), loss=F.mse_loss).add("b", nn.Linear(6, 3))
    net.connect("image", "a.input")

    with pytest.raises(dg.NetworkError) as caught:
        net.validate({"b.input": torch.ones(2, 6)})

    assert "a.input: the network is not given its input 'image'" in caught.value.problems


class Returns(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, x):
        return self.made(x)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda x: {}, "a.said: there is no output 'said'; outputs: none"),
        (lambda x: {"sad": x, "y": x}, "a.said: there is no output 'said'; nearest: sad; outputs: sad, y"),
        (lambda x: {"said": (x, x)}, "a.said is no tensor but a tuple: return its tensors under names"),
    ],
)
def test_an_output_that_a_link_names_and_the_module_does_not_return_is_named(made, words):
    net = dg.Network(optimizer=sgd).add("a", Returns(made)).add("b", nn.Linear(6, 2), loss=F.mse_loss)
    net.connect("a.said", "b.input")

    with pytest.raises(dg.NetworkError) as caught:
        net.validate(torch.ones(2, 6))

    assert words in caught.value.problems
