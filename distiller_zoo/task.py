"""A training task: a network that learns, its loss, and the interface for the scripts and the loop."""
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from helper.distributed import average_gradients
from helper.loops import validate
from helper.optim import backbone, new_optimizer, rate_factors, scale_rates

from .label_loss import label_loss
from .spec import Spec


class TrainingTask(nn.Module):
    """`student` and the loss that trains it. Vanilla and Distiller extend this class with a forward pass.

    `student` is the net that learns, even if it is a future teacher. A Distiller sets the attributes below.
    """

    spec = Spec(title='', paper='', uses='')
    scheduled_over_epochs = False   # begin_epoch reads `epochs`, so a run cannot be extended
    own_backward = False            # `backward` computes the gradients, instead of losses['loss'].backward()
    is_measuring = False            # this forward pass also measures the weights of -b auto; it is not compiled
    has_first_stage = in_first_stage = False        # whether a stage precedes distillation, and is not over yet
    metrics = ('loss', 'acc', 'acc_top5')   # of `validate`; the epoch with the highest second one is the best
    freeze_epochs = 0               # number of first epochs with a frozen backbone of the student
    frozen = ()                     # parameters of the backbone that are frozen now

    def __init__(self, student: nn.Module, opt=None, data=None):
        """opt, data: the parsed options and dataset.Data, which determine the label loss; None: plain cross-entropy."""
        super().__init__()
        self.student = student
        self.label_loss = label_loss(opt, data)
        self.average = None
        if opt is not None:
            self.freeze_epochs = opt.freeze_epochs
            rate_factors(student, opt)      # raises UserError for a net that the flags cannot divide
            if opt.freeze_epochs:
                backbone(student, f'--freeze_epochs {opt.freeze_epochs}')
        if opt is not None and opt.model_ema is not None:
            from timm.utils import ModelEmaV3
            self.average = ModelEmaV3(student, opt.model_ema, use_warmup=opt.model_ema_warmup).requires_grad_(False)
            self.register_buffer('averaged_steps', torch.zeros((), dtype=torch.int64))      # saved with the run
            self.steps = None       # copy of averaged_steps on the CPU: reading it from a GPU would wait for the GPU

    def forward(self, images: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[dict, Tensor]:
        """images (N, 3, H, W), target (N,) or mixed (N, classes), index (N,) -> (losses, logits (N, classes)).

        losses: name -> scalar; training minimises 'loss'.
        """
        raise NotImplementedError(type(self).__name__)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Update schedules. Called before every epoch, from 1, and again when a run resumes in that epoch.

        The result must depend only on these two numbers. Store values that the forward pass reads in tensors
        (self.schedule_factor.fill_(...)): --compile treats Python numbers as constants and compiles again for each
        value. An override calls super().begin_epoch(epoch, epochs), which freezes the backbone by --freeze_epochs.
        """
        is_frozen = epoch <= self.freeze_epochs
        if is_frozen and not self.frozen:       # a method may have frozen other parameters for good
            self.frozen = [p for p in backbone(self.student, '--freeze_epochs') if p.requires_grad]
        for p in self.frozen:
            p.requires_grad_(not is_frozen)
        if not is_frozen:
            self.frozen = ()

    def train(self, mode: bool = True):
        """Keep a frozen student in eval mode, so that its running statistics do not change."""
        super().train(mode)
        if self.frozen:
            self.student.eval()
        return self

    def make_optimizer(self, learning_rate: float, opt) -> Optimizer:
        """Return the optimiser of all parameters. The scripts scale the rates of all its groups by the schedule."""
        return scale_rates(new_optimizer(self, learning_rate, opt), rate_factors(self.student, opt))

    def no_weight_decay(self) -> set:
        """Names of parameters that timm's optimisers exclude from weight decay, besides biases and norms."""
        names = getattr(self.student, 'no_weight_decay', set)()
        return {f'student.{name}' for name in names}

    def backward(self, losses: dict, optimizer: Optimizer) -> None:
        """Compute the gradients for optimizer.step() by calls of add_gradients; only with own_backward.

        losses: of forward. All gradients are None when this is called; an override may clear them between
        two passes. --amp float16, which scales gradients, is refused.
        """
        raise NotImplementedError(f'{type(self).__name__} declares own_backward')

    def add_gradients(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradients of `loss` to the parameters' .grad, averaged over all processes."""
        loss.backward(retain_graph=retain_graph)
        average_gradients(self)

    def after_step(self) -> None:
        """Called after each optimiser step: --model_ema follows the student, but not in a first stage."""
        if self.average is not None and not self.in_first_stage:
            self.steps = 1 + (int(self.averaged_steps) if self.steps is None else self.steps)
            self.averaged_steps.fill_(self.steps)
            self.average.update(self.student, self.steps)

    def inference_net(self) -> nn.Module:
        """Return the network to validate, save under 'model' and ship: images (N, 3, H, W) -> logits (N, classes).

        A method that returns another one declares deploys_student=False and overrides rebuild_inference_net.
        """
        return self.student if self.average is None else self.average.module

    def validate(self, loader, run, split: str) -> dict:
        """Return helper.loops.validate of the network to ship. loader: of the images of the split."""
        return validate(loader, self.inference_net(), run, split=split)

    def checkpoint(self) -> dict:
        """Return this task's entries of a checkpoint."""
        return {'model': self.inference_net().state_dict()}

    def pictures(self) -> dict:
        """name -> small matrix, rows of values from 0 to 1, that shows what the method learnt in this epoch.

        Called once after each epoch, in every process.
        """
        return {}
