"""The arguments that all runners take: optimisers of other parameters, things that are no optimisers, and the rest."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
X, Y = torch.ones(2, 4), torch.ones(2, 2)


def local(optimizer, model, **options):
    dm = dg.decouple(model, "0", (X,))
    return dg.Local(dm, loss=F.mse_loss, optimizer=optimizer, **options).step(X, target=Y)


def network(optimizer, model, **options):
    net = dg.Network(optimizer=optimizer).add("a", model[0]).add("b", model[1], loss=F.mse_loss, **options)
    return net.connect("a.output", "b.input").tick(X, Y)


def recurrent(optimizer, model, **options):
    options = {"horizon": 2, "loss": F.mse_loss, "readout": model[1], **options}
    return dg.Recurrent(nn.GRU(4, 4), optimizer=optimizer, **options).step(torch.ones(2, 3, 4), torch.ones(2, 3, 2))


RUNS = pytest.mark.parametrize("run", [local, network, recurrent])


def chain():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


OTHERS = {
    "of another model": lambda model: lambda p: torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1),
    "of biases only": lambda model: lambda p: torch.optim.SGD([q for q in p if q.ndim == 1] or p[:1], 0.1),
    "of the first one": lambda model: lambda p: torch.optim.Adam(p[:1]),
    "of copies": lambda model: lambda p: torch.optim.SGD([nn.Parameter(q.detach().clone()) for q in p], 0.1),
}


@RUNS
@pytest.mark.parametrize("which", OTHERS)
def test_an_optimiser_that_lacks_parameters_is_refused_with_their_names(run, which):
    model = chain()

    with pytest.raises(
        dg.DniGraphError, match=r"returned an optimiser of other parameters: it lacks .*(weight|bias)"
    ) as caught:
        run(OTHERS[which](model), model)

    assert "requires_grad_(False)" in str(caught.value)


@RUNS
def test_an_optimiser_of_the_whole_model_for_each_part_is_refused(run):
    """Each would be stepped with the others' gradients, too."""
    model = chain()

    with pytest.raises(dg.DniGraphError, match="other parameters"):
        run(lambda p: torch.optim.SGD(list({*p, *model.parameters()}), 0.1), model)


@RUNS
def test_an_optimiser_may_hold_parameters_of_the_users_own(run):
    temperature = nn.Parameter(torch.ones(()))

    run(lambda p: torch.optim.SGD([{"params": p}, {"params": [temperature], "lr": 0.5}], 0.1), chain())


@RUNS
def test_what_is_no_maker_of_optimisers_is_refused(run):
    made = torch.optim.Adam(nn.Linear(2, 2).parameters())

    with pytest.raises(dg.DniGraphError, match="not a Adam that is made already: optimizer=lambda params: Adam"):
        run(made, chain())
    with pytest.raises(dg.DniGraphError, match="must return a torch optimiser, not a list"):
        run(lambda p: p, chain())
    with pytest.raises(dg.DniGraphError, match=r"optimizer\(...\) of .* failed: TypeError.*called with a list"):
        run(lambda: 0, chain())
    with pytest.raises(dg.DniGraphError, match=r"optimizer='adam'"):
        run("adam", chain())


@RUNS
@pytest.mark.parametrize(
    ("options", "words"),
    [({"clip": "1"}, "clip='1'"), ({"clip": -2}, "clip=-2"), ({"clip": True}, "clip=True")],
    ids=["text", "negative", "bool"],
)
def test_options_that_do_not_fit_are_named(run, options, words):
    with pytest.raises(dg.DniGraphError, match=words):
        run(lambda p: torch.optim.SGD(p, 0.1), chain(), **options)


def test_all_that_is_wrong_with_a_recurrent_run_is_said_at_once():
    with pytest.raises(dg.RecurrentError) as caught:
        dg.Recurrent(
            nn.GRU(4, 4, bidirectional=True), horizon=0, loss=nn.MSELoss, optimizer={"core": 3, "haeds": len},
            clip={"c": 1}, scheduler=5, monitor=-1, initial=torch.zeros(3),
        )  # fmt: skip

    for words in ("bidirectional", "horizon=0", "loss=MSELoss is a class", "optimizer=3", "'haeds'; nearest: heads",
                  "nothing called 'c'", "scheduler=5", "monitor=-1", "initial=tensor"):  # fmt: skip
        assert words in str(caught.value)


@pytest.mark.parametrize("feedback", ["memory", ["memory"], 3])
def test_feedback_that_is_no_dict_is_refused(feedback):
    with pytest.raises(dg.RecurrentError, match=r"feedback=.* is no dict"):
        dg.Recurrent(chain(), horizon=2, loss=F.mse_loss, optimizer=torch.optim.Adam, feedback=feedback)


class Searching(torch.optim.SGD):
    def step(self, closure):  # as second order optimisers have it
        return super().step(closure)


@RUNS
@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Searching])
def test_an_optimiser_that_computes_the_loss_again_is_refused_with_the_way_out(run, kind):
    with pytest.raises(dg.DniGraphError, match=rf"is {kind.__name__}, whose step computes the loss again.*drop-in"):
        run(lambda params: kind(params, 0.1), chain())


class Steps:
    """A run of each kind, step by step, on the same two layers: `model[0]` is below what is decoupled."""

    def __init__(self, kind, model):
        self.model = model
        if kind == "local":
            run = dg.Local(dg.decouple(model, "0", (X,)), loss=F.mse_loss, optimizer=sgd)
            self.step = lambda: run.step(X, target=Y)
        elif kind == "network":
            net = dg.Network(optimizer=sgd).add("a", model[0]).add("b", model[1], loss=F.mse_loss)
            self.step = lambda: net.connect("a.output", "b.input").tick(X, Y) if not net.links else net.tick(X, Y)
        else:
            core = nn.GRU(4, 4)
            core.requires_grad_(True)
            run = dg.Recurrent(core, horizon=2, loss=F.mse_loss, optimizer=sgd, readout=model)
            self.step = lambda: run.step(torch.ones(2, 3, 4), torch.ones(2, 3, 2))

    def moves(self, layer, times=2):
        """Whether a layer moves in so many steps, and how often the user was told of parameters without optimiser."""
        before = layer.weight.detach().clone()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(times):
                self.step()
        return not torch.equal(before, layer.weight), sum("no optimiser of this run" in str(w.message) for w in told)


def sgd(params):
    return torch.optim.SGD(params, 0.1)


KINDS = pytest.mark.parametrize("kind", ["local", "network", "recurrent"])


@KINDS
def test_layers_that_were_frozen_when_the_run_was_made_and_learn_later_are_told_of_once(kind):
    model = chain()
    model[1].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    if kind == "network":
        model[1].weight.requires_grad_(True)
    steps = Steps(kind, model)

    assert steps.moves(model[1])[1] == 0
    model.requires_grad_(True)
    assert steps.moves(model[1])[1] == 1
    assert steps.moves(model[1], times=12)[1] == 0


@KINDS
def test_layers_that_are_frozen_after_the_run_was_made_learn_as_soon_as_they_are_free(kind):
    model = chain()
    steps = Steps(kind, model)
    assert steps.moves(model[1]) == (True, 0)

    model[1].requires_grad_(False)
    model[1].bias.requires_grad_(kind == "network")  # an agent with a loss must have something to learn
    assert steps.moves(model[1]) == (False, 0)

    model.requires_grad_(True)
    assert steps.moves(model[1]) == (True, 0)


@KINDS
def test_a_weight_that_is_replaced_in_a_run_is_told_of_once(kind):
    model = chain()
    steps = Steps(kind, model)
    steps.moves(model[1])

    model[1].weight = nn.Parameter(torch.ones(2, 4))

    assert steps.moves(model[1], times=20) == (False, 1)


def test_a_module_that_is_replaced_is_told_of_in_the_step_in_which_it_comes():
    model = chain()
    steps = Steps("local", model)
    steps.moves(model[1])

    model[1] = nn.Linear(4, 2)

    assert steps.moves(model[1], times=1) == (False, 1)


@KINDS
def test_a_loss_that_carries_no_gradient_is_told_once_by_every_run(kind, monkeypatch):
    monkeypatch.setattr(F, "mse_loss", lambda output, target: (output.detach() - target).square().mean())
    steps = Steps(kind, chain())

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            steps.step()

    assert sum("the loss carries no gradient" in str(w.message) for w in told) == 1


@pytest.mark.parametrize("run", [local, recurrent])
def test_a_run_without_an_optimiser_is_refused_with_the_way_out(run):
    with pytest.raises(dg.DniGraphError, match=r"optimizer=None: give a function, optimizer=lambda params: "):
        run(None, chain())
