"""The optimiser and its learning rate."""
import inspect

import torch
from torch.optim import SGD, Optimizer


class Eager(Optimizer):
    """An optimiser whose steps are never compiled: its methods without torch's decorators for that case.

    The decorators import the compiler, which takes a second at the start of a run that does not use it.
    """

    add_param_group, zero_grad, state_dict, load_state_dict = (
        inspect.unwrap(getattr(Optimizer, name))
        for name in ('add_param_group', 'zero_grad', 'state_dict', 'load_state_dict'))


class EagerSGD(Eager, SGD):
    """torch's SGD, to the bit."""

    step = torch.no_grad()(inspect.unwrap(SGD.step))


def sgd(parameters, learning_rate: float, opt) -> SGD:
    """SGD with opt.momentum and opt.weight_decay, all parameters updated in one kernel."""
    optimizer = EagerSGD(parameters, lr=learning_rate, momentum=opt.momentum, weight_decay=opt.weight_decay, fused=True)
    if opt.momentum:
        # A first step from zeros is the usual first step. Otherwise the fused kernel allocates its buffers without
        # setting them, and if the scaler of float16 skips that step they keep whatever the memory held.
        for group in optimizer.param_groups:
            for p in group['params']:
                optimizer.state[p]['momentum_buffer'] = torch.zeros_like(p)
    return optimizer


def adjust_learning_rate(epoch: int, optimizer, opt) -> float:
    """Set the rates of this epoch (from 1): each group's first, times lr_decay_rate for each listed epoch gone by.

    Returns what opt.learning_rate becomes.
    """
    factor = opt.lr_decay_rate ** sum(epoch > e for e in opt.lr_decay_epochs)
    for group in optimizer.param_groups:
        group['lr'] = group.setdefault('initial_lr', group['lr']) * factor
    return opt.learning_rate * factor
