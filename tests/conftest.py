"""What the tests share: a small tree of images, and a teacher trained on it."""
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CLASSES = ('ant', 'bee', 'cat', 'dog')


def pytest_configure(config):
    """One thread a process: the tests run in one for each core, and start others."""
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)


def write_images(root: Path, per_class: int, size: int = 16, classes=CLASSES) -> None:
    """root/CLASS/N.png: noise around a colour of the class."""
    rng = np.random.default_rng(len(str(root.name)))
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(per_class):
            pixels = rng.normal(60 + 50 * i, 30, (size, size, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f'{n}.png')


@pytest.fixture(scope='session')
def tree(tmp_path_factory):
    """A data folder: 4 classes, 12 training and 6 test images each, 16x16."""
    root = tmp_path_factory.mktemp('tree')
    write_images(root / 'train', 12)
    write_images(root / 'test', 6)
    return root


@pytest.fixture(scope='session')
def call():
    """call(main, *arguments): run a script's main in this process, as `python script.py arguments`."""
    def run(main, *arguments):
        from helper.errors import run_main
        before = sys.argv, sys.unraisablehook
        sys.argv = ['script.py', *map(str, arguments)]
        try:
            run_main(main)
        finally:
            sys.argv, sys.unraisablehook = before
    return run


@pytest.fixture(scope='session')
def small(tree):
    """Flags of a run that takes a second."""
    return ['--dataset', 'folder', '--data_dir', tree, '--image_size', 16, '--batch_size', 16, '--epochs', 1,
            '--gpu_id', 'cpu', '--seed', 1, '--num_workers', 2]


@pytest.fixture(scope='session')
def teacher(tmp_path_factory, call, small):
    """The checkpoint of a resnet14 trained for an epoch on the tree."""
    import train_teacher
    save = tmp_path_factory.mktemp('teacher')
    call(train_teacher.main, '--model', 'resnet14', '--save_dir', save, *small)
    return next(save.glob('models/*/resnet14_best.pth'))
