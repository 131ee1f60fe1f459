"""The proof of a recording: other runs agree with it, or it is refused with the reason."""

import pickle
import random

import numpy as np
import pytest
import torch
from kit.replay import Doing, assert_refused, compare, judge

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.errors import CaptureError
from dnigraph.passes.graph.pytrees import flatten

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


def tells_its_batch_size_in_words(model, x):
    return {"y": model.inner(x), "said": f"{x.shape[0]} rows"}


@pytest.mark.parametrize(
    "function, why",
    [
        (draws_from_python, "no function of the inputs"),
        (branches_by_python, "no function of the inputs"),
        (draws_from_numpy, "no function of the inputs"),
        (seeds, "gives other results than the model"),
        (compares_the_exact_class_of_a_size, "than the model"),
        (tells_its_batch_size_in_words, "a constant among the results"),
    ],
)
def test_what_is_no_function_of_the_inputs_is_refused_with_the_reason(function, why):
    assert_refused(Doing(function), X, why=why)


def test_a_choice_that_only_gradients_show_is_found_by_recording_the_same_input_again():
    sizes = []  # bytes of the inputs of all calls: state that no snapshot sees

    def stops_gradients_on_the_first_size_once_there_was_another(model, x):
        sizes.append(x.untyped_storage().nbytes())
        y = model.inner(x)
        return model.outer(y.detach() if sizes[-1] == sizes[0] and len(set(sizes)) > 1 else y)

    why = judge(Doing(stops_gradients_on_the_first_size_once_there_was_another), X).why

    assert "two recordings on the same input differ" in why


@pytest.mark.parametrize("draw", [random.random, lambda: 1 - random.random(), np.random.rand])
def test_a_branch_that_random_numbers_of_python_rarely_take_is_found(draw):
    def rarely_goes_elsewhere(model, x):
        return model.inner(x) if draw() < 1e-3 else model.outer(x)

    assert "other random numbers of Python or numpy" in judge(Doing(rarely_goes_elsewhere), X).why


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
