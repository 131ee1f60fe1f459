"""What other threads and processes do while one is captured, and what captures leave behind."""

import gc
import os
import threading
import time

import pytest
import torch
from torch import nn
from torch.fx import graph_module

import dnigraph as dg
from dnigraph.passes.sandbox import snapshot
from dnigraph.passes.sandbox.snapshot import one_at_a_time

pytestmark = pytest.mark.filterwarnings(
    "ignore::dnigraph.UnconditionedWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Slow(nn.Module):
    """Takes its time, so that others come in between."""

    def __init__(self, begun):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        object.__setattr__(self, "begun", begun)

    def forward(self, x):
        self.begun.set()
        time.sleep(0.02)
        return self.b(self.a(x).relu())


def chain():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_is_forked_during_a_capture_captures_too():
    begun, original = threading.Event(), nn.Module.__call__
    capturing = threading.Thread(target=lambda: dg.decouple(Slow(begun), "a", X))
    capturing.start()
    begun.wait()

    child = os.fork()
    if child == 0:
        try:
            clean = nn.Module.__call__ is original and one_at_a_time.acquire(timeout=5)
            os._exit(0 if clean else 1)
        finally:
            os._exit(2)

    deadline, status = time.monotonic() + 30, (0, 0)
    while status[0] == 0 and time.monotonic() < deadline:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    capturing.join()
    assert status == (child, 0)


@pytest.mark.parametrize("rung", ["record", "hooks", "export", "symbolic"])
def test_captures_leave_no_source_behind(rung):
    for _ in range(2):
        dg.decouple(chain(), "0", X, capture=rung)
    gc.collect()
    before = len(graph_module._loader.eval_cache)

    for _ in range(3):
        dg.decouple(chain(), "0", X, capture=rung)
    gc.collect()

    assert len(graph_module._loader.eval_cache) <= before


@pytest.mark.parametrize("rung", ["record", "hooks"])
def test_captures_leave_next_to_no_objects_behind(rung):
    def captured(times):
        for _ in range(times):
            dg.decouple(chain(), "0", X, capture=rung)
        gc.collect()
        return len(gc.get_objects())

    captured(3)

    assert captured(5) + 5 * 20 >= captured(5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_is_forked_after_a_vain_wait_captures_too_and_its_parent_waits_on(monkeypatch):
    monkeypatch.setattr(snapshot, "_PATIENCE", 0.05)
    held, done = threading.Event(), threading.Event()

    def hold():
        with one_at_a_time:
            held.set()
            done.wait(30)

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait()

    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if one_at_a_time.acquire(timeout=5) else 1)
        finally:
            os._exit(2)

    assert os.waitpid(child, 0) == (child, 0)
    assert not one_at_a_time.acquire(blocking=False)
    done.set()
    holding.join()
