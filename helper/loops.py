"""One epoch of training, and validation."""
import contextlib
import math

import torch
import torch.nn.functional as F

from .class_metrics import gather_predictions, predictions
from .device import Precision
from .distributed import average_batchnorm
from .errors import UserError
from .finite_check import FiniteCheck
from .meter import Meter, Progress

PREDICTIONS = 'predictions'     # key in the result of `validate`
SPLITS = {'test': 'test', 'val': 'validation'}      # start of the names of metrics -> the split in words


class NullRun:
    """Stands in for a helper.run.Run where nothing is saved."""

    advice, epoch = 'lower --learning_rate', 1

    def begin_steps(self, meter, finite) -> int:
        return 0

    def end_step(self, batches: int = 1) -> None:
        pass

    def stop_if_asked(self) -> None:
        pass


def train_epoch(epoch: int, loader, module, optimizer, opt, run=None, precision: Precision | None = None) -> dict:
    """Train one epoch. Returns averages over it: 'loss', its terms, 'top1', 'top5' and 'images_per_second'.

    A first stage has only 'loss' and 'images_per_second'; without labelled images, 'top1' and 'top5' are missing.

    loader: yields the arguments of module.forward. module: a distiller_zoo.TrainingTask, or DDP around one. run: the
    helper.run.Run, which saves or resumes within the epoch. precision: --amp.
    """
    task = getattr(module, 'module', module)        # without DDP
    precision = precision or Precision(None, next(module.parameters()).device)
    run = run or NullRun()
    meter, finite = Meter(), FiniteCheck(epoch, optimizer, run.advice)
    module.train()
    done = run.begin_steps(meter, finite)       # batches of this epoch that an interrupted run has made
    with Progress(f'epoch {epoch}', loader, opt.print_freq, done) as progress:
        for number, (images, target, *rest) in enumerate(loader, start=done):
            # The gradients of accum_steps batches make one update of the weights.
            accum_start = number - number % opt.grad_accum
            accum_steps = min(opt.grad_accum, len(loader) - accum_start)
            is_update_step = number == accum_start + accum_steps - 1
            if number == accum_start:
                optimizer.zero_grad()
            with gradient_exchange(module, is_update_step):
                with precision.autocast():
                    losses, logits = forward(module, images, target, *rest)
                finite.add(number + 1, losses)
                if task.own_backward:
                    task.backward(losses, optimizer)
                else:
                    precision.scaler.scale(losses['loss'] / accum_steps).backward()
            n = images.shape[-4]        # of (N, 3, H, W) or (views, N, 3, H, W)
            meter.update(losses, logits, target, n)
            progress.step(n, meter)
            if is_update_step:
                update_weights(optimizer, precision.scaler, opt.clip_grad)
                task.after_step()
                run.end_step(accum_steps)
        finite.flush()
        precision.check()
        average_batchnorm(module)       # before the check, so that it fails in all processes
        finite.check_weights(module)
        averages = meter.averages()
    return {**averages, 'images_per_second': progress.images_per_second}


def gradient_exchange(module, is_update_step: bool):
    """Return a context in which DDP exchanges gradients between processes only if this batch completes an update."""
    return contextlib.nullcontext() if is_update_step or not hasattr(module, 'no_sync') else module.no_sync()


def forward(module, images, *rest):
    """Call module. Raises UserError if batch normalisation needs more values than a batch of one image has."""
    try:
        return module(images, *rest)
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise UserError(f'--batch_size {images.shape[-4]}: batch normalisation needs more than one value a channel; '
                        f'give at least 2') from error


def update_weights(optimizer, scaler, clip_grad: float | None = None) -> None:
    """Make one optimiser step, unless the scaler of float16 skips it. clip_grad: limit of the norm of all gradients."""
    if clip_grad is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group['params']], clip_grad)
    scaler.step(optimizer)
    scaler.update()


@torch.inference_mode()
def validate(loader, net, run=None, source: str = '', split: str = 'test') -> dict:
    """Return {'test_loss', 'test_acc', 'test_acc_top5' (percent), 'test_classes_predicted', 'test_classes',
    PREDICTIONS}.

    test_classes_predicted and test_classes count the classes that the net predicts at least once, and those with
    images. PREDICTIONS: helper.class_metrics.predictions, (3, images) of all processes. net(images) -> logits. run: a
    helper.run.Run, which stops here after a signal. source: for the error message, flag and file of a net that this run
    does not train. split: of the loader, a key of SPLITS; with 'val' the names begin with val_. Raises UserError in
    every process if the loss is not finite.
    """
    net.eval()
    run = run or NullRun()
    meter, batches = Meter(), []        # predictions of each batch; on the device, since copying them would wait for it
    for images, target, _ in loader:
        logits = net(images)
        meter.update({'loss': F.cross_entropy(logits, target)}, logits, target)
        batches.append(predictions(logits, target))
        run.stop_if_asked()
    averages = meter.averages()
    all_predictions = gather_predictions(batches)
    if not averages:
        raise UserError(f'no {SPLITS[split]} image could be read, so there is no accuracy')
    loss = averages['loss']
    if not math.isfinite(loss):
        raise UserError(f'{source}: its loss on the {SPLITS[split]} images is {loss}, so it has no accuracy; give a '
                        f'checkpoint of a run that did not diverge' if source else
                        f'the run diverged in epoch {run.epoch}: the loss on the {SPLITS[split]} images is {loss}; '
                        f'{run.advice}')
    predicted, present, _ = (len(values.unique()) for values in all_predictions)
    metrics = {'loss': loss, 'acc': averages['top1'], 'acc_top5': averages['top5'], 'classes_predicted': predicted,
               'classes': present}
    return {**{f'{split}_{name}': value for name, value in metrics.items()}, PREDICTIONS: all_predictions}
