"""The command line: a parser with one-line errors, types of flags, and text for the terminal."""
import argparse
import contextlib
import functools
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .errors import UserError, nearest

MOST_EPOCHS = 10**6
ALL = 'all'         # of --cache_topk: all classes
AUTO = 'auto'       # a weight that is measured, see distiller_zoo/auto_weight.py
AGREE = 'agree'     # of --teacher_weights: by how well each teacher knows the class of an image
USUALLY_NORMALISED = ('cifar10', 'cifar100', 'digits', 'imagenet', 'imagenette')      # as --normalise usual does

# Name of a flag in timm, torchvision, PyTorch's ImageNet example, RepDistiller or mdistiller -> its names here, for
# error messages.
USUAL_NAMES = {usual: ours.split() for ours, names in {
    'learning_rate': 'lr base_lr', 'weight_decay': 'wd', 'batch_size': 'bs batch', 'num_workers': 'workers j nw',
    'model_s model': 'arch net network student model model_name backbone path_s', 'model_t': 'teacher arch_t',
    'path_t': 'teacher_path teacher_ckpt teacher_checkpoint path_teacher teacher_resume teacher_weights',
    'gpu_id': 'gpu gpus device devices cuda', 'data_dir': 'data dataset_dir data_path data_root root data_folder',
    'kd_T': 't temperature temp tau kd_temperature', 'distill': 'method kd_method distiller kd',
    'gamma': 'ce_weight ce_loss_weight cls_weight', 'alpha': 'kd_weight kd_loss_weight',
    'beta': 'feat_weight feature_weight method_weight',
    'wandb': 'log_wandb wandb_project wandb_name use_wandb', 'trial': 'experiment exp_name name tag run_name',
    'save_dir': 'output output_dir out out_dir save_folder save_path log_dir', 'print_freq': 'log_interval p',
    'resume': 'start_epoch checkpoint auto_resume', 'save_freq': 'checkpoint_hist save_interval',
    'lr_decay_epochs': 'milestones lr_steps lr_step_size decay_milestones decay_epochs schedule',
    'lr_decay_rate': 'lr_gamma decay_rate lr_decay step_gamma', 'sched': 'scheduler lr_scheduler lr_policy',
    'opt': 'optim', 'clip_grad': 'clip clip_grad_norm max_norm grad_clip', 'smoothing': 'label_smoothing ls',
    'mixup': 'mixup_alpha', 'cutmix': 'cutmix_alpha', 'aa': 'auto_augment randaugment ra',
    'reprob': 'random_erase random_erasing', 'warmup_epochs': 'lr_warmup_epochs warmup',
    'model_ema': 'model_ema_decay ema', 'warmup_lr': 'lr_warmup_init', 'min_lr': 'lr_min eta_min',
    'drop_path': 'drop_path_rate', 'bce_loss': 'bce',
    'grad_accum': 'grad_accum_steps accumulation_steps accum_iter', 'amp': 'fp16 native_amp half amp_dtype bf16',
    'compile': 'torchcompile', 'sync_bn': 'dist_bn syncbn', 'evaluate': 'eval test_only e validate',
    'image_size': 'img_size input_size resolution imgsz', 'recipe': 'config cfg c', 'stages': 'layers',
    'initial_checkpoint': 'init_checkpoint init_weights pretrained_weights pretrained_path finetune load_weights',
    'multiprocessing_distributed': 'world_size distributed ddp local_rank', 'train_fraction': 'subset fraction',
    'val_fraction': 'val_split validation_split val_ratio', 'patience': 'early_stopping early_stop_patience',
}.items() for usual in names.split()}


@dataclass
class Flags:
    """The attribute `flags` of the options."""

    defaults: dict          # option -> value when the flag is not given
    may_differ: set         # options for how or where a run computes, which may change with --resume
    filled_in: list = field(default_factory=list)   # options that the program draws or counts if they are not given
    given: set = field(default_factory=set)         # options given on the command line or in its --recipe
    recipe: set = field(default_factory=set)        # options given in the --recipe


def values(opt) -> dict:
    """option -> value."""
    return {name: value for name, value in vars(opt).items() if name != 'flags'}


def current_options(saved: dict) -> dict:
    """The options of a saved run with today's names and defaults.

    A run of an older version has --optimizer beside --opt. Before --crop there were padded crops alone, and
    --normalise usual was the default of all data.
    """
    options = {name: value for name, value in saved.items() if name != 'optimizer'}
    if saved.get('optimizer') == 'dot':
        options['opt'] = 'dot'
    dataset = str(saved.get('dataset'))
    if 'crop' not in saved and (dataset == 'folder' or dataset.startswith('hf:')):
        options['crop'] = 'padded'
    if 'crop' not in saved and dataset in USUALLY_NORMALISED and saved.get('normalise') == 'usual':
        options['normalise'] = None
    return options


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of flags, except None and False."""

    def _get_help_string(self, action):
        is_hidden = action.default is None or action.default is False
        return action.help if is_hidden else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that accepts both '-' and '_' between the words of a flag, and raises UserError for a mistake."""

    def __init__(self, **kwargs):
        self.may_differ: set[str] = set()
        self.group_flags: dict[str, dict] = {}
        super().__init__(**{'allow_abbrev': False, 'formatter_class': HelpFormatter, **kwargs})
        self._negative_number_matcher = re.compile(r'-[\d.]')       # values, also '-1,2' and '-1e-3'
        self.add_argument('--debug', may_differ=True, action='store_true', default=argparse.SUPPRESS,
                          help='show the traceback of an error')      # helper.errors looks for the flag itself

    def add_argument(self, *names, may_differ: bool = False, **settings):
        """may_differ: the flag may change when a run is resumed, and between trials of a comparison."""
        action = super().add_argument(*names, **settings)
        if may_differ:
            self.may_differ.add(action.dest)
        return action

    def group(self, title: str) -> Callable:
        """Return the add_argument of a new group in --help. Groups may share a flag only with equal settings."""
        group = self.add_argument_group(title)

        def add(*names, may_differ=False, **settings):
            name = names[-1].replace('-', '_')
            shared = {'may_differ': may_differ, **{key: value for key, value in settings.items() if key != 'help'}}
            if name not in self._known_flags():
                self.group_flags[name] = shared
                action = group.add_argument(*names, **settings)
                self.may_differ |= {action.dest} if may_differ else set()
            elif self.group_flags.get(name) != shared:
                raise ValueError(f'{title}: {names[-1]} exists already, with other settings')
        return add

    def flags(self) -> Flags:
        """The defaults, and the options that may differ."""
        return Flags({a.dest: a.type(a.default) if a.type and isinstance(a.default, str) else a.default
                      for a in self._actions if argparse.SUPPRESS not in (a.default, a.dest)}, self.may_differ)

    def given(self, args: list[str]) -> set[str]:
        """The options whose flags are in `args`, even with their default value."""
        missing = object()
        opt = argparse.Namespace(**{action.dest: missing for action in self._actions})
        with contextlib.suppress(UserError):        # a recipe lacks required flags
            self.parse_known(args, opt)
        return {name for name, value in vars(opt).items() if value is not missing}

    def parse_args(self, args=None, namespace=None):
        opt, unknown = self.parse_known(args, namespace)
        if unknown and re.match(r'-[^\d.]', unknown[0]):
            flag = unknown[0].partition('=')[0]
            self.error(f'{unknown[0]}: no such flag; {nearest_flag(flag, self._option_string_actions)}')
        if unknown:
            usage = self._usage_of_overfull_flag(sys.argv[1:] if args is None else args)
            self.error(f'{unknown[0]}: belongs to no flag; {usage}')
        return opt

    def _usage_of_overfull_flag(self, args):
        """The usage of the first flag that is followed by too many values, for an error message."""
        known, given = self._known_flags(), []
        for arg in args:
            name, equals, value = arg.partition('=')
            if flag := known.get(name.replace('-', '_')):
                given.append((self._option_string_actions[flag], [value] if equals else []))
            elif given:
                given[-1][1].append(arg)
        for action, values in given:
            flag = next(name for name in action.option_strings if len(action.option_strings) == 1 or name[:2] == '--')
            if action.nargs == 0 and values:
                return f'{flag} takes no value'
            if action.nargs in (None, '?') and len(values) > 1:
                with contextlib.suppress(argparse.ArgumentTypeError):
                    if action.type not in (None, path) and action.type(','.join(values)):
                        return f'separate its values with commas: {flag} {",".join(values)}'
                return f'{flag} takes one value: {action.help}'
        return 'a flag begins with --'

    def _known_flags(self) -> dict:
        """A flag with '_' between its words -> the flag."""
        return {flag.replace('-', '_'): flag for flag in self._option_string_actions}

    def parse_known(self, args=None, namespace=None):
        """(the options, the arguments that no flag of this parser accepts)."""
        known = self._known_flags()

        def canonical(arg):
            name, equals, value = arg.partition('=')
            return known.get(name.replace('-', '_'), name) + equals + value if arg.startswith('--') else arg

        args = sys.argv[1:] if args is None else args
        return self.parse_known_args([canonical(arg) for arg in args], namespace)

    def error(self, message):
        raise UserError(message.removeprefix('argument '))


def nearest_flag(flag: str, flags: Iterable[str]) -> str:
    """A hint at the one of `flags` that an unknown flag may stand for, for an error message."""
    flags = {known.lstrip('-').replace('-', '_'): known for known in flags if known.startswith('--')}
    usual_name = flag.lstrip('-').replace('-', '_').lower()
    matches = [flags[name] for name in USUAL_NAMES.get(usual_name, ()) if name in flags]
    return f'here it is {matches[0]}' if matches else nearest(flag, flags.values())


# Types of flags: functions for argparse that convert a text, or raise ArgumentTypeError.

@functools.cache        # two flags with the same bounds then have the same type
def number(kind, low=None, above=None, high=None):
    """An int or a float with bounds (low and high are allowed, `above` is not)."""
    bounds = [f'{text} {bound}' for text, bound in (('of at least', low), ('above', above), ('of at most', high))
              if bound is not None]
    wanted = ' '.join(['a whole number' if kind is int else 'a number', ' and '.join(bounds)]).strip()

    def convert(text):
        try:
            value = kind(text)
            is_valid = (math.isfinite(value) and (low is None or value >= low) and (above is None or value > above)
                        and (high is None or value <= high))
        except (ValueError, OverflowError):     # no number, or a whole number of hundreds of digits
            is_valid = False
        if not is_valid:
            raise argparse.ArgumentTypeError(f'{text[:80]}: give {wanted}')
        return value
    return convert


def numbers(convert: Callable, wanted: str, count: int | None = None) -> Callable:
    """`count` values, or any number of them, separated by commas."""
    def convert_all(text):
        try:
            values = [convert(part) for part in text.split(',')]
        except argparse.ArgumentTypeError:
            values = []
        if not values or len(values) != (count or len(values)):
            raise argparse.ArgumentTypeError(f'{text[:80]}: give {wanted}')
        return values
    return convert_all


epoch_list = numbers(number(int, low=1, high=MOST_EPOCHS), 'epochs as whole numbers with commas, as 150,180,210')
stage_list = numbers(number(int, low=0, high=9999), 'the numbers of stages, from 0, with commas, as 2,5,8,11')


def name_list(names: Iterable[str]) -> Callable:
    """Some of these names, separated by commas."""
    def convert(part):
        if part not in names:
            raise argparse.ArgumentTypeError(part)
        return part
    return numbers(convert, f'one or several of {", ".join(names)}, with commas')


def one_of(names: Iterable[str]) -> Callable:
    """One of these names."""
    def convert(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f'{text}: give one of {", ".join(names)}')
        return text
    return convert


def weights(text: str) -> float | str | list[float | str]:
    """'45' -> 45.0, 'auto' -> 'auto', 'auto,0.8' -> ['auto', 0.8]."""
    def convert(part):
        return AUTO if part == AUTO else number(float)(part)

    values = numbers(convert, f'a number or {AUTO}, or several with commas, as 45,0.8')(text)
    return values if len(values) > 1 else values[0]


def teacher_weights(text: str) -> str | list[float]:
    """'1,2,1' -> [1.0, 2.0, 1.0], or AGREE."""
    if text == AGREE:
        return text
    return numbers(number(float, low=0, high=1e6), f'numbers from 0 to 1000000 with commas, as 1,2,1, or {AGREE}')(text)


def value_or(no_value: str, convert: Callable) -> Callable:
    """The type `convert`, or None for the text `no_value`."""
    return lambda text: None if text == no_value else convert(text)


def count_or_all(text: str) -> int | str:
    """A whole number of at least 1, or ALL."""
    return ALL if text == ALL else number(int, low=1)(text)


def has_auto(weights: float | str | list) -> bool:
    """Whether one of the weights is auto."""
    return AUTO in weights if isinstance(weights, list) else weights == AUTO


def colours(low: float | None = None, above: float | None = None) -> Callable:
    """Three numbers of at most 1, one a colour: '0.485,0.456,0.406'."""
    wanted = 'three numbers of 0 to 1 with commas, for pixels of 0 to 1, as 0.485,0.456,0.406'
    return numbers(number(float, low, above, high=1), wanted, count=3)


def path(text: str) -> str:
    """A path that is not empty, as it is when the shell's variable for it is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f'{text!r}: give a path; this one is empty. Is a variable not set?')
    if any('\ud800' <= c <= '\udfff' for c in text):        # stand for bytes that Python cannot decode
        raise argparse.ArgumentTypeError(f'{text}: not in the encoding of this terminal; set LC_ALL=C.UTF-8')
    return text


def comma_list(value) -> str:
    """The inverse of `weights`: [45.0, 0.8] -> '45.0,0.8'; a single value as it is."""
    return ','.join(map(str, value)) if isinstance(value, list) else str(value)


def word_list(value) -> str:
    """[0.08, 1.0] -> '0.08 1.0', as a flag with several values takes them; a single value as it is."""
    return ' '.join(map(str, value)) if isinstance(value, list) else str(value)


def as_list(value) -> list:
    """A list as it is; another value as its only entry."""
    return value if isinstance(value, list) else [value]


def plus_list(value) -> str:
    """['resnet20', 'vgg13'] -> 'resnet20 + vgg13'; a single value as it is."""
    return ' + '.join(map(str, as_list(value)))


def readable_bytes(count: int) -> str:
    """3240000000 -> '3.24 GB'."""
    return f'{count / 1e9:.2f} GB' if count >= 1e8 else f'{count / 1e6:.2f} MB'


def readable_hours(hours: float) -> str:
    """1.5 -> '1.5 h', 0.5 -> '30.0 min'."""
    return f'{hours:.1f} h' if hours >= 1 else f'{60 * hours:.1f} min'


def show(text: str) -> None:
    """Print, with +- and sigma where the terminal has no ± or σ."""
    for character, ascii_text in (('±', '+-'), ('σ', 'sigma')):
        try:
            character.encode(sys.stdout.encoding or 'utf-8')
        except UnicodeEncodeError:
            text = text.replace(character, ascii_text)
    print(text)


def table(head: tuple, rows: list[tuple], alignment: str = '') -> str:
    """Columns of strings under their heads. alignment: '<' or '>' for each column, '<' where it is too short."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    formats = [f'{side}{width}' for side, width in zip(alignment.ljust(len(head), '<'), widths, strict=True)]
    lines = ['  '.join(map(format, row, formats)).rstrip() for row in (head, *rows)]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
