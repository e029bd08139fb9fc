"""A network that learns alone, with the calls that the train scripts and the loop make. Every method extends it."""
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from helper.optim import new_optimizer

from .task_loss import task_loss


class Vanilla(nn.Module):
    """`student` trained with cross-entropy. What a subclass may change is documented here and in base.Distiller."""

    views = ('weak',)               # how each view of an image is augmented, of dataset.augment.VIEWS
    drop_last = False               # a short last batch cannot be used
    scheduled_over_epochs = False   # begin_epoch reads `epochs`, so a finished run cannot be given more of them
    own_buffers = ()                # names of buffers that differ between the processes within an epoch
    initialising = False            # in the first stage of a method that has one
    needs_class = False             # a sample has one class: mixed images cannot be used

    def __init__(self, student: nn.Module, opt=None, data=None):
        """opt, data: the parsed options and dataset.Data, of which the loss of the task is made."""
        super().__init__()
        self.student = student
        self.task_loss = task_loss(opt, data)
        self.average = None
        if opt is not None and opt.model_ema is not None:
            from timm.utils import ModelEmaV3
            self.average = ModelEmaV3(student, opt.model_ema, use_warmup=opt.model_ema_warmup).requires_grad_(False)
            self.register_buffer('averaged_steps', torch.zeros((), dtype=torch.int64))      # saved with the run
            self.steps = None       # the same number, without asking a GPU for it in every step

    def forward(self, images: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[dict, Tensor]:
        """images (N, 3, H, W), target (N,) or mixed (N, classes), index (N,) -> (losses, logits (N, classes)).

        losses: name -> scalar; 'loss' is what training minimises.
        """
        logits = self.student(images)
        return {'loss': self.task_loss(logits, target)}, logits

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before every epoch of the training, counted from 1, and again when a run is resumed in it.

        Set here what a schedule changes. It must depend on these two numbers alone. Values that the forward pass reads
        belong in tensors (self.beta_factor.fill_(...)): --compile takes Python numbers for constants, and would compile
        anew for each value. An override calls super().begin_epoch(epoch, epochs).
        """

    def make_optimizer(self, learning_rate: float, opt) -> Optimizer:
        """The optimiser of all parameters, with any state and groups.

        It starts from the rates given here; the scripts multiply those of all groups as the rate of the run falls.
        """
        return new_optimizer(self, learning_rate, opt)

    def no_weight_decay(self) -> set:
        """Names of parameters that timm's optimisers leave without decay, beside biases and norms."""
        names = getattr(self.student, 'no_weight_decay', set)()
        return {f'student.{name}' for name in names}

    def backward(self, losses: dict, optimizer: Optimizer, backward: Callable) -> None:
        """Set the gradients that optimizer.step() reads: backward(loss, retain_graph=False) adds those of one loss.

        losses: what forward returned. The gradients are None when this is called. An override may make several passes
        and clear the gradients in between; with several processes each pass gives the mean over all of them. --amp
        float16, which scales the gradients, is refused then.
        """
        backward(losses['loss'])

    @property
    def own_backward(self) -> bool:
        """Whether a subclass has a backward of its own."""
        return type(self).backward is not Vanilla.backward

    def after_step(self) -> None:
        """Called after each step of the optimiser: --model_ema follows the student, after a first stage."""
        if self.average is not None and not self.initialising:
            self.steps = 1 + (int(self.averaged_steps) if self.steps is None else self.steps)
            self.averaged_steps.fill_(self.steps)
            self.average.update(self.student, self.steps)

    def inference_net(self) -> nn.Module:
        """The network that is validated, saved under 'model', and shipped: images (N, 3, H, W) -> logits (N, classes).

        Made of the same parameters; with --model_ema their average. A subclass that returns another one than the
        student writes `rebuild_inference_net` too, and goes without --model_ema.
        """
        return self.student if self.average is None else self.average.module

    @classmethod
    def rebuild_inference_net(cls, student: nn.Module, weights: dict) -> nn.Module:
        """inference_net() for a new student, without a teacher, to load `weights`, its state_dict, into."""
        return student

    def checkpoint(self) -> dict:
        """What a checkpoint of the network holds."""
        return {'model': self.inference_net().state_dict()}

    def pictures(self) -> dict:
        """name -> small matrix, a list of rows of values 0 to 1, of what the method learnt in this epoch.

        Called once after each epoch, in every process.
        """
        return {}
