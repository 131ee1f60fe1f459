"""InfoPro: a local loss whose value must also tell the model's input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, CONDITION, Chain, ResNet, Tied, Towers, cut_up, labels, loss_of
from torch import nn

import dnigraph as dg

X, Y = torch.randn(8, 6), labels(8)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


def cut(model, cuts, args, **options):
    torch.manual_seed(0)
    return dg.decouple(model, cuts, args, condition=CONDITION, boundary=dg.infopro(**options))


def test_the_loss_is_the_classifiers_and_the_weighted_error_of_the_rebuilt_input():
    dm = cut(Chain(), "bn", (X,), weight=0.5)
    boundary, model = dm.boundaries["bn"], dm.recouple()
    twin, plain = copy.deepcopy(boundary), copy.deepcopy(model)
    with dm.conditioned(Y):
        F.cross_entropy(dm(X), Y).backward()

    h = plain.bn(plain.fc1(X))
    error = F.mse_loss(twin.decoder(h, X.shape[2:]), X) / X.var(unbiased=False)
    (F.cross_entropy(twin.classifier(h, False), Y) + 0.5 * error).backward()

    torch.testing.assert_close(model.fc1.weight.grad, plain.fc1.weight.grad)
    for one, other in zip(boundary.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_value_comes_to_tell_the_input():
    dm = cut(Chain(), "bn", (X,), weight=5.0, decoder=32)
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam)

    told = [run.step(X, target=Y).metrics["bn"] for _ in range(200)]

    assert set(told[0]) == {"local_loss", "reconstruction"}
    assert told[-1]["reconstruction"] < 0.3 < told[0]["reconstruction"]
    assert told[-1]["local_loss"] < told[0]["local_loss"]


def test_pictures_are_rebuilt_from_coarser_maps():
    x = torch.randn(4, 2, 6, 6)
    dm = cut(ResNet(), "layer2", (x,))
    decoder = dm.boundaries["layer2"].decoder

    assert decoder(torch.randn(3, 6, 3, 3), torch.Size((6, 6))).shape == (3, 2, 6, 6)
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam)
    run.step(x, target=labels(4))
    run.step(torch.randn(5, 2, 8, 8), target=labels(5))  # of any size
    assert dm.boundaries["layer2"].head_name == "classifier 6, decoder 12 of x"


@pytest.mark.parametrize("value", [(4, 7, 8), (4, 8), (4, 8, 3, 3)])
@pytest.mark.parametrize("given", [(4, 7, 6), (4, 6), (4, 2, 5, 5)])
def test_values_and_inputs_of_all_shapes(value, given):
    class Makes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(torch.Size(given[1:]).numel(), torch.Size(value[1:]).numel())
            self.b = nn.Linear(torch.Size(value[1:]).numel(), CLASSES)

        def forward(self, x):
            return self.b(self.a(x.flatten(1)).reshape(-1, *value[1:]).relu().flatten(1))

    x = torch.randn(given)
    dm = cut(Makes(), "relu", (x,))
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam)

    before = run.step(x, target=labels(4)).metrics["relu"]["reconstruction"]
    for _ in range(60):
        after = run.step(x, target=labels(4)).metrics["relu"]["reconstruction"]
    assert after < before


def test_what_is_rebuilt_is_the_input_that_the_value_is_made_of():
    args = torch.randn(4, 4), torch.randn(4, 3)
    dm = cut(Towers(), ["left", "right"], args)

    assert [b.decoder.input for b in dm.boundaries.values()] == ["a", "b"]


def test_an_input_is_chosen_by_name_or_position():
    class Both(Towers):
        def forward(self, a, b):
            return self.top(torch.cat([self.left(a), self.right(b)], -1).relu())

    args = torch.randn(4, 4), torch.randn(4, 3)
    for which, name in (("b", "b"), (1, "b"), (0, "a"), (None, "a")):
        assert cut(Both(), "relu", args, input=which).boundaries["relu"].decoder.input == name


@pytest.mark.parametrize("which", ["y", 3, True, -1])
def test_an_input_that_there_is_not_is_told(which):
    with pytest.raises(dg.BoundaryError, match=rf"input={which!r}.*made of x \(\[8, 6\], float32\)"):
        cut(Chain(), "bn", (X,), input=which)


def test_tokens_cannot_be_rebuilt():
    ids = torch.randint(1, CLASSES, (4, 7))

    with pytest.raises(dg.BoundaryError, match=r"floating-point numbers.*ids \(\[4, 7\], int64\).*'auglocal'"):
        cut(Tied(), ["layers.0"], (ids,))


def test_an_input_of_another_size_is_told():
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(1, 8), nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.b(self.a(x.mean(1, keepdim=True)))

    dm = cut(Any(), "a", (torch.randn(4, 6),))

    with pytest.raises(dg.BoundaryError, match=r"rebuilds the input 'x' as \[4, 6\], and this call has \[4, 9\]"):
        dg.Local(dm, loss=F.cross_entropy, optimizer=adam).step(torch.randn(4, 9), target=labels(4))


@pytest.mark.parametrize(("options", "words"), [({"weight": -1}, "weight=-1"), ({"decoder": 0}, "decoder=0")])
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(dg.BoundaryError, match=f"infopro: these options do not fit: {words}"):
        dg.infopro(**options)


def gradients(dm, step, conditioned):
    with conditioned(labels(4)):
        loss_of(step(X[:4]), labels(4)).backward()
    return [p.grad for p in dm.parameters()]


def test_on_hooks_and_compiled_it_is_the_same():
    torch._dynamo.reset()
    expected = cut(Chain(), ["bn", "fc2"], (X[:4],))
    torch.manual_seed(0)
    hooked = dg.decouple(Chain(), ["bn", "fc2"], (X[:4],), condition=CONDITION, boundary="infopro", capture="hooks")
    hooked.load_state_dict(expected.state_dict())
    model, backend = Chain(), dg.Backend(["bn", "fc2"], condition=CONDITION, boundary="infopro")
    step = torch.compile(model, backend=backend)
    backend.prepare(step, X[:4])
    model.load_state_dict(expected.recouple().state_dict())
    for name, boundary in expected.boundaries.items():
        backend.boundaries[name].load_state_dict(boundary.state_dict())

    found = [
        gradients(expected.recouple(), expected, expected.conditioned),
        gradients(hooked.recouple(), hooked, hooked.conditioned),
        gradients(model, step, backend.conditioned),
    ]

    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_between_agents_it_rebuilds_the_networks_input():
    net = dg.Network(optimizer=adam, condition=CONDITION)
    net.add("a", nn.Linear(6, 8)).add("b", nn.Linear(8, CLASSES), loss=F.cross_entropy)
    net.connect("a.output", "b.input", boundary="infopro")

    net.tick(X, Y)

    (boundary,) = net.boundaries.values()
    assert boundary.decoder.input == "a.input" and boundary.metrics()["reconstruction"] > 0


def test_it_is_copied_loaded_probed_and_checked():
    dm, args = cut_up("resnet", boundary="infopro")
    other = cut_up("resnet", seed=1, boundary="infopro")[0]

    other.load_state_dict(dm.state_dict())

    states = [m.boundary_set.modules.state_dict() for m in (dm, other, copy.deepcopy(dm))]
    assert all(torch.equal(value, state[name]) for state in states for name, value in states[0].items())
    assert set(dg.probe(dm, *args, target=labels(4), loss=loss_of).crossings) == {"layer1", "layer2"}
    assert dg.check(dm, *args).right
