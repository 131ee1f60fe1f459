"""Messages as they lie in memory."""

import pickle

import torch

from dnigraph.engine.channel import Message


def test_a_pickled_message_counts_the_writes_to_its_own_memory():
    message = Message(0, torch.ones(2), False)
    message.value.add_(0)

    assert message.spoilt
    assert not pickle.loads(pickle.dumps(message)).spoilt
