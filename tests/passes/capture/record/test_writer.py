"""The graph of a run while it is written: it holds on to nothing, and its cost is linear."""

import gc
import io
import itertools
import sys
import weakref

import torch
from kit.replay import Net
from torch import nn

from dnigraph.passes.capture.ladder import capture

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def test_a_recording_grows_no_faster_than_the_model():
    def calls(depth):
        model, count = Net(*[Residual() for _ in range(depth)]), itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            capture(model, (X,), {}, "record")
        finally:
            sys.setprofile(None)
        return next(count)

    calls(20)

    assert calls(400) < 4 * 1.2 * calls(100)  # quadratic would be sixteen times as many


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x + (x * self.weight).relu() / x.shape[0]


def test_a_recording_lets_go_of_what_the_run_lets_go_of():
    class Watching(nn.Module):
        def forward(self, x):
            gone = []
            with torch.no_grad():
                for _ in range(3):
                    y = x + 1
                    gone.append(weakref.ref(y))
                    x = y * 2
            del y
            alive.write(str(sum(tensor() is not None for tensor in gone)))
            return x

    alive = io.StringIO()  # a list that grows in every call would be a side effect

    capture(Watching(), (X,), {}, "record")

    assert set(alive.getvalue()) == {"0"}


def test_what_the_model_made_is_free_again_also_where_somebody_keeps_a_size():
    kept, seen = {}, io.StringIO()

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            kept.setdefault("size", y.shape[0] + 1)
            seen.write("made ")
            weakref.finalize(y, seen.write, "free ")
            return y.relu()

    capture(Keeping(), (X,), {})
    gc.collect()

    assert seen.getvalue().count("made") == seen.getvalue().count("free") > 0
