"""Write the image files of a folder into train.lmdb and val.lmdb, for --use-lmdb.

python dataset/folder2lmdb.py FOLDER OUT        FOLDER holds train/CLASS/* and val/CLASS/* (or test, validation, valid,
                                                which name the second file too); for training, OUT is
                                                {data_dir}/imagenet or {data_dir}/imagenette
"""
import argparse
import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset.folder import scan  # noqa: E402
from dataset.lmdb_source import FORMAT, KEYS, LABELS, META, pack, record_key  # noqa: E402
from dataset.source import read_bytes  # noqa: E402
from helper.cli import Parser, path  # noqa: E402
from helper.errors import UserError, counted, import_optional, run_main  # noqa: E402
from helper.files import replacing  # noqa: E402

COMMIT_EVERY = 1000     # images a transaction


def write_split(split, root: Path, classes: list[str], path: Path) -> None:
    """Write the files of `split` to `path`; an older file there stays whole until all is written. Raises UserError."""
    lmdb = import_optional('lmdb', str(path))
    names = split.names
    try:
        names_record = '\n'.join(names).encode()
        size = sum(map(os.path.getsize, split.files))
    except UnicodeEncodeError as error:
        name = next(name for name in names if any('\ud800' <= c <= '\udfff' for c in name))
        raise UserError(f'{root}: {name}: give the file a name in UTF-8') from error
    except OSError as error:        # a link that leads nowhere
        raise UserError(f'{error.filename}: cannot be read ({error.strerror})') from error
    try:
        with replacing(path) as temporary:
            # An upper bound, not the size of the file: a page more for each image, and the lists.
            most_bytes = 2 * size + 8192 * len(split.files) + 2**26
            env = lmdb.open(str(temporary), subdir=False, lock=False, map_size=most_bytes)
            transaction = env.begin(write=True)
            for i in tqdm(range(len(names)), desc=path.name, unit='img', disable=not sys.stderr.isatty()):
                transaction.put(record_key(i), pack(int(split.labels[i]), names[i], read_bytes(split.files[i])))
                if i % COMMIT_EVERY == COMMIT_EVERY - 1:
                    transaction.commit()
                    transaction = env.begin(write=True)
            transaction.put(LABELS, split.labels.numpy().tobytes())
            transaction.put(KEYS, names_record)
            transaction.put(META, json.dumps({'format': FORMAT, 'samples': len(names), 'classes': classes}).encode())
            transaction.commit()
            env.sync(True)
            env.close()
    except (OSError, lmdb.Error) as error:
        raise UserError(f'{path}: cannot be written ({error}); an earlier file is unchanged') from error


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=path)
    parser.add_argument('out', type=path)
    opt = parser.parse_args()
    folder, out = Path(opt.folder), Path(opt.out)
    splits, classes = scan(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{out}: cannot be made ({error.strerror}); give a folder that you may write') from error
    for split in splits.values():
        write_split(split, folder, classes, out / f'{split.name}.lmdb')
        print(f'{out / split.name}.lmdb: {counted(len(split.files), "image")}, {counted(len(classes), "class")}')


if __name__ == '__main__':
    run_main(main)
