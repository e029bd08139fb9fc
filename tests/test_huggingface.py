"""Image data sets of Hugging Face: the same batches as those of a folder, from every kind of storage."""
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, CPU, data_options, write_images
from PIL import Image

import dataset
import train_student
import train_teacher
from dataset.folder import scan
from dataset.source import joint_checksum
from helper.checkpoint import load_checkpoint
from helper.errors import UserError

hf = pytest.importorskip('datasets')


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path_factory):
    """Use no network, and write nothing to the home folder."""
    monkeypatch.setattr(hf.config, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(hf.config, 'HF_DATASETS_CACHE', str(tmp_path_factory.mktemp('cache')))


def rows(split, **columns):
    """A datasets.Dataset of the images of a Split, as bytes, with what `columns` gives beside them."""
    features = hf.Features({'img': hf.Image(), **{name: feature for name, (feature, _) in columns.items()}})
    images = [{'bytes': Path(file).read_bytes(), 'path': None} for file in split.files]
    return hf.Dataset.from_dict({'img': images, **{name: values for name, (_, values) in columns.items()}},
                                features=features)


@pytest.fixture(scope='module')
def splits(tree):
    """{'train', 'test'} of the tree, with the classes as ClassLabel, as numbers and as names, and another label."""
    found, classes = scan(tree)
    return hf.DatasetDict({name: rows(split, label=(hf.ClassLabel(names=classes), split.labels.tolist()),
                                      number=(hf.Value('int64'), (split.labels * 10).tolist()),
                                      word=(hf.Value('string'), [classes[label] for label in split.labels]),
                                      other=(hf.ClassLabel(names=['even', 'odd']), (split.labels % 2).tolist()))
                           for name, split in found.items()})


@pytest.fixture(scope='module')
def on_disk(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('hf') / 'disk'
    splits.save_to_disk(folder)
    return folder


def batches(opt):
    data = dataset.get_dataloaders(opt, CPU)
    return data, [*data.train_loader, *data.test_loader, *data.unaugmented_loader()]


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
@pytest.mark.parametrize('stored', ['save_to_disk', 'parquet', 'folder', 'files'])
def test_the_same_batches_as_of_a_folder(tree, splits, on_disk, tmp_path, stored, images_in):
    place = on_disk if stored == 'save_to_disk' else tree if stored == 'folder' else tmp_path
    if stored == 'parquet':
        for name, split in splits.items():
            split.to_parquet(tmp_path / f'{name}.parquet')
    if stored == 'files':       # the rows hold paths, not the images themselves
        found, classes = scan(tree)
        features = hf.Features({'img': hf.Image(), 'label': hf.ClassLabel(names=classes)})
        hf.DatasetDict({name: hf.Dataset.from_dict({'img': split.files, 'label': split.labels.tolist()}, features)
                        for name, split in found.items()}).save_to_disk(place)
    more = {'images_in': images_in, 'train_fraction': 0.5, 'normalise': 'measure', 'num_workers': 0}
    expected, wanted = batches(data_options(data_dir=str(tree), **more))
    data, found = batches(data_options(dataset=f'hf:{place}', **more))
    assert (data.classes, data.num_classes, data.n_train) == (tuple(CLASSES), 4, 24) and data.inputs == expected.inputs
    assert data.images_in == images_in and data.sizes == '24 training images, 24 test images in test'
    train, test = scan(tree)[0].values()
    train.entries = test.entries = tuple        # rows have no file names
    assert data.checksum == joint_checksum(train.checksum(), test.checksum())
    for one, two in zip(found, wanted, strict=True):
        assert all(a.equal(b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize('label, classes', [('label', CLASSES), ('word', CLASSES), ('number', ('0', '10', '20', '30')),
                                            ('other', ('even', 'odd'))])
def test_the_column_of_the_classes(on_disk, label, classes):
    opt = data_options(dataset=f'hf:{on_disk},label={label},image=img')
    data = dataset.get_dataloaders(opt, CPU)
    assert data.classes == tuple(classes) and data.labels.unique().tolist() == [*range(len(classes))]


def test_splits_that_count_their_classes_differently(splits, tmp_path):
    """The class names decide, not the numbers."""
    names = [*reversed(CLASSES)]
    other = splits['test'].map(lambda row: {'label': 3 - row['label']}).cast_column('label', hf.ClassLabel(names=names))
    hf.DatasetDict(train=splits['train'], test=other).save_to_disk(tmp_path)
    data = dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path}'), CPU)
    assert data.classes == tuple(CLASSES) and data.test_labels.tolist() == [*splits['test']['label']]


def test_without_a_test_set_that_has_labels(splits, tmp_path):
    """A test set whose labels are all -1 is replaced by the validation set."""
    blank = splits['test'].remove_columns('label').add_column('label', [-1] * len(splits['test']))
    blank = blank.cast_column('label', splits['test'].features['label'])
    hf.DatasetDict(train=splits['train'], test=blank, validation=splits['test'].select(range(5))).save_to_disk(tmp_path)
    data = dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path}'), CPU)
    assert data.test_labels.tolist() == splits['test']['label'][:5]
    data = dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path},train=validation,test=train',
                                                batch_size=2), CPU)
    assert (data.n_train, len(data.test_labels)) == (5, len(splits['train']))
    hf.DatasetDict(validation=splits['train'], test=splits['test']).save_to_disk(tmp_path / 'no train')
    data = dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path / "no train"},train=validation'), CPU)
    assert (data.n_train, len(data.test_labels)) == (len(splits['train']), len(splits['test']))


def test_a_split_for_validation(splits, tmp_path):
    """`validation` beside `test`, or the split that val= names; one without labels is not used."""
    hf.DatasetDict(train=splits['train'], test=splits['test'], validation=splits['test'].select(range(5)),
                   more=splits['test'].select(range(7)), val=splits['test'].remove_columns('label')
                   ).save_to_disk(tmp_path)
    for settings, n_val in (('', 5), (',val=more', 7), (',test=more', 5), (',test=validation', None)):
        data = dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path}{settings}'), CPU)
        assert (data.val_labels is None) == (n_val is None) and (n_val is None or len(data.val_labels) == n_val)
    with pytest.raises(UserError, match='val=val: has no label of the same classes in each row; leave it out'):
        dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path},val=val'), CPU)
    with pytest.raises(UserError, match='has no split none; it has .*; give val=SPLIT'):
        dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path},val=none'), CPU)


def test_a_set_with_train_alone(splits, tmp_path):
    hf.DatasetDict(train=splits['train']).save_to_disk(tmp_path)
    opt = data_options(dataset=f'hf:{tmp_path}', split=[0.75, 0.25])
    data = dataset.get_dataloaders(opt, CPU)
    assert (data.n_train, len(data.test_labels)) == (36, 12) and torch.bincount(data.test_labels).tolist() == [3] * 4
    assert data.labels.tolist() == [splits['train'][int(row)]['label'] for row in data.split['train']]
    disk = dataset.get_dataloaders(data_options(**{**vars(opt), 'images_in': 'disk', 'num_workers': 0}), CPU)
    for one, two in zip(data.test_loader, disk.test_loader, strict=True):
        assert all(a.equal(b) for a, b in zip(one, two, strict=True))
    with pytest.raises(UserError, match='give train=SPLIT or test=SPLIT, or --split 0.8,0.2'):
        dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path}'), CPU)
    splits.save_to_disk(tmp_path / 'both')
    with pytest.raises(UserError, match='--split 0.75,0.25: .* has the splits train and test already; leave it out'):
        dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path / "both"}', split=[0.75, 0.25]), CPU)


@pytest.mark.parametrize('settings, words', [
    ('', 'hf:NAME_OR_PATH'),
    ('PLACE,labl=x', 'labl=x: give config, image, label, train, val, test as KEY=VALUE'),
    ('PLACE,label=nope', 'nope is not the column of labels; its columns are img, label, number, word, other'),
    ('PLACE,image=label', 'label is not the column of images'),
    ('PLACE,train=nope', 'has no split nope; it has train, test; give train=SPLIT'),
    ('PLACE,test=nope', 'has no split nope'),
    ('PLACE/nope', 'cannot be loaded'),
    ('PLACE,config=x', 'a folder of save_to_disk has no configurations'),
    ('PLACE,train=test', 'give train=SPLIT or test=SPLIT'),
    ('PLACE/train', 'cannot be loaded'),
    ('a b', 'cannot be loaded'),
])
def test_what_cannot_be_read_is_one_line(on_disk, settings, words):
    name = f'hf:{settings.replace("PLACE", str(on_disk))}'
    with pytest.raises(UserError) as caught:
        dataset.get_dataloaders(data_options(dataset=name), CPU)
    message = str(caught.value)
    assert message.startswith(f'--dataset {name}: ') and words in message and '\n' not in message


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_damaged_images(splits, tmp_path, images_in):
    """Bytes that are no image and an empty row are an error, or skipped with --skip_bad_images."""
    columns = {'img': [{'bytes': b'none', 'path': None}, None, *({'bytes': png(i), 'path': None} for i in range(6))],
               'label': [0, 1] * 4}
    features = hf.Features({'img': hf.Image(), 'label': hf.ClassLabel(names=['a', 'b'])})
    damaged = hf.Dataset.from_dict(columns, features=features)
    hf.DatasetDict(train=damaged, test=damaged).save_to_disk(tmp_path)
    opt = data_options(dataset=f'hf:{tmp_path}', images_in=images_in, batch_size=2, num_workers=0)
    with pytest.raises(UserError, match=r'image [01]: (not a readable image|its row is empty)'):
        batches(opt)
    opt.skip_bad_images = True
    data = dataset.get_dataloaders(opt, CPU)
    assert sum(len(target) for _, target, _ in data.test_loader) == 6


def test_files_that_the_library_leaves_out(tmp_path, capsys):
    for split in ('train', 'test'):
        write_images(tmp_path / split, 2)
        (tmp_path / split / 'ant' / '0.png').rename(tmp_path / split / 'ant' / '0.qoi')
    data = dataset.get_dataloaders(data_options(dataset=f'hf:{tmp_path}', batch_size=2), CPU)
    assert data.n_train == 7 and len(data.test_labels) == 7
    assert capsys.readouterr().out == (f'--dataset hf:{tmp_path}: the library datasets reads 14 of 16 image files '
                                       f'there; --dataset folder reads all\n')


def png(i):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def test_a_teacher_and_its_student(call, on_disk, tmp_path):
    """Folders and files of the run have names without slashes; the teacher's cache as well."""
    small = ['--dataset', f'hf:{on_disk}', '--image_size', 16, '--batch_size', 16, '--epochs', 1, '--gpu_id', 'cpu',
             '--seed', 1, '--num_workers', 2, '--save_dir', tmp_path]
    call(train_teacher.main, '--model', 'resnet14', *small)
    best = next(tmp_path.glob('models/resnet14_hf:*/resnet14_best.pth'))
    assert load_checkpoint(str(best), '')['classes'] == [*CLASSES]
    call(train_student.main, '--path_t', best, '--teacher_cache', tmp_path / 'cache', *small)
    assert len([*tmp_path.glob('student_model/S:resnet8_T:resnet14_hf:*_kd_*/resnet8_best.pth')]) == 1
    assert len([*tmp_path.glob('cache/resnet14_hf:*_logits.cache')]) == 1


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'datasets', None)
    with pytest.raises(UserError, match='--dataset hf:x: datasets is not installed; pip install datasets'):
        dataset.get_dataloaders(data_options(dataset='hf:x'), CPU)
