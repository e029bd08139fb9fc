"""DOT: SGD with one momentum for the gradient of the task and a larger one for that of the distillation."""
import torch

from .optim import Eager


class DOT(Eager):
    """Zhao et al., ICCV 2023, DOT: A Distillation-Oriented Trainer, arXiv:2307.08436.

    A step: gradients of the distillation, step_kd(), gradients of the task, step(). A parameter has a buffer for each
    of its gradients, with momentum - delta for the task and momentum + delta for the distillation; where it has one
    gradient alone, momentum. A gradient is absent where it is None: the first step settles which buffers there are, and
    what comes later for another one is ignored.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, delta: float = 0.075, weight_decay: float = 5e-4):
        super().__init__(params, {'lr': lr, 'momentum': momentum, 'delta': delta, 'weight_decay': weight_decay})
        self.kept = {}      # parameter -> gradient of the distillation, within a step

    def __setstate__(self, state):      # of a copy, and of a loaded state
        super().__setstate__(state)
        self.kept = {}

    def step_kd(self) -> None:
        """Keep the gradients that are there as those of the distillation, and clear them."""
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    self.kept[p] = p.grad
                p.grad = None

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Take the gradients that are there as those of the task, and update the parameters."""
        kept, self.kept, settled = self.kept, {}, bool(self.state)
        for group in self.param_groups:
            updates = []        # (parameter, name of the buffer, gradient, momentum)
            for p in group['params']:
                present = {'task': p.grad, 'distillation': kept.get(p)}
                present = {name: grad for name, grad in present.items()
                           if grad is not None and (not settled or name in self.state[p])}
                for name, grad in present.items():
                    first = name not in self.state[p]
                    # With both gradients the weight decay is the task's; alone, the distillation has it after its
                    # first step, as in the original.
                    if name == 'task' or (len(present) == 1 and not first):
                        grad = grad.add(p, alpha=group['weight_decay'])
                    sign = {'task': -1, 'distillation': 1}[name] if len(present) == 2 else 0
                    updates.append((p, name, grad, group['momentum'] + sign * group['delta']))
            for p, name, grad, momentum in updates:
                if name in self.state[p]:
                    self.state[p][name].mul_(momentum).add_(grad)
                else:
                    self.state[p][name] = grad.clone()
                p.sub_(self.state[p][name], alpha=group['lr'])
