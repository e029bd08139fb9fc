"""How pictures are read: every mode and format, turned as their EXIF tag says, alike by every loader."""
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import data_options, write_images
from PIL import Image, features

from dataset.folder import Split, images_below, open_sources
from dataset.image import EXTENSIONS, FORMATS, TURNS, read_rgb
from helper.errors import UserError

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
                   'WEBP': {'lossless': True, 'exact': True}}.get(kind, {}), **settings}
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
    """The same picture whatever it is stored as: to the value where the format loses nothing."""
    wanted, folder = pictures
    assert len(wanted) > 60
    for name, pixels in wanted.items():
        image = read_rgb(folder / name)
        off = np.abs(np.asarray(image).astype(int) - pixels).max()
        lossy = name.endswith(('jpg', 'avif', 'jp2')) or name.startswith(('CMYK', 'YCbCr', 'LAB', 'HSV'))
        assert image.mode == 'RGB' and off <= (20 if 'LAB' in name else 8 if lossy else 0), f'{name}: {off}'


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
    back = {6: TURNS[8], 8: TURNS[6]}
    for orientation, turn in {1: None, **TURNS}.items():
        stored = upright if turn is None else upright.transpose(back.get(orientation, turn))
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
    """The folder, Hugging Face, LMDB and predict.py, all pictures of the table and turned ones: the same pixels."""
    hf, _ = pytest.importorskip('datasets'), pytest.importorskip('lmdb')
    from dataset import folder2lmdb
    from dataset.huggingface import HubSplit
    from dataset.lmdb_source import LmdbSource
    from scripts.predict import read
    _, folder = pictures
    exif = Image.Exif()
    exif[0x112] = 6
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        (tmp_path / split / 'a').symlink_to(folder)
        (tmp_path / split / 'b').mkdir()
        (tmp_path / split / 'b' / 'turned.jfif').write_bytes(saved(Image.fromarray(COLOURS[:4]), 'JPEG', exif=exif))
    call(folder2lmdb.main, tmp_path, tmp_path)
    train, *_ = open_sources(data_options(data_dir=tmp_path))
    rows = hf.Dataset.from_dict({'image': [{'bytes': Path(file).read_bytes(), 'path': None} for file in train.files]},
                                features=hf.Features({'image': hf.Image()}))
    others = [HubSplit(rows, 'image', train.labels, 'hf').read, LmdbSource(tmp_path / 'train.lmdb').read,
              [image for _, image in read(train.files, lambda image: image, skip=False)].__getitem__]
    assert len(train.files) > 60 and train.read(len(train.files) - 1).size == (4, 8)
    for i, file in enumerate(train.files):
        assert all(other(i).tobytes() == train.read(i).tobytes() for other in others), file


def test_endings():
    """Those of Pillow for the formats that are read, and none of those that stay out."""
    Image.init()
    known = {}
    for name, kind in Image.registered_extensions().items():
        known.setdefault('JPEG' if kind == 'MPO' else kind, set()).add(name)
    assert all(known.get(kind, set(endings)) == set(endings) for kind, endings in FORMATS.items())
    assert not {'EPS', 'PDF', 'PSD', 'WMF', 'FITS', 'HDF5'} & {*FORMATS}
    assert len(EXTENSIONS) == len(set(EXTENSIONS)) > 20


def test_files_that_are_left_out(tmp_path, capsys):
    """They are counted by their endings; hidden files, and folders such as .ipynb_checkpoints, are passed over."""
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
    images, _, classes = open_sources(data_options(data_dir=tmp_path))
    assert classes == ['ant', 'bee', 'cat', 'dog']
    assert Counter(images.labels.tolist()) == {0: 3, 1: 2, 2: 4, 3: 2}
    assert capsys.readouterr().out == (f'--data_dir: {train}: 5 files left out: 2 .txt, 1 without an ending, 1 .eps, '
                                       f'1 .csv beside the folders of the classes\n')
    for i in range(12):
        (train / 'bee' / f'x.e{i}').write_bytes(b'x')
    open_sources(data_options(data_dir=tmp_path))
    assert 'and 6 more endings\n' in capsys.readouterr().out


def test_a_class_that_holds_the_classes(tmp_path):
    for split in ('train', 'val'):
        write_images(tmp_path / split / 'images', 2)
    with pytest.raises(UserError, match='train: holds one class alone, images, with the folders ant, bee, cat, dog in '
                                        'it, which look like the classes; move them into .*train$'):
        open_sources(data_options(data_dir=tmp_path))
    one = Split(images_below(tmp_path / 'train' / 'images' / 'ant')[0], None)
    assert len(one.files) == 2
