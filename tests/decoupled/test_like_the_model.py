"""A decoupled model behaves like the model: attributes, methods, modes, moves, copies."""

import contextlib
import copy
import functools
from collections import OrderedDict

import pytest
import torch
from kit.side_by_side import Net, differences, twins, x
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dnigraph as dg

RUNGS = ("record", "export", "hooks")


def plain(net, v):
    return net.c(net.a(v).relu() * net.gain)


def made(how="record", make=None, **options):
    torch.manual_seed(0)
    model = make() if make else Net(plain, gain=1.0)
    return model, dg.decouple(model, "a", (x(),), boundary="oracle", capture=how, **options)


class KeepsNorm(nn.Module):
    """Overrides what a root may override: modes, what learns, what is listed, how it moves."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.c, self.moves = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), 0

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def requires_grad_(self, requires_grad=True):
        super().requires_grad_(requires_grad)
        self.norm.requires_grad_(False)
        return self

    def parameters(self, recurse=True):
        return (p for name, p in self.named_parameters() if not name.startswith("norm"))

    def _apply(self, fn, recurse=True):
        self.moves += 1
        return super()._apply(fn, recurse)

    def forward(self, v):
        return self.c(self.norm(self.a(v)).relu())


@pytest.mark.parametrize("how", RUNGS)
def test_what_the_root_overrides_holds(how):
    model, dm = made(how, lambda: KeepsNorm().train())
    dm.eval()
    dm.train()

    assert dm.training and not model.norm.training
    dm.requires_grad_(True)
    assert not model.norm.weight.requires_grad
    assert not any(p is model.norm.weight for p in dm.parameters())
    before = model.moves
    dm.to(torch.float64)
    assert model.moves == before + 1 and model.a.weight.dtype is torch.float64


@pytest.mark.parametrize("how", RUNGS)
def test_attributes_are_the_models(how):
    model, dm = made(how)
    dm.gain = 3.0
    assert model.gain == 3.0 and dm.gain == 3.0
    with pytest.warns(dg.SettingsWarning) if how != "hooks" else contextlib.nullcontext():
        assert torch.equal(dm(x()), model(x()))

    dm.c = nn.Linear(8, 7)
    dm.new = nn.Linear(2, 2)
    assert dm(x()).shape == (4, 7) and dm.recouple().c is dm.c
    assert any(p is model.new.weight for p in dm.parameters())
    assert "new" in dict(dm.named_children()) and dm.get_submodule("new") is model.new
    del dm.new
    assert not hasattr(model, "new") and not hasattr(dm, "new")
    with pytest.raises(AttributeError, match="Decoupled"):
        _ = dm.nothing


@pytest.mark.parametrize("how", RUNGS)
def test_what_is_replaced_on_the_model_is_listed_at_once(how):
    model, dm = made(how)
    model.c = nn.Sequential(nn.Linear(8, 7), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(dm.parameters(), 0.1)
    before = model.c[0].weight.detach().clone()

    dm(x()).sum().backward()
    optimizer.step()

    assert not torch.equal(before, model.c[0].weight)
    dm.eval()
    assert not model.c[1].training
    assert torch.equal(dm(x()), model(x()))


def test_a_layer_that_the_first_call_makes_is_followed():
    def forward(net, v):
        h = net.a(v).relu()
        if not hasattr(net, "late"):
            net.late = nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5))
        return net.late(h)

    twin, model = twins(lambda: Net(forward))
    dm = dg.decouple(model, "a", (x(),), boundary="oracle")
    for module in (twin, dm):
        torch.manual_seed(1)
        module(x())
        module.eval()

    assert torch.equal(dm(x()), twin(x()))
    assert [n for n, _ in dm.named_parameters()] == [n for n, _ in twin.named_parameters()]


class WithMethods(Net):
    """Methods as users have them: one that chains, one under no_grad, one that computes a loss."""

    def __init__(self):
        super().__init__(plain, gain=1.0)

    @property
    def device(self):
        return self.a.weight.device

    def freeze(self):
        self.a.requires_grad_(False)
        return self

    @torch.no_grad()
    def predict(self, v):
        return self(v).argmax(-1)

    def loss(self, v):
        return self(v).square().mean()


def test_methods_and_properties_are_the_models():
    model, dm = made(make=WithMethods)

    assert dm.device == model.device and "predict" in dir(dm)
    assert torch.equal(dm.predict(x()), model.predict(x()))
    assert dm.freeze() is dm and not model.a.weight.requires_grad


def test_a_method_that_trains_past_the_boundaries_is_told_of_once():
    _, dm = made(make=WithMethods)

    with pytest.warns(UserWarning, match=r"dm\.loss\(\.\.\.\) runs the model itself"):
        dm.loss(x())
    dm.loss(x())  # a second warning would be an error
    dm.eval()
    dm.loss(x())


class Merges(nn.Linear):
    """As LoRA layers do: in eval mode the low-rank part is merged into the weight."""

    def __init__(self, inside, outside):
        super().__init__(inside, outside)
        self.low, self.high = nn.Parameter(torch.randn(2, inside)), nn.Parameter(torch.randn(outside, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * 0.37 * self.high.data @ self.low.data
            self.merged = not mode
        return self

    def forward(self, v):
        return super().forward(v) + (0 if self.merged else 0.37 * v @ self.low.T @ self.high.T)


@pytest.mark.parametrize("training", [True, False])
def test_weights_that_merge_in_eval_mode_hold_their_numbers(training):
    torch.manual_seed(0)
    model = nn.Sequential(Merges(8, 8), nn.ReLU(), Merges(8, 3)).train(training)
    before = copy.deepcopy(model.state_dict())

    dm = dg.decouple(model, "0", (x(),), boundary="oracle")
    dg.check(dm, x())

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].merged is not training and model.training is training


@pytest.mark.parametrize("how", RUNGS)
def test_inference_mode_gives_the_models_results(how):
    model, dm = made(how)
    for module in (dm.eval(), dm.train()):
        with torch.inference_mode():
            assert torch.equal(module(x(3, 1)), model(x(3, 1)))
    assert torch.equal(dm(x(3, 1)), model(x(3, 1)))


@pytest.mark.parametrize("how", RUNGS)
def test_operators_of_the_models_class_work(how):
    model, dm = made(how, lambda: nn.Sequential(OrderedDict(a=nn.Linear(8, 8), act=nn.ReLU(), c=nn.Linear(8, 3))))

    assert dm[0] is model.a and len(dm) == 3 and list(dm) == list(model) and dm[1:][0] is model.act
    dm[2] = nn.Linear(8, 7)
    assert model.c.out_features == 7 and dm(x()).shape == (4, 7)
    _, plain_dm = made(how)
    assert not hasattr(type(plain_dm), "__len__") and plain_dm


class OwnWays(KeepsNorm):
    """Has its own way to be moved and to be set to eval mode."""

    moved, asked = (), 0

    def to(self, *args, **kwargs):
        self.moved = args
        return super().to(*args, **kwargs)

    def eval(self):
        self.asked += 1
        return super().eval()


@pytest.mark.parametrize("how", RUNGS)
def test_a_models_own_way_to_move_is_taken(how):
    model, dm = made(how, OwnWays)

    assert dm.to(torch.float64) is dm and model.moved == (torch.float64,)
    assert dm(x().double()).dtype is torch.float64
    assert all(p.dtype is torch.float64 for p in dm.parameters())
    asked = model.asked
    assert dm.eval() is dm and model.asked == asked + 1 and not dm.training


def test_a_shallow_copy_says_the_way_out():
    with pytest.raises(dg.DniGraphError, match="deepcopy"):
        copy.copy(made()[1])


# ---- deep copies


class Twice(torch.autograd.Function):
    """Is handed a module, as adjoint methods are."""

    @staticmethod
    def forward(ctx, v, net):
        ctx.net = net
        ctx.save_for_backward(v)
        with torch.no_grad():
            return net(v)

    @staticmethod
    def backward(ctx, gradient):
        v = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.net(v).backward(gradient)
        return v.grad, None


def hands_over_a_module(net, v):
    return net.c(Twice.apply(net.a(v), net.inner))


def sets_attributes(net, v):
    h = net.a(v).relu()
    net.last = h.detach()
    net.register_buffer("mean", h.mean(0).detach(), persistent=False)
    return net.c(h - net.mean)


def counts(net, v):
    net.count += 1
    return net.c(net.a(v).relu()) * net.count


def with_a_hook():
    net = Net(plain, gain=1.0)
    net.register_buffer("seen", torch.zeros(()))
    net.a.register_forward_hook(functools.partial(_count_up, net))
    return net


def _count_up(net, module, args, result):
    net.seen += 1
    return result * net.seen


COPIED = {
    "a module in a function": lambda: Net(hands_over_a_module, inner=nn.Linear(8, 8)),
    "attributes that a forward sets": lambda: Net(sets_attributes),
    "a buffer that counts": lambda: _counting(),
    "a bound hook": with_a_hook,
}


def _counting():
    net = Net(counts)
    net.register_buffer("count", torch.zeros(()))
    return net


@pytest.mark.parametrize("case", COPIED)
@pytest.mark.parametrize("copies", [copy.deepcopy, lambda dm: AveragedModel(dm).module])
def test_a_deep_copy_works_on_its_own_objects(case, copies):
    torch.manual_seed(0)
    model = COPIED[case]()
    dm = dg.decouple(model, dg.before("c"), (x(),), boundary="oracle")
    dm(x())
    twin = copies(dm).train()
    with torch.no_grad():
        for parameter in twin.original.parameters():
            parameter.mul_(2)
    plain_twin, before = copy.deepcopy(twin.original), copy.deepcopy(vars(model)["_buffers"])
    last = getattr(model, "last", None)
    model.zero_grad()

    result = twin(x())
    result.sum().backward()

    assert torch.equal(result, plain_twin(x()))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers()) and getattr(model, "last", None) is last


# ---- writes that leave the numbers as they are


def test_a_write_of_the_same_numbers_is_undone_too():
    def forward(net, v):
        with torch.no_grad():
            for student, teacher in zip(net.a.parameters(), net.teacher.parameters(), strict=True):
                teacher.data = 0.5 * teacher.data + 0.5 * student.data
        y = net.c(net.a(v).relu() + net.teacher(v)) * (1 + int(net.steps))
        net.steps += 1
        return y

    def make():
        net = Net(forward, teacher=nn.Linear(8, 8))
        net.teacher.load_state_dict(net.a.state_dict())
        net.teacher.requires_grad_(False)
        net.register_buffer("steps", torch.zeros((), dtype=torch.long))
        return net

    def moves(model, i):
        with torch.no_grad():
            for parameter in (*model.a.parameters(), *model.c.parameters()):
                parameter.add_(0.1 * i)

    found, _ = differences(make, [(x(4, k),) for k in range(4)], before_each=moves)

    assert found == []


def larger(head="auto"):
    middle = dg.decouple(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), "1", (x(),), head=head)
    return nn.Sequential(nn.Linear(8, 8), middle, nn.Linear(3, 2))


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_a_larger_plain_model_loads_and_leaves_the_heads(assign):
    whole = larger()
    plain = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), nn.Linear(3, 2))
    heads = list(whole[1].head_parameters())

    whole.load_state_dict(plain.state_dict(), assign=assign)

    assert torch.equal(whole(x()), plain(x()))
    assert all(p is q for p, q in zip(heads, whole[1].head_parameters(), strict=True))


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
def test_a_checkpoint_of_a_larger_model_has_its_heads():
    one, other = larger(), larger()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1)

    other.load_state_dict(one.state_dict())

    assert all(torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items())


@pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
@pytest.mark.parametrize("strange", ["1.dni.0.head.layer.weight", "1.0.wait", "2.weights"])
def test_what_does_not_belong_into_a_larger_model_is_named(strange):
    whole = larger()

    with pytest.raises(RuntimeError, match=strange.removeprefix("1.").replace(".", r"\.")):
        whole.load_state_dict({**whole.state_dict(), strange: torch.ones(1)})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::dnigraph.UnconditionedWarning")
def test_what_torch_writes_down_is_the_models_in_eval_mode_and_refused_in_train_mode():
    dm = larger()[1]

    traced = torch.jit.trace(dm.eval(), (x(),))
    assert torch.equal(traced(x(7, 2)), dm(x(7, 2)))

    with pytest.raises(dg.DniGraphError, match=r"not traced in train mode: .*dm\.recouple\(\)"):
        torch.jit.trace(dm.train(), (x(),))
    with pytest.raises(dg.DniGraphError, match=r"not scripted: .*dm\.recouple\(\)"):
        torch.jit.script(dm)
    with pytest.raises(dg.DniGraphError, match=r"a graph already.*dm\.recouple\(\)"):
        torch.fx.symbolic_trace(nn.Sequential(dm))


@pytest.mark.parametrize("capture", ["record", "hooks"])
def test_a_mode_that_is_set_on_the_model_or_through_another_that_decouples_it_is_followed(capture):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.randn(5, 4)
    one, other = (dg.decouple(model, "0", (x,), boundary="silent", capture=capture) for _ in range(2))

    def reaches_below():
        model.zero_grad()
        one(x).sum().backward()
        return model[0].weight.grad is not None

    assert not reaches_below()
    model.eval()
    assert reaches_below() and not one.training, "in eval mode boundaries do nothing"
    other.train()
    assert not reaches_below() and one.training
    other.eval()
    assert reaches_below()


def test_a_runner_sees_that_the_model_itself_was_set_to_eval_mode():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    dm = dg.decouple(model, "0", (torch.randn(5, 4),), condition=dg.one_hot(2))
    run = dg.Local(dm, loss=nn.functional.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    model.eval()

    with pytest.raises(dg.DniGraphError, match=r"the model is in eval mode: call dm\.train\(\)"):
        run.step(torch.randn(5, 4), target=torch.zeros(5, dtype=torch.long))
    model.train()
    run.step(torch.randn(5, 4), target=torch.zeros(5, dtype=torch.long))


def test_a_check_and_a_probe_see_the_mode_that_was_set_on_the_model_itself():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.randn(5, 4)
    dm = dg.decouple(model, "0", (x,), boundary="silent")
    model.eval()

    assert dg.check(dm, x).right
    assert not model.training and not dm.training
    with pytest.raises(dg.DniGraphError, match="a step of training"):
        dg.probe(dm, x, target=None, loss=lambda output, _: output.sum())
    model.train()
    dg.probe(dm, x, target=None, loss=lambda output, _: output.sum())


def test_the_plan_and_a_network_are_those_of_the_mode_that_was_set_on_the_model_itself():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2))
    x = torch.randn(5, 4)
    dm = dg.decouple(model, "0", (x,), condition=dg.one_hot(2))
    trained, evaluated = dm.specialization, dm.eval().specialization
    dm.train()

    model.eval()
    assert dm.specialization is evaluated and not dm.training
    model.train()
    assert dm.specialization is trained
    model.eval()
    assert dm.choose(x)[0] is evaluated
    net = dm.network(loss=nn.functional.cross_entropy)
    model.train()
    net.tick(x, torch.zeros(5, dtype=torch.long))
