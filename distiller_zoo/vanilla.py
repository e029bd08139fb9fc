"""A network that learns alone, with the calls that the train scripts and the loop make. Every method extends it."""
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from helper.optim import sgd


class Vanilla(nn.Module):
    """`student` trained with cross-entropy. What a subclass may change is documented here and in base.Distiller."""

    views = ('weak',)               # how each view of an image is augmented, of dataset.augment.VIEWS
    drop_last = False               # a short last batch cannot be used
    scheduled_over_epochs = False   # begin_epoch reads `epochs`, so a finished run cannot be given more of them
    own_buffers = ()                # names of buffers that differ between the processes within an epoch
    initialising = False            # in the first stage of a method that has one

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[dict, Tensor]:
        """images (N, 3, H, W), target (N,), index (N,) -> (losses, logits (N, classes)).

        losses: name -> scalar; 'loss' is what training minimises.
        """
        logits = self.student(images)
        return {'loss': F.cross_entropy(logits, target)}, logits

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
        return sgd(self.parameters(), learning_rate, opt)

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

    def inference_net(self) -> nn.Module:
        """The network that is validated, saved under 'model', and shipped: images (N, 3, H, W) -> logits (N, classes).

        Made of the same parameters. A subclass that returns another one than the student writes
        `rebuild_inference_net` too.
        """
        return self.student

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
