"""Training on several views of each image."""
from .criteria.kd import distill_kl


class MultiView:
    """A mixin for methods that compare several augmented views of an image.

    Usage: class NAME(MultiView, Distiller), with spec.views. method_loss receives lists out_s and out_t, an Outputs
    for each view; the cross-entropy and the soft labels are summed over the views.
    """

    def forward(self, images, target, index=None, out_t=None):
        """As Distiller's, for images (views, N, 3, H, W); the logits are those of the first view.

        out_t: stored teacher outputs, an Outputs for each view.
        """
        if out_t is None:
            out_t = [self.teacher_outputs(view) for view in images]
        out_s = [self.student_outputs(view) for view in images]
        losses = {'ce': sum(self.label_loss(out.logits, target) for out in out_s)}
        if self.alpha:
            losses['kl'] = sum(distill_kl(*self.soft_labels(s, t)) for s, t in zip(out_s, out_t, strict=True))
        if self.uses_method_loss:
            losses['method'] = self.method_loss(out_s, out_t, target, index)
        return {'loss': self.total_loss(losses), **losses}, out_s[0].logits
