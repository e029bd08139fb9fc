"""A flag changes what it says it changes. ELSEWHERE names the tests of the flags that have no row here."""
import importlib
import json

import pytest
import torch
from conftest import build, flags_of_methods, write_images

import dataset.decode
import train_student
import train_teacher
from distiller_zoo import distiller_dict, get_method, task
from helper.checkpoint import load_checkpoint
from helper.optim import adjust_learning_rate, new_optimizer, sgd
from models.base import Net
from options import student_options, teacher_options


def parsed(*flags):
    crd = ['--nce_k', '10'] if 'crd' in flags else []
    return student_options(['--path-t', 'x', '--batch_size', '8', *crd, '--seed', '1', *flags])


def losses(*flags):
    """The total of two steps; the second sees what the first has left in crd's memories."""
    opt = parsed(*flags)
    distiller, loader, _ = build(opt.distill, **vars(opt))
    distiller.begin_epoch(1, 2)
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
    'loss_warmup_epochs': (['--distill', 'pkt'], ['--loss_warmup_epochs', '2']),
    'kl_warmup_epochs': ([], ['--kl_warmup_epochs', '2']),
    'loss_warmup_epochs, kd': ([], ['--loss_warmup_epochs', '2']),
    'logit_stand, kd': ([], ['--logit_stand', '--kd_T', '4', '-r', '1', '-a', '1']),
    'logit_stand, dkd': (['--distill', 'dkd'], ['--logit_stand', '--kd_T', '4', '-b', '1']),
    'logit_stand, mlld': (['--distill', 'mlld'], ['--logit_stand', '--kd_T', '4', '-b', '0.9']),
    'dist_beta': (['--distill', 'dist'], ['--dist_beta', '2']),
    'dist_gamma': (['--distill', 'dist'], ['--dist_gamma', '2']),
    'nkd_gamma': (['--distill', 'nkd'], ['--nkd_gamma', '1']),
    'ttm_exponent': (['--distill', 'ttm'], ['--ttm_exponent', '0.2']),
    'wttm_exponent': (['--distill', 'wttm'], ['--wttm_exponent', '0.1']),
    'dkd_alpha': (['--distill', 'dkd'], ['--dkd_alpha', '2']), 'dkd_beta': (['--distill', 'dkd'], ['--dkd_beta', '6']),
    'rld_alpha': (['--distill', 'rld'], ['--rld_alpha', '2']), 'rld_beta': (['--distill', 'rld'], ['--rld_beta', '6']),
    'rld_alpha_T': (['--distill', 'rld'], ['--rld_alpha_T', '4']),
    'skd_tikhonov': (['--distill', 'skd'], ['--skd_tikhonov', '0.001']),
    'wkdl_weight': (['--distill', 'wkdl'], ['--wkdl_weight', '6']),
    'wkdl_decay_from': (['--distill', 'wkdl'], ['--wkdl_decay_from', '0']),
    'vkd_norm': (['--distill', 'vkd'], ['--vkd_norm', 'standardize']),
    'wkdf_mean_weight': (['--distill', 'wkdf'], ['--wkdf_mean_weight', '1']),
    'wkdf_grid': (['--distill', 'wkdf'], ['--wkdf_grid', '2']),
    'wkdf_decay_from': (['--distill', 'wkdf'], ['--wkdf_decay_from', '0']),
    'wkdf_projector': (['--distill', 'wkdf'], ['--wkdf_projector', 'bottleneck']),
    **{f'ikl_{name}': (['--distill', 'ikl'], [f'--ikl_{name}', '2']) for name in ('alpha', 'beta', 'weight_T')},
    'ikl_prior': (['--distill', 'ikl', '--ikl_weight_T', '1'], ['--ikl_weight_T', '1', '--ikl_prior', 'on']),
    'gkl_power': (['--distill', 'gkl'], ['--gkl_power', '1', '--ikl_prior', 'off']),
    'simkd_factor': (['--distill', 'simkd'], ['--simkd_factor', '4']),
    'cat_resolution': (['--distill', 'catkd'], ['--cat_resolution', '1']),
    'cat_normalize': (['--distill', 'catkd'], ['--cat_normalize']),
    'sdd_base': (['--distill', 'sdd'], ['--sdd_base', 'dkd']),
    'sdd_scales': (['--distill', 'sdd'], ['--sdd_scales', '1,2,4']),
    'ofa_gamma': (['--distill', 'ofa'], ['--ofa_gamma', '2']),
    'ab_alpha': (['--distill', 'abkd'], ['--ab_alpha', '1']), 'ab_beta': (['--distill', 'abkd'], ['--ab_beta', '0.5']),
    'abkd_base': (['--distill', 'abkd', '-b', '1'], ['--abkd_base', 'dkd', '--loss_warmup_epochs', '1']),
    **{f'entropy_weights, {method}': (['--distill', method], ['--entropy_weights', *flags]) for method, flags in (
        ('kd', ['-r', '1', '-a', '1']), ('dkd', []), ('mlld', []), ('reviewkd', []))},
    'entropy_T': (['--entropy_weights'], ['--entropy_T', '1']),
    'entropy_bound': (['--entropy_weights'], ['--entropy_bound', 'log']),
    'entropy_bound, mlld': (['--distill', 'mlld', '--entropy_weights'], ['--entropy_bound', 'classes']),
    'ldrld_alpha': (['--distill', 'ldrld'], ['--ldrld_alpha', '1']),
    'ldrld_beta': (['--distill', 'ldrld'], ['--ldrld_beta', '1']),
    'ldrld_k': (['--distill', 'ldrld'], ['--ldrld_k', '3']),
    'luminet_alpha': (['--distill', 'luminet'], ['--luminet_alpha', '2']),
    'tekap_count': (['--distill', 'tekap'], ['--tekap_count', '2']),
    'tekap_strength': (['--distill', 'tekap'], ['--tekap_strength', '0.2']),
    'tekap_weight': (['--distill', 'tekap'], ['--tekap_weight', '0.5']),
    'embed_map': (['--distill', 'embed'], ['--embed_map', '1']),
    'ctkd_base': (['--distill', 'ctkd'], ['--ctkd_base', 'dkd']),
}


@pytest.mark.parametrize('row', LOSS)
def test_of_the_loss(row):
    before, change = LOSS[row]
    first = losses(*before)
    assert losses(*before) == first         # to the bit, so any difference is the flag's
    assert losses(*before, *change)[1] != first[1]


class Stages(list):
    """Feature maps that know whether they were read."""

    is_read = False

    def __getitem__(self, number):
        self.is_read = True
        return super().__getitem__(number)


@pytest.mark.parametrize('method', distiller_dict)
def test_what_a_method_declares_to_read(method, monkeypatch):
    """Its own loss reads --kd_T, and the student's stages, only if its spec says so: the flag is refused otherwise."""
    spec, outputs, watched = distiller_dict[method].spec, Net.outputs, []

    def watch(self, images, preact=False):
        out = outputs(self, images, preact)
        watched.append(Stages(out.feats))
        return out._replace(feats=watched[-1])

    monkeypatch.setattr(Net, 'outputs', watch)
    own, soft = [], []
    for temperature in (1.0, 5.0):
        distiller, loader, _ = build(method, kd_T=temperature, path_t='x')
        distiller.begin_epoch(1, 2)
        if distiller.in_first_stage:
            distiller.end_first_stage()
        watched.clear()
        torch.manual_seed(1)
        with torch.no_grad():
            losses = distiller(*next(iter(loader)))[0]
        own.append(losses.get('method', torch.zeros(())).item())
        soft.append(losses.get('kl', torch.zeros(())).item())
    assert (own[0] != own[1]) == spec.reads_kd_T
    assert (soft[0] != soft[1]) == ('kl' in losses and not spec.learns_temperature)
    assert spec.reads_stages or spec.stages_s or not any(stages.is_read for stages in watched)


def test_of_the_optimiser():
    opt = parsed('--momentum', '0.8', '--weight_decay', '0.01', '--learning_rate', '0.3', '--lr_decay_epochs', '2,4',
                 '--lr_decay_rate', '0.5')
    optimizer = sgd([torch.nn.Parameter(torch.ones(1))], opt.learning_rate, opt)
    group = optimizer.param_groups[0]
    assert (group['momentum'], group['weight_decay'], group['lr']) == (0.8, 0.01, 0.3)
    rates = [adjust_learning_rate(epoch, optimizer, opt) for epoch in range(1, 7)]
    assert rates == pytest.approx([0.3, 0.3, 0.15, 0.15, 0.075, 0.075])


def test_of_the_curriculum():
    """--ctkd_loops: the temperature's gradient grows to full strength in so many epochs."""
    for flags, strength in (([], -0.0245), (['--ctkd_loops', '1'], -1.0)):
        opt = parsed('--distill', 'ctkd', *flags)
        distiller, _, _ = build(opt.distill, **vars(opt))
        distiller.begin_epoch(1, 240)
        assert distiller.strength.item() == pytest.approx(strength, abs=1e-4)


def test_of_the_two_momenta():
    for flags, delta in (([], 0.075), (['--dot_delta', '0.05'], 0.05)):
        opt = parsed('--optimizer', 'dot', '--momentum', '0.8', *flags)
        distiller, _, _ = build(opt.distill, **vars(opt))
        group = distiller.make_optimizer(0.1, opt).param_groups[0]
        assert (group['momentum'], group['delta'], group['weight_decay'], group['lr']) == (0.8, delta, 5e-4, 0.1)


def last(save):
    return load_checkpoint(str(next(save.glob('*/*/last.pth'))), '')


def steps(save):
    return int(last(save)['module']['student.bn1.num_batches_tracked'])


def history(save):
    return json.loads(next(save.glob('*/*/history.json')).read_text())


RUN = {     # option -> flags, what is looked at after a run of 48 images in batches of 16: without the flags, with them
    'batch_size': (['--batch_size', '24'], steps, 3, 2),
    'epochs': (['--epochs', '2'], lambda save: len(history(save)), 1, 2),
    'deterministic': (['--deterministic'], lambda save: torch.backends.cudnn.deterministic, False, True),
    'amp': (['--amp', 'bfloat16'], lambda save: last(save)['identity']['amp'], 'None', 'torch.bfloat16'),
    'lr_decay_epochs': (['--epochs', '2', '--lr_decay_epochs', '1'],
                        lambda save: history(save)[-1]['lr'], 0.05, 0.05 * 0.1),
    'lr_decay_rate': (['--epochs', '2', '--lr_decay_epochs', '1', '--lr_decay_rate', '0.5'],
                      lambda save: history(save)[-1]['lr'], 0.05, 0.025),
    'learning_rate': (['--learning_rate', '0.02'], lambda save: history(save)[-1]['lr'], 0.05, 0.02),
}


@pytest.mark.parametrize('option', RUN)
def test_of_a_run(call, small, tmp_path, option):
    flags, look, without, with_flags = RUN[option]
    for name, more, wanted in (('without', [], without), ('with', flags, with_flags)):
        call(train_teacher.main, '--model', 'resnet8', *small, *more, '--save_dir', tmp_path / name)
        assert look(tmp_path / name) == wanted


def test_of_the_data(call, small, tmp_path, monkeypatch):
    """Its folder, the size of its images, and how many threads read them."""
    write_images(tmp_path / 'data' / 'train', 5)
    write_images(tmp_path / 'data' / 'test', 2)
    asked, original = [], train_teacher.get_dataloaders
    monkeypatch.setattr(dataset.decode, 'SMALL', 0)         # smaller images are decoded by one thread
    pool = dataset.decode.ThreadPoolExecutor
    monkeypatch.setattr(dataset.decode, 'ThreadPoolExecutor', lambda *n: asked.extend(n) or pool(*n))
    monkeypatch.setattr(train_teacher, 'get_dataloaders', lambda *a, **k: asked.append(original(*a, **k)) or asked[-1])
    call(train_teacher.main, '--model', 'resnet8', *small, '--data_dir', tmp_path / 'data', '--image_size', 24,
         '--num_workers', 3, '--save_dir', tmp_path)
    *threads, data = asked
    assert threads == [3, 3] and data.n_train == 20 and data.image_size == 24
    assert next(iter(data.train_loader))[0].shape[2:] == (24, 24)


@pytest.mark.parametrize('flags, layout', [([], torch.channels_last),
                                           (['--no-channels_last'], torch.contiguous_format)])
def test_of_the_memory_format(call, small, teacher, tmp_path, monkeypatch, flags, layout):
    seen = []
    monkeypatch.setattr(train_student, 'speed_up', lambda module, *_: seen.append(module))
    call(train_student.main, '--path-t', teacher, *small, '--save_dir', tmp_path, *flags)
    for net in (seen[0].student, seen[0].teacher):
        assert net.layer1[0].conv1.weight.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('method, flags, rates', [
    ('factor', [], [0.01, 0.02]), ('fsp', [], [0.02, 0.02]),
    ('factor', ['--init_learning_rate', '0.003'], [0.003, 0.02]),
    ('abound', ['--init_learning_rate', '0.003'], [0.003, 0.02])])
def test_of_the_first_stage(call, small, teacher, tmp_path, monkeypatch, capfd, method, flags, rates):
    """How many epochs, and at which rate."""
    seen = []
    monkeypatch.setattr(task, 'new_optimizer', lambda m, rate, opt: seen.append(rate) or new_optimizer(m, rate, opt))
    call(train_student.main, '--path-t', teacher, *small, '--distill', method, '--learning_rate', 0.02, *flags,
         '--init_epochs', 2, '-b', 1, '--save_dir', tmp_path)
    assert seen == rates and capfd.readouterr().out.count('first stage, epoch') == 2


@pytest.mark.parametrize('student, rate', [('resnet8x4', 0.01), ('wrn_16_2', 0.01), ('vgg8', 0.05),
                                           ('ShuffleV1', 0.01)])
def test_of_the_first_stage_of_factor(student, rate):
    """0.01 for ResNets, for others that of the student: as RepDistiller's tables were made. So in a sum of methods."""
    for method in ('factor', 'crd+factor'):
        opt = student_options(['--path-t', 'x', '--model_s', student, '--distill', method])
        assert get_method(opt.distill).init_rate(opt) == rate
    assert get_method('fsp').init_rate(opt) == opt.learning_rate


def test_of_fast():
    """--compile and --amp, whose own kind counts; TF32 needs a GPU."""
    for flags, amp in ((['--fast'], 'auto'), (['--fast', '--amp', 'float16'], 'float16')):
        opt = parsed(*flags)
        assert (opt.compile, opt.amp) == (True, amp)
    assert (parsed().compile, parsed().amp) == (False, None)


HERE = {*(row.split(',')[0].split()[0] for row in LOSS), *RUN, 'dot_delta', 'ctkd_loops', 'momentum',
        'weight_decay', 'data_dir', 'image_size', 'num_workers', 'channels_last', 'init_epochs',
        'init_learning_rate', 'fast'}
ELSEWHERE = {
    'dataset': 'test_data.test_digits', 'use_lmdb': 'test_imagenet.test_lmdb_gives_the_same_batches',
    'dali': 'test_imagenet.test_dali_on_the_cpu', 'skip_bad_images': 'test_imagenet.test_bad_images_can_be_passed_over',
    'train_fraction': 'test_data.test_a_part_of_the_training_images',
    'gpu_id': 'test_gpu', 'multiprocessing_distributed': 'test_distributed.test_two_processes_from_the_command_line',
    'dist_url': 'test_distributed.test_url_in_use', 'dist_timeout': 'test_distributed.test_the_others_do_not_come',
    'sync_bn': 'test_distributed.test_two_processes_train_as_one', 'compile': 'test_speed',
    'grad_checkpointing': 'test_grad_checkpointing', 'qat': 'test_quantisation', 'resume': 'test_resume',
    'save_every': 'test_resume.test_save_every', 'seed': 'test_scripts.test_a_seed_gives_identical_weights',
    'print_freq': 'test_scripts.test_teacher_outputs', 'save_freq': 'test_scripts.test_teacher_outputs',
    'save_dir': 'test_scripts.test_teacher_outputs', 'trial': 'test_scripts.test_teacher_outputs',
    'model': 'test_scripts.test_teacher_outputs', 'model_s': 'test_scripts.test_student_outputs',
    'recipe': 'test_recipe.test_a_file_of_flags', 'opt': 'test_recipe.test_optimisers',
    **dict.fromkeys(('sched', 'warmup_epochs', 'warmup_lr', 'min_lr', 'poly_power'), 'test_recipe.test_rates'),
    **dict.fromkeys(('clip_grad', 'grad_accum'), 'test_recipe.test_accumulated_gradients_and_their_norm'),
    **dict.fromkeys(('smoothing', 'bce_loss'), 'test_recipe.test_losses'),
    **dict.fromkeys(('mixup', 'cutmix'), 'test_recipe.test_the_same_mixed_images_for_teacher_and_student'),
    **dict.fromkeys(('model_ema', 'model_ema_warmup'), 'test_recipe.test_the_average_of_the_weights'),
    'nesterov': 'test_speed.test_sgd_from_zeros_is_sgd',
    'drop_path': 'test_recipe.test_drop_path', 'aa': 'test_recipe.test_augmented_images',
    'balance_classes': 'test_recipe.test_losses', 'normalise': 'test_crop.test_normalisation',
    'crop': 'test_crop.test_crops_of_an_epoch',
    **dict.fromkeys(('scale', 'ratio'), 'test_crop.test_the_box_is_torchvisions'),
    **dict.fromkeys(('hflip', 'vflip'), 'test_crop.test_flips'), 'color_jitter': 'test_crop.test_color_jitter',
    'train_interpolation': 'test_crop.test_one_resize_cuts_and_scales',
    **dict.fromkeys(('interpolation', 'crop_pct'), 'test_crop.test_a_student_reads_the_images_of_its_teacher'),
    'images_in': 'test_resume.test_images_in_memory_and_on_disk', 'max_pixels': 'test_image.test_max_pixels',
    'shard_cache_gb': 'test_shards.test_a_server_that_ends',
    'fit': 'test_image.test_how_oblong_images_become_square',
    'split': 'test_data.test_a_run_keeps_its_split', 'val_fraction': 'test_validation.test_the_held_out_images',
    **dict.fromkeys(('unlabelled', 'unlabelled_batch'), 'test_unlabelled.test_a_batch'),
    'patience': 'test_validation.test_patience', 'no_test': 'test_validation.test_no_test',
    'freeze_epochs': 'test_finetune.test_frozen_epochs',
    'layer_decay': 'test_finetune.test_layer_decay', 'backbone_lr': 'test_finetune.test_backbone_lr',
    'pretrained': 'test_start.test_published_weights', 'initial_checkpoint': 'test_start.test_runs',
    'same_classes': 'test_classes.test_the_scripts_compare_the_names',
    'reprob': 'test_recipe.test_erased_images',
    'checkpoint_key': 'test_checkpoint.test_checkpoint_key',
    **dict.fromkeys(('mean_t', 'std_t', 'size_t', 'interpolation_t'), 'test_teachers.test_preprocessing_of_a_teacher'),
    'model_t': 'test_libraries.test_a_net_of_a_users_file', 'stages': 'test_libraries.test_selected_stages',
    'stages_t': 'test_libraries.test_selected_stages', 'path_t': 'test_scripts.test_student_outputs',
    'teacher_weights': 'test_multi_teacher.test_soft_labels_by_hand',
    'skip_validation': 'test_scripts.test_two_passes',
    'evaluate': 'test_imagenet.test_command_line', 'debug': 'test_errors.test_debug_shows_the_traceback',
    'overwrite': 'test_resume.test_a_rerun_replaces_all_of_an_earlier_run',
    'cache_epochs': 'test_cache_epochs.test_the_augmentation_repeats',
    'cache_seed': 'test_cache_epochs.test_the_augmentation_repeats',
    'cache_topk': 'test_cache_epochs.test_the_largest_probabilities',
    'estimate': 'test_scripts.test_teacher_outputs', 'teacher_cache': 'test_teacher_cache',
    'teacher_head': 'test_teacher_head', 'wandb': 'test_wandb',
    'wkdl_cost': 'test_newer_methods.test_wkdl_cost_of_the_training_set', 'flags': 'test_scripts.test_defaults'}


def test_every_option_is_tested():
    """A new flag needs a row here, or a test elsewhere that is named; a new method's flag may have one."""
    options = {*vars(student_options(['--path-t', 'x', '--debug'])), *vars(teacher_options([]))}
    assert options - flags_of_methods() <= {*HERE, *ELSEWHERE} <= options
    for name in ELSEWHERE.values():
        module, _, test = name.partition('.')
        assert not test or hasattr(importlib.import_module(module), test), name
