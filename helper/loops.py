"""One epoch of training, and validation."""
import math

import torch
import torch.nn.functional as F

from .errors import UserError
from .meter import Meter, describe
from .progress import Progress


def adjust_learning_rate(epoch: int, optimizer, opt) -> float:
    """Set and return this epoch's rate (epochs count from 1): times lr_decay_rate for each listed epoch gone by."""
    passed = sum(epoch > e for e in opt.lr_decay_epochs)
    rate = opt.learning_rate * opt.lr_decay_rate ** passed
    for group in optimizer.param_groups:
        group['lr'] = rate
    return rate


def train_vanilla(epoch: int, loader, net, optimizer, opt) -> dict:
    """One epoch of cross-entropy. Returns {'loss', 'top1', 'top5', 'images_per_second'}, averages over the epoch."""
    net.train()

    def losses(images, target, index):
        logits = net(images)
        return {'loss': F.cross_entropy(logits, target)}, logits
    return _train(epoch, loader, losses, optimizer, opt)


def train_distill(epoch: int, loader, distiller, optimizer, opt) -> dict:
    """One epoch of distillation. As train_vanilla, with the terms of the distiller's loss beside their sum."""
    distiller.train()
    return _train(epoch, loader, distiller, optimizer, opt)


def _train(epoch, loader, losses, optimizer, opt):
    """losses(images, target, index) -> ({'loss': total, ...}, logits)."""
    meter = Meter()
    with Progress(f'epoch {epoch}', loader, opt.print_freq) as progress:
        for images, target, index in loader:
            terms, logits = _forward(losses, images, target, index)
            optimizer.zero_grad()
            terms['loss'].backward()
            optimizer.step()
            meter.update(terms, logits, target)
            averages = progress.step(len(target), meter)
            _check_finite(averages, epoch, progress.done, optimizer)
        averages = meter.averages()
        _check_finite(averages, epoch, progress.done, optimizer)
    return {**averages, 'images_per_second': progress.images_per_second}


def _forward(losses, images, target, index):
    try:
        return losses(images, target, index)
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise UserError(f'--batch_size {len(images)}: batch normalisation needs more than one value a channel; '
                        f'give at least 2') from error


def _check_finite(averages, epoch, step, optimizer):
    """A diverged run stops, instead of training on to the last epoch."""
    if averages and not math.isfinite(averages['loss']):
        raise UserError(f'the loss diverged in epoch {epoch}, by step {step} ({describe(averages)}) at learning rate '
                        f'{optimizer.param_groups[0]["lr"]:g}; lower --learning_rate or --beta')


@torch.inference_mode()
def validate(loader, net, predict=None) -> dict:
    """{'test_loss', 'test_acc', 'test_acc_top5'} (percent) over every image once.

    predict(images) -> logits defaults to net itself; net is put into eval mode first.
    """
    net.eval()
    predict = predict or net
    meter = Meter()
    for images, target, _ in loader:
        logits = predict(images)
        meter.update({'loss': F.cross_entropy(logits, target)}, logits, target)
    averages = meter.averages()
    return {'test_loss': averages['loss'], 'test_acc': averages['top1'], 'test_acc_top5': averages['top5']}
