"""One epoch of training, and validation."""
import torch
import torch.nn.functional as F

from .distributed import average_batchnorm
from .errors import UserError
from .meter import Meter
from .precision import Precision
from .progress import Progress
from .watch import Watch


def adjust_learning_rate(epoch: int, optimizer, opt) -> float:
    """Set and return this epoch's rate (epochs count from 1): times lr_decay_rate for each listed epoch gone by."""
    passed = sum(epoch > e for e in opt.lr_decay_epochs)
    rate = opt.learning_rate * opt.lr_decay_rate ** passed
    for group in optimizer.param_groups:
        group['lr'] = rate
    return rate


def train_vanilla(epoch: int, loader, net, optimizer, opt, keeper=None, precision=None) -> dict:
    """One epoch of cross-entropy. Returns {'loss', 'top1', 'top5', 'images_per_second'}, averages over the epoch.

    keeper: a helper.resume.Keeper, which can begin and stop within the epoch. precision: of --amp.
    """
    net.train()

    def losses(images, target, index):
        logits = net(images)
        return {'loss': F.cross_entropy(logits, target)}, logits
    return _train(epoch, loader, net, losses, optimizer, opt, keeper, precision)


def train_distill(epoch: int, loader, distiller, optimizer, opt, keeper=None, precision=None) -> dict:
    """One epoch of distillation. As train_vanilla, with the terms of the distiller's loss beside their sum."""
    distiller.train()
    return _train(epoch, loader, distiller, distiller, optimizer, opt, keeper, precision)


def _train(epoch, loader, module, losses, optimizer, opt, keeper, precision):
    """losses(images, target, index) -> ({'loss': total, ...}, logits), with the parameters of `module`."""
    precision = precision or Precision(None, next(module.parameters()).device)
    meter, watch = Meter(), Watch(epoch, optimizer)
    done = keeper.begin_epoch(meter, watch) if keeper else 0
    with Progress(f'epoch {epoch}', loader, opt.print_freq, done) as progress:
        for images, target, index in loader:
            with precision.autocast():
                terms, logits = _forward(losses, images, target, index)
            watch.look(progress.done + 1, terms)
            precision.update(terms['loss'], optimizer)
            meter.update(terms, logits, target)
            progress.step(len(target), meter)
            if keeper:
                keeper.step_done()
        watch.settle()
        watch.check_weights(module)
        precision.check()
        average_batchnorm(module)
        averages = meter.averages()
    return {**averages, 'images_per_second': progress.images_per_second}


def _forward(losses, images, target, index):
    try:
        return losses(images, target, index)
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise UserError(f'--batch_size {len(images)}: batch normalisation needs more than one value a channel; '
                        f'give at least 2') from error


@torch.inference_mode()
def validate(loader, net, predict=None, keeper=None) -> dict:
    """{'test_loss', 'test_acc', 'test_acc_top5'} (percent) over every image once, each in one of the processes.

    predict(images) -> logits defaults to net itself; net is put into eval mode first.
    """
    net.eval()
    predict = predict or net
    meter = Meter()
    for images, target, _ in loader:
        logits = predict(images)
        meter.update({'loss': F.cross_entropy(logits, target)}, logits, target)
        if keeper:
            keeper.stop_if_asked()
    averages = meter.averages()
    return {'test_loss': averages['loss'], 'test_acc': averages['top1'], 'test_acc_top5': averages['top5']}
