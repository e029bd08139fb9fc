"""The optimiser and its learning rate."""
import inspect
from importlib.util import find_spec

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from .errors import UserError, nearest, reason

OURS = ('sgd', 'dot')      # values of --opt; the others are timm's


class Eager(Optimizer):
    """Methods without torch's decorators for compiled steps, whose import of the compiler takes a second."""

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


def new_optimizer(module: nn.Module, learning_rate: float, opt) -> Optimizer:
    """--opt for all parameters of `module`: SGD, or an optimiser of timm, without decay of biases and norms."""
    if opt.opt == 'sgd':
        return sgd([p for name, p in module.named_parameters() if not name.startswith('average.')], learning_rate, opt)
    from timm.optim import create_optimizer_v2
    try:
        return create_optimizer_v2(module, opt=opt.opt, lr=learning_rate, weight_decay=opt.weight_decay,
                                   momentum=opt.momentum)
    except (ValueError, TypeError, AssertionError, ImportError) as error:
        raise UserError(f'--opt {opt.opt}: timm cannot make it ({reason(error)}); give another') from error


def check_recipe(opt) -> None:
    """Raise UserError for an unknown optimiser, for rates that do not fit, or if timm is needed but not installed."""
    flags = {f'--opt {opt.opt}': opt.opt not in OURS, f'--sched {opt.sched}': opt.sched != 'step',
             '--warmup_epochs': opt.warmup_epochs, '--bce_loss': opt.bce_loss, '--mixup': opt.mixup,
             '--cutmix': opt.cutmix, '--model_ema': opt.model_ema,
             f'--aa {opt.aa}': opt.aa, '--reprob': opt.reprob}
    for flag, given in flags.items():
        if given and find_spec('timm') is None:
            raise UserError(f'{flag}: timm is not installed; pip install timm')
    if opt.opt not in OURS:
        from timm.optim import list_optimizers
        known = {*list_optimizers()} - {'adahessian'}       # which needs second derivatives
        if opt.opt not in known:
            raise UserError(f'--opt {opt.opt}: no such optimiser; {nearest(opt.opt, known)}')
    if opt.balance_classes and opt.bce_loss:
        raise UserError('--balance_classes: weights the cross-entropy, but --bce_loss has none; leave one of them out')
    if opt.warmup_epochs >= opt.epochs:
        raise UserError(f'--warmup_epochs {opt.warmup_epochs}: --epochs {opt.epochs} must be more')
    rate = f'--learning_rate {opt.learning_rate:g}'
    if opt.warmup_epochs and opt.warmup_lr > opt.learning_rate:
        raise UserError(f'--warmup_lr {opt.warmup_lr:g}: a warm-up begins below {rate}; give at most that')
    if opt.sched != 'step' and opt.min_lr >= opt.learning_rate:
        raise UserError(f'--min_lr {opt.min_lr:g}: the rate falls from {rate} to it; give less than that')
    if opt.model_ema is not None and not 0 < opt.model_ema < 1:
        what = 'the first weights' if opt.model_ema else 'the last weights'
        raise UserError(f'--model_ema {opt.model_ema:g}: the average would be {what}; give a factor between 0 and 1')


def has_momentum(name: str) -> bool:
    """Whether the optimiser `name` of --opt uses --momentum."""
    if name in OURS:
        return True
    from timm.optim import get_optimizer_info
    return get_optimizer_info(name).has_momentum


def adjust_learning_rate(epoch: int, optimizer, opt) -> float:
    """Set the learning rates of an epoch, counted from 1, and return the one of the first group.

    They depend on the epoch alone. Warm-up and all schedules but 'step' are timm's.
    """
    if opt.sched != 'step' or opt.warmup_epochs:
        from timm.scheduler import create_scheduler_v2
        for group in optimizer.param_groups:
            group['lr'] = group.setdefault('initial_lr', group['lr'])
        scheduler, _ = create_scheduler_v2(
            optimizer, sched='multistep' if opt.sched == 'step' else opt.sched, num_epochs=opt.epochs,
            decay_milestones=[e + 1 for e in opt.lr_decay_epochs], min_lr=opt.min_lr,
            decay_rate=opt.poly_power if opt.sched == 'poly' else opt.lr_decay_rate,     # timm's name for both
            warmup_epochs=opt.warmup_epochs, warmup_lr=opt.warmup_lr)
        scheduler.step(epoch - 1)
        return optimizer.param_groups[0]['lr']
    factor = opt.lr_decay_rate ** sum(epoch > e for e in opt.lr_decay_epochs)
    for group in optimizer.param_groups:
        group['lr'] = group.setdefault('initial_lr', group['lr']) * factor
    return opt.learning_rate * factor
