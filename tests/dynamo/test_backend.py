"""The backend of torch.compile. What Dynamo remembers is thrown away between the tests."""

import copy
import gc
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, ZOO, Chain, labels, loss_of
from torch import nn

import dnigraph as dg
from dnigraph.boundaries import Boundary, Visit
from dnigraph.passes.capture.dynamo_graph import spelled_path

ONE_HOT = dg.one_hot(CLASSES)
# Dynamo's own: of autograd functions, and of values that come from another graph.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()


class Halved(Boundary):
    """A wrong head: half of the true gradient."""

    kind = "halved"

    def visit(self, value, seen):
        return Visit((value,), None, lambda target: (target / 2,))


def halved(spec, context, head):
    return Halved(spec, context)


def compiled_chain(cuts=("bn", "fc2"), **options):
    dni = dg.Backend(list(cuts), **{"condition": ONE_HOT, "boundary": "dni", **options})
    model = Chain()
    return model, torch.compile(model, backend=dni), dni


def step(model, args, seed=1):
    torch.manual_seed(seed)
    output = model(*args)
    loss_of(output, labels(args[0].shape[0])).backward()
    return output, torch.get_rng_state()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def same(found, expected):
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(found, expected, strict=True)
    )


# ---- the same function


@pytest.mark.parametrize(
    "name",
    [
        "chain",
        "resnet",
        "unet_with_skips_over_several_cuts",
        "a_module_called_twice",
        "tied_weights_and_a_mask_for_all",
        "marked_by_its_author",
        "regions_and_a_function_of_its_own",
        "early_exit",
    ],
)
def test_with_oracles_outputs_gradients_buffers_and_random_numbers_are_those_of_eager(name):
    model, args, cuts = ZOO[name]()
    reference = copy.deepcopy(model)
    dni = dg.Backend(cuts, boundary="oracle")
    compiled = torch.compile(model, backend=dni)

    output, state = step(compiled, args)
    expected, expected_state = step(reference, args)

    assert sum(len(plan.parts) for plan in dni.plans) > 1 and not dni.unmatched
    found, wanted = torch.utils._pytree.tree_leaves(output), torch.utils._pytree.tree_leaves(expected)
    assert same(found, wanted) and torch.equal(state, expected_state)
    assert same(model.buffers(), reference.buffers())
    for (path, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6, msg=lambda m, path=path: f"{path}: {m}")


def test_a_wrong_head_is_felt_below_the_cut_and_only_there():
    model, compiled, _ = compiled_chain(["fc2"], boundary=halved)
    reference = copy.deepcopy(model)
    x = torch.randn(4, 6)

    step(compiled, (x,))
    step(reference, (x,))

    got, true = gradients(model), gradients(reference)
    assert torch.equal(got["fc3.weight"], true["fc3.weight"])
    assert torch.allclose(got["fc2.weight"] * 2, true["fc2.weight"])
    assert torch.allclose(got["fc1.weight"] * 2, true["fc1.weight"])
    assert true["fc1.weight"].ne(0).any()


def test_heads_learn_and_what_they_say_trains_the_parts_below():
    model, compiled, dni = compiled_chain(boundary=dg.dni(guard=False))
    x, y = torch.randn(4, 6), labels(4)
    dni.prepare(compiled, x)
    optimizer = torch.optim.Adam([*model.parameters(), *dni.parameters()], 1e-2)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    heads = [p.detach().clone() for p in dni.parameters()]

    for _ in range(3):
        optimizer.zero_grad()
        with dni.conditioned(y):
            loss = F.cross_entropy(compiled(x), y)
        loss.backward()
        optimizer.step()

    assert any(not torch.equal(p, q) for p, q in zip(dni.parameters(), heads, strict=True))
    assert all(not torch.equal(p, first[name]) for name, p in model.named_parameters() if name != "fc1.bias")
    assert {"cosine", "error", "target_rms"} <= dni.boundaries["fc2"].metrics().keys()


def test_making_heads_changes_nobody_elses_random_numbers():
    model, args, cuts = ZOO["resnet"]()
    reference = copy.deepcopy(model)
    dni = dg.Backend(cuts, condition=ONE_HOT)

    with dni.conditioned(labels(4)):
        output, state = step(torch.compile(model, backend=dni), args)
    expected, expected_state = step(reference, args)

    assert list(dni.parameters()) and torch.equal(output, expected) and torch.equal(state, expected_state)


def test_without_gradient_and_in_eval_mode_it_is_the_plain_model():
    model, compiled, dni = compiled_chain(boundary=halved)
    reference = copy.deepcopy(model)
    x = torch.randn(4, 6)

    with torch.no_grad():
        silent = compiled(x), reference(x)
    with pytest.raises(dg.DniGraphError, match="no graph has been captured yet"):
        _ = dni.boundaries
    compiled.eval(), reference.eval()
    step(compiled, (x,)), step(reference, (x,))

    assert torch.equal(*silent)
    assert same(gradients(model).values(), gradients(reference).values())


# ---- recompilation


def test_heads_are_kept_over_batch_sizes_and_modes():
    _, compiled, dni = compiled_chain()
    dni.prepare(compiled, torch.randn(4, 6))
    made = dict(dni.boundaries)

    for batch in (5, 7, 3):
        with dni.conditioned(labels(batch)):
            step(compiled, (torch.randn(batch, 6),))
    compiled.eval()
    with torch.no_grad():
        compiled(torch.randn(6, 6))
    compiled.train()
    torch._dynamo.reset()
    with dni.conditioned(labels(2)):
        step(compiled, (torch.randn(2, 6),))

    assert {name: id(b) for name, b in dni.boundaries.items()} == {name: id(b) for name, b in made.items()}
    assert [b.visits.item() for b in made.values()] == [4, 4]


class Reshaping(nn.Module):
    """Sizes are computed beside the cut, and one of them crosses it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, CLASSES)

    def forward(self, x):
        half = x.shape[0] * 2
        h = self.a(x) * 2
        g = self.b((h * 3).view(half, 3))
        return g.view(half // 2, 2, CLASSES).sum(1)


def test_sizes_cross_as_they_are_and_do_not_change_the_names_of_what_computes():
    model = Reshaping()
    dni = dg.Backend(lambda node: node.name == "mul", boundary=halved)
    compiled = torch.compile(model, backend=dni, dynamic=None)
    reference = copy.deepcopy(model)

    for batch in (4, 5, 6):
        x = torch.randn(batch, 4)
        step(compiled, (x,)), step(reference, (x,))

    assert list(dni.boundaries) == ["mul"]
    assert torch.allclose(model.a.weight.grad * 2, reference.a.weight.grad)
    assert torch.allclose(model.b.weight.grad, reference.b.weight.grad)


class Squared(nn.Module):
    """What its first layer costs grows with the square of the batch, what the others cost with the batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(CLASSES, CLASSES) for _ in range(4))

    def forward(self, x):
        h = self.layers[0](x) + (x @ x.T).mean()
        for layer in self.layers[1:]:
            h = layer(h)
        return h


def test_balanced_cuts_stay_where_they_are_when_the_batch_grows():
    model, other = Squared(), Squared()
    dni, fresh = dg.Backend(2, boundary="oracle"), dg.Backend(2, boundary="oracle")
    compiled = torch.compile(model, backend=dni)

    step(compiled, (torch.randn(4, CLASSES),))
    names = list(dni.boundaries)
    step(compiled, (torch.randn(400, CLASSES),))
    step(torch.compile(other, backend=fresh), (torch.randn(400, CLASSES),))

    assert list(dni.boundaries) == names != list(fresh.boundaries)


def test_what_draws_random_numbers_is_known_without_drawing_any():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4))
    dni = dg.Backend(lambda node: node.meta["random"], boundary="oracle")

    torch.compile(model, backend=dni)(torch.randn(2, 4))

    assert list(dni.boundaries) == ["1"]


# ---- one graph for several instances, several graphs for one model


def test_two_models_with_one_backend_have_heads_of_their_own():
    dni = dg.Backend(["fc2"], condition=ONE_HOT, boundary="dni")
    models = [Chain(), Chain()]
    compiled = [torch.compile(model, backend=dni) for model in models]
    for one in compiled:
        dni.prepare(one, torch.randn(4, 6))

    with dni.conditioned(labels(4)):
        step(compiled[1], (torch.randn(4, 6),))

    first, second = (dni.of(model).boundaries["fc2"] for model in models)
    assert first is not second and (first.visits.item(), second.visits.item()) == (0, 1)
    assert len(list(dni.parameters())) == 2 * len(list(first.parameters()))
    with pytest.raises(dg.DniGraphError, match=r"serves 2 models: say backend.of\(model\)"):
        _ = dni.boundaries


class Broken(nn.Module):
    """Dynamo cannot see through the middle of its forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        torch._dynamo.graph_break()
        return self.c(torch.relu(self.b(x)))


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Broken() for _ in range(3))
        self.top = nn.Linear(4, CLASSES)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.top(x)


def test_blocks_that_share_one_captured_graph_are_cut_each_by_its_own_path():
    model = Blocks()
    dni = dg.Backend("blocks.1.b", boundary=halved)
    compiled = torch.compile(model, backend=dni)
    reference = copy.deepcopy(model)
    x = torch.randn(4, 4)

    step(compiled, (x,)), step(reference, (x,))

    assert list(dni.boundaries) == ["blocks.1.b"] and not dni.unmatched
    got, true = gradients(model), gradients(reference)
    halves = [name for name in got if not torch.equal(got[name], true[name])]
    assert all(torch.allclose(got[name] * 2, true[name]) for name in halves)
    assert {name.rpartition(".")[0] for name in halves} == {f"blocks.0.{c}" for c in "abc"} | {
        "blocks.1.a",
        "blocks.1.b",
    }


def test_values_of_the_same_name_in_different_graphs_have_heads_of_their_own():
    dni = dg.Backend("relu", condition=ONE_HOT, boundary="dni")
    compiled = torch.compile(Blocks(), backend=dni)

    dni.prepare(compiled, torch.randn(4, 4))
    for batch in (4, 5):
        with dni.conditioned(labels(batch)):
            step(compiled, (torch.randn(batch, 4),))

    assert list(dni.boundaries) == ["relu", "relu@2", "relu@3"]
    assert [b.visits.item() for b in dni.boundaries.values()] == [2, 2, 2]


def test_a_cut_that_stands_in_no_graph_is_an_error_of_prepare_and_one_in_another_graph_is_none():
    dni = dg.Backend(["b", "bb", "c"])
    compiled = torch.compile(Broken(), backend=dni)

    with pytest.raises(dg.CutError) as raised, pytest.warns(dg.UnconditionedWarning):
        dni.prepare(compiled, torch.randn(2, 4))

    assert "2 cuts do not fit any of the 2 graph(s) that torch.compile captured of the model" in str(raised.value)
    assert "cut 'bb': the model has no such module, mark or node; nearest: b" in str(raised.value)
    assert "'c', which ends the model" in str(raised.value)
    assert list(dni.unmatched) == ["cut 'bb'", "cut 'c'"] and list(dni.boundaries) == ["b"]


def test_what_takes_over_a_value_from_another_graph_may_be_cut_though_it_has_no_parameters():
    class Marked(Broken):
        def forward(self, x):
            x = self.a(x)
            torch._dynamo.graph_break()
            return self.c(dg.cut(torch.relu(x), name="middle"))

    model = Marked()
    dni = dg.Backend("middle", boundary=halved)
    reference = copy.deepcopy(model)
    x = torch.randn(4, 4)

    step(torch.compile(model, backend=dni), (x,)), step(reference, (x,))

    assert torch.allclose(model.a.weight.grad * 2, reference.a.weight.grad)


def test_a_graph_that_cannot_be_cut_stays_whole_and_says_so():
    class Hooked(Broken):
        def forward(self, x):
            with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
                return self.c(self.a(x))

    model = Hooked()
    dni = dg.Backend("a", boundary=halved)
    reference = copy.deepcopy(model)
    x = torch.randn(4, 4)

    with pytest.warns(dg.UnmatchedWarning, match="stays whole, with true gradients: .* a region"):
        step(torch.compile(model, backend=dni), (x,))
    step(reference, (x,))

    assert same(gradients(model).values(), gradients(reference).values())
    assert len(dni.unmatched) == 1


class Transformed(nn.Module):
    """What torch.func maps, and what is computed again in the backward pass, random numbers included."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.Dropout()), nn.Linear(6, CLASSES)

    def forward(self, x):
        h = torch.vmap(lambda row: row * 2 + row.sum())(self.a(x))
        return self.c(torch.utils.checkpoint.checkpoint(self.b, h, use_reentrant=False))


def test_transforms_and_checkpoints_stay_whole_inside_their_parts():
    model = Transformed()
    reference = copy.deepcopy(model)
    dni = dg.Backend(["a", lambda node: "checkpoint" in node.name], boundary=halved)
    x = torch.randn(4, 4)

    output, state = step(torch.compile(model, backend=dni), (x,))
    expected, expected_state = step(reference, (x,))

    assert len(dni.plans[0].parts) == 3
    assert torch.equal(output, expected) and torch.equal(state, expected_state)
    assert torch.allclose(model.b[0].weight.grad * 2, reference.b[0].weight.grad)
    assert torch.allclose(model.a.weight.grad * 4, reference.a.weight.grad)


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("L['self']", ""),
        ("L['self'].fc", "fc"),
        ("L['self']._modules['h'].2", "h.2"),
        ("L['self'].__dict__['_modules']['h'].layers[0]", "h.layers.0"),
        ("L['model']._orig_mod.top", "top"),
    ],
)
def test_a_module_that_the_model_does_not_register_is_called_as_python_reaches_it(expression, path):
    assert spelled_path(expression) == path


# ---- marks, functions, parts


def test_a_mark_survives_dynamo_and_is_nothing_to_other_backends():
    model, args, cuts = ZOO["marked_by_its_author"]()
    dni = dg.Backend(cuts, boundary="oracle")

    torch.compile(model, backend=dni)(*args)
    torch._dynamo.reset()
    other = torch.compile(model, backend="aot_eager", fullgraph=True)(*args)

    assert [c.name for c in dni.plans[0].crossings if c.gradient] == ["middle"] or list(dni.boundaries)
    assert torch.equal(other, model(*args))


def test_a_compiled_function_needs_to_be_told_whose_paths_the_cuts_are():
    model, x = Chain(), torch.randn(4, 6)

    with pytest.raises(dg.DniGraphError, match=r"on a function: .* dg.Backend\(cuts, model=model\)"):
        torch.compile(lambda x: model(x), backend=dg.Backend("fc2"))(x)
    told = dg.Backend("fc2", boundary="oracle", model=model)
    told.prepare(torch.compile(lambda x: model(x) * 2, backend=told), x)

    assert list(told.boundaries) == ["fc2"]


def test_a_model_compiled_in_place_is_found_too():
    model, dni = Chain(), dg.Backend("fc2", boundary="oracle")
    model.compile(backend=dni)

    dni.prepare(model, torch.randn(4, 6))

    assert list(dni.boundaries) == ["fc2"]


def test_each_part_is_compiled_by_itself():
    seen = []

    def compiler(module, examples):
        seen.append([node for node in module.graph.nodes if node.target is F.linear])
        return module

    model, compiled, _ = compiled_chain(compiler=compiler, boundary=halved)
    reference = copy.deepcopy(model)
    x = torch.randn(4, 6)

    step(compiled, (x,)), step(reference, (x,))

    assert [len(found) for found in seen] == [1, 1, 1]
    assert torch.allclose(model.fc2.weight.grad * 2, reference.fc2.weight.grad)
    assert torch.allclose(model.fc1.weight.grad * 4, reference.fc1.weight.grad)


# ---- by name, with options


def by_name(model, **options):
    from dnigraph.dynamo import dnigraph

    torch._dynamo.register_backend(dnigraph, "dnigraph") if "dnigraph" not in torch._dynamo.list_backends(()) else None
    return torch.compile(model, backend="dnigraph", options=options or None)


def test_by_its_name_the_backend_takes_options_and_can_be_asked_for():
    one, other = Chain(), Chain()
    compiled = by_name(one, cuts="fc2", condition=ONE_HOT), by_name(other, cuts="bn", boundary="oracle")
    x = torch.randn(4, 6)

    for each in compiled:
        each(x)

    assert list(dg.backend_of(compiled[0]).boundaries) == ["fc2"]
    assert list(dg.backend_of(other).boundaries) == ["bn"]


def test_an_unknown_option_is_named_with_its_neighbours():
    with pytest.raises(Exception, match="there is no option 'cut'; nearest: cuts") as raised:
        by_name(Chain(), cut="fc2")(torch.randn(4, 6))

    assert isinstance(raised.value.inner_exception, dg.DniGraphError)
    with pytest.raises(dg.DniGraphError, match="there is no compiler 'indutor'; nearest: inductor"):
        dg.Backend("fc2", compiler="indutor")


def test_an_installation_registers_the_backend_by_its_name():
    try:
        points = distribution("dnigraph").entry_points.select(group="torch_dynamo_backends")
    except PackageNotFoundError:
        pytest.skip("not installed, only found in the working directory")

    assert [point.value for point in points] == ["dnigraph.dynamo:dnigraph"]


# ---- what a user is told


def test_prepare_leaves_model_and_random_numbers_as_they_were():
    model, compiled, dni = compiled_chain()
    model.eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    dni.prepare(compiled, torch.randn(4, 6, generator=torch.Generator()))

    assert same(model.state_dict().values(), state.values()) and torch.equal(torch.get_rng_state(), random)
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_asking_for_heads_too_early_says_what_to_do():
    model, compiled, dni = compiled_chain()

    for ask in (dni.parameters, dni.state_dict, lambda: dni.of(model)):
        with pytest.raises(dg.DniGraphError, match=r"call backend.prepare\(compiled, x\)"):
            ask()
    with pytest.raises(dg.DniGraphError, match="call the compiled model once"):
        dg.backend_of(compiled)


def test_heads_without_a_label_are_warned_of():
    _, compiled, dni = compiled_chain(condition=None)

    with pytest.warns(dg.UnconditionedWarning, match=r"backend.conditioned\(label\)"):
        dni.prepare(compiled, torch.randn(4, 6))


def test_a_model_of_which_dynamo_captures_nothing_is_refused():
    class Unseen(Chain):
        forward = torch.compiler.disable(Chain.forward)

    dni = dg.Backend("fc2")

    with pytest.raises(dg.DniGraphError, match="Dynamo captured no graph of this call"):
        dni.prepare(torch.compile(Unseen(), backend=dni), torch.randn(4, 6))


def test_who_never_asks_for_the_heads_or_cuts_where_nothing_is_hears_of_it_after_some_steps():
    _, compiled, dni = compiled_chain(["fc2", "fc9"])
    x = torch.randn(4, 6)

    with warnings.catch_warnings(record=True) as told, dni.conditioned(labels(4)):
        warnings.simplefilter("always", dg.UnmatchedWarning)
        for _ in range(4):
            step(compiled, (x,))

    said = "\n".join(str(warning.message) for warning in told)
    assert "give backend.parameters() to the optimiser" in said and "cut 'fc9': the model has no such module" in said
    assert len(told) == 2


class TwoWays(Chain):
    def forward(self, x, far=False):
        h = self.bn(self.fc1(x))
        return self.fc3(self.fc2(h)) if far else self.fc3(h)


def test_a_boundary_that_a_later_graph_brings_is_told_to_the_optimiser():
    model = TwoWays()
    dni = dg.Backend(["bn", "fc2"], condition=ONE_HOT)
    compiled = torch.compile(model, backend=dni)
    compiled(torch.randn(4, 6))
    list(dni.parameters())

    with pytest.warns(dg.UnmatchedWarning, match="boundaries on fc2: add their parameters to the optimiser"):
        compiled(torch.randn(4, 6), far=True)


def test_choices_for_crossings_that_there_are_not_are_named():
    _, compiled, dni = compiled_chain(head={"fc3": "linear"})

    with pytest.raises(dg.DniGraphError, match="head=: no crossing is called 'fc3'"):
        dni.prepare(compiled, torch.randn(4, 6))


def test_heads_go_into_a_checkpoint_and_come_back():
    _, compiled, dni = compiled_chain()
    dni.prepare(compiled, torch.randn(4, 6))
    with dni.conditioned(labels(4)):
        step(compiled, (torch.randn(4, 6),))
    _, fresh, again = compiled_chain()
    again.prepare(fresh, torch.randn(4, 6))

    again.load_state_dict(dni.state_dict())

    assert again.boundaries["bn"].visits.item() == 1
    assert same(again.state_dict().values(), dni.state_dict().values())


def test_importing_the_library_does_not_import_dynamo_and_recording_leaves_it_as_it_is():
    code = (
        "import sys, torch, dnigraph as dg; assert 'torch._dynamo' not in sys.modules;"
        "dg.decouple(torch.nn.Linear(2, 2), [], (torch.ones(1, 2),), check=False);"
        "from torch._dynamo.trace_rules import is_builtin_callable; assert is_builtin_callable(len)"
    )

    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_model_that_is_gone_takes_its_heads_with_it():
    model, compiled, dni = compiled_chain()
    dni.prepare(compiled, torch.randn(4, 6))

    del model, compiled
    gc.collect()

    with pytest.raises(dg.DniGraphError, match="no graph has been captured yet"):
        dni.parameters()
