"""Ctrl-C may come at any line: torch, the model and the random states are as they were."""

import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dnigraph as dg
from dnigraph.passes.sandbox import journal
from dnigraph.passes.sandbox.journal import all_or_nothing, undone
from dnigraph.passes.sandbox.snapshot import one_at_a_time

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning", "ignore::FutureWarning")
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
LIBRARY = str(Path(dg.__file__).parent)
POINTS = 5  # lines that are tried for each job
# What puts things back, or hands them out for a while: where an interrupt does most harm.
TEMPORARY = {
    "restore", "rewind", "undone", "untouched", "taken_back", "numbers_kept", "in_mode", "_attached", "_take_back",
    "set_random_state", "set_state", "setstate", "seed_all", "attached", "_detach", "conditioned", "standing_in",
    "__enter__", "__exit__", "remove", "run", "strike", "note", "_without_saved_tensors_hooks",
}  # fmt: skip


class Interrupt:
    """A trace function that raises KeyboardInterrupt at one line of those functions, and counts them all.

    Not in those of torch: C++ code calls some of them that ends the process where they raise.
    """

    def __init__(self, at=0):
        self.at, self.lines, self.where = at, 0, None

    def __call__(self, frame, event, arg):
        code = frame.f_code
        ours = any(name in code.co_filename for name in ("dnigraph", "passes", "contextlib", "random"))
        for place in (frame, frame.f_back):
            file = place.f_code.co_filename  # the library itself may be installed, too
            ours = ours and ("site-packages" not in file or file.startswith(LIBRARY))
        return self._line if ours and code.co_name in TEMPORARY else None

    def _line(self, frame, event, arg):
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._line


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.c = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.drop, self.seen, self.kept = nn.Dropout(0.5), None, [torch.ones(4)]
        self.a.register_forward_hook(lambda module, args, out: out + 0)

    def forward(self, x):
        self.seen = x.mean()
        return self.c(self.drop(self.norm(self.a(x)).relu()) * self.kept[0])


def capturing(rung):
    model = Net()
    model(X)
    return model, lambda: dg.decouple(model, "a", X, capture=rung)


def decoupled(rung="record"):
    model = Net()
    model(X)
    return model, dg.decouple(model, "a", X, capture=rung)


def checking():
    model, dm = decoupled()
    return model, lambda: dg.check(dm, X)


def probing():
    model, dm = decoupled()
    return model, lambda: dg.probe(dm, X, target=None, loss=lambda out, _: out.sum())


def another_kind_of_call():
    model, dm = decoupled()
    dm.train()
    return model, lambda: dm.prepare(X.double().float().requires_grad_())


def hooks_on_a_call():
    model, dm = decoupled("hooks")
    return model, lambda: dm(X)


def step():
    model, dm = decoupled()
    run = dg.Local(dm, loss=nn.functional.mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    run.step(X, target=torch.zeros(5, 2))
    return model, lambda: run.step(X, target=torch.zeros(5, 2))


def window():
    model = nn.GRU(4, 2)
    run = dg.Recurrent(model, horizon=5, loss=nn.functional.mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    run.step(X[:, None], torch.zeros(5, 1, 2))
    return model, lambda: run.step(X[:, None], torch.zeros(5, 1, 2), ends=True)


def tick(threads=False):
    low, top = nn.Linear(4, 4), nn.Linear(4, 2)
    net = dg.Network(optimizer=lambda p: torch.optim.SGD(p, 0.1)).add("low", low)
    net.add("top", top, loss=nn.functional.mse_loss)
    net.connect("low.output", "top.input", delay=1, boundary="oracle")
    net.tick(X, torch.zeros(5, 2))
    return nn.Sequential(low, top), lambda: net.run([(X, torch.zeros(5, 2))] * 2, threads=threads)


CAPTURES = {
    "record": lambda: capturing("record"),
    "export": lambda: capturing_of_export(),
    "hooks": lambda: capturing("hooks"),
    "check": checking,
    "probe": probing,
    "another kind of call": another_kind_of_call,
}
CALLS = {
    "hooks on a call": hooks_on_a_call,
    "step": step,
    "window": window,
    "tick": tick,
    "ticks on threads": lambda: tick(threads=True),
}


def capturing_of_export():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    return model, lambda: dg.decouple(model, "0", X, capture="export")


def process():
    """What of torch and Python a run may leave changed."""
    return {
        "functions": {name: id(function) for name, function in vars(nn.Module).items()},
        "apply": id(vars(torch.autograd.Function).get("apply")),
        "len": id(len),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "filters": [entry[:3] for entry in warnings.filters],
        "stance": str(sys.modules["torch._dynamo.eval_frame"]._stance),
        "exporting": torch.compiler.is_exporting(),
        "journal": len(journal._journal.open),
    }


def owned(model):
    """What hangs on a model: hooks, attributes, flags."""
    tables = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            tables[path, name] = [(key, id(v)) for key, v in value.items()] if isinstance(value, dict) else id(value)
    return tables


def numbers(model):
    tensors = [*model.parameters(), *model.buffers()]
    return [t.detach().clone() for t in tensors] + [torch.tensor(t.grad is None) for t in tensors]


def generators():
    return [torch.get_rng_state(), repr(random.getstate()), repr(np.random.get_state())]  # noqa: NPY002  # its default


def same(one, other):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(one, other, strict=True))


def lines_of(job):
    """How many lines of those functions a job runs."""
    job()[1]()  # imports, caches
    _, run = job()
    trace = Interrupt()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return trace.lines


def interrupted(run, at):
    """Run until the interrupt; the line that it came at."""
    trace = Interrupt(at)
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return trace.where


@pytest.mark.parametrize("what", [*CAPTURES, *CALLS])
def test_an_interrupt_at_any_line_leaves_nothing(what):
    job = {**CAPTURES, **CALLS}[what]
    lines = lines_of(job)
    assert lines > POINTS

    for at in random.Random(what).sample(range(1, lines), min(POINTS, lines - 1)):
        model, run = job()
        state, hanging, held, draws = process(), owned(model), numbers(model), generators()

        where = interrupted(run, at)

        assert where is not None
        assert process() == state, where
        if what in CAPTURES:
            assert owned(model) == hanging and same(numbers(model), held), where
            assert same(generators(), draws), where
        else:
            hooks = [(key, ids) for key, ids in owned(model).items() if "hooks" in key[1]]
            assert hooks == [(key, ids) for key, ids in hanging.items() if "hooks" in key[1]], where
        if what in CALLS:
            run()  # the next one goes on
    assert one_at_a_time.acquire(blocking=False)
    one_at_a_time.release()


class Listens(TorchFunctionMode):
    """Stays on the stack if nobody takes it off."""


class Dispatches(TorchDispatchMode):
    """The same below autograd."""


def test_what_is_left_open_is_taken_back_the_last_change_first():
    order = []

    @all_or_nothing
    def breaks():
        first = undone(lambda: order.append("first"))
        first.__enter__()
        second = undone(lambda: order.append("second"))
        second.__enter__()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks()

    assert order == ["second", "first"]


def test_torch_stands_as_before_where_a_function_breaks_off():
    before = process()

    @all_or_nothing
    def breaks():
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", True)
        warnings.simplefilter("error")
        nn.Module.__setattr__, original = lambda *_: None, nn.Module.__setattr__
        assert original is not nn.Module.__setattr__
        Dispatches().__enter__()
        Listens().__enter__()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        breaks()

    assert process() == before


def test_what_breaks_off_with_nothing_noted_leaves_torch_as_before_and_what_ends_well_may_change_it():
    @all_or_nothing
    def turns_gradients_off(error):
        torch.set_grad_enabled(False)
        if error:
            raise error

    with torch.enable_grad():
        with pytest.raises(ValueError, match="no"):
            turns_gradients_off(ValueError("no"))
        assert torch.is_grad_enabled()

        turns_gradients_off(None)
        assert not torch.is_grad_enabled()


def test_what_ends_well_inside_of_an_except_block_has_not_failed():
    @all_or_nothing
    def turns_gradients_off():
        torch.set_grad_enabled(False)

    with torch.enable_grad():
        try:
            raise ValueError("an earlier try")
        except ValueError:
            turns_gradients_off()

        assert not torch.is_grad_enabled()


def test_a_block_that_ends_long_after_takes_nothing_back_again():
    undos = []

    @all_or_nothing
    def breaks():
        block = undone(lambda: undos.append(1))
        block.__enter__()
        kept.append(block)
        raise KeyboardInterrupt

    kept = []
    with pytest.raises(KeyboardInterrupt):
        breaks()
    kept[0].__exit__(None, None, None)

    assert undos == [1]
