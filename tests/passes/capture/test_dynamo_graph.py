"""What Dynamo captured, written by hand: regions that a part could not keep whole, and runs without data."""

import pytest
import torch
from torch import fx, nn
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast

from dnigraph.passes.capture.dynamo_graph import annotate_without_data, spelled_path, to_captured_graph
from dnigraph.passes.errors import CaptureError
from dnigraph.passes.graph.captured_graph import CapturedGraph
from dnigraph.passes.graph.nodes import Call
from dnigraph.passes.graph.pytrees import take_apart


def dynamo_graph(*calls):
    """A graph of these functions, each with its arguments; X stands for the input, LAST for the value of the last."""
    graph = fx.Graph()
    x = last = graph.placeholder("l_x_")
    for function, *args in calls:
        node = graph.call_function(function, tuple({"X": x, "LAST": last}.get(a, a) for a in args))
        last = last if function in (_enter_autocast, _exit_autocast, torch._C._set_grad_enabled) else node
    graph.output((last,))
    return fx.GraphModule(nn.Module(), graph)


def written(*calls):
    return to_captured_graph(dynamo_graph(*calls), {}, lambda module, path: None).graph


REGION = "begins or ends a region that must stay whole"


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ([(_enter_autocast, "xpu", torch.bfloat16, True, True)], f"'_enter_autocast' {REGION}"),
        ([(_exit_autocast, "LAST")], f"'_exit_autocast' {REGION}"),
        ([(_enter_autocast, "cpu", torch.bfloat16, True, True)], "a region begins in it and does not end"),
        ([(torch._C._set_grad_enabled, False)], "a region begins in it and does not end"),
    ],
    ids=["another device", "an end without a beginning", "autocast without an end", "no end of no_grad"],
)
def test_a_region_that_does_not_lie_in_the_graph_as_a_whole_is_refused(calls, why):
    with pytest.raises(CaptureError) as caught:
        written((torch.relu, "X"), *calls)

    assert caught.value.reasons == (why,)


def test_calls_in_a_region_run_under_its_mode_and_the_region_is_gone():
    graph = written(
        (torch.sin, "X"),
        (_enter_autocast, "cpu", torch.bfloat16, True, True),
        (torch.cos, "LAST"),
        (torch._C._set_grad_enabled, False),
        (torch.exp, "LAST"),
        (_exit_autocast, "LAST"),
        (torch.tan, "LAST"),
        (torch._C._set_grad_enabled, True),
        (torch.abs, "LAST"),
    )

    calls = [n.target for n in graph.nodes if n.op == "call_function"]
    inner = [call.mode for call in calls if isinstance(call, Call)]
    assert [getattr(call, "__name__", None) for call in calls] == ["sin", "cos", "exp", "tan", "abs"]
    assert [(mode.grad, mode.autocast[0]) for mode in inner] == [
        (True, ("cpu", True, torch.bfloat16)),
        (False, ("cpu", True, torch.bfloat16)),
        (False, ("cpu", False, torch.float32)),
    ]


def without_data(function):
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["position"] = 0
    graph.output((graph.call_function(function, (x,)),))
    captured = CapturedGraph(graph, "dynamo", take_apart(())[1])
    annotate_without_data(captured, fx.GraphModule(nn.Module(), graph), [torch.ones(3, 4, requires_grad=True)])
    return [node.meta for node in graph.nodes]


def test_a_run_without_data_says_the_sizes_and_that_a_value_with_a_gradient_comes_from_what_trains():
    _, doubled, _ = without_data(torch.relu)

    assert doubled["shape"] == (3, 4) and doubled["gradient"]
    assert doubled["parameters"] == (("x", 0, True),)


def reads_the_data(x):
    return x * (2 if x.sum() > 0 else 3)


def fails(x):
    raise ValueError("first line\nsecond line")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (reads_the_data, "a run on tensors without data fails: DataDependentOutputException: "),
        (fails, "a run on tensors without data fails: ValueError: first line"),
    ],
)
def test_a_call_that_cannot_do_without_data_is_refused_in_one_line(function, why):
    with pytest.raises(CaptureError) as caught:
        without_data(function)

    (reason,) = caught.value.reasons
    assert reason.startswith(why) and "second" not in reason and "\n" not in reason


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("L['self'].fc", "fc"),
        ("L['self']._modules['h'].2", "h.2"),
        ("L['self'].__dict__['_modules']['a'].b", "a.b"),
        ("L['fn']._orig_mod.fc", "fc"),
        ("L['self'].layers[3].fc", "layers.3.fc"),
        ("L['self']", ""),
    ],
)
def test_the_path_that_an_expression_of_dynamo_spells(expression, path):
    assert spelled_path(expression) == path
