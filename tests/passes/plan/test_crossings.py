"""Which values cross, what they are called, and whether the user asked for it."""

from kit.partition_programs import X, assert_parts_equal_the_whole, captured, linear, model_of, nodes_of, parted
from torch import nn

from dnigraph.passes.plan.partition import partition


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


def test_a_crossing_that_no_module_makes_has_the_name_of_its_node():
    model = model_of(lambda m, x: m.b(m.a(x).sigmoid()), a=linear(), b=linear())

    _, plan = parted(model, ["sigmoid"], X)

    assert [c.name for c in plan.crossings] == ["sigmoid"]
