"""ImageNet-like data from the folder, from LMDB and by DALI, and runs on it from the command line."""
import multiprocessing
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES
from PIL import Image
from test_data import options

import dataset
import train_student
import train_teacher
from dataset import folder2lmdb
from dataset.imagenet import Images, WorkerLoader, open_sources
from dataset.lmdb_source import LmdbSource
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


def settings(root, **changes):
    return options(**{'dataset': 'imagenet', 'data_dir': str(root), 'batch_size': 10, 'num_workers': 0, **changes})


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


@pytest.mark.parametrize('smallest, sizes', [(10, [10, 10]), (2, [10, 10, 4]), (5, [10, 10])])
def test_last_batch(photographs, smallest, sizes):
    opt = settings(photographs)
    loader = WorkerLoader(open_sources(opt)[0], opt, CPU, train=True, smallest_batch=smallest)
    assert [len(b[1]) for b in loader] == sizes and len(loader) == len(sizes)


def test_lmdb_gives_the_same_batches(photographs, databases):
    folder, lmdb = (dataset.get_dataloaders(settings(root, use_lmdb=lmdb), CPU)
                    for root, lmdb in ((photographs, False), (databases, True)))
    assert torch.equal(folder.labels, lmdb.labels) and folder.num_classes == lmdb.num_classes
    for of in ('train_loader', 'test_loader'):
        for a, b in zip(getattr(folder, of), getattr(lmdb, of), strict=True):
            if of == 'test_loader':
                assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_lmdb_in_worker_processes(databases, method):
    source = LmdbSource(databases / 'imagenet' / 'val.lmdb')
    source.read(0)                                  # opened here before the workers start
    loader = torch.utils.data.DataLoader(Images(source, train=False, skip_bad=False), batch_size=None, num_workers=2,
                                         sampler=[(i, 0) for i in range(12)],
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
    with pytest.raises(UserError, match='needs the package lmdb; install it with: pip install lmdb'):
        LmdbSource(path)


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
    root, _ = damaged(photographs, tmp_path, split)
    data = dataset.get_dataloaders(settings(root, skip_bad_images=True), CPU)
    batches = list(data.train_loader if split == 'train' else data.test_loader)
    assert sum(len(b[1]) for b in batches) == (24 if split == 'train' else 11)
    assert '1 unreadable images passed over' in capsys.readouterr().out
    assert split == 'val' or len(batches[0][1]) == 10       # a training batch keeps its size


@pytest.mark.parametrize('changes, words', [
    ({'use_lmdb': True, 'dali': 'cpu'}, '--use-lmdb and --dali cpu'),
    ({'dataset': 'digits', 'dali': 'cpu'}, '--dali cpu: --dataset digits is served from memory'),
    ({'dataset': 'digits', 'use_lmdb': True}, '--use-lmdb: --dataset digits is served from memory'),
    ({'dataset': 'digits', 'skip_bad_images': True}, '--skip_bad_images: --dataset digits'),
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


def test_dali_parts(photographs):
    """Three ranks together read every validation image exactly once, epoch after epoch, parts of unequal size too."""
    pytest.importorskip('nvidia.dali')
    from dataset.imagenet_dali import DaliLoader
    opt = settings(photographs, dali='cpu', num_workers=1, batch_size=3)
    source = open_sources(opt)[1]
    source.files, source.labels = source.files[:11], source.labels[:11]
    loaders = [DaliLoader(source, opt, CPU, train=False, rank=rank, world_size=3) for rank in range(3)]
    assert [loader.n_samples for loader in loaders] == [11, 11, 11]
    for _ in range(2):
        seen = [torch.cat([index for _, _, index in loader]).tolist() for loader in loaders]
        assert sorted(len(part) for part in seen) == [3, 4, 4]
        assert sorted(sum(seen, [])) == list(range(11))


def test_command_line(photographs, databases, call, tmp_path, capfd):
    """A teacher from the folder, a student of it from LMDB, and both measured again."""
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
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1].startswith(f'shufflenet_v2_x0_5: top-1 {accuracy:.2f}, top-5 100.00, loss ')
    assert len(list(tmp_path.glob('models/*'))) == 1        # evaluating writes nothing
