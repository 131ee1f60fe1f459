"""AugLocal: the auxiliary network is made of later layers of the model, which start anew and learn by themselves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, CONDITION, Chain, cut_up, labels, loss_of
from torch import nn

import dnigraph as dg
from dnigraph.boundaries.fresh_layers import evenly, fresh_module

X, Y = torch.randn(8, 6), labels(8)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


def deep(width=8, count=5):
    torch.manual_seed(0)
    layers = [nn.Linear(6, width), nn.Tanh()]
    for _ in range(count):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def cut(model, cuts, x=X, **options):
    return dg.decouple(model, cuts, (x,), condition=CONDITION, boundary=dg.auglocal(**options))


@pytest.mark.parametrize(
    ("count", "of", "chosen"), [(2, 5, [1, 4]), (3, 3, [0, 1, 2]), (5, 3, [0, 1, 2]), (1, 4, [3]), (2, 0, [])]
)
def test_layers_are_evenly_spaced_and_the_last_is_among_them(count, of, chosen):
    assert evenly(count, of) == chosen


def test_the_layers_behind_the_cut_are_there_and_the_models_classifier_is_not():
    dm = cut(deep(), ["1", "7"], layers=2)

    assert dm.boundaries["1"].head_name == "5 + 14, linear classifier"
    assert dm.boundaries["7"].head_name == "8 + 14, linear classifier"
    assert [crossing.head for crossing in dm.plan.crossings] == [b.head_name for b in dm.boundaries.values()]
    assert [crossing.boundary for crossing in dm.plan.crossings] == ["auglocal"] * 2


def test_a_layer_takes_what_follows_its_weights_with_it():
    dm = cut(deep(count=2), "1", layers=1)

    value = torch.randn(8, 8)
    auxiliary = dm.boundaries["1"].layers
    linear, norm = (m for m in auxiliary.modules() if isinstance(m, nn.Linear | nn.BatchNorm1d))
    torch.testing.assert_close(auxiliary(value), torch.tanh(norm(linear(value))))


def test_what_comes_between_the_cut_and_the_first_layer_comes_first():
    dm = dg.decouple(Chain(), "bn", (X,), condition=CONDITION, boundary=dg.auglocal())

    auxiliary, value = dm.boundaries["bn"].layers, torch.randn(8, 8)
    (linear,) = (m for m in auxiliary.modules() if isinstance(m, nn.Linear))
    torch.testing.assert_close(auxiliary(value), F.relu(linear(F.relu(value))))


def test_the_copies_start_anew_and_share_nothing_with_the_model():
    model = deep()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    dm = cut(model, "1", layers=5)

    own = list(dm.boundaries["1"].layers.parameters())
    assert len(own) == 20 and not any(p.eq(7).any() for p in own)
    assert not {id(p) for p in own} & {id(p) for p in model.parameters()}


def test_it_trains_itself_and_the_part_below_and_the_layers_above_stay_out_of_it():
    dm = cut(deep(), "1", layers=2)
    boundary = dm.boundaries["1"]
    own = copy.deepcopy(boundary.state_dict())

    with dm.conditioned(Y):
        F.cross_entropy(dm(X), Y).backward()

    assert all(p.grad.abs().max() > 0 for p in boundary.layers.parameters() if p.ndim > 1)
    value = torch.tanh(dm.original[0](X))
    expected = torch.autograd.grad(F.cross_entropy(_scores(boundary, own, value), Y), dm.original[0].weight)[0]
    torch.testing.assert_close(dm.original[0].weight.grad, expected)


def _scores(boundary, state, value):
    twin = copy.deepcopy(boundary)
    twin.load_state_dict(state)
    return twin.classifier(twin.layers(value), False)


class Net(nn.Module):
    """Blocks with skips that are no modules, functions between modules, coarser and wider maps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.c, self.d, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 10), nn.Linear(10, CLASSES)

    def forward(self, x):
        h = F.relu(self.stem(x))
        h = h + F.relu(self.a(h))
        h = F.relu(self.b(h))
        h = F.relu_(self.c(h)) + h
        return self.fc(F.relu(self.d(h.mean((2, 3)))))


def test_layers_of_maps_follow_each_other_over_other_widths_and_grids():
    x = torch.randn(8, 2, 8, 8)
    for layers, name in ((1, "d"), (2, "b + d"), (3, "a + b + d"), (4, "a + b + c + d")):
        dm = cut(Net(), "stem", x, layers=layers)
        run = dg.Local(dm, loss=F.cross_entropy, optimizer=adam)

        losses = [run.step(x, target=Y).metrics["stem"]["local_loss"] for _ in range(30)]

        assert dm.boundaries["stem"].head_name == f"{name}, linear classifier"
        assert losses[-1] < 0.9 * losses[0]
        assert dg.check(dm, x).right


def test_a_layer_that_is_skipped_to_sees_the_grid_that_it_has_in_the_model():
    dm = cut(Net(), "stem", torch.randn(8, 2, 8, 8), layers=1)
    dm.boundaries["stem"]  # behind "stem": relu, then the mean of the maps, then d

    assert dm.boundaries["stem"].layers(torch.randn(3, 4, 8, 8)).shape == (3, 10)
    assert dm.boundaries["stem"].layers(torch.randn(3, 4, 12, 12)).shape == (3, 10)


def test_a_layer_that_reads_an_input_of_the_model_is_left_out():
    class Masked(Chain):
        def forward(self, x):
            h = F.relu(self.bn(self.fc1(x)))
            return self.fc3(F.relu(self.fc2(h)) * (x.sum(1, keepdim=True) > 0))

    dm = cut(Masked(), "bn", layers=2)

    assert dm.boundaries["bn"].head_name == "no layers, linear classifier"


def test_a_local_loss_of_tokens_keeps_a_label_for_each():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    x, y = torch.randn(4, 7, 6), torch.randint(CLASSES, (4, 7))
    dm = cut(Tokens(), "a", x)
    run = dg.Local(dm, loss=lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()), optimizer=adam)

    losses = [run.step(x, target=y).metrics["a"]["local_loss"] for _ in range(40)]

    assert losses[-1] < 0.9 * losses[0]


def test_modules_without_a_reset_are_drawn_anew_where_they_have_two_axes():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.full((3, 4), 9.0)), nn.Parameter(torch.full((3,), 9.0))
            self.register_forward_hook(lambda *_: 1 / 0)

        def forward(self, x):
            return x @ self.weight.T * self.scale

    made = fresh_module(Own())

    assert made.weight.abs().max() < 1 and made.scale.eq(9).all()
    made(torch.randn(2, 4))  # without the hook


def test_compiled_by_dynamo_the_layers_are_the_same():
    torch._dynamo.reset()
    x, dm = torch.randn(8, 2, 8, 8), cut(Net(), "stem", torch.randn(8, 2, 8, 8), layers=3)
    model, backend = Net(), dg.Backend("stem", condition=CONDITION, boundary=dg.auglocal(3))
    step = torch.compile(model, backend=backend)
    backend.prepare(step, x)
    twin = backend.boundaries["stem"]
    assert [p.shape for p in twin.parameters()] == [p.shape for p in dm.boundaries["stem"].parameters()]
    for own, other in zip(twin.parameters(), dm.boundaries["stem"].parameters(), strict=True):
        own.data.copy_(other)
    with backend.conditioned(Y), dm.conditioned(Y):
        F.cross_entropy(step(x), Y).backward()
        F.cross_entropy(dm(x), Y).backward()

    for one, other in zip(model.parameters(), dm.recouple().parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_on_hooks_it_is_refused_with_the_way_out():
    with pytest.raises(dg.BoundaryError, match=r"\(auglocal\) needs what cannot be had here.*not on hooks"):
        dg.decouple(Chain(), "bn", (X,), condition=CONDITION, boundary="auglocal", capture="hooks")


@pytest.mark.parametrize(("options", "words"), [({"layers": 0}, "layers=0"), ({"hidden": 1.5}, r"hidden=1\.5")])
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(dg.BoundaryError, match=f"auglocal: these options do not fit: {words}"):
        dg.auglocal(**options)


def test_half_precision_trains_in_the_layers_own():
    x, model = X.bfloat16(), deep().bfloat16()
    dm = cut(model, "1", x)
    run = dg.Local(dm, loss=lambda out, y: F.cross_entropy(out.float(), y), optimizer=adam)

    assert run.step(x, target=Y).metrics["1"]["local_loss"] > 0


def test_it_is_copied_loaded_and_probed():
    dm, args = cut_up("resnet", boundary="auglocal")
    other = cut_up("resnet", seed=1, boundary="auglocal")[0]

    other.load_state_dict(dm.state_dict())

    states = [m.boundary_set.modules.state_dict() for m in (dm, other, copy.deepcopy(dm))]
    assert all(torch.equal(value, state[name]) for state in states for name, value in states[0].items())
    assert set(dg.probe(dm, *args, target=labels(4), loss=loss_of).crossings) == {"layer1", "layer2"}


@pytest.mark.parametrize("name", ["resnet", "tied_weights_and_a_mask_for_all"])
def test_copies_that_drop_out_at_random_leave_the_models_own_random_numbers_alone(name):
    dm, args = cut_up(name, boundary="auglocal", check=False)
    plain = copy.deepcopy(dm.recouple())

    def run(model):
        torch.manual_seed(1)
        with dm.conditioned(labels(len(args[0]))):
            return loss_of(model(*args), labels(len(args[0]))), torch.get_rng_state()

    (loss, state), (expected, expected_state) = run(dm), run(plain)

    assert any(isinstance(m, nn.Dropout) for b in dm.boundaries.values() for m in b.modules())
    assert torch.equal(loss, expected) and torch.equal(state, expected_state)
