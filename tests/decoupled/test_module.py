"""What a decoupled model keeps of the model: parameters, signature, state dict, hooks, names."""

import copy
import inspect

import pytest
import torch
from kit.models import CONDITION, Chain, Several, decoupled_chain, layers
from torch import nn

import dnigraph as dg


def test_parameters_are_the_same_objects_and_recouple_gives_the_very_model_back():
    model, x = Chain(), torch.randn(4, 6)

    dm = dg.decouple(model, "bn", (x,), condition=CONDITION)

    assert dm.recouple() is model
    assert dm.part_0.fc1.weight is model.fc1.weight
    assert {id(p) for p in model.parameters()} <= {id(p) for p in dm.parameters()}
    assert dm.fc3 is model.fc3


def test_no_cuts_is_the_plain_model_exactly():
    model, x = Chain(), torch.randn(4, 6)
    dm = dg.decouple(model, [], (x,))

    dm(x).sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()

    assert list(dm.state_dict()) == list(model.state_dict())
    assert len(dm.parts) == 1 and not dm.boundaries
    assert all(torch.equal(a, p.grad) for a, p in zip(ours, model.parameters(), strict=True))


def test_the_state_dict_keeps_the_models_keys_and_puts_heads_under_a_prefix():
    dm, _ = decoupled_chain()

    own, plain = dm.state_dict(), dm.recouple().state_dict()

    assert list(own)[: len(plain)] == list(plain)
    assert all(key.startswith("dni.bn.") for key in list(own)[len(plain) :])


def test_a_plain_checkpoint_loads_and_comes_back():
    dm, x = decoupled_chain()
    other = Chain()

    result = dm.load_state_dict(other.state_dict())

    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(dm.eval()(x), other.eval()(x))
    again = Chain()
    again.load_state_dict({k: v for k, v in dm.state_dict().items() if not k.startswith("dni.")})


def test_a_full_checkpoint_loads_heads_too_and_a_wrong_key_is_named():
    dm, _ = decoupled_chain()
    other, _ = decoupled_chain()
    with torch.no_grad():
        for p in dm.head_parameters():
            p.add_(1.0)

    other.load_state_dict(dm.state_dict())

    assert all(torch.equal(p, q) for p, q in zip(dm.head_parameters(), other.head_parameters(), strict=True))
    with pytest.raises(RuntimeError, match="nowhere"):
        other.load_state_dict({**dm.state_dict(), "nowhere": torch.ones(1)})


def test_the_signature_is_the_models_and_calls_by_keyword_are_the_same_call():
    model, x = Several(), torch.randn(4, 4)
    dm = dg.decouple(model, "middle", (x,), condition=CONDITION)

    assert list(inspect.signature(dm.forward).parameters) == ["x", "twice"]
    result = dm(x=x, twice=False)
    assert type(result).__name__ == "Result" and result.count == 4 and result.nothing is None


def test_hooks_of_the_user_keep_firing():
    model, x, seen = Chain(), torch.randn(4, 6), []
    model.fc2.register_forward_hook(lambda m, args, out: seen.append("fc2"))
    model.register_forward_hook(lambda m, args, out: seen.append("root"))
    dm = dg.decouple(model, "bn", (x,), condition=CONDITION)
    seen.clear()

    dm(x)

    assert seen == ["fc2", "root"]


@pytest.mark.parametrize("capture", ["record", "hooks"])
def test_a_hook_that_looks_at_keywords_finds_them(capture):
    class Scaled(Chain):
        def forward(self, x, scale=None, shift=None):
            return super().forward(x)

    model = Scaled()
    model.register_forward_hook(lambda m, args, kwargs, y: y * kwargs["scale"] + kwargs["shift"], with_kwargs=True)
    orders = []
    model.register_forward_hook(lambda m, args, kwargs, y: orders.append(list(kwargs)), with_kwargs=True)
    x, scale, shift = torch.randn(4, 6), torch.tensor(2.0), torch.tensor(1.0)

    dm = dg.decouple(model, "bn", (x,), {"shift": shift, "scale": scale}, boundary="oracle", capture=capture)

    assert torch.equal(dm(x, scale=scale, shift=shift + 1), model(x, shift=shift + 1, scale=scale))
    orders.clear()
    dm(x, shift=shift, scale=scale)
    # One graph for both orders: its hooks see the signature's.
    assert orders == [["scale", "shift"] if capture == "record" else ["shift", "scale"]]


@pytest.mark.parametrize("call", ["to", "half", "requires_grad_", "double"])
def test_a_crossing_may_be_called_what_modules_can_do(call):
    given = (torch.float32,) if call == "to" else ()
    model = layers(lambda m, x: m.b(getattr(m.a(x) * 1.5, call)(*given).to(torch.float32)), "a", "b")

    dm = dg.decouple(model, call, (torch.ones(2, 4),), condition=CONDITION)
    with dm.conditioned(torch.zeros(2, dtype=torch.long)):
        dm(torch.ones(2, 4)).sum().backward()

    assert list(dm.boundaries) == [call]
    again = dg.decouple(model, call, (torch.ones(2, 4),), condition=CONDITION)
    assert not any(again.load_state_dict(dm.state_dict()))


@pytest.mark.parametrize("name", ["graph", "code", "meta", "context", "plan"])
@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
def test_what_the_model_calls_its_own_things_is_its_own_matter(name, kind):
    def forward(m, x):
        own = getattr(m, name)
        return m.b(own(m.a(x)) if kind == "module" else m.a(x) * own)

    model = layers(forward, "a", "b")
    if kind == "buffer":
        model.register_buffer(name, torch.full((4,), 2.0))
    else:
        setattr(model, name, nn.Linear(4, 4) if kind == "module" else nn.Parameter(torch.full((4,), 2.0)))
    x = torch.ones(2, 4)

    dm = dg.decouple(model, "a", (x,), boundary="oracle")

    assert dm.plan.capture == "record"
    assert torch.equal(copy.deepcopy(dm)(x), model(x))
    assert set(model.state_dict()) <= set(dm.state_dict())


@pytest.mark.parametrize("how", ["record", "hooks"])
def test_a_state_of_other_heads_is_refused_before_anything_is_loaded(how):
    def made(width, head):
        torch.manual_seed(width)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, width))
        return dg.decouple(model, "0", (torch.randn(4, 6),), head=head, condition=dg.one_hot(3), capture=how)

    dm, other = made(3, "mlp"), made(3, "linear")
    before = {k: v.clone() for k, v in dm.state_dict().items()}

    with pytest.raises(dg.CheckpointError, match="heads are not those of this model"):
        dm.load_state_dict(other.state_dict())
    assert all(torch.equal(before[k], v) for k, v in dm.state_dict().items())
    with pytest.raises(dg.CheckpointError, match=r"size mismatch for 2\.weight"):
        dm.load_state_dict(made(4, "mlp").recouple().state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_an_export_is_refused_with_the_way_out(training):
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)), torch.randn(3, 4)
    dm = dg.decouple(model, "1", x, boundary="oracle").train(training)

    with pytest.raises(dg.DniGraphError, match=r"export the plain model, dm\.recouple"):
        torch.export.export(dm, (x,))
    assert torch.equal(torch.export.export(dm.recouple(), (x,)).module()(x), dm(x))
    assert dm.graph.nodes


def test_a_state_dict_holds_values_and_with_keep_vars_the_very_parameters():
    dm, _ = decoupled_chain()
    own = {f"dni.{key}" for boundary in dm.boundary_set.modules.values() for key, _ in boundary.named_parameters()}
    assert own

    plain, kept = dm.state_dict(), dm.state_dict(keep_vars=True)

    assert not any(v.requires_grad for v in plain.values() if isinstance(v, torch.Tensor))
    parameters = {id(p) for p in dm.parameters()}
    assert parameters <= {id(v) for v in kept.values()}
    assert {k for k in kept if k.startswith("dni.")} == {k for k in plain if k.startswith("dni.")}


def test_a_larger_models_checkpoint_is_loaded_into_the_very_parameters_of_the_heads():
    outer, other = (nn.Sequential(decoupled_chain()[0]) for _ in range(2))
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    held = list(outer[0].parameters())

    outer.load_state_dict(other.state_dict())

    assert all(p is q for p, q in zip(held, outer[0].parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(held, other[0].parameters(), strict=True))


@pytest.mark.parametrize("lacking", ["get_scale", "is_enabled"])
def test_half_a_scaler_is_no_loss_scale(lacking):
    dm, _ = decoupled_chain()
    members = {"get_scale": lambda self: 2.0, "is_enabled": lambda self: True}
    half = type("Half", (), {name: member for name, member in members.items() if name != lacking})()

    with pytest.raises(dg.DniGraphError, match="is a GradScaler, a positive number"):
        dm.loss_scale = half


def test_an_attribute_of_ones_own_can_be_deleted_and_a_missing_one_is_named():
    dm, _ = decoupled_chain()
    dm._mine = 3

    del dm._mine

    assert "_mine" not in vars(dm) and not hasattr(dm.original, "_mine")
    with pytest.raises(AttributeError, match="nothing"):
        del dm.nothing


def test_an_attribute_of_the_model_is_deleted_there():
    dm, _ = decoupled_chain()
    dm.note = "here"

    del dm.note

    assert not hasattr(dm, "note") and not hasattr(dm.original, "note")


@pytest.mark.parametrize(("scale", "fits"), [
    (torch.tensor(2.0), True), (torch.ones(1, 1), True), (torch.ones(2), False), (torch.ones(0), False),
    (0, False), (float("inf"), False), (1e-9, True), (2, True),
])  # fmt: skip
def test_a_scale_of_the_loss_is_one_positive_number(scale, fits):
    dm, _ = decoupled_chain()

    if fits:
        dm.loss_scale = scale
        assert dm.loss_scale is scale
    else:
        with pytest.raises(dg.DniGraphError, match="a tensor with one, or None"):
            dm.loss_scale = scale


def test_a_model_whose_argument_is_called_self_runs():
    class Odd(nn.Module):
        def __init__(this):
            super().__init__()
            this.a, this.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(this, self):
            return this.b(this.a(self))

    model, x = Odd(), torch.randn(3, 4)
    dm = dg.decouple(model, "a", (x,), boundary="oracle")

    assert torch.equal(dm(x), model(x))
    assert list(inspect.signature(dm.forward).parameters) == ["args", "kwargs"]
