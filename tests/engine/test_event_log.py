"""The event log, its file and its trace."""

import json

import pytest
import torch
import torch.nn.functional as F
from kit.networks import batches, chain, circle, fork, given
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_the_log_knows_how_stale_messages_and_targets_are(tmp_path):
    net, _ = chain(delay=2, log=True)

    net.run(batches(6))

    reads = net.log.of("read", "f1")
    assert [event.stale for event in reads] == [None, None, 2, 2, 2, 2]
    assert [event.sent for event in reads] == [None, None, 0, 1, 2, 3]
    assert [event.stale for event in net.log.of("target", "f0")] == [2, 2, 2, 2]
    net.log.save(tmp_path / "log.json")
    net.log.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "log.json").read_text())
    assert len(events) == len(net.log)
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(e["ph"] == "X" for e in trace) == 18
    starts, ends = ({e["id"]: e["ts"] for e in trace if e["ph"] == kind} for kind in "sf")
    assert starts.keys() == ends.keys() and all(starts[i] < ends[i] for i in starts)


def test_the_log_goes_on_over_episodes_and_knows_what_was_sent(tmp_path):
    net, _ = chain(delay=1, log=True)
    for x, y in batches(6):
        net.tick(x, y, ends=net.ticks == 2)

    assert [event.tick for event in net.log.of("fire", "f0")] == [0, 1, 2, 3, 4, 5]
    assert [(event.tick, event.port, event.to) for event in net.log.of("send", "f1")] == [
        (tick, "output", "f2.input") for tick in range(6)
    ]
    assert all(event.stale == event.tick - event.sent for event in net.log if event.stale is not None)
    assert max(event.tick for event in net.log) == 5


PHASES = {"M": {"name", "args"}, "X": {"dur"}, "i": {"s"}, "s": {"id", "cat"}, "f": {"id", "cat", "bp"}}


def test_the_trace_is_what_perfetto_reads(tmp_path):
    net = circle(log=True)
    net.run(given(12))
    net.log.trace(tmp_path / "trace.json")

    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]

    slices = [(e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X"]
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(named.values()) == sorted(net.agents)
    for event in events:
        assert PHASES[event["ph"]] <= event.keys() and event["pid"] == 1
        if event["ph"] == "M":
            continue
        assert event["tid"] in named and isinstance(event["ts"], int)
        if event["ph"] in "sf":  # an arrow hangs on the slices that are there at its ends
            assert any(row == event["tid"] and begin <= event["ts"] <= end for row, begin, end in slices)


def test_events_of_a_kind_that_there_is_not_are_refused():
    with pytest.raises(dg.NetworkError, match=r"there is no kind 'targets'; nearest: target"):
        fork()[0].log.of("targets")


def test_a_log_that_is_not_kept_says_so_and_how_to_keep_it(tmp_path):
    net, *given = fork()
    quiet = dg.Network().add("a", nn.Linear(2, 2), loss=F.mse_loss)
    quiet.tick(torch.ones(1, 2), torch.ones(1, 2))

    assert not quiet.log
    for ask in (
        lambda log: log.save(tmp_path / "run.json"),
        lambda log: log.trace(tmp_path / "run.json"),
        lambda log: log.of("fire"),
        list,
    ):
        with pytest.raises(dg.NetworkError, match=r"keeps no log; make it with dg.Network\(log=True\)"):
            ask(quiet.log)
    with net.aside():
        assert not net.log
    net.tick(*given)
    assert net.log


@pytest.mark.parametrize("path", [None, "", "no such folder/run.json", 5.5])
def test_a_log_that_cannot_be_written_says_so(path):
    net, *given = fork()
    net.tick(*given)

    for write in (net.log.save, net.log.trace):
        with pytest.raises(dg.NetworkError, match="cannot be written"):
            write(path)
