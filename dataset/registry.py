"""The data sets by name, and which flags go with them."""
from helper.cli import comma_list, word_list
from helper.errors import UserError, nearest

from . import cifar, digits, folder, huggingface, shards, unlabelled
from .crop import DEFAULTS, RESIZED_FROM
from .image import MAX_PIXELS
from .shard_files import CACHE_GB

WITHOUT_CLASSES = 'unlabelled'      # the data set of --unlabelled alone
# name -> function of the options: ((train images, labels), (test images, labels), classes), images uint8 (N, 3, S, S)
memory_dict = {
    'cifar10': cifar.load,
    'cifar100': cifar.load,
    'digits': digits.load,
}
# name -> module with open_sources(opt): ({'train', 'test', maybe 'val'} -> dataset.source.Source, classes), and for
# --split open_whole(opt): (source, classes). The images are decoded into memory if they fit, else read while training.
source_dict = {'folder': folder, 'hf': huggingface, 'wds': shards, WITHOUT_CLASSES: unlabelled}
LARGE = ('imagenet', 'imagenette')      # always read while training
PREFIXES = {huggingface.PREFIX: 'hf', shards.PREFIX: 'wds'}     # of --dataset


def dataset_key(dataset: str) -> str:
    """The key of a data set in the dictionaries above: 'hf' of Hugging Face, 'wds' of shards, else its name."""
    return next((key for prefix, key in PREFIXES.items() if dataset.startswith(prefix)), dataset)


def check_dataset(opt) -> None:
    """Raise UserError for an unknown opt.dataset, or for a flag that does not go with it or its loader."""
    key, not_large = dataset_key(opt.dataset), (*memory_dict, *source_dict)
    all_data = (*not_large, *LARGE)
    given = getattr(opt, 'unlabelled', None)
    if key not in all_data or opt.dataset in PREFIXES.values() or (key == WITHOUT_CLASSES and not given):
        known = [*memory_dict, *LARGE, 'folder', 'hf:NAME_OR_PATH', 'wds:FOLDER_OR_URL']
        raise UserError(f'--dataset {opt.dataset}: no such data set; {nearest(opt.dataset, known)}')
    if opt.use_lmdb and opt.dali:
        raise UserError(f'--use-lmdb and --dali {opt.dali}: DALI reads image files itself; give one of the two')
    with_files = (*source_dict, *(memory_dict if given else ()))
    # flag -> (whether it is given, the data sets that it goes with, why it does not go with --dali)
    flags = {
        '--use-lmdb': (opt.use_lmdb, LARGE, ''),
        f'--dali {opt.dali}': (opt.dali, LARGE, ''),
        '--skip_bad_images': (opt.skip_bad_images, (*with_files, *LARGE), 'DALI stops at an unreadable image'),
        f'--images_in {opt.images_in}': (opt.images_in != 'auto', with_files, ''),
        f'--fit {opt.fit}': (opt.fit != 'crop', source_dict, ''),
        f'--crop {opt.crop}': (opt.crop, source_dict, ''),
        f'--max_pixels {opt.max_pixels}': (opt.max_pixels != MAX_PIXELS, (*with_files, *LARGE),
                                           'DALI reads images of any size'),
        f'--split {comma_list(opt.split)}': (opt.split, source_dict, ''),
        f'--shard_cache_gb {opt.shard_cache_gb:g}': (opt.shard_cache_gb != CACHE_GB, ('wds',), ''),
        f'--train_fraction {opt.train_fraction:g}': (opt.train_fraction < 1, not_large, ''),
        f'--val_fraction {opt.val_fraction}': (opt.val_fraction is not None, all_data,
                                               'DALI reads all files of a folder'),
        f'--unlabelled {given}': (given, all_data, 'DALI reads the images of one folder'),
        '--normalise measure': (opt.normalise == 'measure', not_large, ''),
        f'--aa {opt.aa}': (opt.aa, all_data, 'DALI augments images itself')}
    for name, default in DEFAULTS.items():
        value = getattr(opt, name)
        flags[f'--{name} {word_list(value)}'] = value != default, all_data, 'DALI augments images itself'
    for flag, (is_given, names, why_not_dali) in flags.items():
        if is_given and key not in names:
            others = [name for name in names if name != WITHOUT_CLASSES]
            raise UserError(f'{flag}: not for --dataset {opt.dataset}; it goes with {", ".join(others)}')
        if is_given and opt.dali and why_not_dali:
            raise UserError(f'{flag}: {why_not_dali}; leave --dali {opt.dali} out')


def default_crop(opt) -> str | None:
    """--crop if it is not given; None for data sets that do not have the flag."""
    if dataset_key(opt.dataset) not in source_dict:
        return None
    return 'resized' if opt.image_size >= RESIZED_FROM else 'padded'
