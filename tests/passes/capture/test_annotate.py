"""What one run of a captured graph says about each of its nodes."""

import pytest
import torch
import torch.nn.functional as F
from kit.replay import assert_untouched, fingerprint
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dnigraph.passes.capture.annotate import Counter, annotate
from dnigraph.passes.capture.ladder import capture

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.scale = nn.Parameter(torch.ones(5), requires_grad=False)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("variance", torch.ones(5))

    def forward(self, x):
        y = self.bn(self.fc(x)) * self.scale
        y = F.batch_norm(y, self.mean, self.variance, training=True)
        view = y.view(-1)
        y = y.relu_()
        halves = y.split(2, 1)
        return F.dropout(halves[0]), view, y.argmax(1), y.max(1)


def noted(model=None):
    model = model or Model()
    captured = capture(model, (X,), {}, "record")
    annotate(captured, model, [X])
    return {node.name: node.meta for node in captured.graph.nodes}


NODES = noted()


def test_shapes_types_and_bytes_are_those_of_the_run():
    assert NODES["fc"]["shape"] == (3, 5) and NODES["fc"]["dtype"] is torch.float32 and NODES["fc"]["bytes"] == 60
    assert NODES["x"]["shape"] == (3, 4) and NODES["argmax"]["dtype"] is torch.int64
    assert NODES["fc"]["device"] == torch.device("cpu")


def test_gradients_are_where_autograd_has_them():
    assert NODES["fc"]["gradient"] and not NODES["x"]["gradient"] and not NODES["argmax"]["gradient"]


def test_a_container_speaks_for_what_it_holds():
    assert NODES["split"]["container"] and NODES["split"]["gradient"] and "shape" not in NODES["split"]
    assert NODES["max_1"]["container"] and NODES["max_1"]["gradient"]


def test_views_share_their_memory_with_what_they_look_into():
    assert NODES["view"]["storage"] == NODES["batch_norm"]["storage"] != NODES["fc"]["storage"]


def test_what_is_written_in_place_is_named_by_its_memory():
    assert NODES["relu_"]["writes"] == (NODES["batch_norm"]["storage"],)
    assert set(NODES["batch_norm"]["writes"]) == {NODES["mean"]["storage"], NODES["variance"]["storage"]}
    assert NODES["fc"]["writes"] == ()


def test_random_numbers_are_noticed():
    assert NODES["dropout"]["random"] and not NODES["fc"]["random"] and not NODES["x"]["random"]


def test_a_multiply_and_add_counts_two():
    assert NODES["fc"]["flops"] == 2 * 3 * 4 * 5 and NODES["relu_"]["flops"] == 0


def test_parameters_and_buffers_go_by_their_names_in_the_model():
    assert NODES["fc"]["parameters"] == (("fc.weight", 20, True), ("fc.bias", 5, True))
    assert NODES["scale"]["parameters"] == (("scale", 5, False),)
    assert NODES["bn"]["buffers"] == ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    assert NODES["relu_"]["parameters"] == () == NODES["relu_"]["buffers"]


def test_the_model_and_its_inputs_are_left_as_they_were():
    model, x = Model(), X.clone()
    captured = capture(model, (x,), {}, "record")
    before = fingerprint(model)

    annotate(captured, model, [x])

    assert_untouched(before, model)
    assert torch.equal(x, X)


def test_a_model_that_writes_into_its_input_gets_a_copy():
    class Writes(nn.Module):
        def forward(self, x):
            return x.add_(1)

    x = X.clone()
    model = Writes()
    annotate(capture(model, (x,), {}, "record"), model, [x])

    assert torch.equal(x, X)


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.tokens = nn.Conv1d(2, 6, 3), nn.GroupNorm(2, 6), nn.Linear(6, 6)

    def forward(self, x):
        lines = F.max_pool1d(torch.relu(self.norm(self.conv(x))), 2)
        tokens = self.tokens(lines.transpose(1, 2))
        return torch.tanh(tokens).mean(1)


def test_maps_along_a_line_are_told_from_tokens():
    captured = capture(Wave(), (torch.randn(4, 2, 20),), {})
    annotate(captured, Wave(), [torch.randn(4, 2, 20)])

    lines = {n.name: n.meta["channels_first"] for n in captured.graph.nodes if len(n.meta.get("shape", ())) == 3}
    assert lines == {
        "x": False,
        "conv": True,
        "norm": True,
        "relu": True,
        "max_pool1d": True,
        "transpose": False,
        "tokens": False,
        "tanh": False,
    }


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_of_torch_that_is_counted_gives_what_it_gives(sign):
    x = torch.full((3,), float(sign))

    with Counter() as counter:
        out = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    assert torch.equal(out, x + sign) and counter.flops == 0


def test_draws_are_counted_on_tensors_without_data_where_no_generator_moves():
    with FakeTensorMode(), Counter() as without_data:
        torch.ones(3).relu()
        assert without_data.draws == 0
        torch.rand(3), F.dropout(torch.ones(3))
    with Counter() as with_data:
        torch.rand(3)

    assert (without_data.draws, with_data.draws) == (2, 0)
