"""The options of the two train scripts: every flag with its default, checked before anything is built or written."""
import argparse
import functools
import json
import os
import secrets
import shlex
import sys

import torch

from dataset import WITHOUT_CLASSES, check_dataset
from dataset.augment import AutoAugment
from dataset.crop import CROPS, DEFAULTS
from dataset.image import MAX_PIXELS
from dataset.shard_files import CACHE_GB
from dataset.split import parse_shares
from distiller_zoo import SOFT_LABELS, distiller_dict, eakd, get_method
from distiller_zoo.logit_transforms import transforms
from helper.cli import (
    AGREE,
    MOST_EPOCHS,
    Flags,
    Parser,
    comma_list,
    count_or_all,
    epoch_list,
    has_auto,
    number,
    path,
    stage_list,
    table,
    teacher_weights,
    value_or,
    values,
    weights,
)
from helper.compile import turn_on_fast
from helper.device import KINDS, MPS, cores
from helper.errors import UserError, counted, reason
from helper.files import read_text
from helper.records import check_wandb
from models import default_learning_rate, model_dict
from models.ensemble import NOT_GIVEN, TEACHER_OPTIONS, options_of_teachers
from models.find import check_name, check_published, check_without_weights
from models.inputs import FITS, INTERPOLATIONS, LEAST_CROP
from option_checkpoints import LARGEST_IMAGE, TRAIN_INTERPOLATIONS, follows_checkpoint_size, set_crop_options
from option_checks import check_effects, check_flags_of_methods, check_method, check_mps, check_recipe, check_teachers

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


def _base_parser(description, trial_flags, trial):
    """A parser with the flags of both scripts. trial_flags, trial: the names and the default of --trial."""
    parser = Parser(description=description)
    add = parser.add_argument
    add('--dataset', default='cifar100',
        help='cifar100, cifar10, digits, imagenet, imagenette, folder, hf:NAME_OR_PATH of Hugging Face, or '
             'wds:FOLDER_OR_URL of tar shards')
    add('--data_dir', may_differ=True, type=path, default='./data',
        help='folder of the data; downloads go there too')
    add('--use-lmdb', may_differ=True, action='store_true', help='read imagenet from train.lmdb and val.lmdb')
    add('--dali', choices=('cpu', 'gpu'), help='load imagenet with NVIDIA DALI, decoding there')
    add('--skip_bad_images', action='store_true',
        help='skip unreadable images of folder, hf:, wds: and imagenet, and count them')
    add('--image_size', type=number(int, low=8, high=LARGEST_IMAGE), default=32,
        help='height and width in pixels of images of folder, hf: and wds:; not given: the size in the checkpoint of '
             '--path-t or --evaluate, else 32')
    add('--fit', choices=FITS, default='crop',
        help='how folder, hf: and wds: make images square; crop: keep the centre, squash: ignore the aspect ratio, '
             'pad: add black')
    add('--crop', choices=CROPS,
        help='training crops of folder, hf: and wds:; padded: of the size of the image, after padding it by 4 pixels, '
             'resized: of random size and shape; not given: resized from 64 pixels on, else padded')
    add('--max_pixels', may_differ=True, type=number(int, low=1), default=MAX_PIXELS,
        help='images of folder, hf:, wds: and imagenet with more pixels count as unreadable')
    add('--images_in', may_differ=True, choices=('auto', 'memory', 'disk'), default='auto',
        help='decode images of folder, hf: and wds: once into memory, or read them from disk while training; auto: '
             'memory if they fit')
    add('--shard_cache_gb', may_differ=True, type=number(float, above=0), default=CACHE_GB,
        help='shards that are fetched for wds:URL are kept in {data_dir}/shards, up to this size; the least recently '
             'used are deleted')
    add('--train_fraction', type=number(float, above=0, high=1), default=1.0,
        help='train on this part of the images of each class, the same part in every run')
    add('--val_fraction', type=number(float, above=0, high=1), metavar='F',
        help='hold this part of the training images of each class out for validation, the same part in every run: the '
             'best epoch is then selected on it, and the test set measured once, at the end')
    add('--no_test', may_differ=True, action='store_true',
        help='do not measure the test set at the end, for runs that are compared on the validation set, such as trials '
             'of scripts/tune.py')
    add('--patience', type=number(int, low=1, high=MOST_EPOCHS), metavar='N',
        help='end the training when the validation accuracy has not risen for so many epochs')
    add('--normalise', choices=('usual', 'measure'),
        help="mean and standard deviation of the colours; measure: those of the training images, usual: CIFAR-100's; "
             "not given: the pretrained net's, else ImageNet's from 64 pixels on, CIFAR-100's for CIFAR and digits, "
             'measured for other small images')
    add('--split', type=parse_shares, metavar='TRAIN,[VAL,]TEST',
        help='divide folder, hf: or wds: data without a test set by these shares, the same way in every run')
    add('--same_classes', action='store_true',
        help='accept a checkpoint whose class names differ from the names in the data, but mean the same in this order')
    add('--batch_size', type=number(int, low=1, high=10**6), default=64,
        help='images per step, of all processes together')
    add('--num_workers', may_differ=True, type=number(int, low=0, high=1024),
        help='threads or processes that decode image files; not given: one per core')
    add('--epochs', may_differ=True, type=number(int, low=1, high=MOST_EPOCHS), default=240,
        help='passes over the training set')
    add('--learning_rate', type=number(float, above=0),
        help='initial learning rate; not given: 0.05, or 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2')
    add('--lr_decay_epochs', type=epoch_list, default='150,180,210', help='epochs after which the rate is multiplied')
    add('--lr_decay_rate', type=number(float, above=0, high=1), default=0.1,
        help='factor by which the learning rate is multiplied')
    add('--weight_decay', type=number(float, low=0), default=5e-4, help='weight decay of the optimiser')
    add('--momentum', type=number(float, low=0), default=0.9, help='momentum of the optimiser, if it has one')
    add('--nesterov', action='store_true', help="Nesterov's momentum for --opt sgd")
    recipe = parser.group('recipe, with the names and the parts of timm')
    recipe('--recipe', may_differ=True, type=path, metavar='FILE',
           help='read flags from a file, such as the files of recipes/; flags on the command line override them')
    recipe('--opt', '--optimizer', default='sgd',
           help='sgd; dot, which has one momentum for the gradient of the task and one for the gradient of the '
                'distillation; or an optimiser of timm, such as adamw or lamb')
    recipe('--sched', choices=('step', 'cosine', 'tanh', 'poly'), default='step',
           help='schedule of the learning rate; step: at --lr_decay_epochs')
    recipe('--warmup_epochs', type=number(int, low=0, high=MOST_EPOCHS), default=0,
           help='first epochs, in which the learning rate grows from --warmup_lr')
    recipe('--warmup_lr', type=number(float, low=0), default=1e-5, help='learning rate at the start of the warm-up')
    recipe('--min_lr', type=number(float, low=0), default=0.0, help='final learning rate of cosine, tanh and poly')
    recipe('--poly_power', type=number(float, above=0, high=100), default=0.9, help='exponent of poly; 1: linear')
    recipe('--clip_grad', type=number(float, above=0), help='clip the norm of all gradients together to this value')
    recipe('--grad_accum', type=number(int, low=1, high=10**6), default=1,
           help='batches whose gradients are averaged for one step')
    recipe('--smoothing', type=number(float, low=0, high=0.99), default=0.0, help='label smoothing')
    recipe('--mixup', type=number(float, low=0), default=0.0, help='alpha of mixup, 0: none')
    recipe('--cutmix', type=number(float, low=0), default=0.0, help='alpha of CutMix, 0: none')
    recipe('--aa', metavar='POLICY',
           help='a RandAugment, AutoAugment or AugMix policy of timm, such as rand-m9-mstd0.5-inc1')
    recipe('--reprob', type=number(float, low=0, high=1), default=0.0, help='probability of random erasing')
    recipe('--model_ema', type=number(float, low=0, high=1), nargs='?', const=0.9998, metavar='DECAY',
           help='validate and save a moving average of the weights with this decay; no value: 0.9998')
    recipe('--model_ema_warmup', action='store_true', help='let the decay grow from 0, for shorter runs')
    recipe('--bce_loss', action='store_true', help='task loss: a binary cross-entropy for each class')
    recipe('--balance_classes', action='store_true',
           help='weight the cross-entropy so that all classes count alike, whatever their number of images')
    recipe('--drop_path', type=number(float, low=0, high=0.99), default=0.0,
           help='stochastic depth: probability that training skips the last block of a net of timm or torchvision')
    start = parser.group('start from pretrained weights')
    start('--pretrained', action='store_true',
          help="start from the library's published weights of timm:NAME, timm:NAME.TAG or torchvision:NAME")
    start('--initial_checkpoint', type=path, metavar='PATH',
          help='start from the weights of the same net in a file or folder, in any format of --path-t; its classifier '
               'is replaced if it has other classes')
    start('--freeze_epochs', type=number(int, low=0, high=MOST_EPOCHS), default=0,
          help="number of first epochs in which only the classifier and the method's layers learn")
    start('--layer_decay', type=number(float, above=0, high=1), default=1.0, metavar='FACTOR',
          help="each of timm's layer groups learns at FACTOR times the learning rate of the next group; for "
               'nets of timm')
    start('--backbone_lr', type=number(float, above=0, high=1), default=1.0, metavar='FACTOR',
          help='all layers but the classifier learn at FACTOR times --learning_rate')
    images = parser.group('training images, with the names of timm')
    images('--scale', type=number(float, above=0, high=1), nargs=2, metavar=('LO', 'HI'), default=DEFAULTS['scale'],
           help='part of the area of an image that a resized crop covers')
    images('--ratio', type=number(float, low=0.1, high=10), nargs=2, metavar=('LO', 'HI'), default=DEFAULTS['ratio'],
           help='width of a resized crop divided by its height')
    images('--hflip', type=number(float, low=0, high=1), default=DEFAULTS['hflip'],
           help='probability of a flip from left to right')
    images('--vflip', type=number(float, low=0, high=1), default=DEFAULTS['vflip'],
           help='probability of a flip upside down')
    images('--color_jitter', type=number(float, low=0, high=10), default=DEFAULTS['color_jitter'],
           help='largest change of brightness, contrast and saturation of a resized crop, 0: none, usual is 0.4')
    images('--train_interpolation', choices=('random', *TRAIN_INTERPOLATIONS), default=DEFAULTS['train_interpolation'],
           help='interpolation of a resized crop; not given: that of --interpolation if it is bilinear or bicubic, '
                'else bilinear')
    tests = parser.group('test images of folder, hf: and wds:, with the names of timm')
    tests('--interpolation', choices=INTERPOLATIONS,
          help="interpolation; not given: the pretrained net's, else the teacher's, else bilinear")
    tests('--crop_pct', type=number(float, low=LEAST_CROP, high=1),
          help='with --crop resized, side of the centre square that a net takes, divided by the shorter side of the '
               "scaled image; not given: the pretrained net's, else the teacher's, else 0.875")
    add('--checkpoint_key', metavar='KEY',
        help='key of the weights in a checkpoint of another program, such as model_ema, or A/B for B in A: for '
             '--path-t, or in train_teacher.py for --initial_checkpoint or --evaluate; not given: averaged weights '
             'if there are any, else a usual key')
    add('--gpu_id', may_differ=True, default='0',
        help='the GPU to train on, or a list with commas; cpu forces the CPU, mps is the GPU of a Mac')
    add('--multiprocessing-distributed', may_differ=True, action='store_true',
        help='start a process for each entry of --gpu_id; they share --batch_size and --num_workers')
    add('--dist-url', may_differ=True, default='tcp://127.0.0.1:23451', help='address at which these processes meet')
    add('--dist-timeout', may_differ=True, type=number(int, low=1, high=10**6), default=600,
        help='seconds that a process waits for the others before it gives up')
    add('--sync_bn', action='store_true', help='batch normalisation over the batch of all processes')
    add('--amp', nargs='?', const='auto', choices=('auto', *KINDS),
        help='compute in 16 bits: bfloat16 where the GPU has it, else float16')
    add('--grad_checkpointing', may_differ=True, action='store_true',
        help='save memory: keep the input of each block of the net that learns, and compute the rest again in the '
             'backward pass')
    add('--compile', may_differ=True, action='store_true',
        help='make the training step faster: on a GPU by torch.compile and a CUDA graph, on a CPU by C++ kernels')
    add('--fast', may_differ=True, action='store_true',
        help='make a run faster without loss of accuracy: --compile, --amp, TF32')
    add('--resume', may_differ=True, nargs='?', const='auto', type=path, metavar='auto|PATH',
        help="continue from a run's last.pth; auto: from the one in the output folder, if there is one")
    add('--overwrite', may_differ=True, action='store_true',
        help='replace the run in the output folder; with --resume auto only if its options, data or teacher differ')
    add('--save_every', may_differ=True, type=number(float, low=0), default=0.0,
        help='minutes between two writes of last.pth within an epoch; 0: only at the end of an epoch')
    add('--channels_last', may_differ=True, action=argparse.BooleanOptionalAction, default=True,
        help='store images and weights with channels innermost, which is faster on CPUs and GPUs')
    add('--seed', may_differ=True, type=number(int, low=0, high=2**32 - 1),
        help='seed of all random numbers; not given: drawn, and written to parameters.json')
    add('--deterministic', action='store_true',
        help='deterministic cuDNN, slower; the seed is 12345 unless --seed is given')
    add('--print-freq', may_differ=True, type=number(int, low=1, high=10**9), default=200,
        help='steps between two progress lines')
    add('--estimate', may_differ=True, action='store_true',
        help='time a few steps, print the hours, memory and disk space of the run, and stop; nothing is written')
    add('--wandb', may_differ=True, nargs='?', const='distillation', metavar='PROJECT',
        help='also report the run to Weights & Biases, in this project; no value: distillation')
    add('--save_dir', may_differ=True, type=path, default='./save', help='where runs are written')
    add(*trial_flags, may_differ=True, type=str, default=trial,
        help='name of this repetition, the last part of the output folder')
    return parser


def _parse(parser, args):
    """Parse a command line and its --recipe. opt.flags.given: the options of both, opt.flags.recipe: of the recipe."""
    typed = sys.argv[1:] if args is None else args
    args = with_recipe(typed)
    opt = parser.parse_args(args)
    opt.flags = parser.flags()
    opt.flags.given = parser.given(args)
    opt.flags.recipe = parser.given(args[:len(args) - len(typed)])
    return opt


def _complete(parser, opt, model, flag):
    """Check options that depend on each other, and set those that are not given. model: the net to train, of `flag`."""
    check_dataset(opt)
    if opt.wandb is not None:
        check_wandb(opt.wandb)
    check_name(model, opt.image_size, flag)
    if opt.pretrained and opt.initial_checkpoint:
        raise UserError(f'--pretrained: --initial_checkpoint {opt.initial_checkpoint} also sets the initial weights; '
                        f'leave one of the two out')
    check_start = check_published if opt.pretrained else check_without_weights
    check_start(model, flag)
    if opt.learning_rate is None:
        opt.learning_rate = default_learning_rate(model) / (100 if getattr(opt, 'qat', False) else 1)
    check_recipe(opt)
    if opt.aa is not None:
        AutoAugment(opt.aa, opt.image_size, (0.5, 0.5, 0.5))
    check_effects(opt)
    uses_checkpoint = 'path_t' in opt or opt.evaluate or opt.pretrained or opt.initial_checkpoint
    if not (uses_checkpoint and follows_checkpoint_size(opt)):      # else they are set when the checkpoint is opened
        set_crop_options(opt)
    if '/' in opt.trial or '\\' in opt.trial or not opt.trial.isprintable() or not opt.trial:
        trial = opt.trial if opt.trial.isprintable() else repr(opt.trial)
        parser.error(f'--trial {trial}: the trial is a part of a folder name; give one without slashes')
    if opt.gpu_id == MPS:
        check_mps(opt)
        opt.channels_last &= 'channels_last' in opt.flags.given
    turn_on_fast(opt)
    if opt.deterministic and opt.seed is None:
        opt.seed = 12345
    # Each process would draw its own values; with several processes, all use the values of process 0.
    opt.flags.filled_in = [name for name in ('seed', 'num_workers') if getattr(opt, name) is None]
    opt.seed = secrets.randbits(31) if opt.seed is None else opt.seed
    opt.num_workers = cores() if opt.num_workers is None else opt.num_workers
    for name, value in values(opt).items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(f'the flag of {name}: its value is a {type(value).__name__}, which parameters.json cannot '
                             f'store; use a number, a string or a list of them') from None
    return opt


@functools.cache
def _teacher_parser():
    parser = _base_parser('Train a network alone: a teacher, or a student to compare with.', ('-t', '--trial'), '0')
    parser.add_argument('--model', default='resnet110', help=f'the network: {NETS}')
    parser.add_argument('--save_freq', may_differ=True, type=number(int, low=1, high=MOST_EPOCHS), default=40,
                        help='epochs between two checkpoints ckpt_epoch_N.pth')
    parser.add_argument('--evaluate', may_differ=True, type=path, metavar='PATH',
                        help='measure this checkpoint on the test set, and stop')
    return parser


def _student_parser(description='Distil a trained teacher into a student.'):
    return _cached_student_parser(tuple(distiller_dict.items()), description)


@functools.cache
def _cached_student_parser(methods, description):       # another key after a change of distiller_dict
    parser = _base_parser(description, ('--trial',), '1')
    add = parser.add_argument
    add('--path-t', may_differ=True, type=path, nargs='+', required=True, metavar='PATH',
        help="the teacher's checkpoint, or the published weights of timm:NAME or torchvision:NAME; several: the "
             'student learns from all of them')

    def add_per_teacher(name, **settings):
        add(f'--{name}', nargs='+', type=value_or(NOT_GIVEN, TEACHER_OPTIONS[name]), **settings)
    add_per_teacher('model_t', metavar='NET',
                    help="the teacher's net, named like --model_s, if its checkpoint does not name it. With several "
                         f'teachers, each flag NAME_t takes a value per teacher; {NOT_GIVEN}: as in its checkpoint')
    add_per_teacher('mean_t', metavar='R,G,B',
                    help="preprocessing of a teacher from elsewhere, instead of its library's: mean of the colours, "
                         'for pixels from 0 to 1')
    add_per_teacher('std_t', metavar='R,G,B', help='the same: standard deviation of the colours')
    add_per_teacher('size_t', metavar='PIXELS', help='the same: height and width of an image')
    add_per_teacher('interpolation_t', metavar='|'.join(INTERPOLATIONS),
                    help='the same: interpolation for images of another size')
    add_per_teacher('teacher_head', metavar='linear',
                    help='fit a linear classifier to the embeddings of a teacher that has none for the classes of the '
                         'data, on the training images')
    add('--teacher_weights', type=teacher_weights, metavar=f'W1,W2,...|{AGREE}',
        help=f'weights of several teachers in each loss, as 1,2,1; {AGREE}: in the loss on soft labels, for each image '
             'by how well each teacher knows its class; not given: equal')
    add('--model_s', default='resnet8', help=f'the student: {NETS}')
    add('--qat', action='store_true',
        help='continue from --initial_checkpoint with weights and activations rounded to 8 bits, so that '
             'export_student.py --int8 keeps the accuracy')
    add('--stages', type=stage_list,
        help='stages of the student that the method uses, from 0, such as 2,5,8,11; not given: all, or four of the '
             'blocks of a transformer')
    add_per_teacher('stages_t', metavar='STAGES', help='the same for the teacher')
    add('--distill', default=SOFT_LABELS,
        help='the method, a name of distiller_zoo.distiller_dict, or a sum such as rkd+crd')
    add('-r', '--gamma', type=number(float), help='weight of the cross-entropy; not given: the published one')
    add('-a', '--alpha', type=number(float), help='weight of the soft-label loss; not given: the published one')
    add('-b', '--beta', type=weights,
        help="weight of the method's own loss, or for a sum one for each, with commas; auto: such that its gradient "
             "is as large as the cross-entropy's in the first steps; not given: the published one")
    shared = parser.group('all methods')
    shared('--kd_T', type=number(float, above=0, high=1e4),
           help='temperature of the soft labels; not given: the published one, mostly 4')
    shared('--loss_warmup_epochs', type=number(int, low=1, high=MOST_EPOCHS),
           help="epochs in which the weight of the method's loss grows to its full value; not given: the published "
                'number')
    shared('--kl_warmup_epochs', type=number(int, low=0, high=MOST_EPOCHS),
           help='epochs in which the weight of the soft labels grows from 0 to its full value; not given: as published')
    shared('--dot_delta', type=number(float, low=0, high=1),
           help='difference of the two momenta of --opt dot from --momentum; not given: 0.075, for ImageNet 0.09')
    shared('--init_epochs', type=number(int, low=1, high=MOST_EPOCHS), default=30,
           help='epochs of the first stage of methods that have one')
    shared('--init_learning_rate', type=number(float, above=0),
           help="learning rate of that stage; not given: the method's own, or else --learning_rate")
    for transform in transforms:
        transform.add_arguments(parser.group('transforms of the logits'))
    eakd.add_arguments(parser.group('weights of the images'))
    for name, method in methods:
        method.add_arguments(parser.group(f'--distill {name}, {method.spec.title}'))
    without_labels = parser.group('images without labels')
    without_labels('--unlabelled', may_differ=True, type=path, metavar='DIR',
                   help='also train on all images below this folder, or of wds:FOLDER_OR_URL, without labels; the '
                        'cross-entropy skips them. With -r 0 and no folder train in --data_dir, train on them alone')
    without_labels('--unlabelled_batch', type=number(int, low=1, high=10**6), metavar='N',
                   help='unlabelled images per step, of all processes together; not given: --batch_size')
    add('--teacher_cache', may_differ=True, nargs='?', const='auto', type=path, metavar='DIR',
        help="store the teacher's outputs there, for all augmentation variants of the training images, and reuse them "
             'in all runs with that teacher; auto: teacher_cache in --save_dir')
    add('--cache_epochs', type=number(int, low=1, high=MOST_EPOCHS), metavar='N',
        help='repeat the random augmentation after N epochs, so that --teacher_cache also serves random crops, --aa, '
             '--mixup and several views: files for each of the N epochs')
    add('--cache_topk', type=count_or_all, metavar='K',
        help='store only the K largest probabilities of an image, with the sum of the others, in 16 bits; all: of all '
             'classes in 16 bits; not given: the logits in 32 bits')
    add('--cache_seed', type=number(int, low=0, high=2**32 - 1), default=0,
        help='seed of the augmentation of --cache_epochs; runs with the same one share the files, whatever their '
             '--seed')
    add('--list', action=ListEntries, nargs=0, dest=argparse.SUPPRESS,
        help='print the methods and the models, and stop')
    add('--evaluate', may_differ=True, nargs='?', const=True, type=path, metavar='PATH',
        help='measure this checkpoint on the test set, and stop; no value: the checkpoint of --path-t')
    add('--skip-validation', may_differ=True, action='store_true', help='do not validate the teacher first')
    return parser


def flags(student: bool) -> Flags:
    """The defaults of train_student.py or train_teacher.py, and which of their options may differ between trials."""
    return (_student_parser() if student else _teacher_parser()).flags()


@functools.cache
def actions(student: bool) -> dict[str, argparse.Action]:
    """name -> flag of train_student.py or train_teacher.py."""
    parser = _student_parser() if student else _teacher_parser()
    return {action.dest: action for action in parser._actions if action.dest != argparse.SUPPRESS}


def teacher_options(args=None):
    """The options of train_teacher.py."""
    parser = _teacher_parser()
    opt = _parse(parser, args)
    if opt.opt == 'dot':
        raise UserError('--opt dot: separates the gradients of the task and of the distillation, but a net that learns '
                        'alone has no distillation; give sgd or an optimiser of timm')
    return _complete(parser, opt, opt.model, '--model')


def with_recipe(args: list[str]) -> list[str]:
    """Return the arguments of a command line, preceded by those of --recipe FILE.

    The file has flags as on a command line, on any number of lines; # begins a comment. Raises UserError.
    """
    files = [word.partition('=')[2] or following for word, following in zip(args, [*args[1:], ''], strict=False)
             if word.partition('=')[0] == '--recipe']
    if len(files) > 1:
        raise UserError(f'--recipe {files[1]}: --recipe {files[0]} is given too, but only one file is read; put all '
                        f'flags into one file, or give some on the command line')
    if not files or not files[0]:
        return args
    label = f'--recipe {files[0]}'
    try:
        recipe = shlex.split(read_text(files[0], label), comments=True)
    except ValueError as error:
        raise UserError(f'{label}: {reason(error)}; give a file of flags, such as the files of recipes/') from error
    if any(word.partition('=')[0] == '--recipe' for word in recipe):
        raise UserError(f'{label}: contains --recipe; leave it out of the file')
    return [*recipe, *args]


def _set_teacher_options(opt):
    """Set the options with a value for each teacher: one teacher, the value; several teachers, a list of texts."""
    count = len(opt.path_t)
    for name in TEACHER_OPTIONS:
        given = getattr(opt, name)
        if given is None:
            continue
        texts = [NOT_GIVEN if value is None else comma_list(value) for value in given]
        if len(given) != count:
            raise UserError(f'--{name} {" ".join(texts)}: --path-t names {counted(count, "teacher")}; give a value for '
                            f'each, {NOT_GIVEN} for one whose checkpoint says it')
        setattr(opt, name, given[0] if count == 1 else texts)
    opt.path_t = opt.path_t[0] if count == 1 else opt.path_t


def student_options(args=None, **parser):
    """The options of train_student.py. parser: arguments of _student_parser, for a script with the same options."""
    parser = _student_parser(**parser)
    opt = _parse(parser, args)
    _set_teacher_options(opt)
    method = get_method(opt.distill)
    if not method.spec.learns_classes:
        opt.skip_validation = True      # the teacher has no accuracy
        if opt.unlabelled and 'dataset' not in opt.flags.given:
            opt.dataset = WITHOUT_CLASSES
    method.fill_in(opt)
    method.check_options(opt)
    check_flags_of_methods(opt, method)
    check_method(opt, method)
    check_teachers(opt, method)
    if opt.estimate and has_auto(opt.beta):     # the first steps, which measure the weights, are slower than the others
        opt.beta = method.published_options(opt)['beta']
    opt = _complete(parser, opt, opt.model_s, '--model_s')
    for teacher in options_of_teachers(opt):
        if teacher.model_t is not None:
            check_without_weights(teacher.model_t, '--model_t')
    if opt.unlabelled_batch is None:
        opt.unlabelled_batch = opt.batch_size if opt.unlabelled else None
    if opt.teacher_cache == 'auto':
        opt.teacher_cache = os.path.join(opt.save_dir, 'teacher_cache')
    return opt
