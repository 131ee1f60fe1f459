"""Modules, hooks and autograd functions: kept whole, or recorded from inside."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.replay import Doing, Net, judge, modules_called
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from dnigraph.passes.capture.ladder import capture

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


def passes_gradients_straight_through(model, x):
    return model.outer(Straight.apply(model.inner(x)))


def checkpoints(model, x):
    return checkpoint(lambda y: F.dropout(model.outer(y)), model.inner(x), use_reentrant=False)


def checkpoints_in_the_old_way(model, x):
    keep = (x > 0).float()
    return checkpoint(lambda y: F.dropout(model.outer(y)) * keep, model.inner(x), use_reentrant=True)


def makes_a_module_of_a_size(model, x):
    y = model.inner(x)
    return nn.CrossEntropyLoss(ignore_index=y.size(1))(y, x.argmax(1).clamp(0, y.size(1)))


def lends_a_layer_other_weights(model, x):
    weights = {name: p * 0.5 for name, p in model.inner.named_parameters()}
    return model.outer(torch.func.functional_call(model.inner, weights, (model.inner(x),)))


@pytest.mark.parametrize(
    "function",
    [
        passes_gradients_straight_through,
        checkpoints,
        checkpoints_in_the_old_way,
        makes_a_module_of_a_size,
        lends_a_layer_other_weights,
    ],
)
def test_a_recording_calls_what_the_model_calls(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def test_what_an_old_checkpoint_runs_is_seen_inside():
    recording = capture(Doing(checkpoints_in_the_old_way), (X,), {}, "record")

    assert modules_called(recording) == ["inner", "outer"]


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
    assert modules_called(verdict.captured) == ["body.0"]


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


def test_a_container_with_a_backward_hook_is_kept_whole():
    model = Net(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    seen = []
    model.body.register_full_backward_hook(lambda m, grads, out: seen.append(out[0].shape) or (grads[0] * 2,))

    verdict = judge(model, X.clone().requires_grad_())

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why
    assert modules_called(verdict.captured) == ["body"] and seen
