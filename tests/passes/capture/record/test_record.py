"""A recording is the model: same values, gradients, buffers and random numbers, or a refusal that says why."""

import dataclasses
import gc
import itertools
import pickle
import random
import sys
import threading
import warnings
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kit.replay import Doing, assert_untouched, compare, fingerprint, judge
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import dnigraph as dg
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.errors import CaptureError, GuardMiss
from dnigraph.passes.graph.pytrees import flatten

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def targets(recording):
    return [str(n.target) for n in recording.graph.nodes if n.op == "call_module"]


# ---- calls of torch


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


def sets_items(model, x):
    y = torch.zeros(x.shape[0], 4)
    y[:, 1:] = model.inner(x)[:, 1:]
    y[x[:, 0] > 0] = 0
    return y


def replaces_data(model, x):
    y = model.inner(x)
    y.data = y.data * 2
    return y**2


def writes_through_a_view(model, x):
    y = model.inner(x).clone()
    y[:, 0].zero_()
    return y


def writes_into_its_input(model, x):
    x.add_(1)
    return model.inner(x)


def writes_a_parameter(model, x):
    with torch.no_grad():
        model.inner.bias.add_(0.1)
    return model.inner(x)


def counts_in_a_buffer(model, x):
    model.seen += 1
    return model.inner(x) * model.seen


def replaces_a_buffer(model, x):
    model.seen = model.seen + 1
    return model.inner(x) * model.seen


def hooks_a_gradient(model, x):
    y = model.inner(x)
    y.register_hook(lambda gradient: gradient * 2)
    return model.outer(y)


def passes_gradients_straight_through(model, x):
    return model.outer(Straight.apply(model.inner(x)))


def works_without_gradients_for_a_while(model, x):
    with torch.no_grad():
        scale = model.inner(x).relu().mean()
    return model.outer(x) * scale


def works_in_bfloat16_for_a_while(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model.inner(x) @ torch.eye(4)
    return model.outer(y.float())


def checkpoints(model, x):
    return checkpoint(lambda y: F.dropout(model.outer(y)), model.inner(x), use_reentrant=False)


def checkpoints_in_the_old_way(model, x):
    keep = (x > 0).float()
    return checkpoint(lambda y: F.dropout(model.outer(y)) * keep, model.inner(x), use_reentrant=True)


def differentiates_inside(model, x):
    y = model.inner(x)
    (gradient,) = torch.autograd.grad((y**2).sum(), y, create_graph=True)
    return model.outer(gradient)


def sends_gradients_back_inside(model, x):
    y = model.inner(x)
    (y**2).sum().backward(retain_graph=True)
    return model.outer(y)


def draws_random_numbers(model, x):
    return F.dropout(model.inner(x)) + torch.rand(4) + torch.randn_like(x)


def works_on_pieces(model, x):
    pieces = list(model.inner(x).chunk(2, 1))
    pieces[0] = pieces[0] * 2
    pieces.append(pieces[1] + 1)
    return torch.cat(pieces, 1)


def picks_rows_by_data(model, x):
    return model.inner(x)[torch.where(x[:, 0] > 0)[0]]


def moves_statistics(model, x):
    return F.batch_norm(model.inner(x), torch.zeros(4), torch.ones(4), training=True)


def keeps_an_auxiliary_loss(model, x):
    y = model.inner(x)
    model.auxiliary = (y**2).mean()
    return model.outer(y) + model.auxiliary


def keeps_and_forgets(model, x):
    model.held = model.inner(x)
    y = model.outer(model.held)
    del model.held
    return y


def makes_a_module_of_a_size(model, x):
    y = model.inner(x)
    return nn.CrossEntropyLoss(ignore_index=y.size(1))(y, x.argmax(1).clamp(0, y.size(1)))


def lends_a_layer_other_weights(model, x):
    weights = {name: p * 0.5 for name, p in model.inner.named_parameters()}
    return model.outer(torch.func.functional_call(model.inner, weights, (model.inner(x),)))


@pytest.mark.parametrize(
    "function",
    [
        makes_a_module_of_a_size,
        lends_a_layer_other_weights,
        sets_items,
        replaces_data,
        writes_through_a_view,
        writes_into_its_input,
        writes_a_parameter,
        counts_in_a_buffer,
        replaces_a_buffer,
        hooks_a_gradient,
        passes_gradients_straight_through,
        works_without_gradients_for_a_while,
        works_in_bfloat16_for_a_while,
        checkpoints,
        checkpoints_in_the_old_way,
        differentiates_inside,
        sends_gradients_back_inside,
        draws_random_numbers,
        works_on_pieces,
        picks_rows_by_data,
        moves_statistics,
        keeps_an_auxiliary_loss,
        keeps_and_forgets,
    ],
)
def test_a_recording_does_what_the_model_does(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def test_what_an_old_checkpoint_runs_is_seen_inside():
    recording = capture(Doing(checkpoints_in_the_old_way), (X,), {}, "record")

    assert targets(recording) == ["inner", "outer"]


def test_a_replay_sets_the_attributes_that_the_model_sets():
    model = Doing(keeps_an_auxiliary_loss)
    graph = capture(model, (X,), {}, "record").module(model)

    assert not hasattr(model, "auxiliary")
    graph(X)
    model.auxiliary.backward()

    assert model.inner.weight.grad is not None


# ---- what no graph can stand for


def counts(model, x):
    model.calls = getattr(model, "calls", 0) + 1
    return model.inner(x) * model.calls


def counts_and_branches_much_later(model, x):
    model.calls = getattr(model, "calls", 0) + 1
    return model.inner(x) * (2 if model.calls > 100 else 1)


def draws_from_python(model, x):
    return model.inner(x) * random.random()


def branches_by_python(model, x):
    return model.outer(x) if random.random() < 0.5 else model.inner(x)


def draws_from_numpy(model, x):
    return model.inner(x) * torch.tensor(np.random.rand(4) > 0.5)  # noqa: NPY002  # as models do


def draws_from_a_generator_of_its_own(model, x):
    return model.inner(x) + torch.rand(4, generator=torch.Generator().manual_seed(1))


def seeds(model, x):
    torch.manual_seed(3)
    return model.inner(x) + torch.rand(4)


def maps_over_rows(model, x):
    return torch.vmap(lambda row: row * 2)(model.inner(x))


def takes_a_functional_gradient(model, x):
    return torch.func.grad(lambda z: (z**2).sum())(model.inner(x))


def writes_through_numpy(model, x):
    y = torch.zeros(4)
    y.numpy()[0] = 3
    return model.inner(x) + y


def remembers_what_it_computed(model, x):
    before, model.state = getattr(model, "state", 0.0), model.inner(x).mean(0).detach()
    return model.outer(x) + before


def remembers_its_last_input(model, x):
    before, model.last = getattr(model, "last", x), x.detach().mean(0)
    return model.inner(x) + before


def keeps_a_log(model, x):
    model.__dict__.setdefault("log", []).append(x.mean().item())
    return model.inner(x)


def reads_a_log(model, x):
    log = model.__dict__.setdefault("log", [x.detach()])
    log.append(x.detach().mean(0))
    return model.inner(x) + log.pop(0)


def hooks_with_a_tensor_of_the_run(model, x):
    y, keep = model.inner(x), (x > 0).float()
    y.register_hook(lambda gradient: gradient * keep)
    return model.outer(y)


def goes_past_torch(model, x):
    return model.inner(x) + torch.from_dlpack(x.detach().mean(0))


def makes_a_parameter(model, x):
    return model.outer(nn.Parameter(model.inner(x).detach()))


def runs_in_another_thread(model, x):
    found = []
    thread = threading.Thread(target=lambda: found.append(model.inner(x)))
    thread.start()
    thread.join()
    return found[0]


def compares_the_exact_class_of_a_size(model, x):
    return model.inner(x) * (2 if type(x.shape[0]) is int else 3)


def tells_its_batch_size_in_words(model, x):
    return {"y": model.inner(x), "said": f"{x.shape[0]} rows"}


@pytest.mark.parametrize(
    "function, why",
    [
        (counts, "'calls' of the model changes with every call"),
        (counts_and_branches_much_later, "'calls' of the model changes with every call"),
        (draws_from_python, "no function of the inputs"),
        (branches_by_python, "no function of the inputs"),
        (draws_from_numpy, "no function of the inputs"),
        (draws_from_a_generator_of_its_own, "torch.Generator of its own"),
        (seeds, "gives other results than the model"),
        (maps_over_rows, "torch.func transform"),
        (takes_a_functional_gradient, "torch.func transform"),
        (writes_through_numpy, "writes into a tensor through numpy"),
        (remembers_what_it_computed, "no function of the inputs|than the model"),
        (remembers_its_last_input, "no function of the inputs|than the model"),
        (keeps_a_log, "a list of 1 things in the model has 2 after a call"),
        (reads_a_log, "no function of the inputs|than the model|state kept"),
        (hooks_with_a_tensor_of_the_run, "a function that holds tensors or sizes of this call"),
        (goes_past_torch, "no function of the inputs"),
        (makes_a_parameter, "no function of the inputs"),
        (runs_in_another_thread, "made by a call that torch does not report"),
        (compares_the_exact_class_of_a_size, "than the model"),
        (tells_its_batch_size_in_words, "a constant among the results"),
    ],
)
def test_what_no_graph_can_stand_for_is_refused_with_the_reason(function, why):
    model = Doing(function)
    before = fingerprint(model)

    with pytest.raises(CaptureError, match=why) as caught:
        capture(model, (X,), {}, "record")

    assert caught.value.reasons[0].startswith("record: ")
    assert_untouched(before, model)


def test_a_choice_that_only_gradients_show_is_found_by_recording_the_same_input_again():
    calls = itertools.count(1)  # runs: plain, recorded, recorded on other inputs, plain, recorded

    def stops_gradients_in_its_fifth_call(model, x):
        y = model.inner(x)
        return model.outer(y if next(calls) < 5 else y.detach())

    assert "two recordings on the same input differ" in judge(Doing(stops_gradients_in_its_fifth_call), X).why


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


# ---- caches


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


@pytest.mark.parametrize("function", [grows_a_table, keeps_a_table_by_name])
def test_a_cache_of_first_use_is_made_anew_in_every_replay(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why
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


def test_a_buffer_that_a_forward_registers_is_registered_by_replays():
    def registers_a_table(model, x):
        if not hasattr(model, "table"):
            model.register_buffer("table", torch.arange(4.0), persistent=False)
        return model.inner(x) + model.table

    model = Doing(registers_a_table)
    graph = capture(model, (X,), {}, "record").module(model)
    assert not hasattr(model, "table")

    graph(X)

    assert torch.equal(model.table, torch.arange(4.0))
    assert "table" not in model.state_dict()


def test_a_table_in_a_buffer_is_made_to_the_inputs_size():
    def makes_its_table_fit(model, x):
        if model.seen.shape != x.shape[1:]:
            model.seen = torch.arange(float(x.shape[1]))
        return model.inner(x) + model.seen

    model = Doing(makes_its_table_fit)
    verdict = judge(model, X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why
    verdict.captured.module(model)(X)
    assert torch.equal(model.seen, torch.arange(4.0))


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


# ---- modules


class Net(nn.Module):
    """Any layers, called one after the other."""

    def __init__(self, *layers, then=lambda self, x: self.body(x)):
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.__dict__["then"] = then

    def forward(self, *args, **kwargs):
        return self.then(self, *args, **kwargs)


def recurrent(kind):
    def runs(model, x):
        out, state = model.body[0](x)
        again, state = model.body[0](out, state)
        return again.sum() + (state[0] if isinstance(state, tuple) else state)

    return Net(kind(4, 4, 2, batch_first=True), then=runs)


def packed():
    def runs(model, x, lengths):
        sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, (h, _) = model.body[0](sequence)
        padded, sizes = pad_packed_sequence(out, batch_first=True)
        return padded, sizes, h

    return Net(nn.LSTM(4, 4, batch_first=True), then=runs)


def attention():
    def runs(model, x):
        return model.body[0](x, x, x, need_weights=True, average_attn_weights=False)

    return Net(nn.MultiheadAttention(4, 2, 0.1, batch_first=True), then=runs)


def twice():
    return Net(nn.Linear(4, 4), nn.ReLU(), then=lambda m, x: m.body(m.body[0](m.body(x))))


def tied():
    net = Net(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    net.body[2].weight = net.body[0].weight
    return net


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


def parametrized():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return Net(layer, parametrizations.weight_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 4)))


def scripted():
    class Scripted(nn.Module):
        def forward(self, x):
            return x * 2, x.size(0)

    def runs(model, x):
        y, rows = model.body[0](x)
        return y * rows

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return Net(torch.jit.script(Scripted()), then=runs)


ROWS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
LAYERS = {
    "linear": (Net(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Dropout()), (X,)),
    "batch norm": (Net(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()), (X,)),
    "lstm": (recurrent(nn.LSTM), (ROWS,)),
    "gru": (recurrent(nn.GRU), (ROWS,)),
    "packed sequences": (packed(), (ROWS, torch.tensor([5, 2, 4]))),
    "attention": (attention(), (ROWS,)),
    "transformer encoder": (encoder(), (ROWS,)),
    "called twice": (twice(), (X,)),
    "tied weights": (tied(), (X,)),
    "parametrized": (parametrized(), (X,)),
    "convolutions": (Net(nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.MaxPool1d(2), nn.Flatten()), (ROWS,)),
}


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_recorded_in_both_modes(name, train):
    model, inputs = LAYERS[name]
    model.train(train)

    verdict = judge(model, *inputs)

    assert verdict.same == "right", verdict.why
    assert verdict.more in ("right", "none")


def test_the_fused_encoder_of_inference_is_the_one_that_runs():
    model = encoder().eval()

    with torch.no_grad():
        recording = capture(model, (ROWS,), {}, "record")
        found = recording.outputs.build(recording.module(model)(ROWS))
        assert torch.equal(found, model(ROWS))


def test_a_script_is_kept_whole_and_the_numbers_that_it_hands_out_are_looked_at():
    verdict = judge(scripted(), X)

    assert (verdict.same, verdict.more) == ("right", "miss")
    assert targets(verdict.captured) == ["body.0"]


def test_each_call_of_a_module_has_a_key_of_its_own():
    recording = capture(twice(), (X,), {}, "record")

    keys = {key for node in recording.graph.nodes for key in node.meta.get("nn_module_stack", {})}
    assert keys == {"body", "body.0", "body.1", "body.0@2", "body@2", "body.0@3", "body.1@2"}


def test_a_tensor_kept_as_a_plain_attribute_is_read_from_the_model():
    def reads(model, x):
        return model.inner(x) * model.scale

    model = Doing(reads)
    model.scale = torch.tensor(2.0)
    recording = capture(model, (X,), {}, "record")

    assert [n.target for n in recording.graph.nodes if n.op == "get_attr"] == ["scale"]
    assert judge(model, X).same == "right"


# ---- hooks


def test_hooks_of_leaves_and_containers_run_in_every_replay():
    model = Net(nn.Linear(4, 4), nn.Linear(4, 4))
    seen = []
    model.body[0].register_forward_hook(lambda m, args, out: seen.append("leaf"))
    model.body.register_forward_pre_hook(lambda m, args: seen.append("before"))
    model.body.register_forward_hook(lambda m, args, kwargs, out: seen.append("container"), with_kwargs=True)
    model.register_forward_hook(lambda m, args, out: seen.append("model"))
    graph = capture(model, (X,), {}, "record").module(model)

    seen.clear()
    graph(X)

    assert seen == ["before", "leaf", "container", "model"]


def test_hooks_that_replace_inputs_and_outputs_are_part_of_the_model():
    model = Net(nn.Linear(4, 4), nn.ReLU())
    model.body.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    model.body.register_forward_hook(lambda m, args, out: out + args[0])
    model.register_forward_pre_hook(lambda m, args, kwargs: (args, {**kwargs}), with_kwargs=True)
    model.register_forward_hook(lambda m, args, out: {"y": out, "none": None})

    verdict = judge(model, X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


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


def test_a_container_with_a_backward_hook_is_kept_whole():
    model = Net(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    seen = []
    model.body.register_full_backward_hook(lambda m, grads, out: seen.append(out[0].shape) or (grads[0] * 2,))

    verdict = judge(model, X.clone().requires_grad_())

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why
    assert targets(verdict.captured) == ["body"] and seen


# ---- calls and results


@dataclasses.dataclass
class Result:
    y: Any
    count: int
    nothing: Any = None


class Pair(NamedTuple):
    first: Any
    second: Any


class Bag:
    def __init__(self, y):
        self.y, self.note = y, "plain"

    def __eq__(self, other):
        return torch.equal(self.y, other.y) and self.note == other.note

    __hash__ = None


class Names(dict):
    pass


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y, n: {"y": y, "deep": [y, (y, None)], "n": n, "text": "a"},
        lambda y, n: Result(y, n),
        lambda y, n: Pair(y, Pair(None, y)),
        lambda y, n: Names(a=y, b=None),
        lambda y, n: Bag(y),
        lambda y, n: [Bag(y), Result(Bag(y), 1)],
        lambda y, n: (y, n, 0.5, True, None),
    ],
    ids=["dict", "dataclass", "named tuple", "dict class", "object", "objects in objects", "tuple"],
)
def test_results_of_any_class_come_back_as_they_are(wrap):
    model = Doing(lambda model, x: wrap(model.inner(x), x.shape[0]))
    verdict = judge(model, X)
    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why

    recording = verdict.captured
    found, expected = recording.outputs.build(recording.module(model)(X)), model(X)
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "given",
    [{"a": X, "b": None}, Result(X, 3), Pair(X, X), Names(a=X), Bag(X), [X, [X]]],
    ids=lambda v: type(v).__name__,
)
def test_arguments_of_any_class_go_in(given):
    def reads(model, x):
        held = flatten(x)[0]
        return model.inner(next(v for v in held if isinstance(v, torch.Tensor)))

    verdict = judge(Doing(reads), given)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def test_arguments_passed_by_name_are_inputs_with_that_name():
    model = Doing(lambda model, x, mask=None, scale=1: model.inner(x) * mask * scale)
    verdict = judge(model, X, mask=torch.ones(3, 1), scale=2)

    assert (verdict.same, verdict.more) == ("right", "right")
    assert [n.target for n in verdict.captured.graph.nodes if n.op == "placeholder"] == ["x", "mask"]


def test_one_tensor_given_twice_must_be_given_twice_again():
    model = Doing(lambda model, x, y: model.inner(x) * y)
    graph = capture(model, (X, X), {}, "record").module(model)

    other = X.clone()
    assert torch.equal(graph(other, other)[0], model(other, other))
    with pytest.raises(GuardMiss):
        graph(X, other)


# ---- without a trace


def test_a_capture_leaves_gradients_flags_and_pending_graphs_alone():
    model = Net(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model(X).sum().backward()
    pending = model(X)
    model.body[2].eval()
    before = fingerprint(model)

    capture(model, (X,), {}, "record")

    assert_untouched(before, model)
    pending.sum().backward()


def test_a_failed_capture_leaves_no_trace_either():
    def spoils_everything(model, x):
        model.seen = model.seen + 1
        model.new = x
        model.log.append(1)
        model.inner.weight.data = model.inner.weight.data * 2
        model.outer.weight.requires_grad_(False)
        model.outer.eval()
        model.register_forward_hook(lambda *_: None)
        random.random()
        torch.rand(1)
        raise LookupError

    model = Doing(spoils_everything)
    model.log = []
    before = fingerprint(model)

    with pytest.raises(LookupError):
        capture(model, (X,), {})

    assert_untouched(before, model)


def test_patches_are_gone_after_a_capture():
    held = nn.Module.__call__, nn.Module.__setattr__, vars(torch.autograd.Function)["apply"], len

    with pytest.raises(CaptureError):
        capture(Doing(draws_from_python), (X,), {}, "record")

    assert (nn.Module.__call__, nn.Module.__setattr__, vars(torch.autograd.Function)["apply"], len) == held


def test_other_threads_notice_nothing_of_a_recording():
    inside, seen = threading.Event(), []
    other = nn.Linear(4, 4)

    def waits(model, x):
        inside.set()
        thread = threading.Thread(target=lambda: seen.append(other(torch.ones(len(X), 4)).shape))
        thread.start()
        thread.join()
        return model.inner(x)

    verdict = judge(Doing(waits), X)

    assert verdict.same == "right" and seen
    assert set(map(tuple, seen)) == {(3, 4)}


# ---- cost


def test_a_recording_grows_no_faster_than_the_model():
    def calls(depth):
        model, count = Net(*[Residual() for _ in range(depth)]), itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            capture(model, (X,), {}, "record")
        finally:
            sys.setprofile(None)
        return next(count)

    calls(20)

    assert calls(400) < 4 * 1.2 * calls(100)  # quadratic would be sixteen times as many


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x + (x * self.weight).relu() / x.shape[0]


def test_a_buffer_that_every_run_registers_anew_is_of_the_last_run():
    class Last(nn.Module):
        def forward(self, x):
            self.register_buffer("last", x.detach() * 2)
            return x + 1

    model = Last()
    dm = dg.decouple(model, [], (torch.randn(3, 4),))

    for rows in (5, 2):
        x = torch.randn(rows, 4)
        dm(x)

    assert torch.equal(model.last, x * 2)


def test_a_recording_lets_go_of_what_the_run_lets_go_of():
    class Watching(nn.Module):
        def forward(self, x):
            gone = []
            with torch.no_grad():
                for _ in range(3):
                    y = x + 1
                    gone.append(weakref.ref(y))
                    x = y * 2
            del y
            alive.append(sum(tensor() is not None for tensor in gone))
            return x

    alive = []

    capture(Watching(), (X,), {}, "record")

    assert alive and not any(alive)


# ---- the ladder


def test_an_unknown_rung_is_named_with_those_there_are():
    with pytest.raises(CaptureError, match=r"there is no capture 'recrd'; there are auto, record.*nearest: record"):
        capture(Doing(counts), (X,), {}, "recrd")


def test_a_capture_without_an_example_must_be_symbolic():
    with pytest.raises(CaptureError, match="needs one example call"):
        capture(nn.Linear(4, 4), None, None)

    assert capture(nn.Sequential(nn.Linear(4, 4)), None, None, "symbolic").rung == "symbolic"


def test_what_the_model_made_is_free_again_also_where_somebody_keeps_a_size():
    kept, made = [], []

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            kept.append(y.shape[0] + 1)
            made.append(weakref.ref(y))
            return y.relu()

    capture(Keeping(), (X,), {})
    gc.collect()

    assert made
    assert not any(ref() is not None for ref in made)


class Appending(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, cache):
        y = self.one(x) if not cache else self.one(x) + cache[-1]
        cache.append(y.detach())
        return self.two(y)


def test_a_container_of_the_caller_that_the_model_fills_is_no_result_of_a_graph():
    with pytest.raises(CaptureError, match=r"puts something else into .*, a container that belongs to the caller"):
        capture(Appending(), (X, [X]), {})


def test_a_model_that_fills_what_it_is_given_fills_it_also_when_it_is_decoupled():
    model = Appending()
    dm = dg.decouple(model, "one", (X, [X]), head="linear", condition=dg.one_hot(3))
    given, expected = [X], [X]

    results = [dm(X, given), dm(X, given)]

    assert all(torch.equal(a, model(X, expected)) for a in results)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    assert dm.plan.capture == "hooks"
