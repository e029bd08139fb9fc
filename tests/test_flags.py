"""A flag changes what it says it changes: the losses of a method, and the steps of the optimiser."""
import pytest
import torch
from test_distiller import build

from helper.loops import adjust_learning_rate
from helper.options import student_options
from helper.speed import sgd


def parsed(*flags):
    return student_options(['--path-t', 'x', '--batch_size', '8', '--nce_k', '10', '--seed', '1', *flags])


def losses(*flags):
    """The total of two steps; the second sees what the first has left in crd's memories."""
    opt = parsed(*flags)
    distiller, loader, _ = build(opt.distill, **vars(opt))
    images, target, index = next(iter(loader))
    torch.manual_seed(1)
    return [distiller(images, target, index)[0]['loss'].item() for _ in range(2)]


IRG = ('--distill', 'irg', '-b', '1000', '--transform_layer_s', '1', '2', '--transform_layer_t', '1', '2')
LOSS = {
    'kd_T': ([], ['--kd_T', '2']), 'gamma': ([], ['-r', '2']), 'alpha': ([], ['-a', '2']),
    'beta': (['--distill', 'similarity'], ['-b', '1']),
    'distill': ([], ['--distill', 'pkt']),
    'hint_layer 2': (['--distill', 'hint'], ['--hint_layer', '2']),
    'hint_layer 3': (['--distill', 'hint', '--hint_layer', '2'], ['--hint_layer', '3']),
    'feat_dim, crd': (['--distill', 'crd'], ['--feat_dim', '64']),
    'feat_dim, correlation': (['--distill', 'correlation', '-b', '1'], ['--feat_dim', '64']),
    'nce_t': (['--distill', 'crd'], ['--nce_t', '0.1']), 'nce_m': (['--distill', 'crd'], ['--nce_m', '0.9']),
    'nce_k': (['--distill', 'crd'], ['--nce_k', '12']), 'mode': (['--distill', 'crd'], ['--mode', 'relax']),
    'hkd_initial_weight': (['--distill', 'hkd'], ['--hkd_initial_weight', '10']),
    'hkd_decay': (['--distill', 'hkd'], ['--hkd_decay', '0.5']),
    'transform_layer_s': (IRG, ['--transform_layer_s', '0', '1']),
    'transform_layer_t': (IRG, ['--transform_layer_t', '0', '1']),
    'no_edge_transform': (IRG, ['--no_edge_transform']),
}


@pytest.mark.parametrize('row', LOSS)
def test_of_the_loss(row):
    before, change = LOSS[row]
    first = losses(*before)
    assert losses(*before) == first         # to the bit, so any difference is the flag's
    assert losses(*before, *change)[1] != first[1]


def test_of_the_optimiser():
    opt = parsed('--momentum', '0.8', '--weight_decay', '0.01', '--learning_rate', '0.3', '--lr_decay_epochs', '2,4',
                 '--lr_decay_rate', '0.5')
    optimizer = sgd([torch.nn.Parameter(torch.ones(1))], opt.learning_rate, opt)
    group = optimizer.param_groups[0]
    assert (group['momentum'], group['weight_decay'], group['lr']) == (0.8, 0.01, 0.3)
    rates = [adjust_learning_rate(epoch, optimizer, opt) for epoch in range(1, 7)]
    assert rates == pytest.approx([0.3, 0.3, 0.15, 0.15, 0.075, 0.075])
