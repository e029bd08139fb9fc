"""Training on several views of each image."""


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
        losses = {**self.label_losses(out_s, target), **self.distillation_losses(out_s, out_t, target, index)}
        return {'loss': self.total_loss(losses), **losses}, out_s[0].logits[:len(target)]

    def soft_label_loss(self, out_s, out_t, image_weights=None):
        return sum(super(MultiView, self).soft_label_loss(s, t, image_weights)
                   for s, t in zip(out_s, out_t, strict=True))
