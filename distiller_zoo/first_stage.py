"""Training in two stages: the first prepares the method's layers, the second distils."""
from torch import Tensor


class FirstStage:
    """A mixin for methods with a first stage of --init_epochs, which minimises init_loss alone.

    Usage: class NAME(FirstStage, Distiller), with spec.first_stage.
    """

    has_first_stage = in_first_stage = True

    def forward(self, images, target, index=None, out_t=None):
        """As Distiller's; in the first stage the losses are {'loss': ...} and the logits None."""
        if self.in_first_stage:
            return {'loss': self.init_loss(images)}, None
        return super().forward(images, target, index, out_t)

    def init_loss(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) -> the scalar that the first stage minimises."""
        raise NotImplementedError(f'{type(self).__name__} has no init_loss')

    @classmethod
    def init_rate(cls, opt) -> float:
        """The default of --init_learning_rate."""
        return opt.learning_rate

    def end_first_stage(self) -> None:
        """From here on forward returns the losses of distillation."""
        self.in_first_stage = False

    def backward(self, losses, optimizer):
        if self.in_first_stage:
            self.add_gradients(losses['loss'])
        else:
            super().backward(losses, optimizer)
