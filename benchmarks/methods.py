"""A step of every method, compared with soft labels alone, for one pair of nets; without first stages."""
from distiller_zoo import SOFT_LABELS, distiller_dict
from helper.loops import train_epoch

from .common import Ready, alternate, build
from .loader import loaders


def measure(opt, device):
    """A row for each method: ms a step, all methods by turns within every round."""
    batch = next(iter(loaders(opt, device)[0]))
    loader = Ready(batch, opt.steps)
    pair = (opt.pair or ['resnet32x4,resnet8x4'])[0].split(',')[:2]
    runs = {method: build([*pair, method], opt, device) for method in distiller_dict}
    speed = alternate({method: lambda run=run: train_epoch(1, loader, *run) for method, run in runs.items()},
                      loader.n_samples, opt, device)
    return [{'pair': ','.join(pair), 'method': method, 'ms a step': opt.batch_size / s * 1000,
             f'times {SOFT_LABELS}': speed[SOFT_LABELS] / s} for method, s in speed.items()]
