"""A network that learns alone."""
from .task import TrainingTask


class Vanilla(TrainingTask):
    """`student` trained with the task loss."""

    def forward(self, images, target, index=None):
        logits = self.student(images)
        return {'loss': self.task_loss(logits, target)}, logits
