"""Check that a method can train a pair of nets, before any data is read."""
import contextlib
import functools
import io
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

from distiller_zoo import get_method, make_distiller
from distiller_zoo.checks import check_pairwise_batch
from helper.errors import UserError
from models.find import build

SIZES = {'cifar10': (10, 32), 'cifar100': (100, 32), 'digits': (10, 32), 'imagenet': (1000, 224),
         'imagenette': (10, 224)}       # data set -> classes, pixels


class ZeroInit(TorchFunctionMode):
    """In this context initial weights are zeros: a check of shapes needs no random numbers, which take longest."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, '__module__', '') == 'torch.nn.init':
            tensor = args[0] if args else kwargs['tensor']
            return tensor.detach().zero_()
        return func(*args, **kwargs)


def pixels(opt) -> int:
    """Return the height and width of the training images."""
    return SIZES.get(opt.dataset, (10, opt.image_size))[1]


class PairCheck:
    """Builds methods with untrained nets. Each net is built once, and its outputs are computed once."""

    def __init__(self):
        self.nets = {}

    def check(self, opt, label: str) -> None:
        """Raise UserError if the method of these options cannot train the pair."""
        method = get_method(opt.distill)
        classes, size = SIZES.get(opt.dataset, (10, opt.image_size))
        labels = torch.arange(50000) % classes
        data = SimpleNamespace(num_classes=classes, image_size=size, labels=labels, n_train=len(labels))
        student, teacher = (self._net(name, classes, size, is_teacher, stages, label) for name, is_teacher, stages in
                            ((opt.model_s, False, opt.stages), (opt.model_t, True, opt.stages_t)))
        try:
            check_pairwise_batch(method.spec, opt.batch_size)
            with contextlib.redirect_stdout(io.StringIO()), ZeroInit():
                make_distiller(student, teacher, opt, data)
        except UserError as error:
            raise UserError(f'{label}: {error}') from error

    def _net(self, name, classes, size, is_teacher, stages, label):
        key = name, classes, size, is_teacher, str(stages)      # a method freezes its teacher, so roles share no net
        if key not in self.nets:
            with ZeroInit():
                net = self.nets[key] = build(name, classes, size, label)
            net.outputs = _cached(net.outputs)
        return self.nets[key].requires_grad_()      # SimKD freezes a part of a student


def _cached(outputs):
    """Return Net.outputs with a cache for blank images, which serves calls without gradients."""
    cached = functools.cache(lambda shape, preact: outputs(torch.zeros(shape), preact))
    return lambda images, preact=False: \
        outputs(images, preact) if torch.is_grad_enabled() else cached(images.shape, preact)
