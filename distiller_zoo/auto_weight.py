"""-b auto: measure the weight of a method's loss by its gradient in the first training steps."""
import torch
from torch import Tensor, nn

from helper import distributed
from helper.errors import UserError

STEPS = 20          # batches that are measured


class AutoWeights(nn.Module):
    """The weights of the losses with -b auto.

    The weight of a loss is the median over the first STEPS batches of training of

        |gradient of the cross-entropy| / |gradient of the loss|

    with respect to one layer of the student: the last convolution or linear layer that both gradients reach. With this
    weight the loss changes the layer as much as the cross-entropy does, before gamma. For losses on logits the layer is
    the classifier, for losses on feature maps the last convolution of the deepest stage that they read.

    Until STEPS batches are measured, the weight is the median so far, so that the method's own layers learn meanwhile.
    It is a median because a single batch of an untrained net may be atypical. It stays fixed afterwards because the
    ratio changes by a small factor during training, but by orders of magnitude between methods. A batch whose gradient
    is zero or not finite does not count. The gradients are averaged over all processes. The losses are measured before
    their weights and their warm-up, so neither changes the result.

    The ratio is VQGAN's adaptive weight (Esser et al., CVPR 2021, arXiv:2012.09841, equation 7). VQGAN measures it in
    every step on the last layer of its decoder. The other choices are this project's.
    """

    def __init__(self, names: list[str]):
        """names: of the losses, in the dictionary that Distiller.forward returns."""
        super().__init__()
        self.names, self.layers = names, {}
        # Saved with the run. A ratio that does not count is 0.
        self.register_buffer('ratios', torch.zeros(len(names), STEPS))
        self.register_buffer('measured', torch.zeros((), dtype=torch.int64))
        self.register_buffer('weights', torch.zeros(len(names)))
        self.count = None       # copy of `measured` on the CPU: reading it from a GPU would wait for the GPU

    @property
    def step(self) -> int:
        """The number of measured batches."""
        if self.count is None:      # before the first batch, or the first after a resume
            self.count = max(0, int(self.measured))
        return self.count

    @property
    def is_measuring(self) -> bool:
        """Whether the next batch is measured."""
        return self.step < STEPS

    def measure(self, losses: dict, student: nn.Module) -> None:
        """Update the weights by the losses of a batch, name -> scalar. The last batch prints them.

        Raises UserError if no layer has both gradients, or if a loss had no finite gradient in any batch.
        """
        for row, name in enumerate(self.names):
            if name not in self.layers:
                self.layers[name] = last_shared_layer(student, losses['ce'], losses[name])
            if self.layers[name] is None:
                raise UserError(f'{self.flag(name)}: no layer of the student learns from both this loss and the '
                                f'cross-entropy, so their gradients cannot be compared; give a number')
            task, method = (gradient_norm(loss, self.layers[name]) for loss in (losses['ce'], losses[name]))
            self.ratios[row, self.step] = torch.nan_to_num(task / method, nan=0, posinf=0)
            valid = self.ratios[row][self.ratios[row] > 0]
            self.weights[row] = valid.quantile(0.5) if len(valid) else 0
        self.count = self.step + 1
        self.measured.fill_(self.count)
        if self.is_measuring:
            return
        for name, weight in self.by_name().items():
            if not weight:
                raise UserError(f'{self.flag(name)}: the loss had no finite gradient in {STEPS} batches; give a number')
            print(f'{self.flag(name)}: {weight:.4g} after {STEPS} batches', flush=True)

    def by_name(self) -> dict[str, float]:
        """name -> weight."""
        return dict(zip(self.names, self.weights.tolist(), strict=True))

    def flag(self, name: str) -> str:
        """The flag, for the terminal; of a sum with the name of the method."""
        return '-b auto' if name == 'method' else f'-b auto for {name}'


def last_shared_layer(student: nn.Module, *losses: Tensor) -> nn.Parameter | None:
    """Return the last weight of at least two dimensions that the gradients of all losses reach, or None.

    The order is the one of student.parameters(). Vectors (biases, scales of norms) do not count: their gradients say
    little about a layer.
    """
    parameters = [p for p in student.parameters() if p.requires_grad and p.dim() > 1]
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    shared = [p for p, *grads in zip(parameters, *gradients, strict=True) if all(g is not None for g in grads)]
    return shared[-1] if shared else None


def gradient_norm(loss: Tensor, layer: nn.Parameter) -> Tensor:
    """The norm of a loss's gradient with respect to a layer, averaged over the processes; a scalar.

    The backward pass uses the loss scaled to 1024, because float16 rounds the gradient of a small loss to zero.
    """
    scale = 1024 / distributed.mean(loss.detach().abs())
    with torch.autocast(layer.device.type, enabled=False):
        gradient, = torch.autograd.grad(scale * loss, layer, retain_graph=True)
    return distributed.mean(gradient.float()).norm() / scale
