"""Graphs of Dynamo's, called as Dynamo calls them."""

import gc

import torch
from torch import fx, nn

from dnigraph.dynamo.compiled_graph import Captured, Run


def test_a_graph_of_no_known_model_runs_uncut():
    module, x, y = fx.symbolic_trace(lambda a, b: a - 2 * b), torch.ones(3), torch.full((3,), 5.0)
    captured = Captured(lambda ids: None, "eager", module, [x, y])

    assert captured(x, y).equal(x - 2 * y)
    with torch.no_grad():
        assert captured(y, x).equal(y - 2 * x)


def test_a_graph_takes_its_inputs_in_its_own_order():
    assert Run(lambda a, b: (a, b), [2, 0], None, None)((1, 2, 3)) == (3, 1)


def test_without_a_tensor_of_its_instance_a_graph_is_for_all_calls():
    run = Run(lambda: None, [], None, None)

    assert run.lives() is True and run.is_for((torch.ones(1),)) is True and run.is_for(()) is True


def test_a_graph_is_for_the_calls_with_its_tensor_while_that_lives():
    witness = nn.Parameter(torch.ones(1))
    run = Run(lambda: None, [], None, witness)

    assert run.lives() is True
    assert run.is_for((torch.ones(1), witness)) is True and run.is_for((torch.ones(1),)) is False
    del witness
    gc.collect()
    assert run.lives() is False and run.is_for((torch.ones(1),)) is False
