"""The proof of a recording: other runs agree with it, or refused with the reason; what a first call makes, too."""

import array
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from kit.replay import Doing, Net, assert_refused, assert_untouched, compare, fingerprint, judge
from torch import fx, nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.capture.record.record import difference, record
from dnigraph.passes.errors import CaptureError, StatefulModelError
from dnigraph.passes.graph.captured_graph import CapturedGraph
from dnigraph.passes.graph.nodes import Call, Mode, guard
from dnigraph.passes.graph.pytrees import flatten, take_apart

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def draws_from_python(model, x):
    return model.inner(x) * random.random()


def branches_by_python(model, x):
    return model.outer(x) if random.random() < 0.5 else model.inner(x)


def draws_from_numpy(model, x):
    return model.inner(x) * torch.tensor(np.random.rand(4) > 0.5)  # noqa: NPY002  # as models do


def seeds(model, x):
    torch.manual_seed(3)
    return model.inner(x) + torch.rand(4)


def compares_the_exact_class_of_a_size(model, x):
    return model.inner(x) * (2 if type(x.shape[0]) is int else 3)


@pytest.mark.parametrize(
    "function, why",
    [
        (draws_from_python, "no function of the inputs"),
        (branches_by_python, "no function of the inputs"),
        (draws_from_numpy, "no function of the inputs"),
        (seeds, "gives other results than the model"),
        (compares_the_exact_class_of_a_size, "than the model"),
    ],
)
def test_what_is_no_function_of_the_inputs_is_refused_with_the_reason(function, why):
    assert_refused(Doing(function), X, why=why)


def test_a_choice_that_only_gradients_show_is_found_by_recording_again():
    calls = array.array("q")  # state that no snapshot sees

    def stops_gradients_from_the_third_call_on(model, x):
        calls.append(1)
        y = model.inner(x)
        return model.outer(y.detach() if calls.buffer_info()[1] > 2 else y)

    why = judge(Doing(stops_gradients_from_the_third_call_on), X).why

    assert "two recordings on" in why and "detach" in why


def looks_at_its_memory(model, x):
    return model.inner(x) * x.untyped_storage().nbytes()


def test_a_look_at_the_memory_of_a_tensor_is_refused():
    assert_refused(Doing(looks_at_its_memory), X, why="looks at the memory of a tensor")


@pytest.mark.parametrize("draw", [random.random, lambda: 1 - random.random(), np.random.rand])
def test_a_branch_that_random_numbers_of_python_rarely_take_is_found(draw):
    def rarely_goes_elsewhere(model, x):
        return model.inner(x) if draw() < 1e-3 else model.outer(x)

    assert "other random numbers of Python or numpy" in judge(Doing(rarely_goes_elsewhere), X).why


@pytest.mark.parametrize(
    "choose",
    [
        lambda: random.choice(["sin", "cos"]),
        lambda: random.choice(["sin", "cos", "tanh"]),
        lambda: random.sample(["sin", "cos"], 1)[0],
        lambda: str(np.random.choice(["sin", "cos"])),  # noqa: NPY002  # the one that models draw from
    ],
)
def test_a_choice_of_python_is_found_whichever_entry_comes_up_first(choose):
    def chooses(model, x):
        return model.outer(getattr(model.inner(x), choose())())

    for seed in range(6):
        random.seed(seed), np.random.seed(seed)  # noqa: NPY002  # the one that models draw from
        with pytest.raises(StatefulModelError, match="other random numbers of Python or numpy"):
            record(Doing(chooses), (X,), {})


def test_random_numbers_of_python_that_decide_nothing_do_no_harm():
    def drops_no_layer(model, x):
        return x if random.random() < 0.0 else model.inner(x)

    assert judge(Doing(drops_no_layer), X).same == "right"


@pytest.mark.parametrize("generator", [random.Random(1), np.random.default_rng(1), np.random.RandomState(1)])
def test_a_generator_of_the_models_own_is_seen_and_stands_where_it_stood(generator):
    def draws(model, x):
        return model.inner(x) if model.dice.random() < 1e-9 else model.outer(x)

    model = Doing(draws)
    model.dice = generator
    before = pickle.dumps(generator)

    assert "a random number generator of its own" in judge(model, X).why
    assert pickle.dumps(generator) == before


def test_a_branch_on_a_random_number_is_a_guard_like_any_other():
    def tosses_a_coin(model, x):
        return model.inner(x) if torch.rand(()).item() < 0.5 else model.outer(x)

    model = Doing(tosses_a_coin)
    recording = capture(model, (X,), {}, "record")
    leaves, spec = flatten(((X,), {}))

    assert {compare(model, recording, leaves, spec, seed) for seed in range(8)} == {"right", "miss"}


def test_an_error_of_the_model_itself_comes_through_as_it_is():
    def fails(model, x):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        capture(Doing(fails), (X,), {})


def test_a_model_that_only_dies_while_it_is_recorded_is_refused():
    def insists_on_a_plain_integer(model, x):
        if type(x.shape[0]) is not int:
            raise LookupError("no integer")
        return model.inner(x)

    with pytest.raises(CaptureError, match="not while it is recorded: LookupError: no integer"):
        capture(Doing(insists_on_a_plain_integer), (X,), {}, "record")


def grows_a_table(model, x):
    if not hasattr(model, "table") or model.table.shape[0] < x.shape[0]:
        model.table = torch.arange(x.shape[0]).float()[:, None]
    return model.inner(x) + model.table[: x.shape[0]]


def keeps_a_table_by_size(model, x):
    tables = model.__dict__.setdefault("tables", {})
    if x.shape[0] not in tables:
        tables[x.shape[0]] = torch.arange(x.shape[0]).float()[:, None]
    return model.inner(x) + tables[x.shape[0]]


def keeps_a_table_by_name(model, x):
    tables = model.__dict__.setdefault("tables", {})
    name = f"{x.shape[0]} rows"
    if name not in tables:
        tables[name] = torch.arange(x.shape[0]).float()[:, None]
    return model.inner(x) + tables[name]


def keeps_what_it_made_of_its_weights(model, x):
    if model.training:
        return model.inner(x)
    tables = model.__dict__.setdefault("tables", {})
    if "bias" not in tables:
        tables["bias"] = model.outer.weight.sum(0)
    return model.inner(x) + tables["bias"]


def test_a_table_by_size_is_made_anew():
    verdict = judge(Doing(keeps_a_table_by_size), X)

    assert (verdict.same, verdict.more) == ("right", "miss"), verdict.why
    assert not verdict.captured.constants


@pytest.mark.parametrize(("function", "more"), [(grows_a_table, "right"), (keeps_a_table_by_name, "miss")])
def test_a_cache_of_first_use_is_made_anew_in_every_replay(function, more):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", more), verdict.why
    assert not verdict.captured.constants


@pytest.mark.parametrize("grad", [True, False])
def test_a_cache_made_from_weights_follows_the_weights(grad):
    model = Doing(keeps_what_it_made_of_its_weights).eval()
    with torch.set_grad_enabled(grad):
        graph = capture(model, (X,), {}, "record").module(model)

    with torch.no_grad():
        model.outer.weight.mul_(2)
        assert torch.equal(graph(X)[0], model(X))


def from_its_first_batch(model, x):
    if model.training and not hasattr(model, "scale"):
        model.scale = float(x.abs().max())
    return model.inner(x) * model.scale


def from_its_first_weights(model, x):
    if not hasattr(model, "scale"):
        model.scale = model.outer.weight.detach().norm() + 0
    return model.inner(x) * model.scale


def divides_its_weights_once(model, x):
    if not hasattr(model, "divided"):
        model.divided = True
        model.inner.weight.data.div_(2)
    return model.inner(x)


@pytest.mark.parametrize("function", [from_its_first_batch, from_its_first_weights, divides_its_weights_once])
def test_what_the_first_call_decides_for_good_is_no_graph(function):
    verdict = judge(Doing(function), X)

    assert verdict.same == "refused"
    assert "call the model once before" in verdict.why


def test_a_cache_that_was_there_before_is_a_constant():
    model = Doing(grows_a_table)
    model(X)

    verdict = judge(model, X)

    assert (verdict.same, verdict.more) == ("right", "miss"), verdict.why


def test_what_only_the_first_call_decides_asks_for_a_call_before():
    def starts_from_its_first_input(model, x):
        if not hasattr(model, "offset"):
            model.offset = x.detach().mean(0) + 0
        return model.inner(x) + model.offset

    model = Doing(starts_from_its_first_input)
    assert "call the model once before" in judge(model, X).why

    model(X)
    assert judge(model, X).same == "right"


def test_a_hook_that_removes_itself_is_gone_only_for_the_capture():
    model = Net(nn.Linear(4, 4))
    handle = model.body.register_forward_hook(lambda m, args, out: handle.remove())
    before = fingerprint(model)

    with pytest.raises(CaptureError, match="a hook of 'body' is gone after one call: call the model once before"):
        capture(model, (X,), {}, "record")

    assert_untouched(before, model)
    assert len(model.body._forward_hooks) == 1


def test_a_hook_that_the_first_call_installs_is_part_of_the_model():
    def installs(model, x):
        if not model.inner._forward_hooks:
            model.inner.register_forward_hook(lambda m, args, out: out * 2)
        return model.outer(model.inner(x))

    verdict = judge(Doing(installs), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def test_a_layer_without_a_size_asks_for_a_call_before():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = Net(nn.LazyLinear(4))

    with pytest.raises(CaptureError, match=r"'body\.0\.weight' has no size yet: call the model once before"):
        capture(model, (X,), {}, "record")


def numbers_sizes_as_they_come(model, x):
    numbers = model.__dict__.setdefault("numbers", {})
    return model.inner(x).mean(1) * numbers.setdefault(x.shape[1], len(numbers) + 1)


def keeps_a_table_by_width(model, x):
    tables = model.__dict__.setdefault("tables", {})
    width = x.shape[1]
    if width not in tables:
        tables[width] = torch.arange(width).float()[:, None]
    return (model.inner(x) * tables[width]).mean(1)


def counts_the_widths(model, x):
    model.__dict__.setdefault("widths", set()).add(x.shape[1])
    return model.inner(x).mean(1) / len(model.widths)


@pytest.mark.parametrize(
    ("function", "same"),
    [(numbers_sizes_as_they_come, "refused"), (counts_the_widths, "refused"), (keeps_a_table_by_width, "right")],
)
def test_a_table_by_a_size_behind_the_batch_is_a_cache_only_if_the_order_of_calls_does_not_matter(function, same):
    assert judge(Doing(function), X[:, None]).same == same


class Other:
    pass


def recorded(*nodes, results=(1,)):
    """A recording of these calls, each a function with its arguments after the input."""
    graph = fx.Graph()
    x = made = graph.placeholder("x")
    for function, args, *kwargs in nodes:
        made = graph.call_function(function, (x, *args), *kwargs)
    graph.output((made,))
    return CapturedGraph(graph, "record", take_apart(list(results))[1])


NAN = float("nan")
NOW = Mode.now()
OFF = Mode(not NOW.grad, NOW.autocast)


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        ((torch.add, (1,)), (torch.add, (1,)), None),
        ((torch.add, (NAN,)), (torch.add, (NAN,)), None),
        ((torch.add, (1,)), (torch.add, (1.0,)), "add(x, 1) against add(x, 1.0)"),
        ((torch.add, (1,)), (torch.add, (True,)), "add(x, 1) against add(x, True)"),
        ((torch.add, (1,)), (torch.add, (2,)), "add(x, 1) against add(x, 2)"),
        ((torch.add, (1,)), (torch.sub, (1,)), "add(x, 1) against sub(x, 1)"),
        ((torch.add, (1,), {"alpha": 2}), (torch.add, (1,), {"alpha": 2}), None),
        ((torch.add, (1,), {"alpha": 2}), (torch.add, (1,), {"alpha": 3}), "add(x, 1) against add(x, 1)"),
        ((torch.add, (1,), {"alpha": 2}), (torch.add, (1,), {"out": 2}), "add(x, 1) against add(x, 1)"),
        ((torch.add, ([1, 2],)), (torch.add, ([1, 2, 3],)), "add(x, [1, 2]) against add(x, [1, 2, 3])"),
        ((torch.add, ([1, 2],)), (torch.add, ((1, 2),)), "add(x, [1, 2]) against add(x, (1, 2))"),
        ((torch.add, (slice(1, 2),)), (torch.add, (slice(1, 2),)), None),
        ((torch.add, (slice(1, 2),)), (torch.add, (slice(1, 3),)), "add(x, slice(1, 2, None)) against"),
        ((torch.add, (slice(1, 2),)), (torch.add, (slice(1, 2, 2),)), "add(x, slice(1, 2, None)) against"),
        ((Call(torch.add, NOW), (1,)), (Call(torch.add, NOW), (1,)), None),
        ((Call(torch.add, NOW), (1,)), (Call(torch.add, OFF), (1,)), "add(x, 1) against add(x, 1)"),
        ((Call(torch.add, NOW), (1,)), (Call(torch.sub, NOW), (1,)), "add(x, 1) against sub(x, 1)"),
        ((Call(torch.add, slots=1), ()), (Call(torch.add, slots=2), ()), "add(x) against add(x)"),
        ((torch.add, (Other(),)), (torch.add, (Other(),)), None),  # what an object holds is not looked into
        ((torch.add, (1, 2, 3)), (torch.add, (1, 2, 4)), "add(x, 1, 2, ...) against add(x, 1, 2, ...)"),
        ((torch.add, (1, 2)), (torch.add, (1, 3)), "add(x, 1, 2) against add(x, 1, 3)"),
    ],
)
def test_two_recordings_differ_at_the_first_call_that_is_another(one, other, place):
    found, explained = difference(recorded(one), recorded(other))

    assert (found is None) if place is None else found.startswith(place)
    assert explained is False


def test_recordings_differ_by_their_length_their_results_and_how_these_are_nested():
    one = recorded((torch.add, (1,)))

    assert difference(one, recorded((torch.add, (1,)), (torch.add, (1,)))) == (
        "output((add,)) against add(x, 1)",
        False,
    )
    assert difference(one, recorded((torch.add, (1,)), results=(2,))) == ("a constant among the results", False)
    assert difference(one, recorded((torch.add, (1,)), results=({"a": 1},))) == ("the structure of the results", False)


def test_a_guard_that_finds_something_else_explains_what_follows_and_nothing_before_it():
    def looks(expected, before=1, after=1):
        return recorded((torch.add, (before,)), (guard, (expected, "here")), (torch.add, (after,)))

    assert difference(looks(True), looks(False, after=2)) == (None, True)
    assert difference(looks(True), looks(True, after=2)) == ("add(x, 1) against add(x, 2)", False)
    assert difference(looks(True), looks(False, before=2)) == ("add(x, 1) against add(x, 2)", False)


def test_constants_of_recordings_are_compared_by_their_numbers_and_tensors_of_the_model_by_their_paths():
    def reads(name, **constants):
        graph = fx.Graph()
        graph.output((graph.call_function(torch.add, (graph.placeholder("x"), graph.get_attr(name))),))
        return CapturedGraph(graph, "record", take_apart([1])[1], constants)

    ones = reads("one", one=torch.ones(2))
    assert difference(ones, reads("other", other=torch.ones(2))) == (None, False)
    assert difference(ones, reads("one", one=torch.zeros(2)))[0] == "add(x, one) against add(x, one)"
    assert difference(reads("fc.weight"), reads("fc.weight")) == (None, False)
    assert difference(reads("fc.weight"), reads("fc.bias"))[0] == "add(x, fc_weight) against add(x, fc_bias)"
    assert difference(ones, reads("fc.weight"))[0] == "add(x, one) against add(x, fc_weight)"


@pytest.mark.parametrize("seed", range(4))
def test_a_choice_between_functions_of_torch_by_a_random_number_is_seen_whichever_is_first(seed):
    def chooses(model, x):
        h = model.inner(x)
        return model.outer(torch.sin(h) if random.random() < 0.5 else torch.cos(h))

    random.seed(seed)

    with pytest.raises(CaptureError, match=r"differ at (sin\(inner\) against cos|cos\(inner\) against sin)"):
        capture(Doing(chooses), (X,), {}, "record")
