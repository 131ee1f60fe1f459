"""The whole partition: what the plan says, and that parts of any graph do what the graph does."""

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.partition_programs import (
    STEPS,
    Program,
    X,
    assert_parts_equal_the_whole,
    captured,
    chain,
    linear,
    model_of,
    parted,
    where,
)
from torch import fx, nn

from dnigraph.passes.errors import CutError
from dnigraph.passes.plan.partition import partition
from dnigraph.passes.plan.plan import Plan


def test_the_plan_says_what_was_measured():
    model = model_of(lambda m, x: m.c(m.b(m.n(m.a(x)))), a=linear(), n=nn.BatchNorm1d(4), b=linear(), c=linear())

    _, plan = parted(model, ["n"], X)

    assert [part.parameters for part in plan.parts] == [28, 40]
    assert [part.flops for part in plan.parts] == [64, 128]
    crossing = plan.crossings[0]
    assert (crossing.shape, crossing.dtype, crossing.bytes, crossing.gradient) == ((2, 4), "float32", 32, True)
    assert plan.inputs == ("x",)
    assert Plan.from_json(plan.to_json()) == plan


def test_edges_that_the_graph_lacks_are_listed():
    whole = captured(chain(a=linear(), b=linear(), c=linear()), X)
    first, second, third = (whole.node(name) for name in ("a", "b", "c"))

    with pytest.raises(CutError) as raised:
        partition(whole.graph, [(first, third), (second, first)])

    assert raised.value.misfits == (
        "cut between 'a' and 'c': the graph has no such edge",
        "cut between 'b' and 'a': the graph has no such edge",
    )


def programs():
    step = st.tuples(st.sampled_from(STEPS), st.one_of(st.integers(-3, -1), st.integers(0, 30)), st.integers(0, 30))
    return st.lists(step, min_size=1, max_size=25)


@settings(max_examples=60)
@given(programs(), st.randoms(use_true_random=False))
def test_whatever_is_cut_the_parts_do_what_the_graph_does(steps, random):
    torch.manual_seed(0)
    whole = captured(Program(steps), torch.randn(4, 8), torch.randn(4, 8))
    before_cutting = str(whole.graph)
    edges = [(n, user) for n in whole.graph.nodes for user in n.users if n.op[0] == "c" and user.op != "output"]
    cuts = random.sample(edges, min(len(edges), random.randrange(6)))

    try:
        plan = partition(whole.graph, cuts)
    except CutError:  # inside an in-place write at the end
        return

    assert str(whole.graph) == before_cutting
    assert_every_node_stands_somewhere(whole, plan)
    assert_parts_depend_on_earlier_ones(plan)
    assert_cuts_separate(whole, plan)
    assert_weights_do_not_cross(whole, plan)
    assert_no_end_is_idle(whole, plan)
    assert_parts_equal_the_whole(whole, plan)


def assert_every_node_stands_somewhere(whole, plan):
    stands = where(whole, plan)
    for node in whole.graph.nodes:
        label = whole.label(node.name)
        assert not node.op.startswith("call") or label in stands
        if node.op != "get_attr" and len(stands.get(label, ())) > 1:
            assert not node.meta["random"] and "dropout" not in label


def assert_parts_depend_on_earlier_ones(plan):
    number = {part.name: at for at, part in enumerate(plan.parts)}
    level = {part.name: part.level for part in plan.parts}
    for crossing in plan.crossings:
        for consumer in crossing.consumers:
            assert number[crossing.producer] < number[consumer]
            assert level[crossing.producer] <= level[consumer]


def assert_cuts_separate(whole, plan):
    stands, level = where(whole, plan), [part.level for part in plan.parts]
    asked = {whole.label(crossing.node) for crossing in plan.crossings if crossing.asked}
    for a, b in whole.labelled(plan.cuts):
        assert len(plan.parts) > 1
        if a in asked and len(stands[b]) == 1 and stands[b] != stands[a]:
            assert level[stands[a][0]] < level[stands[b][0]]


def assert_weights_do_not_cross(whole, plan):
    made_of_weights = set()
    for node in whole.graph.nodes:
        random = node.meta.get("random") or node.meta.get("writes")
        if node.op == "get_attr" or (
            node.op.startswith("call") and not random and all(i in made_of_weights for i in node.all_input_nodes)
        ):
            made_of_weights.add(node)
    weights = {node.name for node in made_of_weights if node.op == "get_attr" or node.target in (operator.mul, "tril")}
    assert not weights & {crossing.node for crossing in plan.crossings}


def assert_no_end_is_idle(whole, plan):
    """A part without trained parameters passes gradients on, or there would be no use in it."""
    learning = [crossing for crossing in plan.crossings if crossing.gradient]
    for part in plan.parts if len(plan.parts) > 1 else ():
        parameters = [p for name in part.nodes for p in whole.node(whole.label(name)).meta["parameters"]]
        if not any(trained for _, _, trained in parameters):
            assert any(part.name in crossing.consumers for crossing in learning)
            assert any(part.name == crossing.producer for crossing in plan.crossings)


def test_a_graph_of_many_nodes_takes_no_longer_per_node():
    graph = fx.Graph()
    value = graph.placeholder("x")
    value.meta = {"gradient": False, "shape": (4,), "dtype": torch.float32, "bytes": 16}
    for i in range(5000):
        parameters = ((f"layers.{i}.weight", 16, True),)
        value = graph.call_module(f"layers.{i}", (value,))
        value.meta = {"gradient": True, "shape": (4,), "dtype": torch.float32, "bytes": 16, "parameters": parameters}
        size = graph.call_method("size", (value, 0))
        value = graph.call_method("view", (value, graph.call_function(operator.add, (size, 0))))
        value.meta = {"gradient": True, "shape": (4,), "dtype": torch.float32, "bytes": 16}
    graph.output((value,))
    views = [node for node in graph.nodes if node.target == "view"]

    plan = partition(graph, [(view, user) for view in views[49:-1:50] for user in view.users])

    assert len(plan.parts) == 100
    assert len(plan.crossings) == 99
