"""--opt dot: an optimiser that keeps the gradients of the task and of the distillation apart."""
import torch

from helper.optim import Eager


class DOT(Eager):
    """SGD with one momentum for the task gradient and a larger one for the distillation gradient.

    Zhao et al., ICCV 2023, DOT: A Distillation-Oriented Trainer, arXiv:2307.08436.

    A parameter has a momentum buffer for each of its gradients, with momentum - delta for the task and momentum + delta
    for the distillation; with only one gradient, momentum. The first step decides which gradients a parameter has (a
    missing one is None); later ones of the other kind are ignored.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, delta: float = 0.075, weight_decay: float = 5e-4):
        super().__init__(params, {'lr': lr, 'momentum': momentum, 'delta': delta, 'weight_decay': weight_decay})
        self.distillation_grads = {}        # parameter -> gradient, until the step ends

    def __setstate__(self, state):      # of a copy, and of a loaded state
        super().__setstate__(state)
        self.distillation_grads = {}

    def backward(self, distiller, losses: dict) -> None:
        """Make the two backward passes of a step. losses: what the distiller's forward returned."""
        weighted = distiller.weighted(losses)
        task_loss = weighted.pop('ce')
        distiller.add_gradients(sum(weighted.values()), retain_graph=True)
        self.store_distillation_grads()
        distiller.add_gradients(task_loss)

    def store_distillation_grads(self) -> None:
        """Store the current gradients as the distillation gradients, and clear them."""
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    self.distillation_grads[p] = p.grad
                p.grad = None

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update the parameters. The current gradients are the task gradients."""
        distillation_grads, self.distillation_grads = self.distillation_grads, {}
        is_first_step = not self.state
        for group in self.param_groups:
            updates = []        # (parameter, name of the buffer, gradient, momentum)
            for p in group['params']:
                grads = {'task': p.grad, 'distillation': distillation_grads.get(p)}
                grads = {name: grad for name, grad in grads.items()
                         if grad is not None and (is_first_step or name in self.state[p])}
                for name, grad in grads.items():
                    # The task's gradient includes the weight decay. A distillation gradient that is alone includes it
                    # after its first step, as in the authors' code.
                    if name == 'task' or (len(grads) == 1 and name in self.state[p]):
                        grad = grad.add(p, alpha=group['weight_decay'])
                    sign = {'task': -1, 'distillation': 1}[name] if len(grads) == 2 else 0
                    updates.append((p, name, grad, group['momentum'] + sign * group['delta']))
            for p, name, grad, momentum in updates:
                if name in self.state[p]:
                    self.state[p][name].mul_(momentum).add_(grad)
                else:
                    self.state[p][name] = grad.clone()
                p.sub_(self.state[p][name], alpha=group['lr'])
