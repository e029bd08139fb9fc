"""A network that learns alone."""
from .task import TrainingTask


class Vanilla(TrainingTask):
    """`student` trained with the labels alone."""

    def forward(self, images, target, index=None):
        logits = self.student(images)
        return {'loss': self.label_loss(logits, target)}, logits
