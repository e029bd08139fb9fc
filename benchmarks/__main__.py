"""python -m benchmarks SUBJECT: measure speed and memory. Each subject is a file of this folder."""
import argparse
import importlib
from pathlib import Path

import torch

from distiller_zoo import get_method
from helper.cli import Parser, number, path, values
from helper.compile import check_compiler, turn_on_fast
from helper.device import KINDS, cores, cpu_name, select_device
from helper.errors import UserError, run_main
from helper.files import write_json
from models.find import check_name

from . import common

SUBJECTS = ('recipes', 'whole', 'cache', 'loader', 'methods', 'memory', 'imagenet', 'scaling', 'threads',
            'convolutions', 'networks', 'int8')


def subject(name: str):
    """The module of a subject. Its measure(opt, device) returns or yields rows, dictionaries of the same keys.

    Optional: show(rows), a table of its own; add_arguments(add), flags for this subject alone; PROTOCOL, a text for the
    terminal in place of batch and rounds.
    """
    return importlib.import_module(f'benchmarks.{name}')


def check_pairs(opt):
    """Raise UserError unless each --pair names two nets and a method, which `methods` and `memory` do not need."""
    for pair in opt.pair or []:
        names = pair.split(',')
        if len(names) not in ((2, 3) if opt.subject in ('methods', 'memory') else (3,)):
            raise UserError(f'--pair {pair}: give TEACHER,STUDENT,METHOD; only methods and memory need no METHOD')
        for name in names[:2]:
            check_name(name, 32, '--pair')
        if len(names) == 3:
            get_method(names[2])


def main():
    texts = '\n'.join(f'{name:14}{subject(name).__doc__.splitlines()[0]}' for name in SUBJECTS)
    parser = Parser(prog='python -m benchmarks', description=f'{__doc__}\n\n{texts}',
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('subject', choices=SUBJECTS)
    add('--pair', action='append', metavar='TEACHER,STUDENT,METHOD', help='may be given several times')
    add('--batch_size', type=number(int, low=1), default=64)
    add('--steps', type=number(int, low=1), default=8, help='batches in a round')
    add('--rounds', type=number(int, low=1),
        help='rounds of each side, after one to warm up; not given: 5, for whole 3')
    add('--num_workers', type=number(int, low=0),
        help="worker processes of a loader; not given: 8, as in the original SemCKD code; for imagenet one a core")
    add('--gpu_id', default='0')
    add('--data_dir', type=path, default='./data')
    add('--compile', action='store_true', help='the fast recipe compiles its step')
    add('--amp', nargs='?', const='auto', choices=('auto', *KINDS), help='the fast recipe computes in 16 bits')
    add('--fast', action='store_true', help='the fast recipe is --fast')
    add('--brief', action='store_true',
        help='recipes without the shares of the parts and of the ceiling; methods without memory')
    add('--json', type=path, metavar='FILE', help='also write the measurements to this file')
    for name in SUBJECTS:
        if hasattr(subject(name), 'add_arguments'):
            subject(name).add_arguments(parser.group(name))
    opt = parser.parse_args()
    check_pairs(opt)
    turn_on_fast(opt)
    if opt.num_workers is None:
        opt.num_workers = cores() if opt.subject == 'imagenet' else 8
    opt.rounds = opt.rounds or (3 if opt.subject == 'whole' else 5)
    device = select_device('cpu' if opt.subject in ('threads', 'convolutions') else opt.gpu_id)
    if opt.compile:
        check_compiler(device)
    machine = torch.cuda.get_device_name(device) if device.type == 'cuda' else \
        f'{cpu_name()}, {torch.get_num_threads()} threads'
    units = {'imagenet': 'an epoch', 'convolutions': 'a pass', 'whole': 'a process'}
    unit = units.get(opt.subject, f'{opt.steps} steps')
    module = subject(opt.subject)
    protocol = getattr(module, 'PROTOCOL', f'batch {opt.batch_size}, median of {opt.rounds} rounds of {unit}')
    print(f'{machine}, torch {torch.__version__}, {protocol}')
    rows = [*module.measure(opt, device)]
    getattr(module, 'show', common.show)(rows)
    if opt.json:
        write_json(Path(opt.json), {'machine': machine, 'torch': torch.__version__, 'options': values(opt),
                                    'rows': rows})


if __name__ == '__main__':
    run_main(main)
