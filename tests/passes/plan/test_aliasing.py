"""What is written in place, what keeps an order, and what the model itself differentiates stays together."""

import torch
from kit.partition_programs import X, assert_parts_equal_the_whole, captured, linear, model_of, nodes_of, parted, where
from torch import nn

from dnigraph.passes.plan.partition import partition


def test_a_view_written_in_place_ties_all_earlier_readers_of_its_storage():
    def forward(m, x):
        h = m.a(x)
        seen = m.b(h)  # reads h before the write
        h[:, 0].zero_()
        return m.c(h) + seen  # c reads h after it, by its old name

    model = model_of(forward, a=linear(), b=linear(), c=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "b"), ("a", "c")))

    assert {"a", "b", "zero_"} <= nodes_of(whole, plan)[0]
    assert "c" in nodes_of(whole, plan)[1]
    assert_parts_equal_the_whole(whole, plan)


def test_a_value_whose_data_is_replaced_keeps_its_earlier_readers():
    def forward(m, x):
        h = m.a(x)
        seen = m.b(h)
        h.data = h.detach() * 2
        return m.c(h) + seen

    model = model_of(forward, a=linear(), b=linear(), c=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, [*whole.edges(("a", "b")), *whole.edges(("b", "add"))])

    assert_parts_equal_the_whole(whole, plan)


def test_an_input_that_is_written_in_place_has_all_its_readers_in_one_part():
    def forward(m, x):
        h = m.a(x)
        x.mul_(2)
        return m.b(h), m.c(x)  # c reads x by its old name

    model = model_of(forward, a=linear(), b=linear(), c=linear())
    whole = captured(model, X, how="symbolic")

    plan = partition(whole.graph, whole.edges(("a", "b")))

    assert nodes_of(whole, plan) == [{"a", "mul_", "c"}, {"b"}]


def test_what_is_taken_out_of_a_tuple_stays_with_it():
    model = model_of(lambda m, x: m.b(m.a(x)[0]), a=nn.LSTM(4, 4), b=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "getitem")))

    assert [whole.label(c.node) for c in plan.crossings] == ["getitem"]
    assert plan.crossings[0].name == "a"
    assert plan.crossings[0].gradient
    assert plan.notes == ()
    assert_parts_equal_the_whole(whole, plan)


def test_a_buffer_that_is_replaced_is_replaced_after_its_last_reader():
    def forward(m, x):
        fresh = m.seen + 1
        out = m.b(m.a(x) * fresh) * m.seen
        m.seen = fresh
        return out

    model = model_of(forward, a=linear(), b=linear())
    model.register_buffer("seen", torch.ones(()))

    whole, plan = parted(model, ["mul"], X)

    assert len(plan.parts) == 2
    assert_parts_equal_the_whole(whole, plan)


def test_a_buffer_written_through_a_view_stays_with_the_view():
    def forward(m, x):
        seen = m.seen.view(1)
        h = m.b(m.a(x) * seen)
        seen.add_(h.detach().sum())
        return m.c(h * m.seen)

    model = model_of(forward, a=linear(), b=linear(), c=linear())
    model.register_buffer("seen", torch.ones(()))
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("mul", "b")))

    assert not {"view"} & {whole.label(crossing.node) for crossing in plan.crossings}
    assert_parts_equal_the_whole(whole, plan)


class Counting(nn.Module):
    """Reads and writes a buffer in each of its layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = linear(), linear(), linear()
        self.register_buffer("seen", torch.ones(()))

    def forward(self, x):
        h = self.a(x) * self.seen
        self.seen.add_(1)
        deep = self.b(h) * self.seen
        self.seen.add_(1)
        return self.c(deep + h * self.seen)


def test_buffers_change_in_the_order_of_the_graph():
    whole, plan = parted(Counting(), [("mul", "b"), ("add", "c")], X)

    assert len(plan.parts) == 3
    assert_parts_equal_the_whole(whole, plan)


def test_a_batch_norm_shared_by_two_parts_counts_in_the_order_of_the_graph():
    model = model_of(lambda m, x: m.n(m.b(m.n(m.a(x)))), a=linear(), b=linear(), n=nn.BatchNorm1d(4))

    whole, plan = parted(model, [("n", "b")], torch.randn(4, 4))

    assert nodes_of(whole, plan) == [{"a", "n"}, {"b", "n@2"}]
    assert_parts_equal_the_whole(whole, plan)


def test_what_a_gradient_is_sent_back_through_inside_the_model_stays_together():
    def forward(m, x):
        h = m.a(x)
        energy = m.c(m.b(h).tanh()).sum()
        return m.d(torch.autograd.grad(energy, h, create_graph=True)[0])

    model = model_of(forward, a=linear(), b=linear(), c=linear(), d=linear())

    whole, plan = parted(model, ["a", "b", "c"], X)

    assert where(whole, plan)["b"] == where(whole, plan)["c"] == where(whole, plan)["grad"]
    assert any("'b'" in note for note in plan.notes)


def test_a_gradient_with_respect_to_an_input_ties_all_that_it_goes_through():
    def forward(m, x):
        x = x.requires_grad_()
        return m.c(torch.autograd.grad(m.b(m.a(x).tanh()).sum(), x, create_graph=True)[0])

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["a", "b"], X)

    assert len({where(whole, plan)[name] for name in ("a", "tanh", "b", "grad")}) == 1


def test_a_gradient_with_respect_to_a_weight_stays_with_the_whole_way_to_it():
    def forward(m, x):
        (gradient,) = torch.autograd.grad((m.b(m.a(x)) ** 2).sum(), m.b.weight, create_graph=True)
        return m.c(m.d(x) @ gradient)

    model = model_of(forward, a=linear(), b=linear(), c=linear(), d=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "b"), ("b", "pow"), ("pow", "sum"), ("matmul", "c")))

    (inner,) = [nodes for nodes in nodes_of(whole, plan) if "grad" in nodes]
    assert {"a", "b", "pow", "sum"} <= inner and "c" not in inner
    assert_parts_equal_the_whole(whole, plan)
