"""Predict the classes of images with an exported student.

python scripts/predict.py EXPORT IMAGE_OR_FOLDER [...] [--top 5] [--output FILE.csv]

EXPORT is a folder that scripts/export_student.py wrote, or one of its files. Images are preprocessed as in training.
"""
import csv
import io
import itertools
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: F401, before torch: it sets how threads wait

# isort: split
import torch

from dataset.crop import Pipeline
from dataset.decode import ADVICE, report_unreadable
from dataset.folder import list_images, print_skipped
from dataset.image import EXTENSIONS, MAX_PIXELS, limit_pixels, read_rgb
from export.load import find_export
from export.runtime_process import RuntimeProcess
from helper.cli import Parser, number, path, table
from helper.errors import UserError, printable, run_main
from helper.files import write_atomically


def options():
    parser = Parser(description='Predict the classes of images with an exported student.')
    add = parser.add_argument
    add('export', type=path, metavar='EXPORT', help='the folder of an export, or a file in it')
    add('images', nargs='+', type=path, metavar='IMAGE_OR_FOLDER', help='images, and folders of images')
    add('--top', type=number(int, low=1, high=10**5), default=5, help='number of classes to show for each image')
    add('--format', choices=('text', 'csv', 'json'), help='if omitted, from the extension of --output, else text')
    add('--output', type=path, metavar='FILE', help='write the predictions to this file')
    add('--batch_size', type=number(int, low=1, high=10**5), default=16, help='images per batch')
    add('--threads', type=number(int, low=1, high=1024), help="number of threads; if omitted, the runtime's default")
    add('--skip_bad_images', action='store_true', help='skip unreadable images and list them')
    add('--max_pixels', type=number(int, low=1), default=MAX_PIXELS,
        help='images with more pixels count as unreadable')
    opt = parser.parse_args()
    if opt.format is None:
        extension = Path(opt.output or '').suffix[1:]
        opt.format = extension if extension in ('csv', 'json') else 'text'
    if opt.output and (os.path.isdir(opt.output) or not os.path.isdir(os.path.dirname(opt.output) or '.')):
        parser.error(f'--output {opt.output}: give a file in a folder that exists')
    if opt.output and (opt.output in opt.images or opt.output.lower().endswith(EXTENSIONS)):
        parser.error(f'--output {opt.output}: has the name of an image; give one such as predictions.csv')
    return opt


def find_images(paths):
    """The given files and the images in the given folders. Raises UserError for a path without an image."""
    files = []
    for name in paths:
        source = f'IMAGE_OR_FOLDER {name}'
        if os.path.isdir(name):
            try:
                images, others = list_images(name)
            except OSError as error:
                raise UserError(f'IMAGE_OR_FOLDER {error.filename}: cannot be read ({error.strerror})') from error
            print_skipped(source, others, to=sys.stderr)
            if not images:
                raise UserError(f'{source}: holds no image; images are {" ".join(EXTENSIONS)}')
            files += images
        elif os.path.exists(name):
            files.append(name)
        else:
            raise UserError(f'{source}: no such file or folder')
    return files


def read_images(files, transform, skip):
    """Yield (file, uint8 (S, S, 3))."""
    errors = []
    for file in files:
        try:
            yield file, transform(read_rgb(file))
        except UserError as error:
            if not skip:
                raise UserError(f'{error}; {ADVICE}') from error
            errors.append(str(error))
    report_unreadable(errors, len(files) - len(errors), 'skipped', to=sys.stderr)


def predict(exported, config, files, opt):
    """Yield (file, [(class, probability), ...])."""
    inputs, classes = config['inputs'], config['classes']
    transform = Pipeline(**inputs).transform(train=False)
    images = read_images(files, transform, opt.skip_bad_images)
    with RuntimeProcess(exported, opt.threads) as process:
        while batch := [*itertools.islice(images, opt.batch_size)]:
            pixels = torch.stack([image for _, image in batch]).permute(0, 3, 1, 2).contiguous()
            pixels = pixels if config['dtype'] == 'uint8' else pixels / 255
            logits = torch.from_numpy(process.run(pixels.numpy())[0])
            if logits.shape != (len(batch), len(classes)) or not logits.isfinite().all():
                raise UserError(f'EXPORT {exported}: returns {tuple(logits.shape)} for {len(batch)} images and '
                                f'{len(classes)} classes, or numbers that are not finite; export it again')
            top = logits.softmax(1).topk(min(opt.top, len(classes)))
            for (file, _), values, labels in zip(batch, top.values.tolist(), top.indices.tolist(), strict=True):
                yield file, [(classes[label], value) for label, value in zip(labels, values, strict=True)]


def as_text(predictions):
    rows = [(printable(file), *(f'{printable(name)} {100 * value:.1f} %' for name, value in top))
            for file, top in predictions]
    return table(('image', *map(str, range(1, len(rows[0])))), rows)


def as_csv(predictions):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(('image', 'rank', 'class', 'probability'))
    for file, top in predictions:
        writer.writerows((file, rank, name, f'{value:.6g}') for rank, (name, value) in enumerate(top, 1))
    return out.getvalue().rstrip('\n')


def as_json(predictions):
    return json.dumps([{'image': file, 'classes': [{'class': name, 'probability': value} for name, value in top]}
                       for file, top in predictions], indent=4)


def main():
    opt = options()
    limit_pixels(opt.max_pixels)
    (exported, config), files = find_export(opt.export, 'EXPORT'), find_images(opt.images)
    print(f'{printable(exported)}: {printable(config["architecture"])}, {len(config["classes"])} classes',
          file=sys.stderr)
    text = {'text': as_text, 'csv': as_csv, 'json': as_json}[opt.format]([*predict(exported, config, files, opt)])
    if opt.output:
        write_atomically(Path(opt.output), f'{text}\n'.encode(errors='surrogateescape'))
    else:
        print(text)


if __name__ == '__main__':
    run_main(main)
