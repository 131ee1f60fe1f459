"""The functions and keys that captured graphs have beside those of fx."""

import contextlib
import copy
import re
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import dnigraph as dg
import dnigraph.passes
from dnigraph.passes.errors import CaptureError, GuardMiss
from dnigraph.passes.graph.nodes import (
    Call,
    Mode,
    NodeMeta,
    event,
    guard,
    keep_buffer,
    leaf_of,
    numbered,
    set_attribute,
    set_item,
)

X = torch.arange(6.0).reshape(2, 3)


def test_a_call_runs_under_the_mode_that_it_was_made_under():
    outside = Mode.now()
    with torch.no_grad():
        call = Call(torch.exp, Mode.now(), outside)

    assert not call(X.clone().requires_grad_()).requires_grad
    assert torch.is_grad_enabled()


def test_arguments_that_fx_cannot_spell_go_around_the_nodes():
    call = Call(lambda pair, *, scale: pair["x"] * scale, slots=(({"x": fx.Node},), {"scale": 2}))

    assert torch.equal(call(X), X * 2)
    assert copy.deepcopy(call) is call


def test_a_guard_holds_for_what_it_was_made_of_also_where_that_is_not_a_number():
    guard(3, 3)
    guard(float("nan"), float("nan"))
    guard(X / 0, X.clone() / 0)


@pytest.mark.parametrize(("value", "expected"), [(4, 3), (True, False), (X, X + 1), (X, X.double())])
def test_a_guard_that_misses_says_where(value, expected):
    with pytest.raises(GuardMiss, match=r"model\.py:7"):
        guard(value, expected, "model.py:7")


def test_assignments_return_the_tensor_so_that_readers_wait_for_them():
    x = X.clone()

    assert set_item(x, 0, 5.0) is x and x[0].eq(5).all()
    assert set_attribute(x, "data", X) is x and torch.equal(x, X)
    assert leaf_of({"a": 1, "b": [2, 3]}, 2) == 3


def test_effects_survive_the_elimination_of_dead_code():
    graph = fx.Graph()
    x = graph.placeholder("x")
    for target, args in ((guard, (x, 1, "")), (set_item, (x, 0, 1)), (torch.exp, (x,))):
        graph.call_function(target, args)
    graph.output(())

    graph.eliminate_dead_code()

    assert [node.target for node in graph.find_nodes(op="call_function", target=torch.exp)] == []
    assert len(graph.find_nodes(op="call_function", target=guard)) == 1
    assert len(graph.find_nodes(op="call_function", target=set_item)) == 1


def test_a_table_in_a_buffer_stays_where_it_is_larger_and_begins_alike():
    module = nn.Module()

    keep_buffer(module, "table", False, X)
    keep_buffer(module, "table", False, X[:1])
    assert module.table is X
    keep_buffer(module, "table", True, X[:1] + 1)
    assert torch.equal(module.table, X[:1] + 1) and "table" in module.state_dict()


def test_the_code_spells_no_other_keys_of_meta_than_the_contract_lists_and_reads_all_of_them():
    paths = [path for package in (dg, dnigraph.passes) for path in Path(package.__path__[0]).rglob("*.py")]
    source = "\n".join(path.read_text() for path in paths)
    written = set(re.findall(r'meta\["(\w+)"\](?:, \S+)* =', source))
    read = set(re.findall(r'meta(?:\[|\.get\()"(\w+)"(?!\](?:, \S+)* =)', source))
    read |= set(re.findall(r'"(\w+)" (?:not )?in [\w.]*meta\b', source))

    foreign = {
        "tensor_dict",
        "_dynamo_static_input_type",
        "example_value",
        "val",
    }  # torch's, in graphs that are not ours yet
    of_top_graphs = {"value", "part", "boundary"}  # read by the names of constants
    assert len(paths) > 100 and len(written) > 10
    assert written | read - foreign <= NodeMeta.__annotations__.keys()
    assert NodeMeta.__annotations__.keys() <= read | of_top_graphs


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_mode_that_is_set_stands_afterwards(grad, enabled):
    before = Mode.now()
    dtype = torch.get_autocast_dtype("cpu")
    mode = Mode(grad, (("cpu", enabled, torch.float16 if enabled else torch.float32), before.autocast[1]))
    try:
        torch.set_grad_enabled(not grad)
        torch.set_autocast_enabled("cpu", not enabled)

        mode.set()

        assert Mode.now() == mode
        assert torch.get_autocast_dtype("cpu") is (torch.float16 if enabled else dtype)  # where it is off, none is set
    finally:
        torch.set_autocast_dtype("cpu", dtype)
        before.set()
    assert Mode.now() == before


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("layers.3", ("layers.3", 0)),
        ("layers.3@2", ("layers.3", 2)),
        ("a@b", ("a@b", 0)),
        ("a@b@12", ("a@b", 12)),
        ("a@", ("a@", 0)),
        ("", ("", 0)),
    ],
)
def test_a_key_says_the_path_and_the_number_of_a_call(key, parts):
    assert numbered(key) == parts


@pytest.mark.parametrize(
    ("old", "new", "stays"),
    [
        (X, X[:1], True),
        (X, X[:, :2], True),
        (X, X.clone(), False),  # as large: it is the new one
        (X, X[0], False),
        (X, X[:1] + 1, False),
        (X[:1], X, False),
        (None, X, False),
    ],
    ids="fewer_rows fewer_columns as_large fewer_dimensions other_numbers larger none".split(),
)
def test_a_buffer_that_a_forward_registers_replaces_all_but_a_larger_one_that_begins_with_it(old, new, stays):
    module = nn.Module()
    module.register_buffer("table", old)

    keep_buffer(module, "table", True, new)

    assert module.table is (old if stays else new)


def test_a_graph_of_hooks_is_not_run():
    with pytest.raises(CaptureError, match="only says what feeds what"):
        event(1)


def test_a_call_is_called_as_its_function_without_underscores():
    assert Call(torch.Tensor.add_).__name__ == "add"
    assert Call(torch.Tensor.__add__).__name__ == "add"
    assert Call(lambda: 0).__name__ == "call"
    assert Call(torch.autograd.Function.apply).__name__ == "Function"
    assert Call(object()).__name__ == "call"


def test_a_mode_that_is_entered_ends_with_its_stack():
    outside = Mode.now()
    inner = Mode(not outside.grad, (("cpu", True, torch.bfloat16), outside.autocast[1]))

    with contextlib.ExitStack() as stack:
        inner.enter(outside, stack)
        assert Mode.now() == inner
    assert Mode.now() == outside
