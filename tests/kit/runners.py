"""Every way to train a decoupled model, behind one face: the contract holds all of them to the same numbers.

A new runner joins by a class here and a line in `RUNNERS`.
"""

import torch
from torch.utils import _pytree as pytree

import dnigraph as dg

from .models import loss_of
from .networks import adam


class DropIn:
    """The user's own loop: `loss.backward()`, and one optimiser of all parameters."""

    refused = ()  # models that it does not take

    def __init__(self, dm):
        self.dm, self.optimizer = dm, adam(dm.parameters())

    def step(self, args, y):
        self.optimizer.zero_grad()
        with self.dm.conditioned(y):
            loss = loss_of(self.dm(*args), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def evaluate(self, args):
        self.dm.eval()
        output = self.dm(*args)
        self.dm.train()
        return output

    def save(self, file):
        torch.save([self.dm.state_dict(), self.optimizer.state_dict()], file)

    def load(self, file):
        model, optimizer = torch.load(file, weights_only=True)
        self.dm.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)


class Local:
    refused = ()

    def __init__(self, dm):
        self.dm, self.run = dm, dg.Local(dm, loss=loss_of, optimizer=adam)
        self.save, self.load = self.run.save, self.run.load

    def step(self, args, y):
        return self.run.step(*args, target=y).loss

    evaluate = DropIn.evaluate


class Network:
    """The parts as agents, one after the other in one thread."""

    threads, refused = False, ()

    def __init__(self, dm):
        self.dm, self.net = dm, dm.network(loss=loss_of, optimizer=adam)

    def given(self, args):
        return dict(zip(self.dm.plan.inputs, args, strict=True))

    def tick(self, args, y=None):
        (result,) = self.net.run([(self.given(args), y)], threads=self.threads)
        return result

    def step(self, args, y):
        self.example = self.given(args)
        (loss,) = self.tick(args, y).losses.values()
        return loss

    def evaluate(self, args):
        self.net.eval()
        output = self.net.output_of(self.tick(args))
        self.net.train()
        return output

    def save(self, file):
        self.net.settle()
        self.net.save(file)
        torch.save(self.example, file.with_suffix(".example"))

    def load(self, file):
        self.net.load(file, torch.load(file.with_suffix(".example")))


class Threads(Network):
    """The same, with a thread for each part. Parts that share a parameter are refused."""

    threads = True
    refused = ("a_module_called_twice", "tied_weights_and_a_mask_for_all")


RUNNERS = {"drop-in": DropIn, "Local": Local, "network": Network, "network on threads": Threads}


def flat(output):
    """The tensors of what a model returned."""
    leaves = pytree.tree_leaves(vars(output) if hasattr(output, "__dataclass_fields__") else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
