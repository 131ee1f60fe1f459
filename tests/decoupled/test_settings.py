"""Whatever kind of setting changes, on the model or outside of it, later calls are the model's."""

import collections
import contextvars
import dataclasses
import os
import types

import numpy as np
import pytest
import torch
from kit.side_by_side import Net, differences, x

import dnigraph as dg


@dataclasses.dataclass(slots=True)
class Slots:
    g: float = 1.0


class Schedule:
    g = 1.0

    def __call__(self):
        return self.g


class Deep:
    def __init__(self, inner):
        self.inner = inner


NT = collections.namedtuple("NT", "g")
KINDS = {  # what is kept, how it is read, how it is changed
    "OrderedDict": (lambda: collections.OrderedDict(g=1.0), lambda k: k["g"], lambda k: k.update(g=3.0)),
    "defaultdict": (lambda: collections.defaultdict(float, g=1.0), lambda k: k["g"], lambda k: k.update(g=3.0)),
    "an array": (lambda: np.ones(3), lambda k: float(k[0]), lambda k: k.fill(3.0)),
    "a set": (lambda: {1}, lambda k: float(max(k)), lambda k: k.add(3)),
    "a deque": (lambda: collections.deque([1.0]), lambda k: k[0], lambda k: k.__setitem__(0, 3.0)),
    "slots": (Slots, lambda k: k.g, lambda k: setattr(k, "g", 3.0)),
    "a callable object": (Schedule, lambda k: k(), lambda k: setattr(k, "g", 3.0)),
    "a long list": (lambda: [1.0] * 20, lambda k: k[7], lambda k: k.__setitem__(7, 3.0)),
    "a list that grows": (lambda: [1.0], lambda k: float(len(k)), lambda k: k.append(3.0)),
    "a key that is new": (lambda: {"a": 1.0}, lambda k: k.get("g", 1.0), lambda k: k.update(g=3.0)),
    "bytes": (lambda: bytearray(b"\x01"), lambda k: float(k[0]), lambda k: k.__setitem__(0, 3)),
    "a tuple with a list": (lambda: ([1.0],), lambda k: k[0][0], lambda k: k[0].__setitem__(0, 3.0)),
    "six deep": (
        lambda: Deep(Deep(Deep(Deep(Deep([1.0]))))),
        lambda k: k.inner.inner.inner.inner.inner[0],
        lambda k: k.inner.inner.inner.inner.inner.__setitem__(0, 3.0),
    ),
    "the class of a configuration": (
        lambda: type("Config", (), {"g": 1.0})(),
        lambda k: k.g,
        lambda k: setattr(type(k), "g", 3.0),
    ),
    "a dtype": (
        lambda: types.SimpleNamespace(dtype=torch.float32),
        lambda k: float(torch.finfo(k.dtype).eps),
        lambda k: setattr(k, "dtype", torch.float16),
    ),
}


@pytest.mark.filterwarnings("ignore::dnigraph.SettingsWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_of_any_kind_is_seen_when_it_changes(kind):
    make, read, change = KINDS[kind]

    def forward(net, v):
        return net.c(net.a(v).relu()) * read(net.kept)

    found, dm = differences(
        lambda: Net(forward, kept=make()),
        [(x(4, k),) for k in range(3)],
        before_each=lambda model, i: change(model.kept) if i == 1 else None,
    )

    assert found == [] and dm.plan.capture == "record"


def test_values_of_the_class_are_seen():
    class Classy(Net):
        _gain, how, table, bounds = 1.0, "one", {"g": 1.0}, (1.0, 2.0)

        def __init__(self):
            super().__init__(lambda net, v: net.c(net.a(v).relu()) * net.factor())

        def factor(self):
            return self._gain * len(self.how) * self.table["g"] * self.bounds[1]

    model = Classy()
    dm = dg.decouple(model, "a", (x(),), boundary="oracle")
    for name, value in (("_gain", 2.0), ("how", "three"), ("bounds", (1.0, 5.0))):
        setattr(Classy, name, value)
        with pytest.warns(dg.SettingsWarning):
            assert torch.equal(dm(x()), model(x()))
    Classy.table["g"] = 3.0
    with pytest.warns(dg.SettingsWarning):
        assert torch.equal(dm(x()), model(x()))


config = types.SimpleNamespace(scale=1.0)
GAIN = 1.0
variable = contextvars.ContextVar("variable", default=1.0)


def helper(h):
    return h * config.scale


OUTSIDE = {
    "a number": (lambda net, v: net.c(net.a(v)) * GAIN, lambda g: globals().update(GAIN=g)),
    "a configuration": (lambda net, v: net.c(net.a(v) * config.scale), lambda g: setattr(config, "scale", g)),
    "a function's configuration": (lambda net, v: net.c(helper(net.a(v))), lambda g: setattr(config, "scale", g)),
    "the environment": (
        lambda net, v: net.c(net.a(v)) * float(os.environ.get("A_GAIN_OF_TESTS", "1")),
        lambda g: os.environ.update(A_GAIN_OF_TESTS=str(g)),
    ),
    "a context variable": (lambda net, v: net.c(net.a(v)) * variable.get(), lambda g: variable.set(g)),
}


@pytest.mark.parametrize("where", OUTSIDE)
def test_what_the_code_reads_outside_is_seen_when_it_changes(where):
    forward, set_to = OUTSIDE[where]
    model = Net(forward)
    dm = dg.decouple(model, "a", (x(),), boundary="oracle")
    try:
        set_to(3.0)
        with pytest.warns(dg.SettingsWarning):
            assert torch.equal(dm(x()), model(x()))
    finally:
        set_to(1.0)


def test_a_closure_is_seen_when_it_changes():
    gain = 1.0

    def forward(net, v):
        return net.c(net.a(v)) * gain

    model = Net(forward)
    dm = dg.decouple(model, "a", (x(),), boundary="oracle")
    gain = 3.0

    with pytest.warns(dg.SettingsWarning):
        assert torch.equal(dm(x()), model(x()))


# ---- what a forward does outside of the model

features = []
table = {}
COUNT = 0


def appends(net, v):
    h = net.a(v).relu()
    features.append(h.detach())
    return net.c(h)


note = features.append


def appends_by_a_bound_method(net, v):
    h = net.a(v).relu()
    note(h.detach())
    return net.c(h)


def counts_globally(net, v):
    global COUNT
    COUNT += 1
    return net.c(net.a(v).relu())


def fills_a_table(net, v):
    h = net.a(v).relu()
    table["last"] = h.detach()
    return net.c(h)


def helped(h):
    helped.calls += 1
    return h


helped.calls = 0


def counts_on_a_function(net, v):
    return net.c(helped(net.a(v).relu()))


class Counted(Net):
    calls = 0

    def __init__(self):
        super().__init__(self.count)

    @staticmethod
    def count(net, v):
        Counted.calls += 1
        return net.c(net.a(v).relu())


def test_counters_on_functions_and_classes_count_every_call():
    for make, calls in ((lambda: Net(counts_on_a_function), lambda: helped.calls), (Counted, lambda: Counted.calls)):
        dm = dg.decouple(make(), "a", (x(),), boundary="oracle")
        before = calls()
        dm(x()), dm(x())
        assert calls() == before + 2 and dm.plan.capture == "hooks"


def keeps_in_a_default(net, v, kept=[]):  # noqa: B006  # as people do by mistake
    kept.append(len(v))
    return net.c(net.a(v).relu() * len(kept))


@pytest.mark.parametrize("forward", [appends, appends_by_a_bound_method, counts_globally, fills_a_table])
def test_side_effects_outside_of_the_model_happen_in_every_call(forward):
    dm = dg.decouple(Net(forward), "a", (x(),), boundary="oracle")
    features.clear(), table.clear(), globals().update(COUNT=0)

    for k in range(3):
        dm(x(4, k))

    assert dm.plan.capture == "hooks"
    assert {appends: len(features) == 3, appends_by_a_bound_method: len(features) == 3}.get(forward, True)
    assert {counts_globally: COUNT == 3, fills_a_table: "last" in table}.get(forward, True)


def test_a_container_among_the_defaults_is_state():
    dm = dg.decouple(Net(keeps_in_a_default), "a", (x(),), boundary="oracle")

    assert dm.plan.capture == "hooks"


def test_a_capture_leaves_what_is_outside_as_it_was():
    features[:] = [1]
    globals().update(COUNT=7)

    for forward in (appends, counts_globally):
        dg.decouple(Net(forward), "a", (x(),), boundary="oracle")

    assert features == [1] and COUNT == 7


def test_a_print_is_told_of_in_the_plan():
    def forward(net, v):
        print("forward")
        return net.c(net.a(v))

    assert any("prints" in note for note in dg.decouple(Net(forward), "a", (x(),), boundary="oracle").plan.notes)


def test_what_is_too_large_to_be_watched_is_named_in_the_plan():
    def forward(net, v):
        return net.c(net.a(v)) * net.vocabulary["w7"][0]

    dm = dg.decouple(Net(forward, vocabulary={f"w{i}": [i] for i in range(5000)}), "a", (x(),), boundary="oracle")

    assert any("vocabulary" in note for note in dm.plan.notes)


# ---- arguments that are no tensors


class Trainer:
    gain = 1.0


def test_an_argument_that_the_caller_changes_is_another_one():
    trainer, model = Trainer(), Net(lambda net, v, t: net.c(net.a(v).relu() * t.gain))
    dm = dg.decouple(model, "a", (x(), trainer), boundary="oracle")
    trainer.gain = 3.0

    assert torch.equal(dm(x(), trainer), model(x(), trainer))


def test_arrays_are_told_apart_by_all_their_bytes():
    ones = np.ones(1200, np.float32)
    other = ones.copy()
    other[100:1100] = 0
    close = ones + np.float32(1e-7)

    def forward(net, v, weight):
        return net.c(net.a(v).relu() * float(weight.sum()) * float(weight[600]))

    found, _ = differences(lambda: Net(forward), [(x(), weight) for weight in (ones, other, close, ones)])

    assert found == []


def test_an_argument_that_the_model_changes_is_carried_by_running_the_model():
    class Counter:
        def __init__(self):
            self.calls = 0

    def forward(net, v, counter):
        counter.calls += 1
        return net.c(net.a(v).relu() * counter.calls)

    counter = Counter()
    dm = dg.decouple(Net(forward), "a", (x(), counter), boundary="oracle")
    counter.calls = 0
    dm(x(), counter), dm(x(), counter)

    assert dm.plan.capture == "hooks" and counter.calls == 2


def test_a_nan_among_the_arguments_is_found_again():
    dm = dg.decouple(
        Net(lambda net, v, g: net.c(net.a(v)) * (0.0 if g != g else g)), "a", (x(), 1.0), boundary="oracle"
    )

    for _ in range(3):
        dm(x(), float("nan"))

    assert len(list(dm._cache)) == 3  # 1.0 in both modes, and nan


@pytest.mark.parametrize("hint", [list[int], dict[str, list[float]], tuple[int, ...]])
def test_a_type_hint_on_a_model_is_no_setting_and_breaks_nothing(hint):
    def forward(net, v):
        net.calls += 1
        return net.c(net.a(v)) * net.calls

    found, _ = differences(lambda: Net(forward, hint=hint, kinds=[hint], calls=0), [(x(4, i),) for i in range(3)])

    assert found == []


def raises_its_setting(net, v):
    net.setting.g = min(3.0, net.setting.g + 0.5)
    return net.c(net.a(v).relu() * net.setting.g)


@pytest.mark.parametrize("kind", [Slots, Schedule])
def test_a_setting_that_the_model_changes_is_not_changed_by_a_capture(kind):
    found, _ = differences(lambda: Net(raises_its_setting, setting=kind()), [(x(),)] * 6)

    assert not found
