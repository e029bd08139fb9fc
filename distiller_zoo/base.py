"""The base of every method: one module that owns the student, the frozen teacher and the method's trainable part."""
import torch
import torch.nn.functional as F
from torch import nn

from helper.errors import UserError

from .criterion import DistillKL


class Distiller(nn.Module):
    """student + frozen teacher + a method's trainable part; its forward is one training step's losses.

    A method is a subclass in a file of its own. It names its paper, sets what the base documents here, builds its
    criterion and trainable part in `build`, and returns its loss from `method_loss`. Nothing else in the repository
    needs to know of it but its line in distiller_dict.

    total loss = gamma * cross-entropy + alpha * T^2 * KL(teacher || student) + beta * method_loss
    """

    paper = ''              # authors, venue, arXiv id
    title = ''              # what the method is called
    uses = ''               # what it is fed with, in a few words
    default_beta = 0.0      # the published weight of method_loss
    imagenet_beta = None    # where it is another one for ImageNet
    drop_last = False       # a short last batch cannot be used
    pairwise = False        # compares the images of a batch, so a single one cannot be used
    float32 = False         # method_loss compares numbers too finely for the 16 bits of --amp
    own_buffers = ()        # names of buffers that each of several processes keeps for itself within an epoch
    preact = False          # features are taken before the ReLU
    init_stage = False      # a first stage of --init_epochs minimises init_loss alone
    init_learning_rate = None   # of the first stage, where it is not --learning_rate

    def __init__(self, student: nn.Module, teacher: nn.Module, opt, data):
        """opt: the parsed options (gamma, alpha, beta, kd_T, batch_size, ...). data: dataset.Data.

        Both nets are probed once with two blank images for the shapes of their features.
        """
        super().__init__()
        self.student = student
        # Kept out of parameters(), state_dict() and DDP: it is never trained, synchronised or saved.
        self.__dict__['teacher'] = teacher.eval().requires_grad_(False)
        self.gamma, self.alpha, self.beta = opt.gamma, opt.alpha, opt.beta
        self.initialising = self.init_stage
        self.criterion_kl = DistillKL(opt.kd_T)
        self.build(opt, data, *self.probe(data))

    def build(self, opt, data, shapes_s: list[tuple], shapes_t: list[tuple]) -> None:
        """Make the criterion and the trainable part. shapes: (C, H, W) of each feature map, (C,) of the embedding."""

    def method_loss(self, feats_s: list, logits_s, feats_t: list, logits_t, target, index):
        """The method's loss, a scalar before beta; None where the soft labels are all there is."""
        return None

    def init_loss(self, images):
        """What the first stage minimises, a scalar, for images (N, 3, H, W)."""
        raise NotImplementedError(f'{type(self).__name__} has no first stage')

    def finish_init(self) -> None:
        """The first stage is over: from here on forward gives the losses of distillation."""
        self.initialising = False

    def predict(self, images):
        """Logits (N, classes) of the net that is being trained, as validation and deployment see it."""
        return self.student(images)

    def checkpoint(self) -> dict:
        """What the checkpoint holds beside the student: the state of the method's trainable part."""
        state = {k: v for k, v in self.state_dict().items() if not k.startswith('student.')}
        return {'distiller': state} if state else {}

    def pictures(self) -> dict:
        """Small matrices that say what the method learnt in this epoch, by name, values 0 to 1. Reading starts anew."""
        return {}

    def forward(self, images, target, index=None):
        """images (N, 3, H, W), target (N,), index (N,) -> (losses, logits (N, classes)).

        losses: {'loss': the total, 'ce': ..., 'kl': ..., 'method': ...}, scalars, the terms before their weights. In a
        first stage 'loss' alone, and None instead of logits.
        """
        if self.initialising:
            return {'loss': self.init_loss(images)}, None
        feats_t, logits_t = self.ask_teacher(images, preact=self.preact)
        feats_s, logits_s = self.student(images, is_feat=True, preact=self.preact)
        terms = {'ce': F.cross_entropy(logits_s, target), 'kl': self.criterion_kl(logits_s, logits_t)}
        loss = self.gamma * terms['ce'] + self.alpha * terms['kl']
        method = self._method(feats_s, logits_s, feats_t, logits_t, target, index)
        if method is not None:
            terms['method'] = method
            loss = loss + self.beta * method
        return {'loss': loss, **terms}, logits_s

    def _method(self, feats_s, logits_s, feats_t, logits_t, target, index):
        """method_loss, for the methods that ask for it in float32 whatever the nets compute in."""
        kind = logits_s.device.type
        if not self.float32 or not torch.is_autocast_enabled(kind):
            return self.method_loss(feats_s, logits_s, feats_t, logits_t, target, index)
        feats_s, feats_t = ([f.float() for f in feats] for feats in (feats_s, feats_t))
        with torch.autocast(kind, enabled=False):
            return self.method_loss(feats_s, logits_s.float(), feats_t, logits_t.float(), target, index)

    def ask_teacher(self, images, preact: bool = False):
        """The teacher's (features, logits)."""
        if torch.compiler.is_compiling():       # the compiler sees by itself that nothing here needs a gradient
            with torch.no_grad():
                return self.teacher(images, is_feat=True, preact=preact)
        with torch.inference_mode():
            features, logits = self.teacher(images, is_feat=True, preact=preact)
        # An inference tensor cannot be kept for a backward pass; an ordinary one of the same memory can.
        return [torch.from_dlpack(f) for f in features], torch.from_dlpack(logits)

    @classmethod
    def published_beta(cls, dataset: str) -> float:
        """The beta of a run that gives none."""
        return cls.default_beta if cls.imagenet_beta is None or 'imagenet' not in dataset else cls.imagenet_beta

    @classmethod
    def check_batch_size(cls, batch_size: int) -> None:
        """Raises UserError if --batch_size is too small for the method."""
        if cls.pairwise and batch_size < 2:
            raise UserError(f'--batch_size {batch_size}: {cls.title} compares the images of a batch; give at least 2')

    @staticmethod
    def check_maps(opt, shapes_s: list, shapes_t: list) -> None:
        """Raises UserError unless all of these are shapes (C, H, W) of feature maps, and there are some."""
        for flag, name, shapes in (('--model_s', opt.model_s, shapes_s), ('--path-t', opt.model_t, shapes_t)):
            odd = [shape for shape in shapes if len(shape) != 3]
            if odd or not shapes:
                what = f'a feature is {("N", *odd[0])}' if odd else 'it has none'
                raise UserError(f'{flag}: --distill {opt.distill} needs feature maps (N, C, H, W) of {name}, '
                                f'but {what}')

    def train(self, mode: bool = True):
        """The teacher stays in eval mode, its running statistics untouched."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn, recurse=True):
        """The teacher follows to() and its like."""
        super()._apply(fn, recurse)
        self.teacher._apply(fn, recurse)
        return self

    @torch.no_grad()
    def probe(self, data, preact: bool = False) -> list[list[tuple]]:
        """The shapes of the student's and of the teacher's features, (C, H, W) or (C,), from two blank images."""
        device = next(self.student.parameters()).device
        images = torch.zeros(2, 3, data.image_size, data.image_size, device=device)
        was_training = self.student.training
        self.student.eval()
        shapes = [[tuple(f.shape[1:]) for f in net(images, is_feat=True, preact=preact)[0]]
                  for net in (self.student, self.teacher)]
        self.student.train(was_training)
        return shapes
