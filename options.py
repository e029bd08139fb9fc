"""The options of the two train scripts: every flag with its default, checked before anything is built or written."""
import argparse
import functools
import json
import os
import secrets
import shlex
import sys

import torch

from dataset import IN_MEMORY, check_dataset, dataset_key, source_dict
from dataset.augment import AutoAugment
from dataset.image import MAX_PIXELS
from dataset.split import parse_shares
from dataset.teacher_cache import CACHED_OUTPUTS
from distiller_zoo import SOFT_LABELS, distiller_dict, get_method
from distiller_zoo.logit_transforms import transforms
from helper.cli import (
    MOST_EPOCHS,
    Flags,
    Parser,
    colours,
    comma_list,
    epoch_list,
    number,
    path,
    stage_list,
    table,
    values,
    weights,
)
from helper.compile import turn_on_fast
from helper.device import KINDS, MPS, cores
from helper.errors import UserError, reason
from helper.files import read_text
from helper.optim import check_recipe, has_momentum
from helper.records import check_wandb
from models import default_learning_rate, model_dict
from models.find import check_name, check_without_weights
from models.inputs import FITS, INTERPOLATIONS
from models.load import open_net

LARGEST = 512       # of --image_size
NETS = 'a name of models.model_dict, timm:NAME, torchvision:NAME or FILE.py:FUNCTION'


class ListEntries(argparse.Action):
    """--list: the methods and the models as two tables."""

    def __call__(self, parser, namespace, values, option_string=None):
        methods = []
        for name, m in distiller_dict.items():
            published = m.published_options(namespace)
            methods.append((name, m.spec.title, *(f'{published[key]:g}' for key in ('gamma', 'alpha', 'beta')),
                            m.spec.uses, m.spec.paper))
        print(table(('--distill', 'method', 'gamma', 'alpha', 'beta', 'uses', 'paper'), methods, '<<>>>'), end='\n\n')
        with torch.device('meta'):
            models = [(name, f'{sum(p.numel() for p in net(num_classes=100).parameters()):,}')
                      for name, net in model_dict.items()]
        print(table(('--model', 'parameters, 100 classes'), models, '<>'))
        parser.exit()


def _common(description, trial_flags, trial):
    parser = Parser(description=description)
    add = parser.add_argument
    add('--dataset', default='cifar100',
        help='cifar100, cifar10, digits, imagenet, imagenette, folder, or hf:NAME_OR_PATH of Hugging Face')
    add('--data_dir', may_differ=True, type=path, default='./data',
        help='the folder of the data, where it is also downloaded to')
    add('--use-lmdb', may_differ=True, action='store_true', help='read imagenet from train.lmdb and val.lmdb')
    add('--dali', choices=('cpu', 'gpu'), help='load imagenet with NVIDIA DALI, decoding there')
    add('--skip_bad_images', action='store_true',
        help='skip unreadable images of folder, hf: and imagenet, and count them')
    add('--image_size', type=number(int, low=8, high=LARGEST), default=32,
        help='side in pixels to which folder and hf: scale their images; not given: that of the checkpoint of --path-t '
             'or --evaluate, else 32')
    add('--fit', choices=FITS, default='crop',
        help='how folder and hf: make oblong images square; crop: keep the centre, squash: scale both sides, pad: add '
             'black')
    add('--max_pixels', may_differ=True, type=number(int, low=1), default=MAX_PIXELS,
        help='images of folder, hf: and imagenet with more pixels count as unreadable')
    add('--images_in', may_differ=True, choices=('auto', 'memory', 'disk'), default='auto',
        help='where images of folder and hf: are: decoded once, or read while training; auto: as they fit')
    add('--train_fraction', type=number(float, above=0, high=1), default=1.0,
        help='train on this part of the images of each class, the same part in every run')
    add('--normalise', choices=('usual', 'measure'), default='usual',
        help='with which mean and deviation of the colours; measure: those of the training images')
    add('--split', type=parse_shares, metavar='TRAIN,[VAL,]TEST',
        help='divide folder or hf: data without a test set by these shares, the same way in every run')
    add('--same_classes', action='store_true',
        help='accept a checkpoint whose class names differ from those of the data: they mean the same in this order')
    add('--batch_size', type=number(int, low=1, high=10**6), default=64, help='images a step')
    add('--num_workers', may_differ=True, type=number(int, low=0, high=1024),
        help='threads or processes that decode image files; not given: one for each core')
    add('--epochs', may_differ=True, type=number(int, low=1, high=MOST_EPOCHS), default=240,
        help='passes over the training set')
    add('--learning_rate', type=number(float, above=0),
        help='initial learning rate; not given: 0.05, or 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2')
    add('--lr_decay_epochs', type=epoch_list, default='150,180,210', help='epochs after which the rate is multiplied')
    add('--lr_decay_rate', type=number(float, above=0, high=1), default=0.1,
        help='factor by which the learning rate is multiplied')
    add('--weight_decay', type=number(float, low=0), default=5e-4, help='of the optimiser')
    add('--momentum', type=number(float, low=0), default=0.9, help='of the optimiser, where it has one')
    recipe = parser.group('recipe, with the names and the parts of timm')
    recipe('--recipe', may_differ=True, type=path, metavar='FILE',
           help='a file of flags, as those of recipes/; flags of the command line come after them')
    recipe('--opt', '--optimizer', default='sgd',
           help='sgd; dot, one momentum for the gradient of the task and another for that of the distillation; or an '
                'optimiser of timm, such as adamw or lamb')
    recipe('--sched', choices=('step', 'cosine', 'tanh', 'poly'), default='step',
           help='how the rate falls; step: at --lr_decay_epochs')
    recipe('--warmup_epochs', type=number(int, low=0, high=MOST_EPOCHS), default=0,
           help='first epochs, in which the rate grows from --warmup_lr')
    recipe('--warmup_lr', type=number(float, low=0), default=1e-5, help='the rate before the first of them')
    recipe('--min_lr', type=number(float, low=0), default=0.0, help='the rate at the end of cosine, tanh and poly')
    recipe('--poly_power', type=number(float, above=0, high=100), default=0.9, help='the exponent of poly; 1: a line')
    recipe('--clip_grad', type=number(float, above=0), help='the largest norm of all gradients together')
    recipe('--grad_accum', type=number(int, low=1, high=10**6), default=1, help='batches whose gradients make one step')
    recipe('--smoothing', type=number(float, low=0, high=0.99), default=0.0, help='of the labels')
    recipe('--mixup', type=number(float, low=0), default=0.0, help='alpha of mixup, 0: none')
    recipe('--cutmix', type=number(float, low=0), default=0.0, help='alpha of CutMix, 0: none')
    recipe('--aa', metavar='POLICY', help='RandAugment, AutoAugment or AugMix of timm, as rand-m9-mstd0.5-inc1')
    recipe('--reprob', type=number(float, low=0, high=1), default=0.0, help='how often a part of an image is erased')
    recipe('--model_ema', type=number(float, low=0, high=1), nargs='?', const=0.9998, metavar='DECAY',
           help='measure and keep an average of the weights that falls by this factor each step; alone: 0.9998')
    recipe('--model_ema_warmup', action='store_true', help='the factor grows from 0 to it, for shorter runs')
    recipe('--bce_loss', action='store_true', help='the loss of the task is a binary cross-entropy for each class')
    recipe('--balance_classes', action='store_true',
           help='weight the cross-entropy so that each class counts alike, however many images it has')
    recipe('--drop_path', type=number(float, low=0, high=0.99), default=0.0,
           help='how often the last block of a net of timm or torchvision is left out in training')
    add('--checkpoint_key', metavar='KEY',
        help='the key of the weights in a checkpoint from elsewhere, as model_ema, or A/B for B in A; not given: the '
             'average of the weights if there is one, else a usual key')
    add('--gpu_id', may_differ=True, default='0',
        help='the GPU to train on, or a list with commas; cpu forces the CPU, mps is the GPU of a Mac')
    add('--multiprocessing-distributed', may_differ=True, action='store_true',
        help='one process for each entry of --gpu_id, which share batch_size and num_workers')
    add('--dist-url', may_differ=True, default='tcp://127.0.0.1:23451', help='where these processes meet')
    add('--dist-timeout', may_differ=True, type=number(int, low=1, high=10**6), default=600,
        help='seconds that a process waits for the others before it gives up')
    add('--sync_bn', action='store_true', help='batch normalisation over the batch of all processes')
    add('--amp', nargs='?', const='auto', choices=('auto', *KINDS),
        help='compute in 16 bits: bfloat16 where the GPU has it, else float16')
    add('--compile', may_differ=True, action='store_true',
        help='a faster training step: on a GPU compiled, as a CUDA graph; on a CPU by kernels in C++')
    add('--fast', may_differ=True, action='store_true',
        help='what makes a run faster and keeps its accuracy: --compile, --amp, TF32')
    add('--resume', may_differ=True, nargs='?', const='auto', type=path, metavar='auto|PATH',
        help="continue from a run's last.pth; auto: from the one in the output folder, if there is one")
    add('--overwrite', may_differ=True, action='store_true',
        help='replace the run in the output folder; with --resume auto only if its options, data or teacher differ')
    add('--save_every', may_differ=True, type=number(float, low=0), default=0.0,
        help='minutes after which last.pth is also written within an epoch; 0: at the end of epochs alone')
    add('--channels_last', may_differ=True, action=argparse.BooleanOptionalAction, default=True,
        help='keep images and weights with the channels innermost, faster on CPUs and GPUs')
    add('--seed', may_differ=True, type=number(int, low=0, high=2**32 - 1),
        help='of all random numbers; not given: drawn, and written to parameters.json')
    add('--deterministic', action='store_true',
        help='deterministic cuDNN, slower; the seed is 12345 unless --seed is given')
    add('--print-freq', may_differ=True, type=number(int, low=1, high=10**9), default=200,
        help='steps between two progress lines')
    add('--estimate', may_differ=True, action='store_true',
        help='time some steps, print the hours, memory and disk space of the run, and stop; nothing is written')
    add('--wandb', may_differ=True, nargs='?', const='distillation', metavar='PROJECT',
        help='also report the run to Weights & Biases, in that project; alone: distillation')
    add('--save_dir', may_differ=True, type=path, default='./save', help='where runs are written')
    add(*trial_flags, may_differ=True, type=str, default=trial,
        help='the name of this repetition, last part of the output folder')
    return parser


def _parse(parser, args):
    typed = sys.argv[1:] if args is None else args
    words = with_recipe(typed)
    opt = parser.parse_args(words)
    opt.flags = parser.flags()
    opt.flags.given = parser.given(words)
    opt.flags.recipe = parser.given(words[:len(words) - len(typed)])
    return opt


def _finish(parser, opt, model, flag):
    check_dataset(opt)
    if opt.wandb is not None:
        check_wandb(opt.wandb)
    check_name(model, opt.image_size, flag)
    check_without_weights(model, flag)
    if opt.learning_rate is None:
        opt.learning_rate = default_learning_rate(model)
    check_recipe(opt)
    if opt.aa is not None:
        AutoAugment(opt.aa, opt.image_size, (0.5, 0.5, 0.5))
    check_effects(opt)
    if '/' in opt.trial or '\\' in opt.trial or not opt.trial.isprintable() or not opt.trial:
        trial = opt.trial if opt.trial.isprintable() else repr(opt.trial)
        parser.error(f'--trial {trial}: the trial is a part of a folder name; give one without slashes')
    if opt.gpu_id == MPS:
        check_mps(opt)
    turn_on_fast(opt)
    if opt.deterministic and opt.seed is None:
        opt.seed = 12345
    # Each process would fill in its own value; with several processes, the value of process 0 counts.
    opt.flags.filled_in = [name for name in ('seed', 'num_workers') if getattr(opt, name) is None]
    opt.seed = secrets.randbits(31) if opt.seed is None else opt.seed
    opt.num_workers = cores() if opt.num_workers is None else opt.num_workers
    for name, value in values(opt).items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(f'the flag of {name}: its value is a {type(value).__name__}, which parameters.json cannot '
                             f'hold; let it be a number, a string or a list of them') from None
    return opt


@functools.cache
def _teacher_parser():
    parser = _common('Train a network alone: a teacher, or a student to compare with.', ('-t', '--trial'), '0')
    parser.add_argument('--model', default='resnet110', help=f'the network: {NETS}')
    parser.add_argument('--save_freq', may_differ=True, type=number(int, low=1, high=MOST_EPOCHS), default=40,
                        help='epochs between two checkpoints ckpt_epoch_N.pth')
    parser.add_argument('--evaluate', may_differ=True, type=path, metavar='PATH',
                        help='measure this checkpoint on the test set, and stop')
    return parser


def _student_parser(description='Distil a trained teacher into a student.'):
    return _parser_with(tuple(distiller_dict.items()), description)


@functools.cache
def _parser_with(methods, description):
    parser = _common(description, ('--trial',), '1')
    add = parser.add_argument
    add('--path-t', may_differ=True, type=path, required=True,
        help="the teacher's checkpoint, or the published weights of timm:NAME or torchvision:NAME")
    add('--model_t', help="the teacher's net, as --model_s names nets, where the checkpoint does not say it")
    add('--mean_t', type=colours(low=0), metavar='R,G,B',
        help="preprocessing of a teacher from elsewhere, instead of its library's: the mean of the colours, of pixels "
             'from 0 to 1')
    add('--std_t', type=colours(above=0), metavar='R,G,B', help='the same: the standard deviation of the colours')
    add('--size_t', type=number(int, low=8, high=4096), help='the same: the side of an image in pixels')
    add('--interpolation_t', choices=INTERPOLATIONS, help='the same: how images of another size are resized')
    add('--model_s', default='resnet8', help=f'the student: {NETS}')
    add('--stages', type=stage_list, help="the stages of the student that the method sees, from 0, as 2,5,8,11; not "
        'given: all, or four of the blocks of a transformer')
    add('--stages_t', type=stage_list, help='the same for the teacher')
    add('--distill', default=SOFT_LABELS,
        help='the method, a name of distiller_zoo.distiller_dict, or several whose losses are added, as rkd+crd')
    add('-r', '--gamma', type=number(float), help='weight of the cross-entropy; not given: the published one')
    add('-a', '--alpha', type=number(float), help='weight of the soft-label loss; not given: the published one')
    add('-b', '--beta', type=weights,
        help="weight of the method's own loss, or with commas of each method's; not given: the published one")
    shared = parser.group('all methods')
    shared('--kd_T', type=number(float, above=0, high=1e4),
           help='temperature of the soft labels; not given: the published one, mostly 4')
    shared('--loss_warmup_epochs', type=number(int, low=1, high=MOST_EPOCHS),
           help="epochs in which the weight of the method's loss grows to its full value; not given: the published")
    shared('--dot_delta', type=number(float, low=0, high=1),
           help='difference of the two momenta of --opt dot from --momentum; not given: 0.075, for ImageNet 0.09')
    shared('--init_epochs', type=number(int, low=1, high=MOST_EPOCHS), default=30,
           help='epochs of the first stage of methods that have one')
    shared('--init_learning_rate', type=number(float, above=0),
           help="learning rate of that stage; not given: the method's own, or else --learning_rate")
    for transform in transforms:
        transform.add_arguments(parser.group('transforms of the logits'))
    for name, method in methods:
        method.add_arguments(parser.group(f'--distill {name}, {method.spec.title}'))
    add('--teacher_cache', may_differ=True, nargs='?', const='auto', type=path, metavar='DIR',
        help="keep the teacher's outputs for all variants of the training images there, for all runs with that "
             "teacher; auto: teacher_cache in --save_dir")
    add('--list', action=ListEntries, nargs=0, dest=argparse.SUPPRESS,
        help='print the methods and the models, and stop')
    add('--evaluate', may_differ=True, nargs='?', const=True, type=path, metavar='PATH',
        help='measure this checkpoint on the test set, and stop; alone: that of --path-t')
    add('--skip-validation', may_differ=True, action='store_true', help='do not measure the teacher first')
    return parser


def flags(student: bool) -> Flags:
    """The defaults of train_student.py or train_teacher.py, and which of their options may differ between trials."""
    return (_student_parser() if student else _teacher_parser()).flags()


def take_image_size(opt, checkpoint: dict, what: str) -> None:
    """Set opt.image_size to the size in a checkpoint of models.load.open_net, unless --image_size is given or the data
    have a fixed size. what: the beginning of the printed line."""
    inputs = checkpoint.get('inputs')
    size = inputs.get('size') if isinstance(inputs, dict) else None
    if 'image_size' in opt.flags.given or dataset_key(opt.dataset) not in source_dict or type(size) is not int:
        return
    if size != opt.image_size:
        if not 8 <= size <= LARGEST:
            raise UserError(f'{what}: its net takes images of {size} pixels; give --image_size, from 8 to {LARGEST}')
        print(f'{what}: its net takes images of {size} pixels, so --image_size is {size}')
        opt.image_size = size


def warn_of_split(opt, checkpoint: dict, what: str) -> None:
    """Print a line if the net of a checkpoint was trained with a --split that differs from this run's."""
    theirs = checkpoint.get('split')
    if isinstance(theirs, list) and theirs != opt.split:
        print(f'{what}: its net was trained with --split {comma_list(theirs)}, so the test images of this run may be '
              f'among its training images, and its accuracy on them too high')


def open_teacher(opt) -> tuple[str, dict]:
    """(the name of the teacher's net, its checkpoint); see models.load.open_net, and take_image_size for its size."""
    given = {name: value for name in ('mean', 'std', 'size', 'interpolation')
             if (value := getattr(opt, f'{name}_t')) is not None}
    name, checkpoint = open_net(opt.path_t, opt.model_t, key=opt.checkpoint_key, inputs=given)
    take_image_size(opt, checkpoint, f'--path-t {opt.path_t}')
    warn_of_split(opt, checkpoint, f'--path-t {opt.path_t}')
    return name, checkpoint


def teacher_options(args=None):
    """The options of train_teacher.py."""
    parser = _teacher_parser()
    opt = _parse(parser, args)
    if opt.opt == 'dot':
        raise UserError('--opt dot: separates the gradients of the task and of the distillation, and a net that learns '
                        'alone has no distillation; give sgd or an optimiser of timm')
    return _finish(parser, opt, opt.model, '--model')


def check_cache(opt, method) -> None:
    """Raises UserError where --teacher_cache cannot serve this method or data set."""
    if dataset_key(opt.dataset) not in IN_MEMORY:
        raise UserError(f'--teacher_cache: a random crop of --dataset {opt.dataset} takes too many forms to keep; it '
                        f'goes with {", ".join(IN_MEMORY)}')
    if method.spec.is_cacheable(CACHED_OUTPUTS):
        return
    why = 'sees several views of an image' if len(method.spec.views) > 1 else \
        "asks the teacher for more than logits and embedding"
    names = [name for name, other in distiller_dict.items() if other.spec.is_cacheable(CACHED_OUTPUTS)]
    raise UserError(f'--teacher_cache: --distill {opt.distill} {why}; it goes with {", ".join(names)}')


def check_mps(opt) -> None:
    """Raises UserError for flags that Apple's GPUs do not support; turns channels_last off unless it is given."""
    for option in ('compile', 'fast', 'multiprocessing_distributed', 'sync_bn'):
        if getattr(opt, option):
            raise UserError(f'--{option}: not with --gpu_id mps; leave one of the two out')
    if 'channels_last' not in opt.flags.given:
        opt.channels_last = False


def check_effects(opt) -> None:
    """Raises UserError that names a given flag without effect.

    A flag that the recipe gives may have its default value: on the command line this undoes the recipe's.
    """
    falls = opt.sched != 'step'
    effects = {     # option -> the flag that it depends on, and whether the option has an effect
        'image_size': ('--dataset folder or hf:', dataset_key(opt.dataset) in source_dict),
        'lr_decay_epochs': ('--sched step', not falls), 'lr_decay_rate': ('--sched step', not falls),
        'min_lr': ('--sched cosine, tanh or poly', falls), 'poly_power': ('--sched poly', opt.sched == 'poly'),
        'warmup_lr': ('--warmup_epochs', opt.warmup_epochs > 0),
        'momentum': (f'an --opt that has one: --opt {opt.opt}', has_momentum(opt.opt)),
        'checkpoint_key': ('--evaluate', 'path_t' in opt or bool(opt.evaluate)),
        'model_ema_warmup': ('--model_ema', opt.model_ema is not None),
        'same_classes': ('--evaluate', 'path_t' in vars(opt) or opt.evaluate is not None),
        'dist_url': ('--multiprocessing-distributed', opt.multiprocessing_distributed),
        'dot_delta': ('--opt dot', opt.opt == 'dot'),
    }
    for option in sorted(opt.flags.given & effects.keys()):
        (needed, has_effect), value = effects[option], getattr(opt, option)
        taken_back = option in opt.flags.recipe and value == opt.flags.defaults[option]
        if not has_effect and not taken_back:
            text = '' if value is True else f' {comma_list(value)}'
            raise UserError(f'--{option}{text}: has no effect without {needed}; leave it out')
    for option in sorted(opt.flags.given & {'resume', 'overwrite', 'save_every', 'wandb', 'teacher_cache',
                                            'skip_validation', 'estimate'}):
        if opt.evaluate:
            raise UserError(f'--{option}: has no effect with --evaluate, which only measures; leave one of the two out')


def check_method(opt, method) -> None:
    """Raises UserError for parts of a recipe that do not suit this method."""
    spec, distil = method.spec, f'--distill {opt.distill}'
    mixes = {f'--mixup {opt.mixup:g}': opt.mixup, f'--cutmix {opt.cutmix:g}': opt.cutmix}
    augmentations = {**mixes, f'--aa {opt.aa}': opt.aa, f'--reprob {opt.reprob:g}': opt.reprob}
    step_flags = {f'--clip_grad {opt.clip_grad}': opt.clip_grad, f'--grad_accum {opt.grad_accum}': opt.grad_accum > 1}
    for flag, is_on in mixes.items():
        if is_on and not spec.is_mixable:
            reason = 'sees several views of an image' if len(spec.views) > 1 else 'needs one class for each image'
            names = [name for name, other in distiller_dict.items() if other.spec.is_mixable]
            raise UserError(f'{flag}: {distil} {reason}; it goes with {", ".join(names)}')
    for flag, is_on in augmentations.items():
        if is_on and opt.teacher_cache:
            raise UserError(f'{flag}: --teacher_cache only has outputs for crops and flips; leave one of the two out')
    if opt.model_ema is not None and not spec.deploys_student:
        raise UserError(f'--model_ema {opt.model_ema:g}: {distil} deploys more than the student; leave it out')
    if opt.model_ema is not None and opt.opt == 'dot':
        raise UserError(f'--model_ema {opt.model_ema:g}: not with --opt dot; leave one of the two out')
    for flag, is_on in step_flags.items():
        if is_on and (spec.own_backward or opt.opt == 'dot'):
            user = '--opt dot' if opt.opt == 'dot' else distil
            raise UserError(f'{flag}: {user} computes its gradients in several backward passes; leave one of the two '
                            f'out')
    if opt.opt != 'sgd' and spec.own_optimizer:
        raise UserError(f'--opt {opt.opt}: {distil} has an optimiser of its own; leave one of the two out')


def check_dot(opt, method) -> None:
    """Raises UserError unless there are gradients of a task and of a distillation, and momenta that --opt dot can use.
    """
    if method.spec.own_backward or method.spec.own_optimizer:
        raise UserError(f'--opt dot: --distill {opt.distill} has an optimiser of its own; leave it out')
    betas = opt.beta if isinstance(opt.beta, list) else [opt.beta] if method.has_own_loss(opt) else []
    distils = opt.alpha or any(betas)
    if not opt.gamma or not distils:
        reason = '-r 0 leaves no loss of the task' if distils else 'these weights leave no loss of the distillation'
        raise UserError(f'--opt dot: keeps the gradients of two losses apart, but {reason}; leave it out')
    if not opt.dot_delta <= opt.momentum < 1 - opt.dot_delta:
        raise UserError(f'--dot_delta {opt.dot_delta:g}: --momentum {opt.momentum:g} less it must be at least 0, and '
                        f'plus it below 1; give a smaller one')


def with_recipe(args: list[str] | None) -> list[str]:
    """The words of a command line, with those of --recipe FILE before them.

    The file has flags as a command line has them, on any number of lines; # begins a comment. Raises UserError.
    """
    args = sys.argv[1:] if args is None else args
    files = [word.partition('=')[2] or following for word, following in zip(args, [*args[1:], ''], strict=False)
             if word.partition('=')[0] == '--recipe']
    if len(files) > 1:
        raise UserError(f'--recipe {files[1]}: --recipe {files[0]} is given too, but only one file is read; put all '
                        f'flags into one file, or give some on the command line')
    if not files or not files[0]:
        return args
    what = f'--recipe {files[0]}'
    try:
        words = shlex.split(read_text(files[0], what), comments=True)
    except ValueError as error:
        raise UserError(f'{what}: {reason(error)}; give a file of flags, as those of recipes/') from error
    if any(word.partition('=')[0] == '--recipe' for word in words):
        raise UserError(f'{what}: names a recipe itself; a recipe has flags of the training alone')
    return [*words, *args]


def _flags_of(method) -> set[str]:
    """The names of the options that a method adds."""
    options = set()
    method.add_arguments(lambda *names, **_: options.add(names[-1].lstrip('-').replace('-', '_')))
    return options


def check_flags_of_methods(opt, method) -> None:
    """Raises UserError for a given flag of another method, and for --beta where the method has no loss of its own."""
    flags = {name: _flags_of(other) for name, other in distiller_dict.items()}
    staged = [name for name, other in distiller_dict.items() if other.spec.first_stage]
    parts = getattr(method, 'methods', None) or {opt.distill: method}
    for option in sorted(opt.flags.given):
        users = staged if option in ('init_epochs', 'init_learning_rate') else \
            [name for name, its in flags.items() if option in its]
        if users and not {*users} & {*parts}:
            raise UserError(f'--{option} {getattr(opt, option)}: --distill {opt.distill} does not use it; it goes '
                            f'with {", ".join(users)}')
    # FSP's published weight has no effect either: its own loss is only used in the first stage.
    weighs = len(parts) > 1 or method.has_own_loss(opt) or method.spec.published.get('beta')
    if 'beta' in opt.flags.given and opt.beta and not weighs:
        raise UserError(f'-b {opt.beta:g}: --distill {opt.distill} has no loss of its own to weight; -a is the weight '
                        f'of the soft labels, --batch_size the images a step; give -b 0, or leave it out')


def student_options(args=None, **parser):
    """The options of train_student.py. parser: of _student_parser, for a script that takes the same options."""
    parser = _student_parser(**parser)
    opt = _parse(parser, args)
    method = get_method(opt.distill)
    method.fill_in(opt)
    method.check_options(opt)
    if opt.opt == 'dot':
        check_dot(opt, method)
    check_flags_of_methods(opt, method)
    if opt.logit_stand and not method.spec.published_logit_stand:
        names = [name for name, other in distiller_dict.items() if other.spec.published_logit_stand]
        raise UserError(f'--logit_stand: it was not published with --distill {opt.distill}; it goes with '
                        f'{", ".join(names)}')
    opt = _finish(parser, opt, opt.model_s, '--model_s')
    if opt.model_t is not None:
        check_without_weights(opt.model_t, '--model_t')
    check_method(opt, method)
    if opt.teacher_cache:
        check_cache(opt, method)
    if opt.teacher_cache == 'auto':
        opt.teacher_cache = os.path.join(opt.save_dir, 'teacher_cache')
    return opt
