"""Where sizes, masks, guards and what is made of weights stand."""

import torch
import torch.nn.functional as F
from kit.partition_programs import X, assert_parts_equal_the_whole, linear, model_of, nodes_of, parted, where
from torch import nn


def test_a_mask_made_of_the_inputs_follows_the_least_traffic():
    def forward(m, x, ids):
        h = m.a(x)
        square = (ids[:, :, None] == ids[:, None, :]).any(-1)  # made of an intermediate that is larger than ids
        h = m.b(h * square)
        return m.c(h * square)

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["a", "b"], X, torch.ones(2, 4, dtype=torch.long))

    assert where(whole, plan)["eq"] == (1,)  # the flags are smaller than ids: made once and sent on
    assert [whole.label(c.node) for c in plan.crossings if not c.gradient] == ["any"]
    assert_parts_equal_the_whole(whole, plan)


def test_what_is_larger_than_what_it_is_made_of_is_made_again():
    def forward(m, x, ids):
        h = m.a(x)
        wide = ids[:, None].expand(2, 400).float()
        h = m.b(h * wide.sum())
        return m.c(h * wide[:, :4])

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["a", "b"], X, torch.ones(2, dtype=torch.long))

    assert where(whole, plan)["float"] == (1, 2)
    assert all(crossing.bytes < 400 for crossing in plan.crossings)
    assert_parts_equal_the_whole(whole, plan)


def test_parallel_parts_make_the_same_mask_rather_than_wait_for_each_other():
    def forward(m, x, y):
        mask = x > 0
        return m.c(m.a(x) * mask + m.b(y) * mask)

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, [("mul", "add"), ("mul@2", "add")], X, X)

    assert where(whole, plan)["gt"] == (0, 1)
    assert {whole.label(c.node) for c in plan.crossings} == {"mul", "mul@2"}
    assert_parts_equal_the_whole(whole, plan)


def test_what_follows_from_a_large_value_is_sent_in_its_place():
    def forward(m, x):
        h = m.a(x)
        flag = (h > 0).any()
        return m.c(m.b(h.mean(1, keepdim=True).expand(2, 4)) * flag)

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, [("expand", "b")], X)

    assert {whole.label(c.node) for c in plan.crossings} == {"expand", "any"}
    assert where(whole, plan)["gt"] == (0,)
    assert_parts_equal_the_whole(whole, plan)


def test_a_value_at_hand_gives_its_size_on_the_spot():
    model = model_of(lambda m, x: m.b(h := m.a(x)) + h.view(h.shape[0], 4), a=linear(), b=linear())

    whole, plan = parted(model, ["a"], X)

    assert [whole.label(c.node) for c in plan.crossings] == ["a"]


def test_a_value_that_has_to_be_received_serves_for_all_that_is_made_of_it():
    def forward(m, x):
        h = m.a(x)
        g = m.b(h.mean(1, keepdim=True).expand(4, 4))
        return m.c(g) * (h > g) * (h > 0)

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["expand"], torch.randn(4, 4))

    crossing = {(whole.label(c.node), c.gradient) for c in plan.crossings}
    assert crossing == {("expand", True), ("a", False)}  # h is compared, no more
    assert_parts_equal_the_whole(whole, plan)


def test_what_depends_on_two_towers_is_made_where_they_meet():
    def forward(m, x, y):
        a, b = m.a(x), m.b(y)
        mean = a.mean(1, keepdim=True) + b.mean(1, keepdim=True)
        return m.c(mean.expand(2, 4)) * (a.argmax(1) == b.argmax(1))[:, None]

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["mean", "mean@2"], X, X)

    assert where(whole, plan)["eq"] == (2,)
    assert [part.inputs for part in plan.parts[:2]] == [("x",), ("y",)]


def test_an_output_over_towers_that_never_meet_is_made_in_the_last():
    def forward(m, x, y):
        a, b = m.a(x), m.b(y)
        return m.c(a), m.d(b), a.argmax(1) == b.argmax(1)

    model = model_of(forward, **{name: linear() for name in "abcd"})

    whole, plan = parted(model, ["a", "b"], X, X)

    assert len(where(whole, plan)["eq"]) == 1
    assert_parts_equal_the_whole(whole, plan)


def test_a_guard_on_an_input_stands_in_the_first_part_whoever_reads_the_input():
    def forward(m, x, y):
        h = m.b(m.a(x))
        return m.c(h + y) if y.shape[0] > 1 else h

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["a", "b"], X, X)

    assert "guard" in nodes_of(whole, plan)[0]


def test_guards_stand_where_what_they_look_at_is_made():
    def forward(m, x):
        h = m.b(m.a(x))
        if x.shape[0] > 1 and h.detach().sum() > -1e9:
            h = m.c(h)
        return h

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["a", "b"], X)

    guards = [nodes & {"guard", "guard@2"} for nodes in nodes_of(whole, plan)]
    assert guards == [{"guard"}, {"guard@2"}, set()]  # sizes of the inputs are checked before anything runs
    assert [whole.label(c.node) for c in plan.crossings] == ["a", "b"]
    assert_parts_equal_the_whole(whole, plan)


def test_a_hook_stands_with_the_value_that_it_hangs_on():
    def forward(m, x):
        h = m.a(x)
        out = m.b(h)
        h.register_hook(lambda gradient: None)
        return out

    model = model_of(forward, a=linear(), b=linear())

    whole, plan = parted(model, ["a"], X)

    assert nodes_of(whole, plan) == [{"a", "register_hook"}, {"b"}]


def test_what_is_made_of_weights_alone_is_made_in_each_part_and_never_sent():
    def forward(m, x):
        mixed = m.w.tril() * 2
        return F.linear(m.b(F.linear(x, mixed)), mixed)

    model = model_of(forward, w=nn.Parameter(torch.randn(4, 4)), b=linear())

    whole, plan = parted(model, [("linear", "b")], X)

    assert where(whole, plan)["tril"] == (0, 1) == where(whole, plan)["w"]
    assert [whole.label(c.node) for c in plan.crossings] == ["linear"]
    assert [part.parameters for part in plan.parts] == [16, 36]
    assert_parts_equal_the_whole(whole, plan)


def test_work_on_weights_that_nobody_uses_is_still_done():
    model = model_of(
        lambda m, x: (m.w.tril(), m.b(m.a(x)))[1], a=linear(), b=linear(), w=nn.Parameter(torch.ones(2, 2))
    )

    whole, plan = parted(model, ["a"], X)

    assert where(whole, plan)["tril"] == (0,)


def test_a_weight_that_is_an_output_is_handed_out_by_a_part():
    model = model_of(lambda m, x: (m.b(m.a(x)), m.w, m.w * 2), a=linear(), b=linear(), w=nn.Parameter(torch.ones(2)))

    whole, plan = parted(model, ["a"], X)

    assert plan.parts[0].outputs == ("w", "a", "mul")
    assert_parts_equal_the_whole(whole, plan)
