"""The optimiser and its learning rate."""
import inspect

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from .errors import UserError, reason

BUILT_IN = ('sgd', 'dot')      # values of --opt; the others are timm's


class Eager(Optimizer):
    """Methods without torch's decorators for compiled steps, whose import of the compiler takes a second."""

    add_param_group, zero_grad, state_dict, load_state_dict = (
        inspect.unwrap(getattr(Optimizer, name))
        for name in ('add_param_group', 'zero_grad', 'state_dict', 'load_state_dict'))


class EagerSGD(Eager, SGD):
    """torch's SGD, to the bit."""

    step = torch.no_grad()(inspect.unwrap(SGD.step))


def sgd(parameters, learning_rate: float, opt) -> SGD:
    """SGD with opt.momentum, opt.nesterov and opt.weight_decay, all parameters updated in one kernel."""
    optimizer = EagerSGD(parameters, lr=learning_rate, momentum=opt.momentum, nesterov=opt.nesterov,
                         weight_decay=opt.weight_decay, fused=True)
    if opt.momentum:
        # A step from zero buffers equals the usual first step. The fused kernel itself allocates buffers without
        # setting them: if the scaler of float16 skips the first step, they would stay uninitialised.
        for group in optimizer.param_groups:
            for p in group['params']:
                optimizer.state[p]['momentum_buffer'] = torch.zeros_like(p)
    return optimizer


def new_optimizer(module: nn.Module, learning_rate: float, opt) -> Optimizer:
    """The optimiser of --opt for all parameters of `module`.

    SGD decays all parameters; timm's optimisers exclude biases and norms from weight decay.
    All have the same learning rate; see scale_rates.
    """
    if opt.opt == 'sgd':
        return sgd([p for name, p in module.named_parameters() if not name.startswith('average.')], learning_rate, opt)
    from timm.optim import create_optimizer_v2
    try:
        return create_optimizer_v2(module, opt=opt.opt, lr=learning_rate, weight_decay=opt.weight_decay,
                                   momentum=opt.momentum)
    except (ValueError, TypeError, AssertionError, ImportError) as error:
        raise UserError(f'--opt {opt.opt}: timm cannot make it ({reason(error)}); give another') from error


def backbone(net: nn.Module, flag: str) -> list[nn.Parameter]:
    """All parameters of `net`, a models.base.Net, but its classifier's. Raises UserError that begins with `flag`."""
    try:
        classifier = {p for layer in net.classifier_layers() for p in layer.parameters()}
    except NotImplementedError as error:
        raise UserError(f'{flag}: {error}, so its layers cannot be told apart; leave the flag out') from error
    if not classifier:
        raise UserError(f'{flag}: the classifier of this net has no weights; leave the flag out')
    return [p for p in net.parameters() if p not in classifier]


def rate_factors(net: nn.Module, opt) -> dict[nn.Parameter, float]:
    """Factors of the learning rates of net's parameters by --layer_decay or --backbone_lr; 1 for those not in the dict.

    net: a models.base.Net. Raises UserError for a net that these flags cannot divide.
    """
    if opt.backbone_lr < 1:
        return dict.fromkeys(backbone(net, f'--backbone_lr {opt.backbone_lr:g}'), opt.backbone_lr)
    if opt.layer_decay == 1:
        return {}
    name, net = getattr(net, 'name', 'the net'), getattr(net, 'net', net)       # timm's own, within our adapter
    factors = {}
    if hasattr(net, 'group_matcher'):
        from timm.optim import param_groups_layer_decay
        factors = {p: group['lr_scale'] for group in param_groups_layer_decay(net, layer_decay=opt.layer_decay)
                   for p in group['params']}
    if {*factors.values()} <= {1}:
        raise UserError(f'--layer_decay {opt.layer_decay:g}: {name} has no layer groups of timm; give --backbone_lr, a '
                        f'factor for all layers but the classifier')
    return factors


def scale_rates(optimizer: Optimizer, factors: dict[nn.Parameter, float]) -> Optimizer:
    """Divide the groups of an optimiser by their parameters' factors of the learning rate, timm's `lr_scale`."""
    if factors:
        groups = []
        for group in optimizer.param_groups:
            parts = {}      # factor -> parameters
            for p in group['params']:
                parts.setdefault(factors.get(p, 1.0), []).append(p)
            groups += [{**group, 'params': parameters, 'lr_scale': factor, 'initial_lr': group['lr'],
                        'lr': group['lr'] * factor} for factor, parameters in parts.items()]
        optimizer.param_groups[:] = groups
    return optimizer


def base_rate(optimizer: Optimizer) -> float:
    """The learning rate now, of the parameters with factor 1."""
    return next(group['lr'] for group in optimizer.param_groups if group.get('lr_scale', 1) == 1)


def has_momentum(name: str) -> bool:
    """Whether the optimiser `name` of --opt uses --momentum."""
    if name in BUILT_IN:
        return True
    from timm.optim import get_optimizer_info
    return get_optimizer_info(name).has_momentum


def adjust_learning_rate(epoch: int, optimizer, opt) -> float:
    """Set the learning rates of an epoch, counted from 1, and return the one of the parameters with factor 1.

    They depend only on the epoch. Warm-up and all schedules but 'step' are timm's. The rate of a group is multiplied by
    its lr_scale.
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
        return base_rate(optimizer)
    factor = opt.lr_decay_rate ** sum(epoch > e for e in opt.lr_decay_epochs)
    for group in optimizer.param_groups:
        group['lr'] = group.setdefault('initial_lr', group['lr']) * factor * group.get('lr_scale', 1)
    return opt.learning_rate * factor
