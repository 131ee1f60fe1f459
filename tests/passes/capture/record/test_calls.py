"""A replay makes the calls of torch, modules, hooks and autograd functions that the model makes, or is refused."""

import operator
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.replay import Doing, Net, assert_refused, compare, judge, modules_called
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.errors import GuardMiss
from dnigraph.passes.graph.pytrees import flatten

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


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


def hooks_a_gradient(model, x):
    y = model.inner(x)
    y.register_hook(lambda gradient: gradient * 2)
    return model.outer(y)


def works_without_gradients_for_a_while(model, x):
    with torch.no_grad():
        scale = model.inner(x).relu().mean()
    return model.outer(x) * scale


def works_in_bfloat16_for_a_while(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model.inner(x) @ torch.eye(4)
    return model.outer(y.float())


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


@pytest.mark.parametrize(
    "function",
    [
        sets_items,
        replaces_data,
        writes_through_a_view,
        writes_into_its_input,
        hooks_a_gradient,
        works_without_gradients_for_a_while,
        works_in_bfloat16_for_a_while,
        differentiates_inside,
        sends_gradients_back_inside,
        draws_random_numbers,
        works_on_pieces,
        picks_rows_by_data,
        moves_statistics,
    ],
)
def test_a_recording_does_what_the_model_does(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def maps_over_rows(model, x):
    return torch.vmap(lambda row: row * 2)(model.inner(x))


def takes_a_functional_gradient(model, x):
    return torch.func.grad(lambda z: (z**2).sum())(model.inner(x))


def writes_through_numpy(model, x):
    y = torch.zeros(4)
    y.numpy()[0] = 3
    return model.inner(x) + y


def hooks_with_a_tensor_of_the_run(model, x):
    y, keep = model.inner(x), (x > 0).float()
    y.register_hook(lambda gradient: gradient * keep)
    return model.outer(y)


def goes_past_torch(model, x):
    return model.inner(x) + torch.from_dlpack(x.detach().mean(0))


def runs_in_another_thread(model, x):
    found = []
    thread = threading.Thread(target=lambda: found.append(model.inner(x)))
    thread.start()
    thread.join()
    return found[0]


def draws_from_a_generator_of_its_own(model, x):
    return model.inner(x) + torch.rand(4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "function, why",
    [
        (maps_over_rows, "torch.func transform"),
        (takes_a_functional_gradient, "torch.func transform"),
        (writes_through_numpy, "writes into a tensor through numpy"),
        (hooks_with_a_tensor_of_the_run, "a function that holds tensors or sizes of this call"),
        (goes_past_torch, "no function of the inputs"),
        (runs_in_another_thread, "made by a call that torch does not report"),
        (draws_from_a_generator_of_its_own, "torch.Generator of its own"),
    ],
)
def test_calls_that_no_graph_can_make_are_refused_with_the_reason(function, why):
    assert_refused(Doing(function), X, why=why)


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


def test_what_a_script_computes_in_a_method_is_no_constant_of_a_graph():
    class Scripted(nn.Module):
        def forward(self, x):
            return x

        @torch.jit.export
        def double(self, x):
            return x * 2

    model = Doing(lambda model, x: model.inner(x) + model.script.double(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model.script = torch.jit.script(Scripted())

    assert_refused(model, X, why=r"the model computes mul\.Scalar in a call that torch does not report")


class Box:
    """A class that nobody has told torch of."""

    def __init__(self, y, scale=1):
        self.y, self.scale = y, scale


class Unboxing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, box):
        ctx.scale = box.scale
        return y + box.y * box.scale

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


def hands_torch_an_object(model, x):
    return model.outer(Unboxing.apply(model.inner(x), Box(x * 2, 3)))


def gets_an_object_from_a_hook(model, x):
    box = model.hooked(x)
    return model.outer(box.y["a"]) * box.scale + box.y["b"]


@pytest.mark.parametrize("function", [hands_torch_an_object, gets_an_object_from_a_hook])
def test_tensors_in_objects_of_an_unknown_class_go_into_calls_and_come_out_of_them(function):
    model = Doing(function)
    model.hooked = nn.Linear(4, 4)
    model.hooked.register_forward_hook(lambda module, args, out: Box({"a": out, "b": args[0] + 1}, 3))

    verdict = judge(model, X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


FACTOR, FACTORS = torch.tensor(2.0), torch.tensor([2.0, 3.0])


@pytest.mark.parametrize("number", [lambda: FACTOR.item(), lambda: FACTORS.tolist()[1]], ids=["item", "list"])
def test_numbers_in_a_tensor_that_is_nobodys_are_constants(number):
    model = Doing(lambda model, x: model.inner(x) * number())

    recording = capture(model, (X,), {}, "record")

    (product,) = [n for n in recording.graph.nodes if n.target in ("mul", "__mul__")]
    assert product.args[1] == number() and not [n for n in recording.graph.nodes if n.op == "get_attr"]


def test_a_truth_value_from_the_data_is_guarded():
    model = Doing(lambda model, x: model.inner(x) if (x > 0).all().item() else model.outer(x))
    recording = capture(model, (X.abs() + 1,), {}, "record")
    graph = recording.module(model)

    assert torch.equal(graph(X.abs() + 2)[0], model.inner(X.abs() + 2))
    with pytest.raises(GuardMiss, match="recorded for True, and finds False"):
        graph(-X.abs())


@pytest.mark.parametrize(("length", "numbers"), [(64, 64), (65, 0)])
def test_a_list_of_up_to_sixty_four_numbers_is_live_and_a_longer_one_is_compared_as_a_whole(length, numbers):
    model = Doing(lambda model, x: sum(x[0].tolist()) + model.inner(X))
    x = torch.arange(float(length))[None]

    recording = capture(model, (x,), {}, "record")

    read = [n for n in recording.graph.nodes if n.target is operator.getitem and "tolist" in str(n.args[0])]
    assert len(read) == numbers
    other = compare(model, recording, [x + 1], flatten(((x,), {}))[1])
    assert other == ("right" if numbers else "miss")


@pytest.mark.parametrize("rows", [63, 64, 65])
def test_a_model_that_lists_its_batch_is_recorded_whatever_the_size_of_the_batch(rows):
    def lists(model, x):
        return model.inner(X) * sum(x.tolist())

    verdict = judge(Doing(lists), torch.arange(float(rows)))

    assert (verdict.same, verdict.more) == ("right", "miss"), verdict.why
