"""Whatever Python reads of a call, later calls get the model's own results: by a guard, or by running the model."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from kit.side_by_side import Net, differences, x
from torch import nn

import dnigraph as dg

# ---- sizes that become text


def by_size(text):
    """A layer is picked by a text that is made of a size."""

    def forward(net, x):
        h = net.a(x).relu()
        return net.c(h.mean(1)) * net.gains.get(text(x), 1.0)

    return forward


TEXTS = {
    "str": lambda x: str(x.shape[1]),
    "f-string": lambda x: f"{x.shape[1]}",
    "f-string among words": lambda x: f"n{x.shape[1]}",
    "percent": lambda x: "%d" % x.shape[1],  # noqa: UP031  # as models do
    "format": lambda x: "{:d}".format(x.size(1)),  # noqa: UP032  # the same
    "join": lambda x: "x".join(map(str, x.shape[1:])),
    "all sizes": lambda x: str(tuple(x.shape[1:])),
    "repr": lambda x: repr(x.size(-2)),
    "of a computed size": lambda x: str(x.shape[1] // 2 + 1),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_a_size_may_choose(text):
    keys = {TEXTS[text](x(4, 0, n)): float(n) for n in (5, 6, 9)}

    found, _ = differences(
        lambda: Net(by_size(TEXTS[text]), gains=keys), [(x(4, 0, 5),), (x(4, 1, 6),), (x(3, 2, 9),), (x(4, 3, 5),)]
    )

    assert found == []


# ---- numbers that torch hands out of tensors


def sparse_count(net, x, i):
    s = torch.sparse_coo_tensor(i[None], torch.ones(len(i)), (9,)).coalesce()
    return net.c(net.a(x).relu()) / s._nnz()


def bytes_of_rows(net, x, i):
    return net.c(net.a(x[i > 2]).relu()) * float(x[i > 2].nbytes)


def counts_what_is_left(net, x, i):
    return net.c(net.a(x).relu()) * torch.count_nonzero(i > 2).item()


def smallest_type(net, x, i):
    return net.c(net.a(x).relu()) * (2.0 if torch.min_scalar_type(int(i.max())) is torch.uint8 else 1.0)


@pytest.mark.parametrize("forward", [sparse_count, bytes_of_rows, counts_what_is_left])
def test_a_plain_number_out_of_a_tensor_is_guarded(forward):
    numbers = [torch.tensor(i) for i in ([1, 2, 2, 4], [1, 2, 3, 4], [3, 3, 3, 3], [1, 2, 2, 4])]

    found, _ = differences(lambda: Net(forward), [(x(4, k), i) for k, i in enumerate(numbers)])

    assert found == []


# ---- calls that torch does not report

scripts = torch.jit.CompilationUnit("""
def longest(lengths): return lengths.max()
def mask(lengths, n: int): return torch.arange(n).unsqueeze(0) < lengths.unsqueeze(1)
def scaled(x): return x * 2
def factor(x): return torch.full((1,), 1.0 / x.size(1))
""")


def cuts_by_script(net, x, lengths):
    return net.c(net.a(x[:, : int(scripts.longest(lengths))]).relu()).mean(1)


def masks_row_by_row(net, x, lengths):
    rows = torch.stack([net.a(x[i]) for i in range(x.shape[0])])
    return net.c(rows.masked_fill(~scripts.mask(lengths, 6).unsqueeze(-1), 0.0)).sum(1)


def weights_by_script(net, x, lengths):
    return net.c(net.a(x).relu() * scripts.scaled(lengths)[0]).sum(1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("forward", [cuts_by_script, masks_row_by_row, weights_by_script])
def test_what_a_script_makes_is_no_constant(forward):
    lengths = [torch.tensor(i) for i in ([5, 2, 3, 4], [3, 1, 2, 3], [1, 6, 6, 2])]

    found, dm = differences(lambda: Net(forward), [(x(4, k, 6), i) for k, i in enumerate(lengths)])

    assert found == [] and dm.plan.capture == "record"


def factor_of_a_size(net, x, lengths):
    return net.c(net.a(x).relu() * scripts.factor(x)).mean(1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_script_that_reads_sizes_only_is_no_constant_either():
    found, dm = differences(lambda: Net(factor_of_a_size), [(x(4, k, n), None) for k, n in enumerate((4, 4, 9, 5))])

    assert found == [] and dm.plan.capture == "record"


class Double(nn.Module):
    def forward(self, x):
        return x * 2 + x.sum()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_script_module_beside_the_model_is_run_by_the_rung_that_runs_the_model():
    beside = torch.jit.script(Double())

    found, dm = differences(lambda: Net(lambda net, v: net.c(beside(net.a(v)))), [(x(4, k),) for k in range(3)])

    assert found == [] and dm.plan.capture == "hooks"


# ---- random numbers from a generator of the caller's


@pytest.mark.parametrize("make", [np.random.default_rng, random.Random, np.random.RandomState])
def test_a_generator_among_the_arguments_is_drawn_from(make):
    def forward(net, x, rng):
        h = net.a(x).relu()
        return net.c(h if rng.random() >= 0.1 else -h) if hasattr(rng, "random") else net.c(h * rng.rand())

    found, dm = differences(lambda: Net(forward), [(x(4, k), make(k)) for k in range(20)])

    assert found == [] and dm.plan.capture == "hooks"


# ---- state that is kept between calls


def keeps_state(dropped):
    """A recurrent layer that goes on from the last call, unless `dropped(net, x)`."""

    def forward(net, x):
        if net.state is not None and dropped(net, x):
            net.state = None
        start = None if net.state is None else net.state.expand(-1, len(x), -1).contiguous()
        y, state = net.rnn(net.a(x), start)
        net.state, net.rows = state.detach().mean(1, keepdim=True), len(x)
        return net.c(y)

    return forward


DROPPED = {
    "for another batch": lambda net, x: net.rows != len(x),
    "for the same batch": lambda net, x: net.rows == len(x),
    "never": lambda net, x: False,
}


@pytest.mark.parametrize("when", DROPPED)
def test_state_between_calls_is_kept(when):
    found, _ = differences(
        lambda: Net(keeps_state(DROPPED[when]), rnn=nn.GRU(8, 8, batch_first=True), state=None),
        [(x(n, k, 5),) for k, n in enumerate((4, 4, 3, 3, 4, 4))],
    )

    assert found == []


# ---- what stands for the whole in the plan


def test_a_size_in_a_text_costs_one_graph_for_each_size():
    _, dm = differences(
        lambda: Net(by_size(TEXTS["str"]), gains={}), [(x(4, k, n),) for k, n in enumerate((5, 6, 5, 6, 5))]
    )

    assert dm.plan.capture == "record" and isinstance(dm, dg.DecoupledModule)


ITERATORS = {
    "a counter": lambda: itertools.count(1.0),
    "a cycle": lambda: itertools.cycle([1.0, 2.0, 3.0]),
    "a generator": lambda: (float(i * i) for i in range(1000)),
    "of a list": lambda: iter([float(i) for i in range(1000)]),
}


@pytest.mark.parametrize("which", ITERATORS)
def test_what_a_capture_takes_from_an_iterator_of_the_model_comes_again(which):
    calls = [(x(4, i),) for i in range(4)]

    def takes(net, v):
        return net.c(net.a(v)) * next(net.steps)

    found, dm = differences(lambda: Net(takes, steps=ITERATORS[which]()), calls)
    assert (found, dm.plan.capture) == ([], "hooks")

    other = ITERATORS[which]()
    assert next(dm.steps) == list(itertools.islice(other, len(calls) + 1))[-1]
    dg.check(dm, x())
    assert next(dm.steps) == next(other)
    if which != "a generator":
        assert next(copy.deepcopy(dm).steps) == next(dm.steps)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("which", ITERATORS)
def test_an_iterator_that_no_call_takes_from_is_left_where_it_was(which):
    steps = ITERATORS[which]()
    model = Net(lambda net, v: net.c(net.a(v)), steps=steps)

    dm = dg.decouple(model, "a", (x(),), boundary="oracle")
    dm(x()), dm.eval()(x())

    assert model.steps is steps
    assert next(steps) == next(ITERATORS[which]())


def test_an_iterator_may_end_and_be_used_in_eval_mode_alone():
    def ends(net, v):
        return net.c(net.a(v)) if net.training else net.c(net.a(v)) * next(net.steps, 7.0)

    def turns(model, i):
        model.train(i % 2 == 0)

    found, _ = differences(lambda: Net(ends, steps=iter([2.0])), [(x(4, i),) for i in range(4)], before_each=turns)

    assert found == []
