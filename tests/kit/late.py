"""A chain of three parts whose gradients come late, simulated with plain lists."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def momentum(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def simulated(late, ticks):
    """The same with plain lists: each part learns from the gradient that comes, with the weights of that tick."""
    whole = model()
    parts = [nn.Sequential(whole[0], whole[1]), nn.Sequential(whole[2], whole[3]), whole[4]]
    optimizers = [momentum(list(part.parameters())) for part in parts]
    fired = [[] for _ in parts]  # by part and tick: input, output, weights
    told = [[] for _ in parts]  # by part and tick: (tick of the firing, gradient of its output), as they are sent
    for t, (x, y) in enumerate(ticks):
        value = x
        for i, part in enumerate(parts):
            entered = value.detach().requires_grad_()
            kept = {name: p.detach().clone().requires_grad_() for name, p in part.named_parameters()}
            output = functional_call(part, kept, (entered,))
            fired[i].append((entered, output, kept))
            value = output
        for i in reversed(range(len(parts))):
            last = i == len(parts) - 1
            heard = (t, None) if last else told[i][t - late] if t >= late else None
            answer = None
            if heard is not None:
                tick, gradient = heard
                entered, output, kept = fired[i][tick]
                if last:
                    F.cross_entropy(output, y).backward()
                else:
                    output.backward(gradient)
                for name, p in parts[i].named_parameters():
                    p.grad = kept[name].grad
                optimizers[i].step()
                answer = tick, entered.grad
            if i:
                told[i - 1].append(answer)
    return whole
