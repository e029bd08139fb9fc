"""JPEG photographs of which only a part is decoded, against the whole image."""
import io

import numpy as np
import pytest
import torch
from conftest import CPU, data_options, write_images
from PIL import Image

import dataset
from dataset import jpeg
from dataset.crop import Pipeline
from dataset.decode import report_cropping
from dataset.folder import open_sources
from dataset.image import MAX_PIXELS, limit_pixels, read_rgb
from dataset.jpeg import JpegImage, open_rgb, resize_box
from dataset.worker_loader import BatchParts
from helper.errors import UserError

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def photograph(width, height, mode='RGB'):
    """Smooth noise, coarse and fine."""
    rng, image = np.random.default_rng(0), Image.new('RGB', (width, height))
    for step in (40, 20, 8):
        noise = rng.integers(0, 256, (-(-height // step), -(-width // step), 3), dtype=np.uint8)
        image = Image.blend(image, Image.fromarray(noise).resize((width, height), BICUBIC), 0.5)
    return image.convert(mode)


def saved(image, orientation=1, **settings):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = orientation
    image.save(file, 'JPEG', exif=exif, **{'quality': 90, **settings})
    return file.getvalue()


FILES = {
    '4:2:0': ((61, 47), {'subsampling': '4:2:0'}), '4:2:2': ((61, 47), {'subsampling': '4:2:2'}),
    '4:4:4': ((64, 48), {'subsampling': '4:4:4'}), '4:1:1': ((75, 33), {'subsampling': '4:1:1'}),
    'grey': ((61, 47), {'mode': 'L'}), 'progressive': ((61, 47), {'progressive': True}),
    'restarts': ((61, 47), {'restart_marker_blocks': 2}), '1x1': ((1, 1), {}), '1x20': ((1, 20), {}),
    **{f'orientation {i}': ((61, 47), {'orientation': i}) for i in range(2, 9)}}


@pytest.fixture(params=['libturbojpeg', 'Pillow'])
def decoder(request, monkeypatch):
    if request.param == 'Pillow':
        monkeypatch.setattr(jpeg, 'libturbojpeg', lambda: None)
    elif jpeg.libturbojpeg() is None:
        pytest.skip('needs libturbojpeg')


@pytest.mark.parametrize('case', FILES)
def test_a_part_is_that_of_the_whole_image(case, decoder):
    """To the bit; rounding may differ by 1 if the scaled part is rotated, rather than the image before."""
    (width, height), settings = FILES[case]
    data = saved(photograph(width, height, settings.get('mode', 'RGB')),
                 **{key: value for key, value in settings.items() if key != 'mode'})
    image, whole = open_rgb('x', data), read_rgb('x', io.BytesIO(data))
    assert isinstance(image, JpegImage) and image.size == whole.size
    (width, height), rng = whole.size, np.random.default_rng(0)
    boxes = [(0, 0, width, height), (width - 1, height - 1, width, height), (0, 0, 1, 1)]
    for _ in range(12):
        (left, right), (top, bottom) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in whole.size)
        boxes.append((left, top, right, bottom))
    for box in boxes:
        for size, resample in (((16, 16), BILINEAR), ((20, 13), BICUBIC), ((9, 9), Image.Resampling.NEAREST)):
            found, wanted = (resize_box(source, size, resample, box) for source in (image, whole))
            assert found.dtype == torch.uint8 and found.shape == (3, *size[::-1])
            if image.orientation == 1 or resample != Image.Resampling.NEAREST:
                assert (found.int() - wanted.int()).abs().max() <= (image.orientation != 1)


@pytest.mark.parametrize('resample', [BILINEAR, BICUBIC])
def test_scaling_is_pillows(resample):
    image = photograph(90, 70)
    for box in ((0, 0, 90, 70), (10, 20, 33, 60)):
        wanted = np.asarray(image.crop(box).resize((24, 24), resample)).transpose(2, 0, 1)
        difference = np.abs(resize_box(image, (24, 24), resample, box).numpy() - wanted.astype(int))
        assert difference.max() <= 2 and difference.mean() < 0.25


@pytest.mark.parametrize('orientation', [1, 6])
@pytest.mark.parametrize('side, reduction', [(255, 1), (256, 2), (511, 2), (512, 4), (1024, 8)])
def test_large_parts_are_decoded_at_a_reduced_size(side, reduction, orientation, decoder, monkeypatch):
    """The result differs little from that of the whole image, and a part lies where it should, also between pixels."""
    data = saved(photograph(side + 11, side + 3), orientation)
    image, whole, reductions, decode = open_rgb('x', data), read_rgb('x', io.BytesIO(data)), [], JpegImage._decode
    monkeypatch.setattr(JpegImage, '_decode', lambda *arguments: reductions.append(arguments[2]) or decode(*arguments))
    box = (3, 1, 3 + side, 1 + side)
    found, wanted = (resize_box(source, (64, 64), BILINEAR, box).int() for source in (image, whole))
    assert reductions == [reduction]
    assert (found - wanted).abs().float().mean() < (0.2 if reduction == 1 else 1.5)


@pytest.mark.skipif(jpeg.libturbojpeg() is None, reason='needs libturbojpeg')
@pytest.mark.parametrize('settings', [{}, {'subsampling': '4:4:4'}, {'subsampling': '4:2:2'}])
def test_both_decoders_give_the_same_pixels(settings, monkeypatch):
    image = open_rgb('x', saved(photograph(309, 203), **settings))
    calls = [(-(-309 // n), -(-203 // n), n) for n in (1, 2, 4, 8)]
    boxes = [((left, top, width - left, height - 2 * top), n) for width, height, n in calls
             for left, top in ((0, 0), (1, 2), (width // 3, 1))]
    found = [image._decode(*call) for call in boxes]
    monkeypatch.setattr(jpeg, 'libturbojpeg', lambda: None)
    assert all(np.array_equal(image._decode(*call), pixels) for call, pixels in zip(boxes, found, strict=True))


def test_other_images_are_read_whole():
    file = io.BytesIO()
    photograph(40, 30).save(file, 'PNG')
    for data in (file.getvalue(), saved(photograph(40, 30, 'CMYK'))):
        image = open_rgb('x', data)
        assert isinstance(image, Image.Image) and image.mode == 'RGB' and image.size == (40, 30)
        assert resize_box(image, (8, 8), BILINEAR).shape == (3, 8, 8)


def damaged(data):
    """Files with the faults that downloads and disks cause, by name."""
    start = data.index(b'\xff\xda') + 40
    noise = np.random.default_rng(0).integers(0, 255, 200, dtype=np.uint8).tobytes()
    return {'cut short': data[:len(data) // 2], 'cut, with an end': data[:len(data) // 2] + jpeg.END,
            'header alone': data[:200], 'empty': b'', 'no JPEG': b'<html>' + jpeg.END,
            'noise': data[:start] + noise + data[start + 200:], 'no table': data.replace(b'\xff\xc4', b'\xff\xfe'),
            'marker': data[:start] + b'\xff\xc0\xff\xd8\xff\xdb' + data[start + 6:]}


@pytest.mark.parametrize('fault', damaged(saved(photograph(40, 30))))
def test_damaged_files(fault, decoder):
    """The error is the one of the whole image, and files that Pillow decodes in spite of a fault have the same pixels.
    """
    data, size = damaged(saved(photograph(90, 70)))[fault], (40, 40)

    def outcome(read):
        try:
            return resize_box(read(), size, BILINEAR).numpy().tobytes()
        except UserError as error:
            return str(error)
    assert outcome(lambda: open_rgb('x', data)) == outcome(lambda: read_rgb('x', io.BytesIO(data)))


def test_max_pixels():
    """The limit holds before any pixel is decoded."""
    data = saved(photograph(40, 30))
    try:
        limit_pixels(40 * 30 - 1)
        with pytest.raises(UserError, match='^x: has 1200 pixels, and --max_pixels allows 1199; give'):
            open_rgb('x', data)
        limit_pixels(40 * 30)
        assert open_rgb('x', data).size == (40, 30)
    finally:
        limit_pixels(MAX_PIXELS)


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_test_images_are_decoded_whole(tmp_path, images_in, monkeypatch):
    """Training crops of large photographs are decoded at a reduced size, test images are those of predict.py."""
    for split in ('train', 'test'):
        write_images(tmp_path / split, 1)
        for folder in (tmp_path / split).iterdir():
            (folder / 'x.jpg').write_bytes(saved(photograph(300, 260)))
    opt = data_options(data_dir=str(tmp_path), image_size=32, crop='resized', images_in=images_in, num_workers=0,
                       batch_size=2)
    reductions, decode = set(), JpegImage._decode
    monkeypatch.setattr(JpegImage, '_decode', lambda *arguments: reductions.add(arguments[2]) or decode(*arguments))
    data = dataset.get_dataloaders(opt, CPU)
    list(data.train_loader)
    assert reductions
    reductions.clear()
    list(data.test_loader)
    assert not reductions


def test_report_cropping_reads_headers_alone(tmp_path, monkeypatch, capsys):
    for split in ('train', 'test'):
        for name in ('ant', 'bee'):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / 'x.jpg').write_bytes(saved(photograph(60, 30)))
    train = open_sources(data_options(data_dir=str(tmp_path)))[0]['train']
    monkeypatch.setattr(JpegImage, '_decode', None)
    monkeypatch.setattr('dataset.source.read_rgb', None)
    report_cropping(train, Pipeline())
    assert 'checked) keep 38% of their pixels' in capsys.readouterr().out


@pytest.mark.parametrize('n_parts', [1, 2, 3, 8])
def test_parts_of_batches(n_parts):
    """All images of each batch, in their order; a small last batch has empty parts."""
    order = [list(range(10)), list(range(10, 20)), [20, 21]]
    parts = list(BatchParts(order, n_parts))
    assert len(parts) == len(BatchParts(order, n_parts)) == 3 * n_parts
    for i, batch in enumerate(order):
        assert sum(parts[i * n_parts:(i + 1) * n_parts], []) == batch
