"""ImageNet-like data from the folder, from LMDB and by DALI, and runs on it from the command line."""
import gc
import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, data_options
from PIL import Image

import dataset
import train_student
import train_teacher
from benchmarks.__main__ import main as benchmark
from dataset import folder2lmdb, imagenet_dali
from dataset.folder import Split
from dataset.imagenet import open_sources
from dataset.lmdb_source import LABELS, META, LmdbSource, pack, record_key
from dataset.worker_loader import Images, WorkerLoader
from helper.checkpoint import load_checkpoint
from helper.errors import UserError

CPU = torch.device('cpu')


def write_photographs(root: Path, per_class: int) -> None:
    """root/CLASS/N.JPEG of several sizes and modes, a colour a class."""
    rng = np.random.default_rng(per_class)
    for c, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for n in range(per_class):
            height, width = rng.integers(70, 120, 2)
            pixels = rng.normal(50 + 50 * c, 20, (height, width, 3)).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(pixels)
            image = image.convert(('RGB', 'L', 'CMYK')[n % 3])
            image.save(root / name / f'{n}.JPEG')


@pytest.fixture(scope='session')
def photographs(tmp_path_factory):
    """A --data_dir with imagenet/{train,val}/CLASS/*.JPEG, 4 classes of 6 and 3 images."""
    root = tmp_path_factory.mktemp('photographs')
    write_photographs(root / 'imagenet' / 'train', 6)
    write_photographs(root / 'imagenet' / 'val', 3)
    return root


@pytest.fixture(scope='session')
def databases(photographs, tmp_path_factory, call):
    """A --data_dir with imagenet/{train,val}.lmdb of the same images."""
    pytest.importorskip('lmdb')
    root = tmp_path_factory.mktemp('databases')
    call(folder2lmdb.main, photographs / 'imagenet', root / 'imagenet')
    return root


def test_benchmark_of_whole_images(photographs, call, monkeypatch, capfd):
    """One of its loaders decodes the training images whole, the usual one does not."""
    read, files = Split.read, []
    monkeypatch.setattr(Split, 'read', lambda source, i: files.append(i) or read(source, i))
    call(benchmark, 'imagenet', '--data_dir', photographs, '--batch_size', 8, '--rounds', 1, '--num_workers', 0,
         '--gpu_id', 'cpu')
    assert sorted(files) == sorted(2 * [*range(24)])        # a round, after one to warm up
    assert 'folder, whole images' in capfd.readouterr().out


def settings(root, **changes):
    return data_options(**{'dataset': 'imagenet', 'data_dir': str(root), 'batch_size': 10, 'num_workers': 0, **changes})


def test_batches_of_the_folder(photographs):
    data = dataset.get_dataloaders(settings(photographs, num_workers=2), CPU)
    assert (data.n_train, data.num_classes, data.image_size) == (24, 4, 224)
    first, second = list(data.train_loader), list(data.train_loader)
    assert [len(b[1]) for b in first] == [10, 10, 4] and len(data.train_loader) == 3
    images, target, index = first[0]
    assert images.shape == (10, 3, 224, 224) and images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(target, data.labels[index])
    assert sorted(torch.cat([b[2] for b in first]).tolist()) == list(range(24))
    assert [b[2].tolist() for b in first] != [b[2].tolist() for b in second]
    again = dataset.get_dataloaders(settings(photographs, num_workers=2), CPU)
    for a, b in zip(first, again.train_loader, strict=True):        # a seed gives the same batches, workers or not
        assert torch.equal(a[0], b[0]) and torch.equal(a[2], b[2])
    assert torch.cat([b[2] for b in data.test_loader]).tolist() == list(range(12))


def test_validation_is_torchvisions(photographs):
    from torchvision import transforms
    data = dataset.get_dataloaders(settings(photographs), CPU)
    image = Image.open(photographs / 'imagenet' / 'val' / 'ant' / '0.JPEG').convert('RGB')
    want = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
                               transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])(image)
    assert torch.allclose(next(iter(data.test_loader))[0][0], want, atol=1e-5)


@pytest.mark.parametrize('batch_size, drop_last, sizes', [(10, True, [10, 10]), (10, False, [10, 10, 4]),
                                                           (23, False, [24]), (23, True, [23])])
def test_last_batch(photographs, batch_size, drop_last, sizes):
    opt = settings(photographs, batch_size=batch_size)
    loader = WorkerLoader(open_sources(opt)[0]['train'], opt, CPU, train=True, drop_last=drop_last)
    assert [len(b[1]) for b in loader] == sizes and len(loader) == len(sizes)


def test_lmdb_gives_the_same_batches(photographs, databases):
    folder, lmdb = (dataset.get_dataloaders(settings(root, use_lmdb=lmdb), CPU)
                    for root, lmdb in ((photographs, False), (databases, True)))
    assert torch.equal(folder.labels, lmdb.labels) and folder.num_classes == lmdb.num_classes
    assert torch.equal(folder.test_labels, lmdb.test_labels) and folder.classes == lmdb.classes
    for of in ('train_loader', 'test_loader'):
        for a, b in zip(getattr(folder, of), getattr(lmdb, of), strict=True):
            if of == 'test_loader':
                assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])


def test_the_same_images_of_a_database_are_held_out(photographs, databases):
    folder, lmdb = (dataset.get_dataloaders(settings(root, use_lmdb=lmdb, val_fraction=0.5), CPU)
                    for root, lmdb in ((photographs, False), (databases, True)))
    assert folder.sizes == lmdb.sizes == '12 training images, 12 validation images, 12 test images in val'
    for one, two in zip(folder.val_loader, lmdb.val_loader, strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_the_checksum_of_a_database_is_that_of_its_files(photographs, databases):
    one, two = (dataset.get_dataloaders(settings(root, use_lmdb=lmdb), CPU)
                for root, lmdb in ((photographs, False), (databases, True)))
    assert one.checksum == two.checksum and one.sizes == two.sizes == '24 training images, 12 test images in val'


def test_two_views(photographs, databases):
    """The first view equals that of a loader with one view, the second is stronger, with and without workers."""
    views = {'views': ('weak', 'strong')}
    one = next(iter(dataset.get_dataloaders(settings(photographs), CPU).train_loader))
    two = next(iter(dataset.get_dataloaders(settings(photographs), CPU, **views).train_loader))
    workers = next(iter(dataset.get_dataloaders(settings(photographs, num_workers=2), CPU, **views).train_loader))
    lmdb = next(iter(dataset.get_dataloaders(settings(databases, use_lmdb=True), CPU, **views).train_loader))
    assert two[0].shape == lmdb[0].shape == (2, 10, 3, 224, 224) and torch.equal(two[2], one[2])
    assert torch.equal(two[0][0], one[0]) and not torch.equal(two[0][1], one[0])
    assert torch.equal(two[0], workers[0]) and torch.equal(two[2], lmdb[2])
    held_out = next(iter(dataset.get_dataloaders(settings(photographs), CPU, **views).test_loader))
    assert held_out[0].shape == (10, 3, 224, 224)


@pytest.mark.parametrize('method', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_lmdb_in_worker_processes(databases, method):
    source = LmdbSource(databases / 'imagenet' / 'val.lmdb')
    source.read(0)                                  # opened here before the workers start
    workers = 2 if method == 'fork' else 1      # a spawned one imports all for seconds
    loader = torch.utils.data.DataLoader(Images(source, train=False, skip_bad=False), batch_size=None,
                                         num_workers=workers, sampler=[(i, 0) for i in range(12)],
                                         multiprocessing_context=multiprocessing.get_context(method))
    got = [sample[0] for sample in loader]
    plain = Images(source, train=False, skip_bad=False)
    assert len(got) == 12 and all(torch.equal(image, plain[i, 0][0]) for i, image in enumerate(got))


def test_bad_databases(databases, tmp_path, monkeypatch):
    lmdb = pytest.importorskip('lmdb')
    whole = (databases / 'imagenet' / 'train.lmdb').read_bytes()
    path = tmp_path / 'train.lmdb'
    with pytest.raises(UserError, match='no such file; python dataset/folder2lmdb.py'):
        LmdbSource(path)
    foreign = 'not written by'
    for content, words in ((whole[:len(whole) // 2], 'cut short'), (whole[:100], foreign), (b'', foreign),
                           (b'text' * 5000, foreign)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f'--use-lmdb: .*train.lmdb: {words}'):
            LmdbSource(path)
    path.unlink()
    with lmdb.open(str(path), subdir=False, lock=False) as env, env.begin(write=True) as transaction:
        transaction.put(b'0', b'of another program')
    with pytest.raises(UserError, match='not written by'):
        LmdbSource(path)
    monkeypatch.setitem(sys.modules, 'lmdb', None)
    with pytest.raises(UserError, match='--use-lmdb: lmdb is not installed; pip install lmdb'):
        LmdbSource(path)


def changed(meta=None, labels=None, record=None):
    """Write other content into a database that folder2lmdb.py wrote."""
    def change(transaction):
        if meta is not None:
            old = json.loads(transaction.get(META))
            transaction.put(META, meta(old) if callable(meta) else meta)
        if labels is not None:
            transaction.put(LABELS, torch.tensor(labels).numpy().tobytes())
        if record is not None:
            transaction.delete(record_key(3)) if record == b'' else transaction.put(record_key(3), record)
    return change


DAMAGED = {     # what is changed -> what is said, and whether only when the image is read
    'no classes': (changed(meta=lambda m: json.dumps({**m, 'classes': None}).encode()), 'not written by'),
    'numbers': (changed(meta=lambda m: json.dumps({**m, 'classes': [1, 2, 3, 4]}).encode()), 'not written by'),
    'deep': (changed(meta=b'[' * 100_000), 'not written by'), 'a list': (changed(meta=b'[1]'), 'not written by'),
    'no samples': (changed(meta=lambda m: json.dumps({**m, 'samples': 0}).encode(), labels=[]), 'not written by'),
    'large label': (changed(labels=[0] * 23 + [4]), 'labels 0 to 4, but 4 classes'),
    'negative label': (changed(labels=[-1] + [0] * 23), 'labels -1 to 0, but 4 classes'),
    'missing': (changed(record=b''), 'record 3 is missing or damaged'),
    'short': (changed(record=b'abc'), 'record 3 is missing or damaged'),
    'not UTF-8': (changed(record=pack(0, 'xx', b'').replace(b'xx', b'\xff\xff')), 'record 3 is missing or damaged'),
    'no image': (changed(record=pack(0, 'cat/3.jpg', b'text')), 'train.lmdb: cat/3.jpg: not a readable image')}


@pytest.mark.parametrize('case', DAMAGED)
def test_damaged_databases(databases, tmp_path, case):
    """The error names the file and the record; --skip_bad_images skips bad records."""
    lmdb = pytest.importorskip('lmdb')
    shutil.copytree(databases, tmp_path / 'data')
    change, words = DAMAGED[case]
    path = tmp_path / 'data' / 'imagenet' / 'train.lmdb'
    with lmdb.open(str(path), subdir=False, lock=False) as env, env.begin(write=True) as transaction:
        change(transaction)
    opt = settings(tmp_path / 'data', use_lmdb=True)
    with pytest.raises(UserError) as caught:
        list(dataset.get_dataloaders(opt, CPU).train_loader)
    said = str(caught.value)
    assert str(path) in said and words in said and '\n' not in said
    if 'record' in words or 'image' in words:
        del caught      # it keeps the file open
        gc.collect()
        opt.skip_bad_images = True
        assert sum(len(b[1]) for b in dataset.get_dataloaders(opt, CPU).train_loader) == 24


@pytest.mark.parametrize('kind', ['dangling link', 'bytes', 'pipe'])
def test_folder2lmdb_refuses(photographs, tmp_path, call, capsys, kind):
    pytest.importorskip('lmdb')
    shutil.copytree(photographs / 'imagenet', tmp_path / 'in')
    folder = tmp_path / 'in' / 'train' / 'cat'
    if kind == 'dangling link':
        (folder / 'x.jpg').symlink_to('nowhere')
        words = f'{folder}/x.jpg: cannot be read (No such file or directory)'
    elif kind == 'pipe':
        os.mkfifo(folder / 'x.jpg')
        words = f'{folder}/x.jpg: is no file'
    else:
        shutil.copy(folder / '0.JPEG', os.fsencode(folder) + b'/\xff.jpg')
        words = 'train/cat/\\udcff.jpg: give the file a name in UTF-8'
    with pytest.raises(SystemExit) as caught:
        call(folder2lmdb.main, tmp_path / 'in', tmp_path / 'out')
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error and error.count('\n') == 1
    assert list((tmp_path / 'out').iterdir()) == []


def test_training_images_are_cropped_and_flipped(photographs):
    """The seed decides crop and flip of an image that is dark on the left and light on the right."""
    class Halves:
        labels = torch.zeros(1)

        def read(self, i):
            return Image.fromarray(np.tile(np.linspace(0, 255, 300, dtype=np.uint8), (200, 1))).convert('RGB')

        open = read
    train, val = (Images(Halves(), train=kind, skip_bad=False) for kind in (True, False))
    seen = [train[0, seed][0].float() for seed in range(64)]
    turned = [bool(image[:, :100].mean() > image[:, -100:].mean()) for image in seen]
    assert 16 < sum(turned) < 48                        # half of them, within 4 standard deviations
    assert len({round(image.mean().item()) for image in seen}) > 20      # other crops have other brightness
    widths = [abs(image[:, 0].mean() - image[:, -1].mean()).item() for image in seen]
    assert min(widths) < 100 < max(widths)              # of a small part, and of most of the image
    assert torch.equal(train[0, 5][0], train[0, 5][0]) and torch.equal(val[0, 1][0], val[0, 2][0])


def test_a_worker_process_that_is_killed(photographs, call, capfd):
    """A killed worker process, as when the memory is full, is an error of one line."""
    opt = settings(photographs, num_workers=1)
    source = open_sources(opt)[0]['train']
    source.open = lambda i: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(SystemExit) as caught:
        call(lambda: list(WorkerLoader(source, opt, CPU, train=True)))
    error = capfd.readouterr().err
    assert caught.value.code == 1 and error.count('\n') == 1
    assert error.startswith('error: a process that reads images has ended (DataLoader worker')


class FakeDali:
    """nvidia.dali as far as the loader uses it: notes the arguments of its operators, serves numbers in order."""

    def __init__(self, monkeypatch, n):
        self.asked = {}
        fn = SimpleNamespace(readers=SimpleNamespace(file=self.operator('reader', 2)), random=SimpleNamespace(
            coin_flip=self.operator('flip')), resize=self.operator('resize'), decoders=SimpleNamespace(
            image=self.operator('decode'), image_random_crop=self.operator('crop')),
            crop_mirror_normalize=self.operator('normalize'))

        def pipeline_def(**kwargs):
            self.batch_size = kwargs['batch_size']
            return lambda function: lambda: SimpleNamespace(build=function)

        def iterator(*args, **kwargs):
            numbers = torch.arange(n)
            return [[{'images': torch.zeros(len(part), 224, 224, 3) + part.view(-1, 1, 1, 1), 'number': part}]
                    for part in numbers.split(self.batch_size)]
        types = SimpleNamespace(RGB='RGB', FLOAT='float', INTERP_TRIANGULAR='triangular')
        monkeypatch.setattr(imagenet_dali, '_import_dali', lambda: (
            fn, pipeline_def, types, iterator, SimpleNamespace(PARTIAL='partial')))

    def operator(self, name, results=1):
        def call(*args, **kwargs):
            self.asked[name] = kwargs
            return (name,) * results if results > 1 else name
        return call


def test_what_dali_is_asked_for(photographs, monkeypatch):
    """Random crops of area 0.1 to 1 and aspect 0.8 to 1.25 and flips in training; the centre in validation."""
    opt = settings(photographs, dali='cpu')
    train, val = open_sources(opt)[0].values()
    asked = FakeDali(monkeypatch, 24).asked
    imagenet_dali.DaliLoader(train, opt, CPU, train=True, rank=1, world_size=2)
    assert asked['crop']['random_area'] == [0.1, 1.0] and asked['crop']['random_aspect_ratio'] == [0.8, 1.25]
    assert asked['resize'] == {'device': 'cpu', 'resize_x': 224, 'resize_y': 224, 'interp_type': 'triangular'}
    assert asked['flip'] == {'probability': 0.5} and asked['normalize']['mirror'] == 'flip'
    assert asked['normalize']['mean'] == [255 * m for m in (0.485, 0.456, 0.406)]
    assert asked['normalize']['std'] == [255 * s for s in (0.229, 0.224, 0.225)]
    assert (asked['reader']['shard_id'], asked['reader']['num_shards'], asked['reader']['files']) == (1, 2, train.files)
    assert asked['reader']['shuffle_after_epoch']
    asked.clear()
    imagenet_dali.DaliLoader(val, opt, CPU, train=False)
    assert asked['resize'] == {'device': 'cpu', 'resize_shorter': 256, 'interp_type': 'triangular'}
    assert asked['normalize']['mirror'] == 0 and asked['normalize']['crop'] == (224, 224) and 'flip' not in asked


@pytest.mark.parametrize('batch_size, drop_last, sizes', [(10, False, [10, 10, 4]), (10, True, [10, 10]),
                                                          (23, False, [24]), (23, True, [23])])
def test_the_last_batch_of_dali(photographs, monkeypatch, batch_size, drop_last, sizes):
    FakeDali(monkeypatch, 24)
    source = SimpleNamespace(files=['x.jpg'] * 24, labels=torch.arange(24) * 2)
    loader = imagenet_dali.DaliLoader(source, settings(photographs, dali='cpu', batch_size=batch_size), CPU, train=True,
                                      drop_last=drop_last)
    for _ in range(2):
        batches = list(loader)
        assert [len(b[1]) for b in batches] == sizes and len(loader) == len(sizes)
        for images, target, index in batches:
            assert torch.equal(target, 2 * index) and torch.equal(images[:, 0, 0, 0], index.float())


def test_folder2lmdb_keeps_the_old_file(photographs, tmp_path, call, capsys):
    pytest.importorskip('lmdb')
    out = tmp_path / 'out'
    call(folder2lmdb.main, photographs / 'imagenet', out)
    before = (out / 'train.lmdb').read_bytes()
    broken = tmp_path / 'broken'
    shutil.copytree(photographs / 'imagenet', broken)
    shutil.rmtree(broken / 'val' / 'ant')
    with pytest.raises(SystemExit) as caught:
        call(folder2lmdb.main, broken, out)
    assert caught.value.code == 2 and 'ant' in capsys.readouterr().err
    assert (out / 'train.lmdb').read_bytes() == before
    assert sorted(p.name for p in out.iterdir()) == ['train.lmdb', 'val.lmdb']


def damaged(photographs, tmp_path, split='train'):
    root = tmp_path / 'damaged'
    shutil.copytree(photographs, root)
    file = root / 'imagenet' / split / 'cat' / '1.JPEG'
    file.write_bytes(file.read_bytes()[:300])
    return root, file


@pytest.mark.parametrize('workers', [0, 2])
def test_a_truncated_image_is_named(photographs, tmp_path, workers):
    root, file = damaged(photographs, tmp_path)
    data = dataset.get_dataloaders(settings(root, num_workers=workers), CPU)
    with pytest.raises(UserError) as caught:
        list(data.train_loader)
    assert str(file) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_bad_images_can_be_passed_over(photographs, tmp_path, split, capsys):
    root, file = damaged(photographs, tmp_path, split)
    data = dataset.get_dataloaders(settings(root, skip_bad_images=True), CPU)
    batches = list(data.train_loader if split == 'train' else data.test_loader)
    assert sum(len(b[1]) for b in batches) == (24 if split == 'train' else 11)
    assert f'1 unreadable image skipped: {file}: not a readable image' in capsys.readouterr().out
    assert split == 'val' or len(batches[0][1]) == 10       # a training batch keeps its size


@pytest.mark.parametrize('changes, words', [
    ({'use_lmdb': True, 'dali': 'cpu'}, '--use-lmdb and --dali cpu'),
    ({'dataset': 'digits', 'dali': 'cpu'}, '--dali cpu: not for --dataset digits; it goes with imagenet, imagenette'),
    ({'dataset': 'digits', 'use_lmdb': True}, '--use-lmdb: not for --dataset digits; it goes with imagenet'),
    ({'dataset': 'digits', 'skip_bad_images': True}, '--skip_bad_images: not for --dataset digits; it goes with'),
    ({'dali': 'cpu', 'skip_bad_images': True}, '--skip_bad_images: DALI'),
    ({'dataset': 'imagenette'}, 'imagenette: no such folder')])
def test_loaders_that_do_not_fit(photographs, changes, words):
    with pytest.raises(UserError, match=words):
        dataset.get_dataloaders(settings(photographs, **changes), CPU)


def test_dali_absent(photographs, monkeypatch):
    monkeypatch.setitem(sys.modules, 'nvidia.dali', None)
    with pytest.raises(UserError, match='--dali: needs NVIDIA DALI; install it with: pip install -r requirements-dali'):
        dataset.get_dataloaders(settings(photographs, dali='cpu'), CPU)


def test_dali_on_the_cpu(photographs):
    pytest.importorskip('nvidia.dali')
    data = dataset.get_dataloaders(settings(photographs, dali='cpu', num_workers=1), CPU)
    plain = dataset.get_dataloaders(settings(photographs), CPU)
    first, second = list(data.train_loader), list(data.train_loader)
    for epoch in (first, second):                   # every image once, in every epoch
        assert [len(b[1]) for b in epoch] == [10, 10, 4]
        assert sorted(torch.cat([b[2] for b in epoch]).tolist()) == list(range(24))
        assert all(torch.equal(target, data.labels[index]) for _, target, index in epoch)
    assert [b[2].tolist() for b in first] != [b[2].tolist() for b in second]
    for _ in range(2):
        val = list(data.test_loader)
        assert torch.cat([b[2] for b in val]).tolist() == list(range(12))
    for got, want in zip(val, plain.test_loader, strict=True):      # another resize filter, so about the same
        assert got[0].shape == want[0].shape and (got[0] - want[0]).abs().mean() < 0.2
    with pytest.raises(UserError, match='--dali gpu: decodes on a GPU'):
        dataset.get_dataloaders(settings(photographs, dali='gpu'), CPU)


def test_dali_reads_images_as_the_other_loaders(tmp_path):
    """DALI rotates images by their EXIF orientation; other formats are refused, and a damaged file is named."""
    pytest.importorskip('nvidia.dali')
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)
    files = []
    for split in ('train', 'val'):
        for name in CLASSES[:2]:
            (tmp_path / 'imagenet' / split / name).mkdir(parents=True)
            for orientation in (1, 2, 6, 8):
                exif = Image.Exif()
                exif[0x112] = orientation
                for ending in ('jpg', 'png', 'webp'):
                    files.append(tmp_path / 'imagenet' / split / name / f'{orientation}.{ending}')
                    mode = 'RGB' if orientation > 1 else 'LA' if ending == 'png' else 'L'
                    Image.fromarray(pixels).convert(mode).save(files[-1], exif=exif)
    opt = settings(tmp_path, dali='cpu', num_workers=1, batch_size=24)
    (found, *_), = dataset.get_dataloaders(opt, CPU).test_loader
    (wanted, *_), = dataset.get_dataloaders(settings(tmp_path, batch_size=24), CPU).test_loader
    assert len({image.numpy().tobytes() for image in wanted}) > 8
    assert ((found - wanted).abs().mean((1, 2, 3)) < 0.1).all()
    files[-1].write_bytes(files[-1].read_bytes()[:99])
    with pytest.raises(UserError, match=f'^--dali cpu: {files[-1]}: not a readable image .*; repair the file or'):
        dataset.get_dataloaders(opt, CPU)
    files[-1].rename(files[-1].with_name('x.gif'))
    with pytest.raises(UserError, match='--dali cpu: DALI does not read 1 .gif, as .*x.gif; leave --dali out'):
        dataset.get_dataloaders(opt, CPU)


def test_dali_parts(photographs):
    """Three processes together read every validation image exactly once in every epoch, in unequal parts."""
    pytest.importorskip('nvidia.dali')
    from dataset.imagenet_dali import DaliLoader
    opt = settings(photographs, dali='cpu', num_workers=1, batch_size=3)
    source = open_sources(opt)[0]['test']
    source.files, source.labels = source.files[:11], source.labels[:11]
    loaders = [DaliLoader(source, opt, CPU, train=False, rank=rank, world_size=3) for rank in range(3)]
    assert [loader.n_samples for loader in loaders] == [11, 11, 11]
    for _ in range(2):
        seen = [torch.cat([index for _, _, index in loader]).tolist() for loader in loaders]
        assert sorted(len(part) for part in seen) == [3, 4, 4]
        assert sorted(sum(seen, [])) == list(range(11))


def test_command_line(photographs, databases, call, tmp_path, capfd):
    """Train a teacher from the folder and a student from LMDB, and measure both again."""
    flags = ['--dataset', 'imagenet', '--batch_size', 12, '--epochs', 1, '--gpu_id', 'cpu', '--seed', 0,
             '--num_workers', 0, '--save_dir', tmp_path, '--learning_rate', 0.001]
    call(train_teacher.main, '--model', 'shufflenet_v2_x0_5', '--data_dir', photographs, *flags)
    teacher = next(tmp_path.glob('models/*/shufflenet_v2_x0_5_best.pth'))
    call(train_student.main, '--path-t', teacher, '--model_s', 'shufflenet_v2_x0_5', '--distill', 'semckd',
         '--use_lmdb', '--data_dir', databases, *flags)
    student = next(tmp_path.glob('student_model/S:shufflenet_v2_x0_5_T:shufflenet_v2_x0_5_imagenet_semckd_*_b:50.0_1'))
    accuracy = load_checkpoint(str(teacher), '')['best_acc']
    assert f'teacher top-1: {accuracy:.2f}' in capfd.readouterr().out
    call(train_teacher.main, '--evaluate', student / 'shufflenet_v2_x0_5_best.pth', '--data_dir', photographs, *flags)
    call(train_student.main, '--evaluate', '--path-t', teacher, '--data_dir', photographs, *flags)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith('shufflenet_v2_x0_5: ')]
    assert lines[-1].startswith(f'shufflenet_v2_x0_5: top-1 {accuracy:.2f}, top-5 100.00, loss ')
    assert len(list(tmp_path.glob('models/*'))) == 1        # evaluating writes nothing
