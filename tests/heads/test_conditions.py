"""The label: where it is kept, and what is said when it does not fit."""

import copy
import io
import threading

import pytest
import torch
from torch import nn

from dnigraph.heads import CrossingSpec
from dnigraph.heads.conditions import ConditionError, Context, condition_for, embedded, one_hot


def spec(condition) -> CrossingSpec:
    return CrossingSpec("layer2", (4, 6), torch.float32, torch.device("cpu"), condition)


# ---- the context


def test_the_label_is_there_inside_the_block_only():
    context = Context()

    assert context.label is None
    with context.conditioned("outer"):
        with context.conditioned("inner"):
            assert context.label == "inner"
        assert context.label == "outer"
    assert context.label is None


def test_an_exception_ends_the_block():
    context = Context()

    with pytest.raises(KeyError), context.conditioned("outer"), context.conditioned("inner"):
        raise KeyError

    assert context.label is None


def test_each_thread_has_its_own_label():
    context, seen, both_in = Context(), {}, threading.Barrier(2)

    def run(label):
        with context.conditioned(label):
            both_in.wait(timeout=10)
            seen[label] = context.label
            both_in.wait(timeout=10)

    threads = [threading.Thread(target=run, args=(label,)) for label in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen == {"a": "a", "b": "b"}
    assert context.label is None


def test_each_context_has_its_own_label():
    one, other = Context(), Context()

    with one.conditioned(1):
        assert other.label is None


def test_a_copy_is_a_new_context_shared_by_the_copies_of_who_shared_it():
    context = Context()
    with context.conditioned(1):
        first, second = copy.deepcopy([context, context])

    assert first is second and first is not context
    assert first.label is None
    buffer = io.BytesIO()
    torch.save(context, buffer)


# ---- encoding


def test_one_hot_is_one_at_the_label():
    encoded = one_hot(3).encode(torch.tensor([2, 0, -100]))

    assert encoded.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert one_hot(3).width == 3


def test_one_hot_of_tokens_has_one_row_per_token():
    assert one_hot(3).encode(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 3)


def test_soft_labels_stay_as_they_are():
    soft = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)

    condition = one_hot(2)

    assert condition.encode(condition.check(soft, 2, "layer2")).equal(soft.float())


def test_an_embedding_has_a_learned_vector_per_label():
    condition = embedded(3, 2)

    encoded = condition.encode(torch.tensor([1, 1, -100]))

    assert condition.width == 2
    assert encoded[0].equal(encoded[1]) and encoded[2].eq(0).all()
    assert encoded.requires_grad


def test_whole_numbers_of_any_type_are_labels():
    for dtype in (torch.uint8, torch.int32, torch.int64, torch.bool):
        condition = one_hot(2)
        label = condition.check(torch.tensor([1, 0]).to(dtype), 2, "layer2")
        assert condition.encode(label).tolist() == [[0, 1], [1, 0]]


def test_another_number_can_be_ignored():
    condition = one_hot(3, ignore=255)

    label = condition.check(torch.tensor([0, 255]), 2, "layer2")

    assert condition.encode(label).tolist() == [[1, 0, 0], [0, 0, 0]]


# ---- what does not fit


@pytest.mark.parametrize(
    ("condition", "label", "words"),
    [
        (one_hot(3), None, r"'layer2' looks at the label: run the forward pass inside `with dm.conditioned\(label\):`"),
        (one_hot(3), [1, 2, 0, 0], "needs the label as a tensor, not as list"),
        (one_hot(3), torch.zeros(3, dtype=torch.long), "3 samples .* the batch has 4"),
        (one_hot(3), torch.tensor(1), "a single number .* the batch has 4"),
        (one_hot(3), torch.tensor([0, 1, 2, 3]), "from 0 to 2, .* goes from 0 to 3"),
        (one_hot(3), torch.tensor([0, 1, -1, 2]), "goes from -1 to 2; entries equal to -100 count as unlabelled"),
        (embedded(3, 2), torch.tensor([0, 1, 2, 9]), r"embedded\(3, 2\) takes whole numbers from 0 to 2"),
        (one_hot(3), torch.zeros(4), r"soft labels \[batch, 3\], not float32 of shape \[4\]"),
        (one_hot(3), torch.zeros(4, 2), r"soft labels \[batch, 3\], not float32 of shape \[4, 2\]"),
        (embedded(3, 2), torch.zeros(4, 3), r"takes whole numbers from 0 to 2, not float32"),
    ],
)
def test_a_label_that_does_not_fit_says_the_way_out(condition, label, words):
    with pytest.raises(ConditionError, match=words):
        condition.check(label, 4, "layer2")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: one_hot(0), "classes must be a positive whole number, not 0"),
        (lambda: one_hot(2.0), "classes must be .* not 2.0"),
        (lambda: embedded(10, True), "width must be .* not True"),
        (lambda: embedded("10", 3), "vocabulary must be .* not '10'"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ConditionError, match=words):
        make()


# ---- a user's own


class Angle(nn.Module):
    width = 2

    def forward(self, label):
        return torch.stack([label.cos(), label.sin()], -1)


def test_a_users_module_is_a_condition():
    condition = condition_for(spec(lambda spec: Angle()))
    label = torch.randn(4)

    assert condition.width == 2
    assert condition.encode(condition.check(label, 4, "layer2")).equal(Angle()(label))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (lambda spec: nn.Linear(1, 1), "'layer2' must be an nn.Module with a whole number `width`.*Linear"),
        (lambda spec: 3, "it is int"),
        (Angle(), r"not Angle; wrap a ready module: condition=lambda spec: module"),
        (10, r"a condition is one_hot\(classes\), .* not int"),
    ],
)
def test_what_is_no_condition_is_refused(choice, words):
    with pytest.raises(ConditionError, match=words):
        condition_for(spec(choice))


def test_no_condition_is_no_condition():
    assert condition_for(spec(None)) is None


# ---- labels that say nothing, and conditions of the user's


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (torch.zeros(4, 0, dtype=torch.long), "has no entries"),
        (torch.eye(4, 3).to_sparse(), "is sparse_coo"),
        (torch.tensor([[0.5, float("nan"), 0.0]] * 4), "nan_to_num"),
        (torch.zeros(4, 2), r"label \[batch, n\]"),
    ],
)
def test_a_label_that_says_nothing_is_refused_with_the_way_out(label, words):
    with pytest.raises(ConditionError, match=words):
        one_hot(3).check(label, 4, "layer2")


def test_one_number_to_regress_on_may_have_no_axis_of_its_own():
    assert one_hot(1).check(torch.arange(4.0), 4, "layer2").shape == (4, 1)


class Encoder(nn.Module):
    width = 3

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, label):
        return self.run(label)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda label: torch.ones(2, 2) @ label.float(), "fails on a label of shape .*RuntimeError"),
        (lambda label: torch.zeros(len(label), 2), r"must make \[batch, ..., 3\].*made shape \[4, 2\]"),
        (lambda label: torch.zeros(1, 3), r"made shape \[1, 3\]"),
        (lambda label: None, "made NoneType"),
    ],
)
def test_a_condition_of_the_users_that_fails_is_named(run, words):
    condition = condition_for(spec(lambda _: Encoder(run)))

    with pytest.raises(ConditionError, match=words):
        condition.encode(torch.zeros(4, dtype=torch.long))


def test_a_condition_that_is_called_encodes():
    label = torch.tensor([1, -100])

    assert one_hot(3)(label).tolist() == one_hot(3).encode(label).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_a_factory_may_make_a_condition():
    made = one_hot(3)

    assert condition_for(spec(lambda _: made)) is made
