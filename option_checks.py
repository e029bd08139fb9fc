"""Checks of options that do not go together or have no effect. Each raises a UserError of one line."""
import functools
from importlib.util import find_spec

from dataset import LARGE, WITHOUT_CLASSES, dataset_key, source_dict
from dataset.crop import DEFAULTS, RESIZED_ONLY
from dataset.teacher_cache.layout import CACHED_OUTPUTS
from distiller_zoo import distiller_dict
from distiller_zoo.checks import how_to_add_soft_labels, weighted_losses
from distiller_zoo.eakd import ENTROPY_OPTIONS
from distiller_zoo.multi_teacher import why_one_teacher
from helper.cli import AGREE, as_list, comma_list, has_auto, word_list
from helper.errors import UserError, nearest
from helper.optim import BUILT_IN, has_momentum

SEVERAL_VIEWS = 'uses several views of an image'
READS_STAGES = {'stages': lambda spec: spec.reads_stages or spec.stages_s, 'stages_t': lambda spec: spec.reads_stages}
REPEAT = '--cache_epochs N, after which the augmentation repeats'


def check_effects(opt) -> None:
    """Refuse a given flag that has no effect.

    The command line may set a recipe's flag back to its default.
    """
    has_schedule, has_label_loss = opt.sched != 'step', getattr(opt, 'gamma', 1) != 0
    loads_checkpoint = 'path_t' in opt or bool(opt.evaluate or opt.initial_checkpoint)
    effects = {     # option -> the flag that it depends on, and whether the option has an effect
        **dict.fromkeys(('image_size', 'interpolation', 'crop_pct'),
                        ('--dataset folder, hf: or wds:', dataset_key(opt.dataset) in source_dict)),
        'lr_decay_epochs': ('--sched step', not has_schedule), 'lr_decay_rate': ('--sched step', not has_schedule),
        'min_lr': ('--sched cosine, tanh or poly', has_schedule),
        'poly_power': ('--sched poly', opt.sched == 'poly'),
        'warmup_lr': ('--warmup_epochs', opt.warmup_epochs > 0),
        'momentum': (f'an --opt that has one: --opt {opt.opt}', has_momentum(opt.opt)),
        'checkpoint_key': ('--evaluate or --initial_checkpoint', loads_checkpoint),
        'same_classes': ('--evaluate or --initial_checkpoint', loads_checkpoint),
        'model_ema_warmup': ('--model_ema', opt.model_ema is not None),
        'dist_url': ('--multiprocessing-distributed', opt.multiprocessing_distributed),
        'dot_delta': ('--opt dot', opt.opt == 'dot'),
        **dict.fromkeys(ENTROPY_OPTIONS, ('--entropy_weights', 'entropy_weights' in opt and opt.entropy_weights)),
        'unlabelled_batch': ('--unlabelled', bool(getattr(opt, 'unlabelled', None))),
        **dict.fromkeys(('bce_loss', 'balance_classes'), ('a cross-entropy, which -r 0 leaves out', has_label_loss)),
        'smoothing': ('a cross-entropy, which -r 0 leaves out', has_label_loss or not opt.smoothing),
    }
    for option in sorted(opt.flags.given & effects.keys()):
        (needed, has_effect), value = effects[option], getattr(opt, option)
        undoes_recipe = option in opt.flags.recipe and value == opt.flags.defaults[option]
        if not has_effect and not undoes_recipe:
            text = '' if value is True else f' {comma_list(value)}'
            raise UserError(f'--{option}{text}: has no effect without {needed}; leave it out')
    of_training = {'resume', 'overwrite', 'save_every', 'wandb', 'teacher_head', 'teacher_cache', 'cache_epochs',
                   'cache_topk', 'cache_seed', 'skip_validation', 'estimate', 'pretrained', 'initial_checkpoint',
                   'qat', 'freeze_epochs', 'layer_decay', 'backbone_lr', 'patience', 'no_test', 'grad_checkpointing',
                   'unlabelled'}
    if opt.evaluate and (given := sorted(opt.flags.given & of_training)):
        raise UserError(f'--{given[0]}: has no effect with --evaluate, which only measures; leave one of the two out')


def check_recipe(opt) -> None:
    """Raise UserError for an unknown optimiser, for rates that do not fit, or if timm is needed but not installed."""
    flags = {f'--opt {opt.opt}': opt.opt not in BUILT_IN, f'--sched {opt.sched}': opt.sched != 'step',
             '--warmup_epochs': opt.warmup_epochs, '--bce_loss': opt.bce_loss, '--mixup': opt.mixup,
             '--cutmix': opt.cutmix, '--model_ema': opt.model_ema,
             f'--aa {opt.aa}': opt.aa, '--reprob': opt.reprob}
    for flag, given in flags.items():
        if given and find_spec('timm') is None:
            raise UserError(f'{flag}: timm is not installed; pip install timm')
    if opt.opt not in BUILT_IN:
        from timm.optim import list_optimizers
        known = {*list_optimizers()} - {'adahessian'}       # which needs second derivatives
        if opt.opt not in known:
            raise UserError(f'--opt {opt.opt}: no such optimiser; {nearest(opt.opt, known)}')
    if opt.nesterov and (opt.opt != 'sgd' or not opt.momentum):
        other = f'--opt {opt.opt}' if opt.opt != 'sgd' else '--momentum 0'
        raise UserError(f'--nesterov: changes the momentum of --opt sgd, so it does not go with {other}; leave one of '
                        f'the two out')
    if opt.balance_classes and opt.bce_loss:
        raise UserError('--balance_classes: weights the cross-entropy, but --bce_loss has none; leave one of them out')
    if opt.warmup_epochs >= opt.epochs:
        raise UserError(f'--warmup_epochs {opt.warmup_epochs}: --epochs {opt.epochs} must be more')
    if opt.freeze_epochs >= opt.epochs:
        raise UserError(f'--freeze_epochs {opt.freeze_epochs}: --epochs {opt.epochs} must be more, so that the other '
                        f'layers learn too')
    if opt.layer_decay < 1 and opt.backbone_lr < 1:
        raise UserError(f'--layer_decay {opt.layer_decay:g}: --backbone_lr {opt.backbone_lr:g} sets the same learning '
                        f'rates; leave one of the two out')
    rate = f'--learning_rate {opt.learning_rate:g}'
    if opt.warmup_epochs and opt.warmup_lr > opt.learning_rate:
        raise UserError(f'--warmup_lr {opt.warmup_lr:g}: a warm-up begins below {rate}; give at most that')
    if opt.sched != 'step' and opt.min_lr >= opt.learning_rate:
        raise UserError(f'--min_lr {opt.min_lr:g}: the rate falls from {rate} to it; give less than that')
    if opt.model_ema is not None and not 0 < opt.model_ema < 1:
        result = 'the first weights' if opt.model_ema else 'the last weights'
        raise UserError(f'--model_ema {opt.model_ema:g}: the average would be {result}; give a decay between 0 and 1')


def check_crop(opt) -> None:
    """Refuse flags that do not suit opt.crop, which depends on the image size if it is not given."""
    is_resized = opt.crop == 'resized' or opt.dataset in LARGE
    for option in RESIZED_ONLY:
        value = getattr(opt, option)
        if value != DEFAULTS[option] and not is_resized:
            raise UserError(f'--{option} {word_list(value)}: has no effect without --crop resized, which goes '
                            f'with --dataset folder, hf: or wds:; leave it out')
    if opt.crop_pct is not None and (not is_resized or opt.fit != 'crop'):
        raise UserError(f'--crop_pct {opt.crop_pct:g}: has no effect without --crop resized and --fit crop; leave it '
                        f'out')
    for option in ('scale', 'ratio'):
        low, high = getattr(opt, option)
        if low > high:
            raise UserError(f'--{option} {low} {high}: give the smaller number first')
    if opt.color_jitter and opt.aa:
        raise UserError(f'--color_jitter {opt.color_jitter:g}: --aa {opt.aa} changes the colours itself; leave one of '
                        f'the two out')
    if getattr(opt, 'teacher_cache', None) and opt.crop == 'resized' and not opt.cache_epochs:
        raise UserError(f'--teacher_cache: crops of random size have too many variants to store; give --crop padded, '
                        f'or {REPEAT}')


def check_mps(opt) -> None:
    """Refuse flags that Apple's GPUs do not support."""
    for option in ('compile', 'fast', 'multiprocessing_distributed', 'sync_bn'):
        if getattr(opt, option):
            raise UserError(f'--{option}: not with --gpu_id mps; leave one of the two out')


def check_method(opt, method) -> None:
    """Refuse flags that do not suit --distill."""
    spec, distil = method.spec, f'--distill {opt.distill}'
    for flag in ('logit_stand', 'entropy_weights'):
        if getattr(opt, flag) and not getattr(spec, f'published_{flag}'):
            users = methods_whose(lambda other, flag=flag: getattr(other, f'published_{flag}'))
            raise UserError(f'--{flag}: it was not published with {distil}; it goes with {users}')
        if getattr(opt, flag) and not weighted_losses(opt, method):
            raise UserError(f'--{flag}: has no effect, because with these weights there is no distillation loss; leave '
                            f'it out')
    if not opt.gamma and not weighted_losses(opt, method):
        raise UserError(f'-r 0: all other weights of {distil} are 0 too, so the student would learn nothing; give at '
                        f'least one loss a weight')
    if opt.opt == 'dot':
        check_dot(opt, method)
    if has_auto(opt.beta) and opt.freeze_epochs:
        raise UserError(f'-b {comma_list(opt.beta)}: compares gradients on a layer of the student, which '
                        f'--freeze_epochs {opt.freeze_epochs} freezes; give a number, or leave --freeze_epochs out')
    if (flags := changed_flags(opt, 'mixup', 'cutmix')) and not spec.is_mixable:
        cause = SEVERAL_VIEWS if len(spec.views) > 1 else 'needs one class for each image'
        raise UserError(f'{flags[0]}: {distil} {cause}; it goes with {methods_whose(lambda other: other.is_mixable)}')
    flags = changed_flags(opt, 'clip_grad', 'grad_accum', 'freeze_epochs')
    if flags and (spec.own_backward or opt.opt == 'dot'):
        raise UserError(f'{flags[0]}: {"--opt dot" if opt.opt == "dot" else distil} computes its gradients in several '
                        f'backward passes; leave one of the two out')
    if opt.model_ema is not None and (not spec.deploys_student or opt.opt == 'dot'):
        raise UserError(f'--model_ema {opt.model_ema:g}: ' + (
            'not with --opt dot; leave one of the two out' if spec.deploys_student else
            f'{distil} deploys more than the student; leave it out'))
    if (flags := changed_flags(opt, 'opt', 'nesterov', 'layer_decay', 'backbone_lr')) and spec.own_optimizer:
        raise UserError(f'{flags[0]}: {distil} has an optimiser of its own; leave one of the two out')
    if opt.qat:
        check_qat(opt, spec)
    if opt.unlabelled:
        check_unlabelled(opt, spec)
    if opt.dataset == WITHOUT_CLASSES and spec.learns_classes:
        raise UserError(f'--dataset {opt.dataset}: has no classes, but {distil} learns classes; give the data set of '
                        f'the test images')
    check_teacher_cache(opt, spec)


def check_qat(opt, spec) -> None:
    """Refuse --qat without a trained student, and with flags that make it compute otherwise than the exported file."""
    if not opt.initial_checkpoint:
        raise UserError('--qat: continues from a trained student; give its checkpoint as --initial_checkpoint')
    if not spec.deploys_student or not spec.learns_classes:
        raise UserError(f'--qat: --distill {opt.distill} does not train the logits of the plain student; give another '
                        f'method, such as kd')
    if opt.dali:
        raise UserError(f'--dali {opt.dali}: cannot read the single images that --qat calibrates with; leave it out')
    if flags := changed_flags(opt, 'compile', 'fast', 'amp', 'grad_checkpointing', 'sync_bn', 'drop_path'):
        raise UserError(f'{flags[0]}: changes how the student computes, which --qat does itself; leave one of the two '
                        f'out')


def check_unlabelled(opt, spec) -> None:
    """Refuse --unlabelled for a method that reads the class of each image, and with flags that mix labels."""
    flag = f'--unlabelled {opt.unlabelled}'
    if spec.needs_class:
        raise UserError(f'{flag}: --distill {opt.distill} needs the class of each image; it goes with '
                        f'{methods_whose(lambda other: not other.needs_class)}')
    if flags := changed_flags(opt, 'mixup', 'cutmix'):
        raise UserError(f'{flags[0]}: mixes labels, and the images of {flag} have none; leave one of the two out')
    if opt.teacher_weights == AGREE:
        raise UserError(f'--teacher_weights {AGREE}: needs the class of each image, but images of {flag} have none; '
                        f'give numbers')
    if opt.reprob and opt.cache_epochs:
        raise UserError(f'--reprob {opt.reprob:g}: --cache_epochs {opt.cache_epochs} cannot repeat its batches with '
                        f'{flag}; leave one of the three out')


def check_teachers(opt, method) -> None:
    """Refuse several teachers with a method that takes one, and --teacher_weights that do not suit the teachers."""
    count, weights = len(as_list(opt.path_t)), opt.teacher_weights
    parts = getattr(method, 'methods', None) or {opt.distill: method}
    flag = f'--teacher_weights {comma_list(weights)}'
    if count == 1:
        if weights:
            raise UserError(f'{flag}: --path-t names one teacher; leave it out')
        return
    for name, part in parts.items():
        if reason := why_one_teacher(name, part):
            raise UserError(f'--path-t {word_list(opt.path_t)}: --distill {opt.distill} learns from one teacher alone: '
                            f'{reason}; give one, or another method')
    if weights == AGREE:
        advice = 'give numbers, as 1,2,1, or leave it out'
        if not opt.alpha and all(part.has_method_loss(opt) for part in parts.values()):
            raise UserError(f'{flag}: weights the soft labels, but --distill {opt.distill} has none with -a 0; '
                            f'{advice}')
        if len(method.spec.views) > 1:
            raise UserError(f'{flag}: --distill {opt.distill} {SEVERAL_VIEWS}; {advice}')
        if flags := changed_flags(opt, 'mixup', 'cutmix'):
            raise UserError(f'{flag}: needs the class of each image, but {flags[0]} mixes them; {advice}')
    elif weights and len(weights) != count:
        raise UserError(f'{flag}: --path-t names {count} teachers; give {count} weights')
    elif weights and not all(weights):
        raise UserError(f'{flag}: teacher {weights.index(0) + 1} has the weight 0; leave its path out of --path-t')


def changed_flags(opt, *names: str) -> list[str]:
    """The flags whose values are not the defaults, such as '--mixup 0.2'."""
    values = {name: getattr(opt, name) for name in names}
    return [f'--{name}' if value is True else f'--{name} {value:g}' if isinstance(value, float) else f'--{name} {value}'
            for name, value in values.items() if value != opt.flags.defaults[name]]


def check_teacher_cache(opt, spec) -> None:
    """Refuse --teacher_cache for images with too many variants, and for a method whose outputs it cannot store."""
    if opt.dali and (opt.cache_epochs or opt.teacher_cache):
        flag = f'--cache_epochs {opt.cache_epochs}' if opt.cache_epochs else '--teacher_cache'
        raise UserError(f'{flag}: --dali {opt.dali} cannot repeat an epoch; leave one of the two out')
    if opt.cache_topk is not None and not opt.teacher_cache:
        raise UserError(f'--cache_topk {opt.cache_topk}: has no effect without --teacher_cache; leave it out')
    if 'cache_seed' in opt.flags.given and not opt.cache_epochs:
        raise UserError(f'--cache_seed {opt.cache_seed}: has no effect without --cache_epochs; leave it out')
    if not opt.teacher_cache:
        return
    if not spec.is_cacheable(CACHED_OUTPUTS):
        raise UserError(f'--teacher_cache: --distill {opt.distill} needs teacher outputs other than logits and '
                        f'embedding; it goes with {methods_whose(lambda other: other.is_cacheable(CACHED_OUTPUTS))}')
    if opt.cache_epochs:
        return
    if flags := changed_flags(opt, 'mixup', 'cutmix', 'aa', 'reprob', 'vflip'):
        raise UserError(f'{flags[0]}: --teacher_cache only stores outputs for crops and flips from left to right; '
                        f'give {REPEAT}, or leave one of the two out')
    if opt.dataset in LARGE:
        raise UserError(f'--teacher_cache: random crops of --dataset {opt.dataset} have too many variants to store; '
                        f'give {REPEAT}')
    if len(spec.views) > 1:
        raise UserError(f'--teacher_cache: --distill {opt.distill} {SEVERAL_VIEWS}; give {REPEAT}')


def check_dot(opt, method) -> None:
    """Refuse --opt dot without both a task loss and a distillation loss, and momenta out of range."""
    if method.spec.own_backward or method.spec.own_optimizer:
        raise UserError(f'--opt dot: --distill {opt.distill} has an optimiser of its own; leave it out')
    if not opt.gamma or not weighted_losses(opt, method):
        cause = 'with these weights there is no distillation loss' if opt.gamma else 'with -r 0 there is no task loss'
        raise UserError(f'--opt dot: keeps the gradients of two losses apart, but {cause}; leave it out')
    if not opt.dot_delta <= opt.momentum < 1 - opt.dot_delta:
        raise UserError(f'--dot_delta {opt.dot_delta:g}: --momentum {opt.momentum:g} minus it must be at least 0, and '
                        f'plus it below 1; give a smaller one')


def check_flags_of_methods(opt, method) -> None:
    """Refuse a flag of another method, one without effect, and --beta for a method without a loss of its own."""
    parts = getattr(method, 'methods', None) or {opt.distill: method}
    for option in sorted(opt.flags.given):
        flag = f'--{option} {word_list(getattr(opt, option))}'
        users = methods_with_option(option)
        if users and not {*users} & {*parts}:
            raise UserError(f'{flag}: --distill {opt.distill} does not use it; it goes with {", ".join(users)}')
        needed = [part.options_without_effect(opt).get(option) for name, part in parts.items() if name in users]
        if needed and all(needed):
            raise UserError(f'{flag.removesuffix(" True")}: has no effect without {needed[0]}; leave it out')
    for option in sorted(opt.flags.given & READS_STAGES.keys()):
        if not any(READS_STAGES[option](part.spec) for part in parts.values()):
            raise UserError(f'--{option} {comma_list(getattr(opt, option))}: --distill {opt.distill} reads no stages '
                            f'of this net; it goes with {methods_whose(READS_STAGES[option])}')
    losses = weighted_losses(opt, method)
    have_effect = {
        'loss_warmup_epochs': bool(losses),
        'kl_warmup_epochs': not opt.kl_warmup_epochs or any(name == 'kl' for _, name in losses),
        'kd_T': any(not part.spec.learns_temperature and (name == 'kl' or part.spec.reads_kd_T)
                    for part, name in losses)}
    for option in sorted(opt.flags.given & have_effect.keys()):
        if not have_effect[option]:
            cause = 'learns its temperature;' if method.spec.learns_temperature else \
                f'has no soft labels here; {how_to_add_soft_labels(method)}, or'
            raise UserError(f'--{option} {getattr(opt, option)}: --distill {opt.distill} {cause} leave it out')
    # FSP has a published weight although its own loss is only used in the first stage.
    has_weight = len(parts) > 1 or method.has_method_loss(opt) or \
        (method.spec.published.get('beta') and not has_auto(opt.beta))
    if 'beta' in opt.flags.given and opt.beta and not has_weight:
        weight = comma_list(opt.beta).removesuffix('.0')
        raise UserError(f'-b {weight}: --distill {opt.distill} has no loss of its own to weight; -a is the weight '
                        f'of the soft labels, --batch_size the images a step; give -b 0, or leave it out')


def methods_whose(condition) -> str:
    """The names of the methods whose spec meets a condition."""
    return ', '.join(name for name, method in distiller_dict.items() if condition(method.spec))


def methods_with_option(option: str) -> list[str]:
    """The names of the methods that add this option; empty for an option of all methods."""
    return [name for name, method in distiller_dict.items() if option in added_options(method) or
            (option in ('init_epochs', 'init_learning_rate') and method.spec.first_stage)]


@functools.cache
def added_options(method) -> set[str]:
    """The names of the options that a method adds."""
    options = set()
    method.add_arguments(lambda *names, **_: options.add(names[-1].lstrip('-').replace('-', '_')))
    return options
