"""The whole partition: what the plan says, and that parts of any graph do what the graph does."""

import operator

import pytest
import torch
import torch.nn.functional as F
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
    nodes_of,
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


def test_a_branch_that_nobody_asked_to_cut_goes_with_the_part_that_it_leads_to():
    def forward(m, x, words):
        h = m.a(x)
        return m.c(m.b(h) + m.side(h) + m.embed(words))  # like the downsampling beside a block

    model = model_of(forward, **{name: linear() for name in ("a", "b", "side", "embed", "c")})

    whole, plan = parted(model, ["a", "b"], X, X)

    assert nodes_of(whole, plan) == [{"a"}, {"b"}, {"side", "embed", "add", "add@2", "c"}]
    assert all(crossing.asked for crossing in plan.crossings)
    assert_parts_equal_the_whole(whole, plan)


def test_a_counter_that_nothing_waits_for_is_no_part():
    def forward(m, x):
        h = m.a(x)
        m.seen.add_(1)
        return m.b(h)

    model = model_of(forward, a=linear(), b=linear())
    model.register_buffer("seen", torch.ones(()))

    whole, plan = parted(model, ["a"], X)

    assert len(plan.parts) == 2
    assert_parts_equal_the_whole(whole, plan)


def test_a_prefix_without_parameters_joins_what_follows():
    model = chain(a=nn.Dropout(), b=linear(), c=linear())

    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "b"), ("b", "c")))

    assert nodes_of(whole, plan) == [{"a", "b"}, {"c"}]
    assert whole.labelled(plan.cuts) == (("b", "c"),)
    assert plan.notes == ("cut after 'a' dropped: nothing before it has a parameter to train",)


def test_a_random_draw_of_a_value_s_size_joins_what_uses_it():
    def forward(m, x):
        h = m.a(x)
        return m.b(h + torch.rand_like(h))

    model = model_of(forward, a=linear(), b=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "rand_like"), ("rand_like", "add"), ("a", "add")))

    assert nodes_of(whole, plan) == [{"a"}, {"rand_like", "add", "b"}]


def test_a_frozen_prefix_joins_what_follows():
    model = chain(a=linear().requires_grad_(False), b=linear(), c=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "b"), ("b", "c")))

    assert nodes_of(whole, plan) == [{"a", "b"}, {"c"}]


def test_a_suffix_without_parameters_joins_what_precedes():
    model = chain(a=linear(), b=linear(), c=nn.Softmax(1))

    whole, plan = parted(model, [("a", "b"), ("b", "c")], X)

    assert nodes_of(whole, plan) == [{"a"}, {"b", "c"}]
    assert plan.notes == ("cut after 'b' dropped: nothing after it has a parameter to train",)


def test_a_prefix_of_two_towers_joins_one_and_leaves_the_cut_to_the_other():
    def forward(m, x):
        h = F.dropout(x)
        return m.a(h), m.b(h)

    model = model_of(forward, a=linear(), b=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("dropout", "a"), ("dropout", "b")))

    assert nodes_of(whole, plan) == [{"dropout", "a"}, {"b"}]
    assert not plan.crossings[0].gradient


def test_a_prefix_that_cannot_join_what_uses_it_joins_what_runs_next():
    def forward(m, x, y):
        noise = F.dropout(x)
        h = F.dropout(m.a(y))  # draws after the noise and before the part that uses it
        return m.c(m.b(h) * noise)

    model = model_of(forward, a=linear(), b=linear(), c=linear())
    whole = captured(model, X, X)

    plan = partition(whole.graph, whole.edges(("dropout@2", "b")))

    assert nodes_of(whole, plan) == [{"dropout", "a", "dropout@2"}, {"b", "mul", "c"}]
    assert_parts_equal_the_whole(whole, plan)


def test_towers_that_meet_without_parameters_stay_apart():
    model = model_of(lambda m, x, y: m.a(x) * m.b(y), a=linear(), b=linear())

    whole, plan = parted(model, ["a", "b"], X, X)

    assert nodes_of(whole, plan) == [{"a"}, {"b", "mul"}]


def test_cuts_that_separate_nothing_leave_one_part_and_say_why():
    model = chain(a=nn.Flatten(), b=linear(), c=nn.ReLU())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "b"), ("b", "c")))

    assert len(plan.parts) == 1
    assert plan.cuts == plan.crossings == ()
    assert plan.notes == (
        "cut after 'a' dropped: no gradient crosses there",
        "cut after 'b' dropped: nothing after it has a parameter to train",
    )


def test_what_goes_around_the_cuts_is_cut_too_and_the_plan_says_so():
    model = model_of(lambda m, x: m.b(g := m.s(m.a(x))) + m.t(g), a=linear(), b=linear(), s=linear(), t=linear())

    whole, plan = parted(model, [("s", "b")], X)  # the way over t is not cut

    assert nodes_of(whole, plan) == [{"a", "s", "t"}, {"b", "add"}]
    assert {(c.name, c.asked) for c in plan.crossings} == {("s", True), ("t", False)}
    assert plan.notes == ("'t' goes around the cuts (used in part_1): cut too",)


def test_a_cut_before_a_detach_is_one_that_the_user_asked_for():
    model = model_of(lambda m, x: m.b(m.a(x).detach() * 2), a=linear(), b=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "detach")))

    assert nodes_of(whole, plan)[1] == {"b"}
    assert [(c.gradient, c.asked) for c in plan.crossings] == [(False, True)]


def test_a_siamese_net_counts_its_tied_weights_once_per_part():
    def forward(m, x, y):
        return m.c(m.b(m.a(x)) - m.b(m.a(y)))

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["a", "b"], X, X)

    assert nodes_of(whole, plan) == [{"a"}, {"b"}, {"a@2"}, {"b@2"}, {"sub", "c"}]
    assert [part.parameters for part in plan.parts] == [20] * 5
    assert {c.name for c in plan.crossings} == {"a", "a@2", "b", "b@2"}  # as a user would cut after one of them


def test_no_boundary_for_a_value_that_later_parts_only_look_at():
    def forward(m, x):
        h = m.a(x)
        return m.c(m.b(h[:, :2]) * (h.detach() > 0).float())

    model = model_of(forward, a=linear(), b=nn.Linear(2, 4), c=linear())

    whole, plan = parted(model, [("getitem", "b")], X)

    assert [whole.label(c.node) for c in plan.crossings if c.gradient] == ["getitem"]


def test_several_outputs_come_from_the_parts_that_make_them():
    def forward(m, x):
        h = m.a(x)
        return h, m.b(h), x, h.argmax(1)

    model = model_of(forward, a=linear(), b=linear())

    whole, plan = parted(model, ["a"], X)

    assert [part.outputs for part in plan.parts] == [("a", "argmax"), ("b",)]
    assert_parts_equal_the_whole(whole, plan)


def test_an_input_used_late_is_read_there_and_crosses_nothing():
    model = model_of(lambda m, x, y: m.b(m.a(x) + y), a=linear(), b=linear())

    whole, plan = parted(model, ["a"], X, X)

    assert [part.inputs for part in plan.parts] == [("x",), ("y", "a")]
    assert [whole.label(c.node) for c in plan.crossings] == ["a"]
    assert_parts_equal_the_whole(whole, plan)


def test_a_crossing_is_named_after_the_outermost_module_that_it_comes_out_of():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = linear()

        def forward(self, x):
            return self.conv(x).relu()

    model = nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block()), linear())

    _, plan = parted(model, ["0.0", "0", "1.0.conv", "1"], X)

    assert [c.name for c in plan.crossings] == ["0.0", "0", "1.0.conv", "1"]


def test_of_two_values_that_leave_a_module_only_the_last_has_its_name():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = linear(), linear()

        def forward(self, x):
            return self.one(x).sigmoid(), self.two(x).tanh()

    model = model_of(lambda m, x: m.b(torch.add(*m.a(x))), a=Both(), b=linear())

    _, plan = parted(model, ["a"], X)

    assert [c.name for c in plan.crossings] == ["sigmoid", "a"]


def test_a_crossing_that_no_module_makes_has_the_name_of_its_node():
    model = model_of(lambda m, x: m.b(m.a(x).sigmoid()), a=linear(), b=linear())

    _, plan = parted(model, ["sigmoid"], X)

    assert [c.name for c in plan.crossings] == ["sigmoid"]


def test_an_edge_to_the_end_of_the_graph_is_no_cut():
    whole = captured(chain(a=linear(), b=linear()), X)
    end = whole.graph.output_node()

    plan = partition(whole.graph, [(whole.node("b"), end)])

    assert (len(plan.parts), plan.cuts, plan.crossings) == (1, (), ())
