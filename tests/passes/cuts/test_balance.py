"""Balanced cuts: the largest part is as small as can be, at places where little crosses."""

import re
import time
from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kit.models import CLASSES, ZOO, ResNet
from kit.partition_programs import captured, parted
from torch import nn

import dnigraph as dg
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.cuts import balance
from dnigraph.passes.cuts.balance import choose
from dnigraph.passes.cuts.specs import balanced, resolve
from dnigraph.passes.errors import CutError


class Layers(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def cut_places(model, cuts, *inputs):
    found = captured(model, *inputs)
    return [found.label(a.name) for a, _ in resolve(found.graph, cuts).edges]


def flops(plan):
    return [part.flops for part in plan.parts]


# ---- models


@given(st.lists(st.integers(1, 12), min_size=3, max_size=7), st.data())
def test_a_chain_of_layers_is_cut_so_that_the_largest_part_has_the_fewest_flops(widths, data):
    layers = len(widths) - 1
    parts = data.draw(st.integers(1, layers))
    costs = [2 * a * b + 2 * b for a, b in pairwise(widths)]  # a scalar of the layer and one of relu for each output
    choices = combinations(range(1, layers), parts - 1)
    least = min(max(sum(costs[a:b]) for a, b in pairwise([0, *chosen, layers])) for chosen in choices)

    plan = dg.plan(Layers(*widths), parts, torch.randn(1, widths[0]))

    held = [
        sum(2 * b for n, b in zip(range(layers), widths[1:], strict=True) if f"layers_{n}" in part.nodes)
        for part in plan.parts
    ]
    assert len(plan.parts) == parts
    assert max(f + scalars for f, scalars in zip(flops(plan), held, strict=True)) == least


def test_a_cut_falls_behind_the_activation_not_before_it():
    assert cut_places(Layers(4, 4, 4), 2, torch.randn(2, 4)) == ["relu"]


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_residual_nets_are_cut_between_blocks(parts):
    model = nn.Sequential(*(Residual(8) for _ in range(12)))

    plan = dg.plan(model, parts, torch.randn(2, 8))

    assert [c.name for c in plan.crossings] == [str(12 // parts * i - 1) for i in range(1, parts)]
    assert max(flops(plan)) == min(flops(plan))


def test_a_cut_stays_between_blocks_where_the_balance_suffers_little():
    model = nn.Sequential(*(Residual(8) for _ in range(12)))

    plan = dg.plan(model, 5, torch.randn(2, 8))

    assert len(plan.crossings) == 4  # 25% the largest part; 21% would be possible with two values for a cut


def test_a_cut_goes_into_a_block_where_the_balance_asks_for_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 32), Residual(32))

    plan = dg.plan(model, 2, torch.randn(2, 4))

    assert cut_places(model, 2, torch.randn(2, 4)) == ["1", "relu"]
    assert max(flops(plan)) < 0.6 * sum(flops(plan))


def between(*layers):
    """Where a net of two learning layers is cut, with this in between."""
    model = nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(8, 4))
    return set(cut_places(model, 2, torch.randn(2, 4)))


class Doubled(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


class Ends(nn.Module):
    def forward(self, x):
        first, second = x[:, :1] + 1, x[:, 1:2] + 1
        return torch.cat([first, second] * 4, 1)


class Within(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(torch.relu(torch.tanh(x)))


def test_of_the_places_between_two_layers_the_one_with_the_fewest_bytes_is_taken():
    assert between(nn.ReLU(), Doubled()) == {"1"}


def test_one_value_is_better_than_two_even_with_more_bytes():
    assert between(nn.ReLU(), Ends()) == {"1"}


def test_a_place_at_the_border_of_modules_is_better_than_one_inside():
    model = nn.Sequential(Within(), Within())

    assert cut_places(model, 2, torch.randn(2, 4)) == ["0.fc"]


def test_what_is_written_in_place_is_not_torn_apart():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)) for _ in range(6)))

    found, parts = parted(model, 6, torch.randn(2, 4))

    assert len(parts.parts) == 6
    assert not parts.notes
    assert [a for a, _ in found.labelled(parts.cuts)] == ["0.1", "1.1", "2.1", "3.1", "4.1"]


class Exits(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.exits = nn.ModuleList(nn.Linear(4, 40) for _ in range(4))

    def forward(self, x):
        found = []
        for layer, leave in zip(self.body, self.exits, strict=True):
            x = torch.relu(layer(x))
            found.append(leave(x))
        return found


def test_a_side_exit_belongs_to_the_part_that_it_leaves():
    _, parts = parted(Exits(), 4, torch.randn(2, 4))

    exits = [[name for name in part.nodes if name.startswith("exits")] for part in parts.parts]
    assert exits == [[f"exits_{i}"] for i in range(4)]


def test_a_side_exit_is_no_part_by_itself():
    _, parts = parted(Exits(), 8, torch.randn(2, 4))

    assert [len(part.nodes) for part in parts.parts] == [1, 2, 1, 2, 1, 2, 2, 1]


def test_a_layer_on_a_skip_over_several_cuts_stays_below():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.beside = nn.ModuleList(nn.Linear(4, 4) for _ in range(9)), nn.Linear(4, 4)

        def forward(self, x):
            first = h = torch.relu(self.layers[0](x))
            for layer in self.layers[1:]:
                h = torch.relu(layer(h))
            return h * self.beside(first)

    _, parts = parted(Skip(), 5, torch.randn(2, 4))

    assert len(parts.parts) == 5
    assert "beside" in parts.parts[0].nodes


def test_a_second_input_that_comes_late_is_not_cut_off_where_that_can_be_avoided():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Layers(4, 4, 4, 4), nn.Linear(4, 4)
            self.top = Layers(4, 4, 4, 4)

        def forward(self, a, b):
            return self.top(self.first(a) + self.second(b))

    plan = dg.plan(Late(), 2, (torch.randn(2, 4), torch.randn(2, 4)))

    assert len(plan.parts) == 2
    assert plan.parts[0].nodes[-1] == "add"


def test_a_size_read_long_ago_is_no_reason_for_another_part():
    class Query(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.query = Layers(*[4] * 9), nn.Parameter(torch.randn(1, 4))

        def forward(self, x):
            first = torch.relu(self.layers.layers[0](x))
            size = first.shape[0]
            for layer in self.layers.layers[1:]:
                first = torch.relu(layer(first))
            return first * self.query.expand(size, 4)

    _, parts = parted(Query(), 4, torch.randn(2, 4))

    assert len(parts.parts) == 4
    assert not parts.notes


def test_a_balance_far_from_even_is_no_price_for_parts_in_a_row():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = Layers(4, *[32] * 4, 4), Layers(4, *[32] * 4, 4)
            self.top = Layers(*[4] * 6)

        def forward(self, a, b):
            return self.top(self.left(a) + self.right(b))

    plan = dg.plan(Pair(), 3, (torch.randn(2, 4), torch.randn(2, 4)))

    assert max(flops(plan)) < 0.5 * sum(flops(plan))


def test_what_runs_beside_the_line_is_told():
    torch.manual_seed(0)
    model, args, _ = ZOO["two_towers"]()

    plan = dg.plan(model, 4, args)

    assert len(plan.parts) > 4
    assert f"with what runs beside them {len(plan.parts)} in all" in plan.notes[0]


def test_weights_made_of_weights_are_no_crossing():
    class Triangles(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList(nn.Parameter(torch.randn(4, 4)) for _ in range(4))

        def forward(self, x):
            for weight in [weight.tril() for weight in self.weights]:
                x = torch.relu(x @ weight)
            return x

    plan = dg.plan(Triangles(), 4, torch.randn(2, 4))

    assert cut_places(Triangles(), 4, torch.randn(2, 4)) == ["relu", "relu@2", "relu@3"]
    assert plan.notes == ("4 parts by flops: 25%, 25%, 25%, 25%",)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("cost", ["flops", "memory", "time"])
def test_every_model_of_the_zoo_is_cut_in_two_and_computes_the_same(name, cost):
    model, args, _ = ZOO[name]()

    dm = dg.decouple(model, balanced(2, cost), args, condition=dg.one_hot(CLASSES), check=True)

    assert len(dm.parts) == 2
    assert all(part.parameters for part in dm.plan.parts)


def test_a_small_resnet_in_four_parts():
    dm = dg.decouple(ResNet(), 4, torch.randn(4, 2, 6, 6), condition=dg.one_hot(CLASSES))

    assert len(dm.parts) == 4
    assert dm.plan.notes == ("4 parts by flops: 32%, 32%, 12%, 24%",)


# ---- costs


def test_memory_counts_what_autograd_keeps():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 1), nn.Linear(1, 64)

        def forward(self, x):
            h = self.b(torch.sigmoid(self.a(x)))
            return torch.sigmoid(torch.sigmoid(torch.sigmoid(self.c(h))))

    assert cut_places(Wide(), balanced(2, "memory"), torch.randn(2, 64)) == ["b"]
    assert cut_places(Wide(), balanced(2, "flops"), torch.randn(2, 64)) == ["sigmoid"]


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        time.sleep(0.02)
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Sleeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.bn = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 40), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.c(F.dropout(self.b(Slow.apply(self.bn(self.a(x))))))


def test_time_is_measured():
    dm = dg.decouple(Sleeps(), balanced(2, "time"), torch.randn(4, 4), condition=dg.one_hot(40))

    assert [part.nodes[-1] for part in dm.plan.parts] == ["slow", "c"]
    assert re.match(r"2 parts by time: (9\d|100)%", dm.plan.notes[0])  # the sleep is nearly all, or all when rounded


# ---- how it is asked for


def test_a_number_is_a_balanced_cut_also_among_others():
    x = torch.randn(2, 4)
    model = Layers(4, 4, 4, 4, 4)

    assert cut_places(model, 2, x) == cut_places(model, [balanced(2)], x) == ["relu@2"]
    assert cut_places(model, ["layers.0", 2], x) == ["layers.0", "relu@2"]


def test_one_part_is_no_cut():
    dm = dg.decouple(Layers(4, 4, 4), 1, torch.randn(2, 4))

    assert len(dm.parts) == 1
    assert not dm.boundaries


def test_a_limit_on_the_crossing_bytes_moves_the_cut():
    model, x = Layers(8, 8, 8, 2, 8, 8), torch.randn(1, 8)

    assert cut_places(model, 2, x) == ["relu@2"]
    assert cut_places(model, balanced(2, max_crossing_bytes=8), x) == ["relu@3"]


def test_a_further_graph_of_the_model_is_cut_at_the_same_places():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.more = Layers(4, 4, 4, 4, 4), Layers(4, 4, 4, 4, 4)

        def forward(self, x):
            h = self.body(x)
            return self.more(h) if self.training else h

    dm = dg.decouple(Moody(), ["more.layers.1", 3], torch.randn(2, 4), condition=dg.one_hot(4))
    in_training = dm.plan.cuts
    dm.eval()(torch.randn(2, 4))

    layers = [next(name for name in edge if "layers" in name) for edge in in_training]
    assert layers == ["body_layers_2", "more_layers_1", "more_layers_1"]
    assert dm.plan.cuts == in_training[:1]


# ---- what cannot be done


def misfits(model, cuts, *inputs):
    with pytest.raises(dg.CutError) as error:
        dg.plan(model, cuts, inputs)
    return error.value.misfits


@pytest.mark.parametrize(
    "cuts, words",
    [
        (0, "cut balanced(0): 0 is no number of parts; say 1 (no cut) or more"),
        (-2, "cut balanced(-2): -2 is no number of parts"),
        (balanced(2.0), "cut balanced(2.0): 2.0 is no number of parts"),
        (True, "cut True: a bool names no place"),
        (balanced(2, "flop"), "there is no cost 'flop'; there are flops, time, memory; nearest: flops"),
        (balanced(2, max_crossing_bytes=-1), "max_crossing_bytes=-1): -1 is no number of bytes"),
        (9, "cut balanced(9): no more than 3 parts are possible: each needs a parameter to train, and a place to cut"),
        (
            balanced(2, max_crossing_bytes=4),
            "no more than 1 part is possible where at most 4 bytes cross; the fewest bytes",
        ),
        (balanced(2, max_crossing_bytes=4), "the fewest bytes that cross anywhere are 32"),
    ],
)
def test_what_does_not_fit_is_said(cuts, words):
    (line,) = misfits(Layers(4, 4, 8, 4), cuts, torch.randn(2, 4))

    assert words in line


def test_all_misfits_are_listed():
    assert len(misfits(Layers(4, 4), [balanced(0, "flop"), "nowhere"], torch.randn(2, 4))) == 3


def test_a_model_that_learns_nothing_is_one_part():
    (line,) = misfits(Layers(4, 4, 4).requires_grad_(False), 2, torch.randn(2, 4))

    assert "no more than 1 part is possible" in line


def test_without_an_example_there_are_no_costs():
    with pytest.raises(dg.CutError, match=r"what nodes cost is measured on an example; pass example_args"):
        choose(capture(Layers(4, 4, 4), None, None, "symbolic").graph, 2)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (1, "1 part by flops: 100%"),
        (2, "2 parts by flops: 50%, 50%"),
        (8, "8 parts by flops: 12%, 12%, 12%, 12%, 12%, 12%, 12%, 12%"),
        (9, "9 parts by flops: 11.1% the largest, 11.1% on average"),
        (10, "10 parts by flops: 10.0% the largest, 10.0% on average"),
    ],
)
def test_the_note_lists_the_shares_of_up_to_eight_parts_and_sums_up_more(parts, words):
    plan = dg.plan(Linears(parts), parts, torch.randn(1, 4))

    assert words in plan.notes


class Linears(nn.Sequential):
    def __init__(self, count):
        super().__init__(*[nn.Linear(4, 4) for _ in range(count)])


def test_where_no_set_of_places_gives_the_parts_that_were_asked_for_the_choice_stands(monkeypatch):
    def fails(graph, edges):
        raise CutError(["no such parts"])

    whole = captured(Linears(4), torch.randn(1, 4))
    expected = choose(whole.graph, 2, "flops", None)
    monkeypatch.setattr(balance, "partition", fails)

    assert choose(whole.graph, 2, "flops", None) == expected
