"""One epoch of training, and validation."""
import math

import torch
import torch.nn.functional as F

from .device import Precision
from .distributed import average_batchnorm, average_gradients
from .errors import UserError
from .meter import ClassCount, FiniteCheck, Meter, Progress


class Unsaved:
    """In the place of a helper.run.Run where nothing is saved."""

    advice, epoch = 'lower --learning_rate', 1

    def begin_steps(self, meter, finite) -> int:
        return 0

    def end_step(self, batches: int = 1) -> None:
        pass

    def stop_if_asked(self) -> None:
        pass


def train_epoch(epoch: int, loader, module, optimizer, opt, run=None, precision: Precision | None = None) -> dict:
    """Returns {'loss', the other terms of the loss, 'top1', 'top5', 'images_per_second'}, averages over the epoch.

    loader: gives what the forward of `module` takes. module: a distiller_zoo.Vanilla, which every Distiller is, or DDP
    around one. run: the helper.run.Run that saves within the epoch, or continues in its middle. precision: of --amp.
    """
    learner = getattr(module, 'module', module)     # without DDP
    accumulate = opt.grad_accum
    precision = precision or Precision(None, next(module.parameters()).device)
    run = run or Unsaved()
    meter, finite = Meter(), FiniteCheck(epoch, optimizer, run.advice)

    def backward(loss, retain_graph=False):
        precision.backward(loss / together if together > 1 else loss, retain_graph)
        if learner.own_backward:        # else DDP has averaged them
            average_gradients(learner)

    module.train()
    done = run.begin_steps(meter, finite)
    with Progress(f'epoch {epoch}', loader, opt.print_freq, done) as progress:
        for number, (images, target, *rest) in enumerate(loader, start=done):
            first = number - number % accumulate        # of the batches whose gradients make one step
            together = min(accumulate, len(loader) - first)
            with precision.autocast():
                losses, logits = _forward(module, images, target, *rest)
            finite.add(progress.done + 1, losses)
            if number == first:
                optimizer.zero_grad()
            learner.backward(losses, optimizer, backward)
            meter.update(losses, logits, target)
            progress.step(len(target), meter)
            if number == first + together - 1:
                precision.step(optimizer, opt.clip_grad)
                learner.after_step()
                run.end_step(together)
        finite.flush()
        precision.check()
        average_batchnorm(module)       # before the check, so that it fails in all processes
        finite.check_weights(module)
        averages = meter.averages()
    return {**averages, 'images_per_second': progress.images_per_second}


def _forward(module, *batch):
    try:
        return module(*batch)
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise UserError(f'--batch_size {len(batch[1])}: batch normalisation needs more than one value a channel; '
                        f'give at least 2') from error


@torch.inference_mode()
def validate(loader, net, run=None, source: str = '') -> dict:
    """{'test_loss', 'test_acc', 'test_acc_top5' (percent), 'test_classes_predicted', 'test_classes'} over all images.

    The processes share the images. The last two entries count the classes that the net predicts at least once, and
    those that have images. net(images) -> logits; it is put into eval mode. run: a helper.run.Run, which may end here
    after a signal. source: the flag and file of a net that this run does not train, for the error message.

    Raises UserError in every process if the loss is not finite: NaN logits would count as a prediction.
    """
    net.eval()
    run = run or Unsaved()
    meter, classes = Meter(), ClassCount()
    for images, target, _ in loader:
        logits = net(images)
        meter.update({'loss': F.cross_entropy(logits, target)}, logits, target)
        classes.update(logits, target)
        run.stop_if_asked()
    averages = meter.averages()
    predicted, present = classes.counts()
    if not averages:
        raise UserError('no test image could be read, so there is no accuracy')
    loss = averages['loss']
    if not math.isfinite(loss):
        raise UserError(f'{source}: its loss on the test images is {loss}, so it has no accuracy; give a checkpoint '
                        f'of a run that did not diverge' if source else
                        f'the run diverged in epoch {run.epoch}: the loss on the test images is {loss}; {run.advice}')
    return {'test_loss': loss, 'test_acc': averages['top1'], 'test_acc_top5': averages['top5'],
            'test_classes_predicted': predicted, 'test_classes': present}
