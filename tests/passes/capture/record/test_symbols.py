"""Numbers that come out of tensors: replayed live where an operation uses them, guarded where Python looks at them."""

import copy
import functools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kit.replay import Doing, compare, judge
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.capture.record.symbols import Float, Int, reachable, symbol, unwrap
from dnigraph.passes.capture.record.writer import GraphWriter
from dnigraph.passes.errors import GuardMiss
from dnigraph.passes.graph.nodes import guard
from dnigraph.passes.graph.pytrees import flatten

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def guards_of(recording):
    return [node for node in recording.graph.nodes if node.target is guard]


# ---- what stays live


def pads_to_a_multiple(model, x):
    return F.pad(model.inner(x), (0, 0, 0, -x.shape[0] % 4))


def makes_tensors_of_the_batch_size(model, x):
    ones = torch.ones_like(x) * torch.arange(x.size(0))[:, None] + torch.zeros((x.shape[0], 4))
    return model.inner(x) + ones.new_full((len(x), 1), 2.0)


def divides_with_rest(model, x):
    quotient, rest = divmod(x.shape[0], 2)
    return model.inner(x) * quotient + rest


def counts_what_is_positive(model, x):
    y = model.inner(x)
    return y * len((y > 0).nonzero())


def divides_by_a_number_from_the_data(model, x):
    return model.inner(x) / x.abs().max().item()


def sums_a_list_of_data(model, x):
    return model.inner(x) * sum(x[0].tolist())


def reshapes(model, x):
    y = model.inner(x)
    return y.view(x.shape[0] * 2, -1).reshape(*x.shape).flatten()


@pytest.mark.parametrize(
    "function",
    [
        pads_to_a_multiple,
        makes_tensors_of_the_batch_size,
        divides_with_rest,
        counts_what_is_positive,
        divides_by_a_number_from_the_data,
        sums_a_list_of_data,
        reshapes,
    ],
)
def test_numbers_that_only_operations_use_hold_at_other_sizes(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


# ---- what Python looks at


def takes_the_larger(model, x):
    return model.inner(x).sum(0) / max(x.shape[0], 4)


def halves_to_an_integer(model, x):
    return model.inner(x)[: int(x.shape[0] * 0.5)]


def takes_a_root(model, x):
    return model.inner(x) / math.sqrt(x.shape[0])


def loops_over_a_range(model, x):
    y = model.inner(x)
    for i in range(x.shape[0]):
        y = y + i
    return y


def indexes_a_list(model, x):
    return model.inner(x) * [1, 2, 3, 5, 8][x.shape[0]]


def repeats_a_list(model, x):
    return model.inner(x) * len([0] * x.shape[0])


def iterates_over_rows(model, x):
    return sum(row for row in model.inner(x))


def enumerates_rows(model, x):
    return torch.stack([row * i for i, row in enumerate(model.inner(x))])


def unpacks_rows(model, x):
    first, second, *rest = model.inner(x)
    return first + second * len(rest)


def counts_all_numbers(model, x):
    return model.inner(x) * x.shape.numel()


def asks_for_bits(model, x):
    return model.inner(x) * x.shape[0].bit_length()


def formats_as_integer(model, x):
    return model.inner(x) * int("%d" % x.shape[0])  # noqa: UP031  # the old way asks for an integer


def makes_a_complex_number(model, x):
    return model.inner(x) * abs((-x.shape[0]) ** 0.5)


def makes_a_numpy_range(model, x):
    return model.inner(x) + torch.from_numpy(np.arange(x.shape[0])).float()[:, None]


def multiplies_a_numpy_number(model, x):
    return model.inner(x) * float(np.float32(2) * x.shape[0])


@functools.lru_cache
def recipe(shape):
    return shape[0] * 2


def hashes_a_shape(model, x):
    return model.inner(x) * recipe(tuple(x.shape))


@pytest.mark.parametrize(
    "function",
    [
        takes_the_larger,
        halves_to_an_integer,
        takes_a_root,
        loops_over_a_range,
        indexes_a_list,
        repeats_a_list,
        iterates_over_rows,
        enumerates_rows,
        unpacks_rows,
        counts_all_numbers,
        asks_for_bits,
        formats_as_integer,
        makes_a_complex_number,
        makes_a_numpy_range,
        multiplies_a_numpy_number,
        hashes_a_shape,
    ],
)
def test_a_size_that_python_looks_at_holds_the_recording_to_it(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "miss"), verdict.why


def test_a_size_that_cannot_be_hashed_leads_the_model_onto_its_own_way_around():
    def like_einops(model, x):
        try:
            return model.inner(x) * recipe(tuple(x.shape))
        except TypeError:
            return model.inner(x) * (x.shape[0] * 2)

    verdict = judge(Doing(like_einops), X)

    assert (verdict.same, verdict.more) == ("right", "right")


def test_the_truth_of_a_size_holds_for_every_size_but_zero():
    def branches_on_a_size(model, x):
        return model.inner(x) if x.shape[0] else model.outer(x)

    verdict = judge(Doing(branches_on_a_size), X)

    assert (verdict.same, verdict.more) == ("right", "right")


def test_a_squeezed_dimension_is_looked_at():
    def squeezes(model, x):
        y = model.inner(x).squeeze()
        return y if y.dim() == 2 else y * 2

    model = Doing(squeezes)
    recording = capture(model, (X,), {}, "record")
    leaves, spec = flatten(((X[:1],), {}))

    assert compare(model, recording, leaves, spec) == "miss"


def test_a_number_is_read_before_the_tensor_is_written():
    def reads_then_writes(model, x):
        before = model.seen.item()
        model.seen += 1
        return model.inner(x) * before

    model = Doing(reads_then_writes)
    model.seen.fill_(2.0)
    verdict = judge(model, X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


# ---- data


def branches_on_data(model, x):
    y = model.inner(x)
    return model.outer(y) if y.mean() > 0 else y


def looks_up_a_formatted_tensor(model, x):
    choice = (model.inner(x).sum() > 0).long()
    return model.inner(x) * {"k0": 1.0, "k1": 2.0}[f"k{choice}"]


def repeats_until_small(model, x):
    y, rounds = model.inner(x), 0
    while y.abs().max().item() > 0.1 and rounds < 8:
        y, rounds = y * 0.5, rounds + 1
    return y


def sorts_rows_in_python(model, x):
    order = sorted(range(4), key=lambda j: x[0, j])
    return model.inner(x)[:, order]


def asks_whether_a_number_is_in_it(model, x):
    return model.inner(x) * (2 if 0.0 in x else 3)


def reads_through_numpy(model, x):
    return model.inner(x) * float(np.asarray(x.detach()).max())


def reads_a_nested_list(model, x):
    return model.inner(x) * torch.tensor(x.tolist())


@pytest.mark.parametrize(
    "function",
    [
        branches_on_data,
        looks_up_a_formatted_tensor,
        repeats_until_small,
        sorts_rows_in_python,
        asks_whether_a_number_is_in_it,
        reads_through_numpy,
        reads_a_nested_list,
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_branch_on_data_is_right_or_a_miss_on_other_data(function, seed):
    model = Doing(function)
    recording = capture(model, (X,), {}, "record")

    leaves, spec = flatten(((X,), {}))
    assert compare(model, recording, leaves, spec) == "right"
    other = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) * 3**seed
    compare(model, recording, [other], spec)  # raises where it is wrong


def test_a_branch_on_a_buffer_is_looked_at():
    def initialises_itself(model, x):
        if model.seen == 0:
            model.seen.fill_(2.0)
            return model.inner(x)
        return model.outer(x)

    model = Doing(initialises_itself)
    recording = capture(model, (X,), {}, "record")
    graph = recording.module(model)

    graph(X)
    with pytest.raises(GuardMiss):
        graph(X)


def test_a_miss_says_what_it_found_and_where_the_model_looked():
    model = Doing(indexes_a_list)
    graph = capture(model, (X,), {}, "record").module(model)

    with pytest.raises(GuardMiss, match=r"recorded for 3, and finds 4: see .*test_symbols\.py:\d+"):
        graph(torch.randn(4, 4))


def test_what_a_guard_has_pinned_is_a_plain_number_from_then_on():
    def looks_many_times(model, x):
        n = x.shape[0]
        return model.inner(x) * sum(1 for _ in range(n) for _ in range(n) if n > 2 and n * 2 > 3)

    recording = capture(Doing(looks_many_times), (X,), {}, "record")

    assert len(guards_of(recording)) == 1


# ---- symbols themselves


@pytest.fixture
def writer():
    return GraphWriter({})


@pytest.mark.parametrize(
    "compute",
    [
        lambda n: n + 1,
        lambda n: 1 - n,
        lambda n: n * 2.5,
        lambda n: 7 // n,
        lambda n: 7 % n,
        lambda n: n / 4,
        lambda n: 2**n,
        lambda n: -n,
        lambda n: abs(-n),
        lambda n: ~n,
        lambda n: n << 2,
        lambda n: n & 3 | 8 ^ n,
        lambda n: math.ceil(n / 2),
        lambda n: math.floor(n / 2),
        lambda n: round(n / 3, 2),
        lambda n: divmod(n, 2),
        lambda n: divmod(17, n),
        lambda n: n == 5,
        lambda n: n != 5.0,
        lambda n: n < 3 or n >= 4,
        lambda n: n is None or n == None,  # noqa: E711  # a model's way
        lambda n: math.sqrt(n),
        lambda n: int(n) + float(n),
        lambda n: f"{n}",
        lambda n: str(n),
        lambda n: [0] * n,
        lambda n: "abcdefgh"[n],
        lambda n: list(range(n)),
        lambda n: max(n, 3) + min(n, 9),
        lambda n: sum([n, n]),
        lambda n: isinstance(n, int),
        lambda n: n in (3, 5),
        lambda n: n.real + n.bit_length(),
        lambda n: np.zeros(n).shape,
    ],
)
def test_a_symbol_computes_like_its_number(writer, compute):
    number = symbol(writer, 5, torch.Tensor.size, writer.graph.placeholder("x"), 0)

    assert unwrap(compute(number)) == compute(5)


def test_a_symbol_writes_nothing_until_an_operation_uses_it(writer):
    x = writer.graph.placeholder("x")
    number = symbol(writer, 5, torch.Tensor.size, x, 0)

    made = number * 2 + 1
    assert [n.op for n in writer.graph.nodes] == ["placeholder"]
    made.write()
    assert [n.name for n in writer.graph.nodes] == ["x", "size", "mul", "add"]


def test_a_symbol_of_an_earlier_run_is_a_number():
    old = GraphWriter({})
    stale = symbol(old, 5, torch.Tensor.size, old.graph.placeholder("x"), 0)
    old.open = False
    new = GraphWriter({})
    fresh = symbol(new, 7, torch.Tensor.size, new.graph.placeholder("x"), 0)

    assert stale < fresh
    assert [n.target for n in new.graph.nodes if n.target is guard] == [guard]
    assert not any(n.target is guard for n in old.graph.nodes)


def test_integers_and_floats_have_symbols_and_pass_for_numbers(writer):
    node = writer.graph.placeholder("x")

    whole, broken = symbol(writer, 3, torch.Tensor.item, node), symbol(writer, 0.5, torch.Tensor.item, node)

    assert type(whole) is Int and isinstance(whole, int)
    assert type(broken) is Float and isinstance(broken, float)
    assert broken.is_integer() is False
    assert symbol(writer, 1j, torch.Tensor.item, node) == 1j


@pytest.mark.parametrize(
    "value, expected",
    [
        (3, 3),
        (float("nan"), float("nan")),
        (True, True),
        (torch.ones(2), torch.ones(2)),
        (torch.Size([2]), torch.Size([2])),
    ],
)
def test_a_guard_passes_what_it_expects(value, expected):
    guard(value, expected)


@pytest.mark.parametrize("value, expected", [(3, 4), (torch.ones(2), torch.ones(3)), (torch.ones(2), torch.zeros(2))])
def test_a_guard_misses_anything_else(value, expected):
    with pytest.raises(GuardMiss):
        guard(value, expected)


def test_a_tensor_that_is_compared_whole_may_hold_nans():
    nans = torch.tensor([1.0, float("nan")])

    guard(nans.clone(), nans)


def test_sizes_of_parameters_are_numbers():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight / self.weight.shape[0]

    recording = capture(Reads(), (X,), {}, "record")

    assert not any(n.target is torch.Tensor.size for n in recording.graph.nodes)


def guards_written(writer):
    return [node.args[1] for node in writer.graph.nodes if node.target is guard]


def test_a_copy_of_a_symbol_is_itself_and_pickled_it_is_a_number_that_is_guarded(writer):
    number = symbol(writer, 5, torch.Tensor.size, writer.graph.placeholder("x"), 0)

    assert copy.deepcopy([number])[0] is number and guards_written(writer) == []
    again = pickle.loads(pickle.dumps(number))

    assert type(again) is int and again == 5 and guards_written(writer) == [5]


def test_a_symbol_that_is_guarded_computes_plain_numbers_from_then_on(writer):
    x = writer.graph.placeholder("x")
    number, other = symbol(writer, 5, torch.Tensor.size, x, 0), symbol(writer, 4, torch.Tensor.size, x, 1)

    assert type(number + other) is Int
    assert int(number) == 5 and int(number) == 5

    assert type(number + 1) is int and type(number + other) is Int
    assert guards_written(writer) == [5]


def test_sizes_without_symbols_stay_sizes_and_others_become_tuples_of_numbers(writer):
    number = symbol(writer, 5, torch.Tensor.size, writer.graph.placeholder("x"), 0)
    plain = torch.Size([2, 3])

    assert unwrap(plain) is plain
    assert unwrap(torch.Size([number, 3])) == (5, 3) and type(unwrap(torch.Size([number, 3]))[0]) is int
    assert unwrap({"a": [number, slice(number)]}) == {"a": [5, slice(5)]}


class Holder:
    def __init__(self, *held):
        self.held = held

    def method(self):
        return self.held


def nested(value, depth):
    for _ in range(depth):
        value = [value]
    return value


def test_what_holds_tensors_or_symbols_is_searched_for_them(writer):
    x, n = torch.ones(2), symbol(writer, 5, torch.Tensor.size, writer.graph.placeholder("x"), 0)

    def found(value):
        return [id(held) for held in reachable(value)]

    def default(y=x):
        return y

    assert found([x, {"a": (n, 3, None)}]) == [id(x), id(n)]
    assert found(functools.partial(print, x, sep=n)) == [id(x), id(n)]
    assert found(functools.partial(Holder(x).method)) == [id(x)]
    assert found(Holder(x, n).method) == [id(x), id(n)]
    assert found(lambda: (n, x)) == [id(n), id(x)]
    assert found(default) == [id(x)]
    assert found(nn.Linear(2, 2)) == found(Holder) == found(torch.relu) == []
    assert found(nested(x, 5)) == [id(x)] and found(nested(x, 6)) == []


def test_a_variable_without_a_value_holds_nothing():
    def reading(begun=False):
        if begun:
            later = 1
        return lambda: later

    assert list(reachable(reading())) == []
