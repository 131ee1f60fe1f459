"""What a boundary declares that it needs: every runner hands it over, or says what is missing before it runs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, Chain, labels
from torch import nn

import dnigraph as dg
from dnigraph.boundaries import Boundary, Visit
from dnigraph.heads.seen import Inputs

X, Y = torch.randn(4, 6), labels(4)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


class Looks(Boundary):
    """Notes what it sees, and hands down the true gradient."""

    def __init__(self, spec, context, needs):
        super().__init__(spec, context)
        self.wants, self.found = frozenset(needs), []

    @property
    def needs(self):
        return self.wants

    def visit(self, value, seen):
        self.found.append(dict(seen.inputs))

        def settle(target):
            if "error" in self.wants:
                self.found.append(seen.error())
            return (target,)

        return Visit((value,), None, settle)


def looking(*needs):
    return lambda spec, context, head: Looks(spec, context, needs)


def cut(*needs, model=Chain, cuts=("bn", "fc2"), x=X, **options):
    torch.manual_seed(0)
    return dg.decouple(model(), list(cuts), (x,), boundary=looking(*needs), **options)


def compiled(*needs):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, backend = Chain(), dg.Backend(["bn", "fc2"], boundary=looking(*needs))
    step = torch.compile(model, backend=backend)
    backend.prepare(step, X)
    return step, backend


def found_by_each_runner(*needs):
    """What the lower boundary finds in one step: drop-in, on hooks, in `Local`, in a network, compiled."""
    drop_in, hooked = cut(*needs), cut(*needs, capture="hooks")
    local, network, late = copy.deepcopy(drop_in), copy.deepcopy(drop_in), copy.deepcopy(drop_in)
    step, backend = compiled(*needs)
    for dm in (drop_in, hooked):
        with dm.conditioned(Y):
            F.cross_entropy(dm(X), Y).backward()
    dg.Local(local, loss=F.cross_entropy, optimizer=sgd).step(X, target=Y)
    network.network(loss=F.cross_entropy, optimizer=sgd).tick(X, Y)
    run = dg.Local(late, loss=F.cross_entropy, optimizer=sgd, late=1)
    run.step(X, target=Y)
    run.settle()
    with backend.conditioned(Y):
        F.cross_entropy(step(X), Y).backward()
    return [next(iter(m.boundaries.values())).found for m in (drop_in, hooked, local, network, late, backend)]


def test_every_runner_hands_over_the_inputs():
    for (inputs,) in found_by_each_runner("inputs"):
        assert list(inputs) == ["x"] and torch.equal(inputs["x"], X) and not inputs["x"].requires_grad


def test_every_runner_hands_over_the_error():
    torch.manual_seed(0)
    plain = Chain()
    output = plain(X)
    output.retain_grad()
    F.cross_entropy(output, Y).backward()

    for _, error in found_by_each_runner("error"):
        assert torch.equal(error, output.grad)


def test_inputs_are_there_only_where_a_boundary_declares_them():
    assert all(found == [{}] for found in found_by_each_runner())


def test_an_error_that_nobody_declared_is_an_error():
    dm = cut()
    visit = dm.boundaries["bn"].visit
    dm.boundaries["bn"].visit = lambda value, seen: (seen.error(), visit(value, seen))[1]

    with pytest.raises(dg.DniGraphError, match=r"declare it: needs = frozenset\(\{'error'\}\)"):
        dm(X)


def test_without_a_label_local_names_all_who_look_at_it_and_nothing_has_run():
    dm = cut("label")
    before = copy.deepcopy(dm.state_dict())

    with pytest.raises(dg.ConditionError, match=r"boundaries 'bn', 'fc2' look at the label: .*target= or a label="):
        dg.Local(dm, loss=lambda out, _: out.sum(), optimizer=sgd).step(X)

    assert all(torch.equal(value, before[name]) for name, value in dm.state_dict().items())


def test_without_a_label_a_forward_pass_runs_and_its_backward_pass_names_all():
    dm = cut("label")

    loss = dm(X).sum()
    with pytest.raises(dg.ConditionError, match="boundaries 'bn', 'fc2' look at the label"):
        loss.backward()


def test_without_a_label_a_network_does_not_tick():
    net = cut("label").network(loss=lambda out, _: out.sum(), optimizer=sgd)

    with pytest.raises(dg.NetworkError, match="looks at the label, and in tick 0 there is none for part_0"):
        net.tick(X)
    assert net.ticks == 0


@pytest.mark.parametrize("need", ["error", "after", "neighbours"])
def test_agents_wired_by_hand_have_no_model_around_them(need):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, CLASSES), loss=F.cross_entropy)
    net.connect("a.output", "b.input", boundary=looking(need))

    with pytest.raises(
        dg.NetworkError, match=f"'a.output'.*needs what cannot be had here.*needs '{need}'.*dg.decouple"
    ):
        net.validate(X)


def test_agents_wired_by_hand_have_the_networks_inputs():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, CLASSES), loss=F.cross_entropy)
    net.connect("a.output", "b.input", boundary=looking("inputs"))

    net.tick(X, Y)

    (boundary,) = net.boundaries.values()
    assert torch.equal(boundary.found[0]["a.input"], X)


def test_on_hooks_nobody_knows_the_layers_behind_a_cut():
    with pytest.raises(dg.BoundaryError, match=r"(?s)do not fit.*'bn'.*'after'.*not on hooks.*'fc2'.*needs 'after'"):
        cut("after", capture="hooks")


def test_a_need_that_there_is_not_is_told_with_the_nearest():
    with pytest.raises(dg.BoundaryError, match="needs that there are not: 'labels'; nearest: label; there are"):
        cut("labels", cuts=["bn"])


class Broken(Chain):
    def forward(self, x):
        h = F.relu(self.bn(self.fc1(x)))
        torch._dynamo.graph_break()
        return self.fc3(F.relu(self.fc2(h)))


@pytest.mark.filterwarnings("ignore::dnigraph.UnmatchedWarning", "ignore:The .grad attribute")
def test_where_torch_compile_breaks_the_graph_the_error_is_not_known():
    torch._dynamo.reset()
    backend = dg.Backend(["fc1"], boundary=looking("error"))

    with pytest.raises(dg.BoundaryError, match=r"boundaries fc1 look at the error.*in 2 graphs.*fullgraph=True"):
        torch.compile(Broken(), backend=backend)(X)


def test_the_error_of_several_outputs_stands_side_by_side():
    class Two(Chain):
        def forward(self, x):
            h = F.relu(self.bn(self.fc1(x)))
            return {"a": self.fc2(h), "b": self.fc3(F.relu(self.fc2(h))), "unread": h}

    dm = cut("error", model=Two, cuts=["bn"])
    made = dm(X)
    (made["a"].sum() + 2 * made["b"].sum()).backward()

    error = dm.boundaries["bn"].found[1]
    assert torch.equal(error, torch.cat([torch.ones(4, 8), 2 * torch.ones(4, CLASSES), torch.zeros(4, 8)], 1))


def test_a_loss_among_the_outputs_is_none_of_them():
    class Scored(Chain):
        def forward(self, x):
            scores = super().forward(x)
            return scores, F.cross_entropy(scores, Y)

    dm = cut("error", model=Scored, cuts=["bn"])
    dm(X)[0].sum().backward()

    assert torch.equal(dm.boundaries["bn"].found[1], torch.ones(4, CLASSES))


def test_a_crossing_knows_its_module_its_neighbours_and_the_models_inputs():
    dm = cut()
    lower, upper = dm.boundaries["bn"], dm.boundaries["fc2"]

    assert (lower.spec.module, upper.spec.module) == ("bn", "fc2")
    assert (lower.below, lower.above, upper.below, upper.above) == ([], [upper], [lower], [])
    assert {name: (t.shape, t.device.type) for name, t in upper.spec.inputs.items()} == {"x": (X.shape, "meta")}
    copied = copy.deepcopy(dm)
    assert copied.boundaries["bn"].above == [copied.boundaries["fc2"]]


def test_a_visit_that_takes_no_second_argument_is_refused():
    class Old(Boundary):
        def visit(self, value):
            return Visit((value,), None, lambda target: (target,))

    with pytest.raises(dg.BoundaryError, match=r"'bn': Old\.visit: .*def visit\(self, value, seen\)"):
        dg.decouple(Chain(), "bn", (X,), boundary=lambda spec, context, head: Old(spec, context))


def test_a_kind_is_made_of_the_classs_name():
    class MyOwnRule(Looks):
        pass

    class Named(Looks):
        kind = "named"

    class MoreNamed(Named):
        pass

    assert (Looks.kind, MyOwnRule.kind, Named.kind, MoreNamed.kind) == ("looks", "looks", "named", "named")


def test_a_boundary_that_is_made_finds_those_below_it():
    found = []

    class Below(Looks):
        def __init__(self, spec, context, needs):
            super().__init__(spec, context, needs)
            found.append([below.spec.name for below in self.below])

    dg.decouple(Chain(), ["bn", "fc2"], (X,), boundary=lambda spec, context, head: Below(spec, context, ["neighbours"]))

    assert found == [[], ["bn"]]


def test_two_models_of_one_backend_keep_their_boundaries_apart():
    torch._dynamo.reset()
    backend = dg.Backend(["bn", "fc2"], boundary=looking("neighbours"))
    models = [Chain(), Chain()]
    for model in models:
        backend.prepare(torch.compile(model, backend=backend), X)

    for model in models:
        lower, upper = backend.of(model).boundaries.values()
        assert lower.above == [upper] and upper.below == [lower]


@pytest.mark.parametrize(("boundary", "p"), [({"bn": "dfa", "fc2": "local-loss"}, 1.0), ("dfa", 0.5)])
def test_threads_are_refused_where_the_error_may_come_too_late(boundary, p):
    dm = dg.decouple(Chain(), ["bn", "fc2"], (X,), condition=dg.one_hot(CLASSES), boundary=boundary)
    net = dm.network(loss=F.cross_entropy, optimizer=sgd, p_update=p)
    net.tick(X, Y)

    with pytest.raises(dg.NetworkError, match=r"bn.* the error at the outputs, and .* run it without threads"):
        net.run([(X, Y)], threads=True)


class FromError(Looks):
    """A head says the gradient at once, and is taught by the error at the outputs."""

    waits = False

    def __init__(self, spec, context):
        super().__init__(spec, context, {"error"})
        self.head = nn.Linear(spec.width, CLASSES)

    def visit(self, value, seen):
        estimate = self.head(value.detach())
        given = (estimate @ self.head.weight).detach()
        return Visit((value, estimate), (given, None), lambda target: (None, estimate.detach() - seen.error()))


@pytest.mark.parametrize("below", ["dfa", lambda spec, context, head: FromError(spec, context)])
@pytest.mark.parametrize("above", ["local-loss", "silent", "dni", "dfa", "oracle"])
def test_below_boundaries_of_all_kinds_the_error_is_the_same_in_each_runner(above, below):
    options = {"condition": dg.one_hot(CLASSES), "boundary": {"bn": below, "fc2": above}}
    torch.manual_seed(0)
    dm = dg.decouple(Chain(), ["bn", "fc2"], (X,), **options)
    local, network = copy.deepcopy(dm), copy.deepcopy(dm)
    with dm.conditioned(Y):
        F.cross_entropy(dm(X), Y).backward()
    sgd(dm.parameters()).step()
    dg.Local(local, loss=F.cross_entropy, optimizer=sgd).step(X, target=Y)
    network.network(loss=F.cross_entropy, optimizer=sgd).tick(X, Y)

    for other in (local, network):
        assert all(torch.equal(a, b) for a, b in zip(dm.parameters(), other.parameters(), strict=True))


class HeadOfInputs(Looks):
    """A head that is taught when the answer comes, by what was seen in its visit."""

    def __init__(self, spec, context, needs):
        super().__init__(spec, context, needs)
        self.head = nn.Linear(6, spec.width)

    def visit(self, value, seen):
        estimate = self.head(seen.inputs[0])
        self.found.append((seen.inputs[0], seen.label))
        return Visit((value, estimate), (estimate.detach(), None), lambda target: (None, estimate.detach() - target))


def test_what_was_seen_is_there_again_when_an_answer_comes_late_also_from_a_checkpoint(tmp_path):
    def made():
        torch.manual_seed(0)
        make = lambda spec, context, head: HeadOfInputs(spec, context, {"inputs", "label"})  # noqa: E731
        dm = dg.decouple(Chain(), "bn", (X,), boundary=make)
        return dm, dm.network(loss=F.cross_entropy, optimizer=sgd, late=1)

    (one, net), (other, loaded) = made(), made()
    batches = [(torch.randn(4, 6), torch.randint(CLASSES, (4,))) for _ in range(3)]
    net.tick(*batches[0])
    net.save(tmp_path / "net.pt")
    loaded.load(tmp_path / "net.pt", batches[0][0])
    for run in (net, loaded):
        for batch in batches[1:]:
            run.tick(*batch)
        run.settle()

    found = other.boundaries["bn"].found
    assert any(x is not batches[0][0] and torch.equal(x, batches[0][0]) and y.equal(batches[0][1]) for x, y in found)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_is_wrong_at_every_crossing_is_told_once():
    with pytest.raises(dg.BoundaryError, match=r"^there is no boundary 'no such'") as error:
        dg.decouple(Chain(), ["bn", "fc2"], (X,), boundary="no such")

    assert str(error.value).count("no such") == 1


def test_inputs_are_found_by_name_and_position_and_others_are_told():
    inputs = Inputs({"a": X, "input_1": Y})

    assert inputs[0] is inputs["a"] is X and inputs[-1] is Y and list(inputs) == ["a", "input_1"]
    assert "b" not in inputs and inputs.get("b") is None
    for name in ("input", 2):
        with pytest.raises(KeyError, match=f"there is no input {name!r} here.*there are a, input_1"):
            inputs[name]
