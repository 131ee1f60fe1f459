import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.partition_programs import (
    SKIPPING_INPUTS,
    STEPS,
    Program,
    Skipping,
    assert_parts_equal_the_whole,
    captured,
    parted,
)
from torch import fx, nn

from dnigraph.passes.errors import CutError, PlanError
from dnigraph.passes.parts.boundary_nodes import boundary_key, insert_boundaries, strip_boundaries
from dnigraph.passes.parts.split import Value, split
from dnigraph.passes.plan.partition import partition
from dnigraph.passes.plan.plan import Plan


@pytest.fixture
def cut():
    return parted(Skipping(), ["relu", "middle"], *SKIPPING_INPUTS)


def lines(graph):
    return str(graph).replace(" ", "")


def snapshot(graph):
    return str(graph), [dict(node.meta) for node in graph.nodes]


# ---- split


def test_parts_are_graphs_that_take_and_give_values_by_the_names_of_their_nodes(cut):
    found, parts = cut

    made = split(found.graph, parts)

    assert list(made.graphs) == ["part_0", "part_1", "part_2"]
    assert [n.name for n in made.graphs["part_1"].nodes] == ["relu", "middle", "output"]
    assert (parts.parts[1].inputs, parts.parts[1].outputs) == (("relu",), ("middle",))
    assert [n.name for n in made.graphs["part_2"].nodes if n.op == "placeholder"] == list(parts.parts[2].inputs)
    assert made.outputs == (Value("last"), Value("relu"), Value("scale"))


def test_nodes_keep_their_names_and_meta(cut):
    found, parts = cut
    meta = {node.name: node.meta for node in found.graph.nodes}

    made = split(found.graph, parts)

    for graph in made.graphs.values():
        for node in (node for node in graph.nodes if node.op != "output"):
            assert node.meta == meta[node.name]


def test_one_value_is_given_as_it_is_and_several_as_a_tuple(cut):
    found, parts = cut

    made = split(found.graph, parts)

    results = [next(n for n in graph.nodes if n.op == "output").args[0] for graph in made.graphs.values()]
    assert isinstance(results[0], tuple)
    assert [isinstance(result, fx.Node) for result in results] == [False, True, True]


def test_the_top_graph_calls_the_parts_in_order_and_says_which_value_each_node_is(cut):
    found, parts = cut

    top = split(found.graph, parts).top

    assert [n.target for n in top.nodes if n.op == "call_module"] == ["part_0", "part_1", "part_2"]
    assert [n.name for n in top.nodes if n.op == "placeholder"] == ["x", "scale"]
    value_called = {n.meta["value"]: n for n in top.nodes if "value" in n.meta}
    assert value_called["middle"].target == "part_1"
    assert value_called["relu"].meta["shape"] == (2, 4)
    assert [n.meta.get("part") for n in top.nodes if n.op == "call_module"] == ["part_0", "part_1", "part_2"]


def test_the_graph_that_is_split_stays_as_it_was(cut):
    found, parts = cut
    before = snapshot(found.graph)

    split(found.graph, parts)

    assert snapshot(found.graph) == before


def test_constants_among_the_outputs_stay_constants():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((x, None, "x", 3))

    made = split(graph, partition(graph, []))

    assert made.outputs == (Value("x"), None, "x", 3)
    assert next(n for n in made.top.nodes if n.op == "output").args[0][1:] == (None, "x", 3)


def test_a_plan_of_another_graph_is_refused_with_every_difference(cut):
    _, parts = cut
    other = captured(nn.Sequential(nn.Linear(4, 4)), SKIPPING_INPUTS[0])

    with pytest.raises(PlanError) as raised:
        split(other.graph, parts)

    assert "the graph has no node 'middle'" in raised.value.misfits
    assert "no part has the node '_0'" in raised.value.misfits
    assert raised.value.misfits[-1] == "the plan's inputs are x, scale, the graph's are input_1"


def test_a_saved_plan_splits_the_graph_in_the_same_way(cut):
    found, parts = cut

    made = split(found.graph, Plan.from_json(parts.to_json()))

    assert lines(made.top) == lines(split(found.graph, parts).top)


# ---- the whole


class PassOn(nn.Module):
    def forward(self, value, count=1):
        return value if count == 1 else (value,) * count


def run_top(found, parts, model):
    """The model's outputs by way of the top graph, with boundaries that do nothing."""
    made = split(found.graph, parts)
    root = nn.Module()
    for name, graph in made.graphs.items():
        root.add_module(name, found.module(graph, model))
    root.dni = nn.ModuleDict({boundary_key(c): PassOn() for c in parts.crossings if c.gradient})
    return fx.GraphModule(root, insert_boundaries(made.top, parts))(*(x.clone() for x in found.inputs))


def test_parts_run_as_the_whole(cut):
    found, parts = cut

    assert_parts_equal_the_whole(found, parts)


def test_with_boundaries_that_pass_on_gradients_are_those_of_the_whole(cut):
    found, parts = cut
    whole, divided = copy.deepcopy(found.model), copy.deepcopy(found.model)
    torch.manual_seed(1)
    found.module(found.graph, whole)(*found.inputs)[0].sum().backward()

    torch.manual_seed(1)
    run_top(found, parts, divided)[0].sum().backward()

    for one, other in zip(whole.parameters(), divided.parameters(), strict=True):
        assert one.grad.ne(0).any()
        assert torch.equal(one.grad, other.grad)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(-3, 9), st.integers(0, 30)), max_size=20), st.randoms())
def test_any_program_runs_through_its_top_graph_as_a_whole(steps, random):
    torch.manual_seed(0)
    found = captured(Program(steps), torch.randn(4, 8), torch.randn(4, 8))
    edges = [(n, user) for n in found.graph.nodes for user in n.users if n.meta.get("gradient") and user.op != "output"]
    try:
        parts = partition(found.graph, random.sample(edges, min(4, len(edges))))
    except CutError:
        return
    whole, divided = copy.deepcopy(found.model), copy.deepcopy(found.model)

    torch.manual_seed(1)
    expected = found.module(found.graph, whole)(*(x.clone() for x in found.inputs))
    torch.manual_seed(1)
    got = run_top(found, parts, divided)

    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))
    top = split(found.graph, parts).top
    assert lines(strip_boundaries(insert_boundaries(top, parts))) == lines(top)
