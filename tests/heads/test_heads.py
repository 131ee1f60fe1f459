"""Heads: silent at first, of the right shape everywhere, and able to learn what they are for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dnigraph.boundaries import BoundaryError, dni, make_boundary
from dnigraph.heads import CrossingSpec, HeadError, conv, linear, low_rank, make_head, mlp, tokens
from dnigraph.heads.conditions import ConditionError, Context, embedded, one_hot
from dnigraph.heads.layers import GAIN, Normalise, beside

SHAPES = {
    "number": (),
    "batch": (8,),
    "features": (8, 6),
    "tokens": (8, 5, 6),
    "maps": (8, 4, 7, 7),
    "volumes": (8, 4, 3, 5, 5),
    "beyond": (8, 2, 2, 2, 2, 3),
}
FITTING = [
    *(("auto", shape) for shape in SHAPES),
    *((name, shape) for name in ("linear", "low-rank", "mlp") for shape in ("number", "batch", "features", "tokens")),
    *(("conv", shape) for shape in ("maps", "volumes")),
    *(("tokens", shape) for shape in ("tokens", "maps", "volumes", "beyond")),
]
MISFITTING = [
    ("conv", "features"),
    ("conv", "tokens"),
    ("tokens", "features"),
    ("mlp", "maps"),
    ("linear", "maps"),
    ("low-rank", "volumes"),
]


def spec(shape=(8, 6), condition=None, dtype=torch.float32) -> CrossingSpec:
    return CrossingSpec("layer2", tuple(shape), dtype, torch.device("cpu"), condition)


# ---- every head on every shape that it fits


@pytest.mark.parametrize("condition", [None, one_hot(3), embedded(3, 2)], ids=["plain", "one_hot", "embedded"])
@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_a_head_starts_silent_and_keeps_the_shape(name, shape, condition):
    shape = SHAPES[shape]
    head = make_head(name, spec(shape, condition))
    label = torch.zeros(shape[:1] or (1,), dtype=torch.long)

    estimate = head(torch.randn(shape), label if condition else None)

    assert estimate.shape == torch.Size(shape)
    assert estimate.eq(0).all()
    assert head.output.weight.eq(0).all() and head.output.bias.eq(0).all()
    assert (head.condition is None) == (condition is None)


@pytest.mark.parametrize(("name", "shape"), MISFITTING)
def test_a_head_that_does_not_fit_says_which_does(name, shape):
    with pytest.raises(HeadError, match=rf"head '{name}' does not fit boundary 'layer2'.*use .*'auto'"):
        make_head(name, spec(SHAPES[shape]))


@pytest.mark.parametrize("condition", [None, one_hot(3), embedded(3, 2)], ids=["plain", "one_hot", "embedded"])
@pytest.mark.parametrize(("name", "shape"), [case for case in FITTING if case[1] not in ("number", "batch")])
def test_every_weight_of_a_head_learns(name, shape, condition):
    torch.manual_seed(0)
    shape = SHAPES[shape]
    head = make_head(name, spec(shape, condition))
    before = {key: value.detach().clone() for key, value in head.named_parameters()}
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)

    for _ in range(3):
        optimiser.zero_grad()
        label = torch.randint(3, shape[:1]) if condition else None
        F.mse_loss(head(torch.randn(shape), label), torch.randn(shape)).backward()
        optimiser.step()

    assert [key for key, value in head.named_parameters() if value.equal(before[key])] == []


@pytest.mark.parametrize(("name", "shape"), [("mlp", "features"), ("tokens", "tokens"), ("conv", "maps")])
def test_a_head_learns_what_depends_on_the_label_and_the_value_together(name, shape):
    torch.manual_seed(0)
    shape = (64, *SHAPES[shape][1:])
    head = make_head(name, spec(shape, one_hot(2)))
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)

    for _ in range(200):
        value, label = torch.randn(shape), torch.randint(2, (64,))
        sign = (label * 2.0 - 1).view(-1, *[1] * (len(shape) - 1))
        error = F.mse_loss(head(value, label), value * sign)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()

    assert error < 0.6  # 1 is what saying nothing gets; neither the label nor the value alone gets below it


@pytest.mark.parametrize(
    ("shape", "positions"), [((8, 5, 6), (5,)), ((8, 5, 6), (3,)), ((8, 6), (4,)), ((8, 4, 7, 7), (14, 14))]
)
def test_a_label_may_have_positions(shape, positions):
    head = make_head("auto", spec(shape, one_hot(3)))
    head.output.weight.data.normal_()
    value = torch.randn(shape)

    label = torch.randint(3, (8, *positions))
    first, again = head(value, label), head(value, (label + 1) % 3)

    assert first.shape == value.shape
    assert first.ne(again).any()


def test_a_label_per_token_reaches_only_its_token():
    head = make_head("tokens", spec((8, 5, 6), one_hot(3)))
    head.output.weight.data.normal_()
    head.hidden[0].norm = nn.Identity()  # the statistics of a batch tie all its tokens together
    value, label = torch.randn(8, 5, 6), torch.zeros(8, 5, dtype=torch.long)
    other = label.clone()
    other[:, 2] = 1

    differs = head(value, label).ne(head(value, other)).any(-1).any(0)

    assert differs.tolist() == [False, False, True, False, False]


def test_soft_labels_lie_between_hard_ones():
    head = make_head("linear", spec(condition=one_hot(2)))
    head.shift.table.data.normal_()
    value = torch.randn(8, 6)

    def said(*shares):
        return head(value, torch.tensor([shares]).expand(8, 2))

    assert torch.allclose(said(0.5, 0.5), (said(1.0, 0.0) + said(0.0, 1.0)) / 2, atol=1e-6)
    assert said(1.0, 0.0).equal(head(value, torch.zeros(8, dtype=torch.long)))


def test_an_ignored_label_shifts_nothing():
    head = make_head("linear", spec(condition=one_hot(2)))
    head.shift.table.data[:-1].normal_()

    said = head(torch.zeros(2, 6), torch.tensor([-100, 0]))
    said.sum().backward()

    assert said.ne(0).any(1).tolist() == [False, True]
    assert head.shift.table.grad.ne(0).any(1).tolist() == [True, False, False]
    assert make_head("mlp", spec(condition=one_hot(2))).shift.table[-1].eq(0).all()


def test_a_batch_of_one_is_normalised_by_what_came_before():
    torch.manual_seed(0)
    norm = Normalise(3)
    for _ in range(200):
        norm(torch.randn(64, 3) * 2 + 5)

    assert torch.allclose(norm(torch.full((1, 3), 7.0)), torch.ones(1, 3), atol=0.2)


def test_the_first_layer_starts_smaller_by_gain():
    # under Adam all steps have one size, and a normalisation hides the size of the weights: smaller ones learn faster
    head = make_head(mlp(hidden=64), spec((8, 64)))

    largest = head.hidden[0].layer.weight.abs().max()

    assert 0.99 / 8 / GAIN < largest <= 1 / 8 / GAIN  # torch draws from +-1 / sqrt(width)


# ---- choosing


@pytest.mark.parametrize(
    ("choice", "shape", "name"),
    [
        ("auto", (8, 256), "mlp 128"),
        ("auto", (8, 32), "mlp 32"),
        ("auto", (8, 4096), "low-rank 64"),
        ("auto", (8, 12, 512), "tokens 256"),
        ("auto", (8, 16, 7, 7), "conv 3x3 16 x 16"),
        ("linear", (8, 6), "linear"),
        (linear(), (8, 6), "linear"),
        (mlp(hidden=10, layers=2), (8, 6), "mlp 10 x 10"),
        (low_rank(rank=4), (8, 6), "low-rank 4"),
        (conv(channels=5, layers=1, kernel=5), (8, 4, 7, 7), "conv 5x5 5"),
        (tokens(hidden=3), (8, 5, 6), "tokens 3"),
    ],
)
def test_a_choice_makes_the_head_that_it_names(choice, shape, name):
    assert make_head(choice, spec(shape)).name == name


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("mpl", "there is no head 'mpl'; nearest: mlp.*choose one of auto, linear"),
        (nn.Linear(6, 6), r"ready module.*head=lambda spec"),
        (7, "a head is a name or a callable.*not 7"),
        (lambda spec: "linear", "'layer2' must make an nn.Module, but made str"),
    ],
)
def test_a_choice_that_is_no_head_says_the_way_out(choice, words):
    with pytest.raises(HeadError, match=words):
        make_head(choice, spec())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mlp(hidden=0), "mlp: .*hidden=0"),
        (lambda: low_rank(rank=-1), "low_rank: .*rank=-1"),
        (lambda: conv(channels=2.5, layers=0), "conv: .*channels=2.5, layers=0"),
        (lambda: conv(kernel=4), "kernel must be odd.*4"),
        (lambda: tokens(hidden=True), "tokens: .*hidden=True"),
    ],
)
def test_sizes_that_make_no_sense_are_named(make, words):
    with pytest.raises(HeadError, match=words):
        make()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.long])
def test_only_real_numbers_have_predicted_gradients(dtype):
    with pytest.raises(HeadError, match=r"real numbers.*oracle"):
        make_head("auto", spec(dtype=dtype))


# ---- heads of a user


class Both(nn.Module):
    def __init__(self, width=6, sees=3):
        super().__init__()
        self.map = nn.Linear(width + sees, width)

    def forward(self, value, condition):
        return self.map(torch.cat([value, condition], 1))


def test_a_users_head_gets_the_encoded_label_where_it_takes_two():
    head = make_head(lambda spec: Both(), spec(condition=one_hot(3)))
    value, label = torch.randn(8, 6), torch.randint(3, (8,))

    assert head(value, label).equal(head.module(value, F.one_hot(label, 3).float()))
    assert head.name == "Both"


def test_a_users_head_that_takes_one_gets_the_value():
    head = make_head(lambda spec: nn.Linear(spec.width, spec.width), spec(condition=one_hot(3)))
    value = torch.randn(8, 6)

    assert head.condition is None
    assert head(value, None).equal(head.module(value))
    assert head(value, torch.zeros(8, dtype=torch.long)).equal(head.module(value))  # a label that it does not ask for


def test_a_second_argument_with_a_default_is_only_given_with_a_condition():
    class Either(nn.Module):
        def forward(self, value, condition=None):
            return value * (2 if condition is None else 3)

    value = torch.randn(8, 6)

    assert make_head(lambda spec: Either(), spec())(value, None).equal(value * 2)
    conditioned = make_head(lambda spec: Either(), spec(condition=one_hot(3)))
    assert conditioned(value, torch.zeros(8, dtype=torch.long)).equal(value * 3)


def test_a_second_argument_that_is_something_else_is_left_alone():
    # its second argument is a mask
    head = make_head(lambda spec: nn.TransformerEncoderLayer(6, 2, batch_first=True), spec((8, 5, 6), one_hot(3)))

    assert head.condition is None
    assert head(torch.randn(8, 5, 6), None).shape == (8, 5, 6)


def test_a_users_head_may_be_of_another_precision_than_the_value():
    half = CrossingSpec("layer2", (8, 6), torch.bfloat16, torch.device("cpu"))

    assert make_head(lambda spec: nn.Linear(6, 6), half)(torch.randn(8, 6), None).dtype == torch.float32


def test_a_users_head_that_wants_a_condition_must_have_one():
    with pytest.raises(HeadError, match=r"Both of boundary 'layer2' takes \(value, condition\).*condition=one_hot"):
        make_head(lambda spec: Both(), spec())


@pytest.mark.parametrize("module", [nn.Linear(6, 5), nn.Flatten(0), nn.LSTM(6, 6)])
def test_a_users_head_of_a_wrong_shape_is_found_when_made(module):
    with pytest.raises(
        HeadError, match=rf"{type(module).__name__} of boundary 'layer2' must give .* \[8, 6\], but gave"
    ):
        make_head(lambda spec: module, spec())


def test_a_users_head_that_fails_is_found_when_made():
    with pytest.raises(
        HeadError, match=r"Linear of boundary 'layer2' fails on a value of shape \[8, 6\]: mat1 and mat2"
    ):
        make_head(lambda spec: nn.Linear(7, 6), spec())


@pytest.mark.parametrize("factory", [lambda spec: nn.Linear(spec.no_such_thing, 6), lambda: nn.Linear(6, 6)])
def test_factories_that_fail_are_told_with_the_boundary(factory):
    with pytest.raises(HeadError, match=r"head factory for boundary 'layer2' fails: .*Error") as told:
        make_head(factory, spec())
    with pytest.raises(ConditionError, match=r"condition factory for boundary 'layer2' fails: .*Error"):
        make_head("mlp", spec(condition=factory))
    with pytest.raises(BoundaryError, match=r"boundary factory for 'layer2' fails: .*Error"):
        make_boundary(factory, spec(), Context())

    assert told.value.__cause__ is not None


class Lost(nn.Module):
    """Its estimate is a number to autograd."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(6, 6), how

    def forward(self, value):
        return self.how(self.layer, value)


def without_gradients(layer, value):
    with torch.no_grad():
        return layer(value)


@pytest.mark.parametrize(
    "how",
    [without_gradients, lambda layer, value: layer(value).detach(), lambda layer, value: layer(value).round().data],
)
def test_a_head_that_would_never_learn_is_refused(how):
    with pytest.raises(HeadError, match="would never learn: no gradient comes from its estimate"):
        make_head(lambda _: Lost(how), spec())


def test_a_head_that_is_frozen_or_has_no_weights_is_taken():
    make_head(lambda _: nn.Linear(6, 6).requires_grad_(False), spec())
    make_head(lambda _: nn.Identity(), spec())


def test_a_users_conditioned_head_of_a_wrong_shape_is_found_at_the_first_visit():
    context = Context()
    crossing = make_boundary("dni", spec(condition=one_hot(3)), context, lambda spec: Wrong())

    with context.conditioned(torch.zeros(8, dtype=torch.long)), pytest.raises(HeadError, match=r"Wrong.*gave a tensor"):
        crossing(torch.randn(8, 6, requires_grad=True) * 1)


class Wrong(nn.Module):
    def forward(self, value, condition):
        return value[:, :3]


def test_trying_a_head_on_changes_nothing_in_it():
    module = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6))
    module[1].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = torch.get_rng_state()

    make_head(lambda spec: module, spec())

    assert [part.training for part in module] == [True, False, True]
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    assert torch.get_rng_state().equal(state)


def test_every_head_learns_an_embedding_of_its_own():
    condition = embedded(3, 2)
    one, other = (make_head("auto", spec(condition=condition)) for _ in range(2))

    one.condition.table.weight.data.fill_(7)

    assert other.condition.table.weight.ne(7).all() and condition.table.weight.ne(7).all()
    assert "condition.table.weight" in one.state_dict()


def test_a_conditioned_boundary_without_a_label_says_the_way_out():
    crossing = make_boundary(dni(), spec(condition=one_hot(3)), Context())

    with pytest.raises(ConditionError, match=r"'layer2' looks at the label: .*`with dm.conditioned\(label\):`"):
        crossing.visit(torch.randn(8, 6, requires_grad=True) * 1, crossing.context.seen)


def test_a_forward_pass_without_a_label_goes_through_and_its_backward_pass_says_the_way_out():
    value = torch.randn(8, 6, requires_grad=True)

    passed = make_boundary(dni(), spec(condition=one_hot(3)), Context())(value * 1)

    assert passed.equal(value)
    with pytest.raises(ConditionError, match="'layer2' looks at the label"):
        passed.sum().backward()


@pytest.mark.parametrize("size", [(5, 5), (8, 8), (16, 17), (8, 8, 8)])
def test_a_coarse_convolution_gives_the_shape_of_its_map(size):
    spec = CrossingSpec("maps", (4, 3, *size), torch.float32, torch.device("cpu"))
    value = torch.randn(4, 3, *size)

    for coarse in (None, 1, 2, 3):
        head = make_head(conv(coarse=coarse), spec)
        assert head(value, None).shape == value.shape
    assert make_head("conv", spec).name.endswith("/ 4" if min(size) >= 16 else "/ 2" if min(size) >= 8 else "x 3")


def test_a_coarse_head_predicts_one_value_for_all_positions_of_a_cell():
    spec = CrossingSpec("maps", (4, 3, 8, 8), torch.float32, torch.device("cpu"))
    head = make_head(conv(coarse=4), spec)
    for parameter in head.output.parameters():
        torch.nn.init.normal_(parameter)

    cells = head(torch.randn(4, 3, 8, 8), None).unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)

    assert torch.equal(cells, cells[..., :1].expand_as(cells)) and cells.std(0).ne(0).any()


@pytest.mark.parametrize(
    ("label", "positions", "expected"),
    [
        ([[1.0, 3.0], [5.0, 7.0]], (2,), [[1.0, 3.0], [5.0, 7.0]]),
        ([[1.0, 3.0], [5.0, 7.0]], (1,), [[3.0, 5.0]]),  # a single number has no batch: the mean of the label's
        ([[[1.0], [3.0]], [[5.0], [9.0]]], (2, 3), [[[2.0]] * 3, [[7.0]] * 3]),
    ],
)
def test_a_label_of_other_positions_is_averaged(label, positions, expected):
    assert beside(torch.tensor(label), torch.Size(positions)).tolist() == expected
