"""The head at a window's end, as the boundary of a network."""

import pytest
import torch
from kit.streams import data, made


@pytest.fixture
def boundary():
    rnn, (x, y) = made(), data(long=6)
    net = rnn.network(x[:3])
    net.tick(x[:3], y[:3])
    (found,) = net.boundaries.values()
    return found


def test_without_an_answer_nothing_is_learned(boundary):
    visit = boundary.again(torch.zeros(4, 10, dtype=torch.double), boundary.context.seen)

    assert visit.settle(None) == (None, None) and visit.now == (None, None)


def test_it_never_waits_and_says_what_it_was_made_with(boundary):
    assert boundary.waits is False and not boundary.needs
    settings = boundary.settings()
    assert settings["head"] == boundary.head_name and settings["horizon"] == 3 and "listen_after" not in settings
