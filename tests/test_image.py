"""Reading of images: every mode and format, rotated by their EXIF orientation, and the same in every loader."""
import argparse
import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU, data_options, write_images
from PIL import ExifTags, Image, features

import dataset
from dataset import folder
from dataset.crop import Pipeline, resize_to_square
from dataset.folder import Split, list_images, open_sources
from dataset.image import EXTENSIONS, FORMATS, HEIF, MAX_PIXELS, limit_pixels, read_rgb
from export.model_card import _resizing
from helper import distributed
from helper.errors import UserError
from models.inputs import FITS, check_inputs
from models.load import new_net

GREY = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
COLOURS = np.stack([GREY, GREY[::-1], GREY.T], 2)
ALPHA = Image.fromarray(GREY[:, ::-1].copy())
DEEP = GREY.astype(np.uint16) * 257     # the same in 16 bits
AVIF, JPEG2000 = features.check('avif'), features.check('jpg_2000')


def picture(mode):
    """The picture that the table stores: GREY or COLOURS in this mode."""
    grey, colours = Image.fromarray(GREY), Image.fromarray(COLOURS)
    if mode == '1':
        return grey.point(lambda value: 255 * (value > 127), '1')
    if mode == 'P':
        image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), 'P')
        image.putpalette(COLOURS.tobytes())
        return image
    if mode in ('LA', 'RGBA', 'PA', 'RGBa'):
        image = {'L': grey, 'R': colours, 'P': picture('P')}[mode[0]].convert('RGBA' if mode[0] == 'R' else f'{mode}')
        image.putalpha(ALPHA if mode != 'RGBa' else 255)
        return image.convert(mode)
    return {'L': grey, 'I;16': Image.fromarray(DEEP), 'I;16B': Image.fromarray(DEEP.astype('>u2')),
            'I': Image.fromarray(GREY.astype(np.int32)), 'I 16': Image.fromarray(DEEP.astype(np.int32)),
            'F': Image.fromarray(GREY.astype(np.float32)), 'F 1': Image.fromarray(np.float32(GREY) / 255),
            }.get(mode) or colours.convert(mode)


def saved(image, kind, **settings):
    file = io.BytesIO()
    settings = {**{'JPEG': {'quality': 100, 'subsampling': 0}, 'AVIF': {'quality': 100, 'subsampling': '4:4:4'},
                   'WEBP': {'lossless': True, 'exact': True}, 'ICO': {'sizes': [image.size]}}.get(kind, {}), **settings}
    if kind == 'TIFF' and image.mode == 'YCbCr':        # before version 13 Pillow cannot read it uncompressed
        settings['compression'] = 'tiff_lzw'
    image.save(file, kind, **settings)
    return file.getvalue()


def white_is_zero(tiff):
    """An uncompressed greyscale TIFF file with the other meaning of its values."""
    tag = b'\x06\x01\x03\x00\x01\x00\x00\x00'
    assert tag + b'\1' in tiff
    return tiff.replace(tag + b'\1', tag + b'\0')


def twelve_bits():
    """A TIFF file of 12-bit values."""
    tiff = saved(Image.fromarray(DEEP), 'TIFF')
    values = DEEP.reshape(-1, 2) >> 4
    packed = np.stack([values[:, 0] >> 4, values[:, 0] % 16 << 4 | values[:, 1] >> 8, values[:, 1] % 256], 1)
    tag = b'\x02\x01\x03\x00\x01\x00\x00\x00'
    assert tag + b'\x10' in tiff and DEEP.tobytes() in tiff
    return tiff.replace(tag + b'\x10', tag + b'\x0c').replace(DEEP.tobytes(), packed.astype(np.uint8).tobytes() +
                                                            bytes(32))


# format -> the modes that it stores
STORED = {'PNG': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'),
          'TIFF': ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'I;16', 'I;16B', 'I', 'I 16', 'F',
                   'F 1'),
          'JPEG': ('1', 'L', 'RGB', 'CMYK', 'YCbCr'), 'BMP': ('1', 'L', 'P', 'RGB', 'RGBA'), 'GIF': ('1', 'L', 'P'),
          'WEBP': ('L', 'P', 'RGB', 'RGBA', 'RGBa', 'HSV'), 'AVIF': ('L', 'RGB', 'RGBA') * AVIF,
          'JPEG2000': ('L', 'LA', 'RGB', 'RGBA', 'I;16') * JPEG2000, 'PPM': ('1', 'L', 'RGB', 'I 16', 'F', 'F 1'),
          'ICO': ('RGB', 'RGBA'), 'PCX': ('1', 'L', 'P', 'RGB'), 'SGI': ('L', 'RGB', 'RGBA'),
          'TGA': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')}
OTHERS = {'P with a transparent colour.png': saved(picture('P'), 'PNG', transparency=3),
          'P with a transparent colour.gif': saved(picture('P'), 'GIF', transparency=3),
          'RGB with a transparent colour.png': saved(picture('RGB'), 'PNG', transparency=(0, 0, 0)),
          'RGB in 16 bits.ppm': b'P6 8 8 65535\n' + (COLOURS.astype('>u2') * 257).tobytes(),
          'L, white is zero.tiff': white_is_zero(saved(Image.fromarray(255 - GREY), 'TIFF')),
          'I;16, white is zero.tiff': white_is_zero(saved(Image.fromarray(65535 - DEEP), 'TIFF')),
          'I;12.tiff': twelve_bits()}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """{name of the file: the pixels (8, 8, 3) that it stands for}, and the folder of the files."""
    folder, wanted = tmp_path_factory.mktemp('pictures'), {}
    contents = {**OTHERS, **{f'{mode}{FORMATS[kind][0]}': saved(picture(mode), kind)
                             for kind, modes in STORED.items() for mode in modes}}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        grey = GREY if name[0] != '1' else 255 * (GREY > 127)
        wanted[name] = np.stack([grey] * 3, 2) if name[0] in '1LIF' and 'LAB' not in name else COLOURS
    return wanted, folder


def test_every_mode_of_every_format(pictures):
    """All files give the same pixels, exactly for lossless formats."""
    wanted, folder = pictures
    assert len(wanted) > 60
    for name, pixels in wanted.items():
        image = read_rgb(folder / name)
        off = np.abs(np.asarray(image).astype(int) - pixels).max()
        lossy = name.endswith(('jpg', 'avif', 'jp2')) or name.startswith(('CMYK', 'YCbCr', 'LAB', 'HSV'))
        assert image.mode == 'RGB' and off <= (20 if 'LAB' in name else 8 if lossy else 0), f'{name}: {off}'


@pytest.mark.parametrize('kind, mode', [('PNG', 'LA'), ('PNG', 'RGBA'), ('PNG', 'P'), ('WEBP', 'RGBA'), ('TIFF', 'LA')])
@pytest.mark.parametrize('colour', [0, 255])
def test_a_drawing_in_one_colour_on_a_transparent_ground(kind, mode, colour):
    """The image does not become blank: black is put on white, white on black."""
    if mode == 'P':
        image, settings = Image.fromarray(GREY, 'P'), {'transparency': bytes(range(256))}
        image.putpalette([colour] * 768)
    else:
        parts = Image.new('L', (8, 8), colour), Image.fromarray(GREY)
        image, settings = Image.merge('LA', parts).convert(mode), {}
    found = np.asarray(read_rgb('x', io.BytesIO(saved(image, kind, **settings))))
    assert np.abs(found.astype(int) - (GREY if colour else 255 - GREY)[..., None]).max() <= 1


@pytest.mark.parametrize('image, words', [
    (Image.fromarray(GREY.astype(np.int32) - 1), '-1 to 254'),
    (Image.fromarray(DEEP.astype(np.int32) + 1), '1 to 65536; save it with 8 bits, or with values from 0 to 255 or'),
    (Image.fromarray(GREY.astype(np.float32) - 0.5), '-0.5 to 254.5; .* from 0 to 1 or 255'),
    (Image.fromarray(GREY.astype(np.float32) * 2), '0 to 510'),
    (Image.fromarray(np.full((8, 8), np.nan, np.float32)), 'nan to nan'),
    (Image.fromarray(GREY.astype(np.uint16)), 'its largest value is 255 of 65535, so it would become black')])
def test_values_without_a_meaning_are_refused(tmp_path, image, words):
    image.save(tmp_path / 'x.tiff')
    with pytest.raises(UserError, match=f'x.tiff: not a readable image .*{words}'):
        read_rgb(tmp_path / 'x.tiff')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP', *['AVIF'] * AVIF])
def test_images_are_turned_as_their_tag_says(kind):
    upright = Image.fromarray(np.kron(COLOURS[:2, :3], np.ones((8, 8, 1), np.uint8)))
    flip = Image.Transpose
    stored_as = {1: None, 2: flip.FLIP_LEFT_RIGHT, 3: flip.ROTATE_180, 4: flip.FLIP_TOP_BOTTOM, 5: flip.TRANSPOSE,
                 6: flip.ROTATE_90, 7: flip.TRANSVERSE, 8: flip.ROTATE_270}
    for orientation, operation in stored_as.items():
        stored = upright if operation is None else upright.transpose(operation)
        exif = Image.Exif()
        exif[0x112] = orientation
        found = read_rgb('x', io.BytesIO(saved(stored, kind, exif=exif)))
        assert found.size == (24, 16) and np.abs(np.asarray(found).astype(int) - upright).max() <= 8, orientation


@pytest.mark.parametrize('exif', [
    b'Exif\0\0', b'Exif\0\0II*\0', b'Exif\0\0garbage', b'Exif\0\0II*\0\xff\xff\xff\xff',
    b'Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03', b'Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0six\0' + bytes(4),
    b'Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0' + bytes(4)])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_a_damaged_exif_block_is_no_obstacle(kind, exif):
    found = read_rgb('x', io.BytesIO(saved(Image.fromarray(COLOURS), kind, exif=exif)))
    assert np.abs(np.asarray(found).astype(int) - COLOURS).max() <= 8


def test_every_loader_reads_alike(pictures, tmp_path, call):
    """The folder, Hugging Face, LMDB and predict.py read the same pixels from all images."""
    hf, _ = pytest.importorskip('datasets'), pytest.importorskip('lmdb')
    from dataset import folder2lmdb
    from dataset.huggingface import HubSplit
    from dataset.lmdb_source import LmdbSource
    from scripts.predict import read_images
    _, folder = pictures
    exif = Image.Exif()
    exif[0x112] = 6
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        (tmp_path / split / 'a').symlink_to(folder)
        (tmp_path / split / 'b').mkdir()
        (tmp_path / split / 'b' / 'turned.jfif').write_bytes(saved(Image.fromarray(COLOURS[:4]), 'JPEG', exif=exif))
    call(folder2lmdb.main, tmp_path, tmp_path)
    train = open_sources(data_options(data_dir=tmp_path))[0]['train']
    rows = hf.Dataset.from_dict({'image': [{'bytes': Path(file).read_bytes(), 'path': None} for file in train.files]},
                                features=hf.Features({'image': hf.Image()}))
    others = [HubSplit(rows, 'image', train.labels, 'hf', 'train').read, LmdbSource(tmp_path / 'train.lmdb').read,
              [image for _, image in read_images(train.files, lambda image: image, skip=False)].__getitem__]
    assert len(train.files) > 60 and train.read(len(train.files) - 1).size == (4, 8)
    for i, file in enumerate(train.files):
        assert all(other(i).tobytes() == train.read(i).tobytes() for other in others), file


def test_endings():
    """The extensions are Pillow's for the formats that are read."""
    Image.init()
    known = {}
    for name, kind in Image.registered_extensions().items():
        known.setdefault('JPEG' if kind == 'MPO' else kind, set()).add(name)
    assert all(known.get(kind, set(endings)) == set(endings) for kind, endings in FORMATS.items())
    assert not {'EPS', 'PDF', 'PSD', 'WMF', 'FITS', 'HDF5'} & {*FORMATS}
    assert len(EXTENSIONS) == len(set(EXTENSIONS)) > 20


def test_files_that_are_left_out(tmp_path, capsys):
    """Other files are counted by extension; hidden files and folders, as .ipynb_checkpoints, are ignored."""
    for split in ('train', 'val'):
        write_images(tmp_path / split, 2)
        write_images(tmp_path / split / 'ant', 1, classes=('.ipynb_checkpoints', '__MACOSX', 'deeper'))
        write_images(tmp_path / split, 1, classes=('.ipynb_checkpoints', '__MACOSX'))
    train = tmp_path / 'train'
    for name in ('Thumbs.db', '.DS_Store', '._0.png', 'desktop.ini'):
        (train / 'bee' / name).write_bytes(b'x')
        (train / name).write_bytes(b'x')
    for name in ('notes.TXT', 'more.txt', 'x.eps', 'README'):
        (train / 'bee' / name).write_bytes(b'x')
    (train / 'labels.csv').write_bytes(b'x')
    Image.fromarray(COLOURS).save(train / 'cat' / 'more.gif')
    Image.fromarray(COLOURS).save(train / 'cat' / 'MORE.JFIF', 'JPEG')
    splits, classes = open_sources(data_options(data_dir=tmp_path))
    assert classes == ['ant', 'bee', 'cat', 'dog']
    assert Counter(splits['train'].labels.tolist()) == {0: 3, 1: 2, 2: 4, 3: 2}
    assert capsys.readouterr().out == (f'--data_dir: {train}: 5 files left out: 2 .txt, 1 without an ending, 1 .eps, '
                                       f'1 .csv outside the class folders\n')
    for i in range(12):
        (train / 'bee' / f'x.e{i}').write_bytes(b'x')
    open_sources(data_options(data_dir=tmp_path))
    assert ' 1 .e5, 5 of other endings, 1 .csv outside' in capsys.readouterr().out


def test_photographs_of_phones(tmp_path, monkeypatch, capsys):
    """HEIC files are read if pillow-heif is installed; else the line about skipped files says what to install."""
    pillow_heif = pytest.importorskip('pillow_heif')
    for split in ('train', 'val'):
        write_images(tmp_path / split, 2)
    file = tmp_path / 'train' / 'bee' / 'IMG_1.HEIC'
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6     # a quarter turn
    pillow_heif.register_heif_opener()
    Image.fromarray(COLOURS[:4]).save(file, 'HEIF', quality=100, chroma=444, exif=exif.tobytes())
    monkeypatch.delitem(Image.OPEN, 'HEIF', raising=False)
    found = np.asarray(read_rgb(file)).astype(int)
    assert found.shape == (8, 4, 3) and np.abs(found - np.rot90(COLOURS[:4], -1)).max() <= 8
    with pytest.raises(UserError, match=r'cut\.heic: not a readable image \('):
        read_rgb('cut.heic', io.BytesIO(file.read_bytes()[:200]))
    assert str(file) in open_sources(data_options(data_dir=tmp_path))[0]['train'].files and not capsys.readouterr().out
    monkeypatch.setattr(folder, 'EXTENSIONS', tuple({*EXTENSIONS} - {*HEIF}))
    monkeypatch.delitem(FORMATS, 'HEIF')
    with pytest.raises(UserError, match=r'1\.HEIC: not a readable image \(pip install pillow-heif to read it\)$'):
        read_rgb(file)
    assert str(file) not in open_sources(data_options(data_dir=tmp_path))[0]['train'].files
    assert capsys.readouterr().out == (f'--data_dir: {tmp_path / "train"}: 1 file left out: 1 .heic; pip install '
                                       f'pillow-heif to read .heic files\n')


def test_a_class_that_holds_the_classes(tmp_path):
    for split in ('train', 'val'):
        write_images(tmp_path / split / 'images', 2)
    with pytest.raises(UserError, match='train: holds one class alone, images, with the folders ant, bee, cat, dog in '
                                        'it, which look like the classes; move them into .*train$'):
        open_sources(data_options(data_dir=tmp_path))
    one = Split(list_images(tmp_path / 'train' / 'images' / 'ant')[0], None)
    assert len(one.files) == 2


@pytest.fixture(scope='module')
def oblong(tmp_path_factory):
    """A data folder of oblong pictures, each red, green and blue in three parts along its longer side."""
    root = tmp_path_factory.mktemp('oblong')
    for split in ('train', 'val'):
        for name, side in (('tall', (24, 96)), ('wide', (96, 24))):
            pixels = np.eye(3, dtype=np.uint8).repeat(32, 0)[None].repeat(24, 0) * 255
            image = Image.fromarray(pixels if name == 'wide' else pixels.transpose(1, 0, 2))
            (root / split / name).mkdir(parents=True)
            for n in range(2):
                image.save(root / split / name / f'{n}.png')
            assert image.size == side
    return root


@pytest.mark.parametrize('fit, along, across', [('crop', 'ggg', 'ggg'), ('squash', 'rgb', 'ggg'),
                                                ('pad', 'rgb', '0g0')])
def test_how_oblong_images_become_square(oblong, capsys, fit, along, across):
    """The colours of the first, middle and last pixel along the longer side and across it; from memory, from disk and
    in predict.py alike."""
    opt = data_options(data_dir=oblong, fit=fit, image_size=24, batch_size=4, num_workers=0)
    memory, disk = (dataset.get_dataloaders(argparse.Namespace(**{**vars(opt), 'images_in': where}), CPU)
                    for where in ('memory', 'disk'))
    assert memory.inputs['fit'] == disk.inputs['fit'] == fit
    (images, *_), (others, *_) = next(iter(memory.test_loader)), next(iter(disk.test_loader))
    assert images.equal(others)
    pixels = memory.test_loader.images
    predicted = Pipeline(24, crop_pct=1.0, fit=fit).transform(train=False)
    assert predicted(read_rgb(oblong / 'val' / 'wide' / '0.png')).equal(pixels[2])
    names = {(255, 0, 0): 'r', (0, 255, 0): 'g', (0, 0, 255): 'b', (0, 0, 0): '0'}
    assert [names[tuple(pixels[2, 12, x].tolist())] for x in (0, 12, 23)] == [*along]
    assert [names[tuple(pixels[2, y, 12].tolist())] for y in (0, 12, 23)] == [*across]
    assert pixels[0].transpose(0, 1).equal(pixels[2])
    said = '--fit crop: the centre square of each image is used; oblong images (4 of 4 training images checked) ' \
           'keep 25% of their pixels; --fit squash or --fit pad keep all\n'
    assert capsys.readouterr().out == (said * 2 if fit == 'crop' else '')


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('size', [(1000, 1), (1, 1000), (1, 1)])
def test_a_line_of_pixels_becomes_a_square(fit, size):
    square = resize_to_square(Image.new('RGB', size, (9, 9, 9)), 16, fit)
    assert square.size == (16, 16) and square.getpixel((7, 7)) == (9, 9, 9)


def test_a_checkpoint_says_how_its_images_were_made_square(capsys):
    """A run with another --fit is named; an export follows it, and its card describes it."""
    inputs = {'mean': [0.5] * 3, 'std': [0.2] * 3, 'size': 16, 'interpolation': 'bilinear'}
    assert check_inputs(inputs, '')['fit'] == 'crop' and check_inputs({**inputs, 'fit': 'pad'}, '')['fit'] == 'pad'
    with pytest.raises(UserError, match='FILE: does not say how its net preprocesses images'):
        check_inputs({**inputs, 'fit': 'stretch'}, 'FILE')
    data = argparse.Namespace(num_classes=4, image_size=16, inputs={**inputs, 'fit': 'crop'})
    for fit in ('crop', 'squash'):
        new_net('FILE', {'inputs': {**inputs, 'fit': fit}}, 'resnet8', data)
    assert capsys.readouterr().out == '--path-t FILE: was trained with --fit squash, but this run has --fit crop\n'
    new_net('FILE', {'inputs': {**inputs, 'fit': 'crop', 'crop_pct': 1.0, 'interpolation': 'bicubic'}}, 'resnet8',
            argparse.Namespace(num_classes=4, image_size=16, inputs={**inputs, 'fit': 'crop', 'crop_pct': 0.875}))
    assert capsys.readouterr().out == \
        '--path-t FILE: was tested on images with crop_pct 1.0, but this run has 0.875\n' \
        '--path-t FILE: was tested on images with interpolation bicubic, but this run has bilinear\n'
    for crop_pct in (0.0, 1.1, 'x', math.nan):
        with pytest.raises(UserError, match='FILE: its net has crop_pct .*; wanted is a number from 0.1 to 1'):
            check_inputs({**inputs, 'crop_pct': crop_pct}, 'FILE')
    sizes = {'size': 16, 'crop_pct': 1.0, 'interpolation': 'bilinear'}
    assert [_resizing({**sizes, 'fit': fit}).split(' pixels')[0] for fit in FITS] == [
        'Scale the shorter side to 16', 'Scale both sides to 16', 'Scale the longer side to 16']


@pytest.mark.parametrize('changes, words', [
    ({'dataset': 'digits', 'fit': 'pad'}, '--fit pad: not for --dataset digits; it goes with folder, hf'),
    ({'dataset': 'imagenet', 'fit': 'squash'}, '--fit squash: not for --dataset imagenet; it goes with folder, hf'),
    ({'dataset': 'cifar10', 'max_pixels': 9},
     '--max_pixels 9: not for --dataset cifar10; it goes with folder, hf, wds, im'),
    ({'dataset': 'imagenet', 'dali': 'cpu', 'max_pixels': 9}, '--max_pixels 9: DALI reads images of any size')])
def test_flags_without_an_effect(changes, words):
    with pytest.raises(UserError, match=words):
        dataset.get_dataloaders(data_options(**changes), CPU)


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_max_pixels(oblong, images_in):
    """This process and a new worker read images up to the limit, and name larger ones with the flag."""
    opt = data_options(data_dir=oblong, max_pixels=96 * 24 - 1, batch_size=2, images_in=images_in, num_workers=0)
    try:
        with pytest.raises(UserError, match='0.png: has 2304 pixels, and --max_pixels allows 2303; give --max_pixels '
                                            '2304 if the file can be trusted'):
            list(dataset.get_dataloaders(opt, CPU).train_loader)
        opt.max_pixels += 1
        loader = dataset.get_dataloaders(opt, CPU).train_loader
        assert len(list(loader)) == 2
        if images_in == 'disk':
            limit_pixels(9)
            loader.loader.worker_init_fn(0)
            assert len(list(loader)) == 2
    finally:
        limit_pixels(MAX_PIXELS)


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_a_set_without_a_readable_image(tmp_path, images_in):
    """It is an error if all training images or all test images are unreadable."""
    for split in ('train', 'val'):
        write_images(tmp_path / split, 2)
    opt = data_options(data_dir=tmp_path, images_in=images_in, skip_bad_images=True, num_workers=0, batch_size=2)
    for split in ('val', 'train'):
        for file in (tmp_path / split).glob('*/*'):
            file.write_bytes(b'')
        with pytest.raises(UserError, match=f'--skip_bad_images: none of the 8 images can be read; the first is '
                                            f'{tmp_path}/{split}/ant/0.png: not a readable image') as caught:
            data = dataset.get_dataloaders(opt, CPU)
            list(data.test_loader if split == 'val' else data.train_loader)
        assert '\n' not in str(caught.value)
    opt.skip_bad_images = False
    with pytest.raises(UserError, match=r'not a readable image .*; --skip_bad_images leaves it out$'):
        list(dataset.get_dataloaders(opt, CPU).train_loader)


def test_skipped_images_are_named_once(tmp_path, capsys, monkeypatch):
    """A line at the end of an epoch names the skipped images of all processes."""
    for split in ('train', 'val'):
        write_images(tmp_path / split, 4)
    for n in range(2):
        for name in ('ant', 'bee', 'cat'):
            (tmp_path / 'val' / name / f'{n}.png').write_bytes(b'')
    loader = dataset.get_dataloaders(data_options(data_dir=tmp_path, images_in='disk', skip_bad_images=True,
                                                  num_workers=0), CPU).test_loader
    assert [len(target) for _ in range(2) for _, target, _ in loader] == [10, 10]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'6 unreadable images skipped: {tmp_path}/val/ant/0.png: not a read')
    assert lines[0].endswith('; and 1 more') and lines[0].count('.png') == 5
    monkeypatch.setattr(distributed, 'gather', lambda value: [value, ({'one of process 1'}, 8)])
    list(loader)
    assert capsys.readouterr().out == '1 unreadable image skipped: one of process 1\n'
