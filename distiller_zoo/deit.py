"""The method deit: the student learns the class that the teacher predicts, by its distillation token if it has one."""
import torch.nn.functional as F

from .base import Distiller, Spec


class DeiTDistiller(Distiller):
    """Touvron et al., ICML 2021, Training data-efficient image transformers and distillation through attention,
    arXiv:2012.12877: hard-label distillation.

    A student of timm with a distillation token, such as deit_tiny_distilled_patch16_224, has a second classifier that
    learns from the teacher while the first learns from the labels. At inference it returns the mean of both. Any other
    student learns both with its one classifier.
    """

    spec = Spec(
        title='DeiT', paper='Touvron et al., ICML 2021, arXiv:2012.12877',
        uses="the teacher's class, a distillation token", published={'gamma': 0.5, 'alpha': 0.0, 'beta': 0.5},
        changes_student=True)

    def build(self, opt, data, shapes_s, shapes_t):
        net = getattr(self.student, 'net', None)
        self.has_token = hasattr(net, 'set_distilled_training')
        if self.has_token:
            net.set_distilled_training(True)

    def train(self, mode=True):
        """A frozen student returns the logits of both classifiers too: timm's net does so if itself is in train mode.
        """
        super().train(mode)
        if self.has_token:
            self.student.net.training = mode
        return self

    def student_outputs(self, images):
        """Outputs whose `map` is the logits of the token, or of the only classifier."""
        out = super().student_outputs(images)
        logits, of_token = out.logits if isinstance(out.logits, tuple) else (out.logits, out.logits)
        return out._replace(logits=logits, map=of_token)

    def method_loss(self, out_s, out_t, target, index):
        return F.cross_entropy(out_s.map, out_t.logits.argmax(1))
