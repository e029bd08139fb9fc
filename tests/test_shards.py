"""Tar shards: the images of a folder, the order of an epoch, a server that ends, and what is refused."""
import contextlib
import functools
import gzip
import io
import json
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import CLASSES, CPU, assert_same, data_options, free_port, outcome, write_images

import dataset
import train_teacher
from dataset import shard_files, shards
from dataset.folder import scan
from dataset.order import WINDOW, EpochOrder, shuffle_shards
from dataset.shard_index import Index, Shard, read_index, read_shard, split_name
from dataset.shards import ShardSplit
from dataset.source import SourceError, Subset, sample_indices
from dataset.worker_loader import WorkerLoader
from helper.checkpoint import load_checkpoint
from helper.errors import UserError
from options import teacher_options
from scripts import make_shards


def write_tar(path, files):
    """A tar file of {name: bytes}."""
    with tarfile.open(path, 'w') as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def refused(call, capfd, *arguments):
    """The line of scripts/make_shards.py with these arguments, which fails."""
    with pytest.raises(SystemExit) as caught:
        call(make_shards.main, *arguments)
    error = capfd.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1, error
    return error


@pytest.fixture(scope='module')
def many(tree, call, tmp_path_factory):
    """The tree in shards of 3 images: 16 for training, 8 for testing."""
    out = tmp_path_factory.mktemp('many')
    call(make_shards.main, '--data_dir', tree, '--out', out, '--shard_size', 3)
    return out


@pytest.fixture(scope='module')
def in_order(tree, call, tmp_path_factory):
    """Foreign shards without an index, whose images have the order of the folder: 4 for training, 1 for testing."""
    out = tmp_path_factory.mktemp('in_order')
    for name, split in scan(tree)[0].items():
        for i in range(0, len(split.files), 12 if name == 'train' else 24):
            samples = {}
            for j in range(i, i + (12 if name == 'train' else 24)):
                samples |= {f'{j:04d}.png': split.content(j)[1], f'{j:04d}.json': b'{}',
                            f'{j:04d}.cls': f'{int(split.labels[j])}\n'.encode()}
            write_tar(out / f'mine-{name}-{i:03d}.tar', samples)
    return out


def batches(opt):
    data = dataset.get_dataloaders(opt, CPU)
    return data, [*data.train_loader, *data.test_loader, *data.unaugmented_loader()]


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
def test_the_same_batches_as_of_a_folder(tree, in_order, capfd, images_in):
    more = {'images_in': images_in, 'train_fraction': 0.5, 'num_workers': 0}
    expected, wanted = batches(data_options(data_dir=str(tree), **more))
    data, found = batches(data_options(dataset=f'wds:{in_order}', **more))
    assert f'{in_order} has no shards.json, so 5 shards will be read through at each start; python ' \
           f'scripts/make_shards.py --index {in_order} writes it' in capfd.readouterr().out
    assert data.classes == ('0', '1', '2', '3') and data.inputs == expected.inputs and data.images_in == images_in
    assert data.sizes == '24 training images, 24 test images in test'
    for one, two in zip(found, wanted, strict=True):
        assert all(map(torch.equal, one, two))


def test_a_run_as_with_a_folder(call, small, tree, in_order, tmp_path):
    """The same weights and results to the bit, from disk with two workers."""
    arguments = ['--model', 'resnet8', *small, '--images_in', 'disk']
    call(train_teacher.main, *arguments, '--num_workers', 0, '--save_dir', tmp_path / 'folder')
    call(train_teacher.main, *arguments, '--dataset', f'wds:{in_order}', '--save_dir', tmp_path / 'shards')
    one, two = (outcome(tmp_path / name) for name in ('folder', 'shards'))
    assert_same({**one, 'classes': None}, {**two, 'classes': None})     # which names the classes


def test_the_order_of_an_epoch():
    """A permutation by the seed that reads from few shards at a time; few shards are shuffled as a whole."""
    shard = torch.arange(40).repeat_interleave(50)
    orders = [shuffle_shards(shard, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0].sort()[0], torch.arange(2000))
    places = torch.empty(2000, dtype=torch.int64)
    places[orders[0]] = torch.arange(2000)
    first, last = places.view(40, 50).min(1)[0], places.view(40, 50).max(1)[0]
    open_shards = [int(((first <= place) & (last >= place)).sum()) for place in range(2000)]
    assert max(open_shards) <= WINDOW + 1 and sum(open_shards[500:1500]) / 1000 > WINDOW - 1
    few = torch.arange(WINDOW).repeat_interleave(50)
    assert torch.equal(shuffle_shards(few, torch.Generator().manual_seed(1)),
                       torch.randperm(50 * WINDOW, generator=torch.Generator().manual_seed(1)))
    part = Subset(type('S', (), {'labels': shard, 'shards': shard, 'name': ''}), range(0, 2000, 3))
    order = EpochOrder(667, 8, True, False, 1, shards=part.shards)
    assert sorted(i for batch in order for i, _ in batch) == sorted({i for batch in order for i, _ in batch})


def test_facts_of_all_images_are_estimated_from_the_first_shards(many, tree):
    """Evenly spaced images would need all shards."""
    train = ShardSplit(shard_files.LocalShards(many), read_index(many / 'shards.json', '').shards[:16], 'train')
    assert [*sample_indices(train, 5)] == [0, 1, 2, 3, 4] and [*sample_indices(train, 50)] == [*range(48)]
    assert [*sample_indices(scan(tree)[0]['train'], 5)] == [0, 10, 20, 30, 40]


def test_each_image_once_over_two_ranks_and_two_workers(many, tree):
    opt = data_options(dataset=f'wds:{many}', batch_size=4, channels_last=False)
    (source, test), classes = (parts := shards.open_sources(opt))[0].values(), parts[1]
    assert classes == list(CLASSES) and (source.name, test.name) == ('train', 'test')
    folder = scan(tree)[0]
    assert {name: int(label) for name, label in zip(source.names, source.labels, strict=True)} == \
        {name: int(label) for name, label in zip(folder['train'].names, folder['train'].labels, strict=True)}
    assert test.names == folder['test'].names and source.names != folder['train'].names
    for part in (source, test):
        files, number = folder[part.name], {name: i for i, name in enumerate(folder[part.name].names)}
        assert all(part.content(i)[1] == files.content(number[name])[1] for i, name in enumerate(part.names))
    loaders = [WorkerLoader(source, opt, CPU, train, rank=rank, world_size=2)
               for train in (True, False) for rank in (0, 1)]
    epochs = [[index for _, _, index in loader] for loader in loaders]
    epochs += [[index for _, _, index in loader] for loader in loaders[:2]]
    for one, two in zip(epochs[::2], epochs[1::2], strict=True):
        assert sorted(torch.cat(one + two).tolist()) == list(range(48))
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[4]))


@pytest.fixture(scope='module')
def whole(call, small, many, tmp_path_factory):
    """(arguments of a run of 2 epochs with 6 steps each, its result)."""
    arguments = ['--model', 'resnet8', *small, '--images_in', 'disk', '--batch_size', 8, '--epochs', 2,
                 '--normalise', 'usual', '--num_workers', 0]
    save = tmp_path_factory.mktemp('whole')
    call(train_teacher.main, *arguments, '--dataset', f'wds:{many}', '--save_dir', save)
    return arguments, outcome(save)


class Server:
    """A web server of a folder, on this machine, in threads of this process."""

    def __init__(self, folder):
        self.handler = functools.partial(SilentHandler, directory=folder)
        self.server, self.port = None, free_port()
        self.url = f'http://127.0.0.1:{self.port}'
        self.start()

    def start(self):
        self.server = ThreadingHTTPServer(('127.0.0.1', self.port), self.handler)
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        with contextlib.suppress(OSError):
            self.server.socket.shutdown(socket.SHUT_RDWR)       # worker processes that were forked hold it too
        self.server.server_close()


class SilentHandler(SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture
def server(many):
    pytest.importorskip('webdataset')
    running = Server(many)
    yield running
    running.stop()


def test_a_server_that_ends(call, many, whole, server, tmp_path, at_step, capfd):
    """The run ends in one line, and continues to the same weights. The folder keeps its size."""
    size = read_index(many / 'shards.json', '').shards[0].bytes
    arguments = [*whole[0], '--dataset', f'wds:{server.url}', '--save_dir', tmp_path, '--data_dir', tmp_path / 'data',
                 '--num_workers', 1, '--shard_cache_gb', 10 * size / 1e9, '--skip_bad_images']
    at_step(7, server.stop)
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, *arguments)
    error = capfd.readouterr().err
    assert caught.value.code == 2 and error.startswith(f'error: {server.url}/train-') and error.count('\n') == 1
    assert re.search(r'cannot be fetched \((no server answers|the server ended the connection)\); check the address '
                     r'and the server, then run the same', error)
    assert load_checkpoint(str(next(tmp_path.glob('models/*/last.pth'))), '')['epoch'] == 2
    server.start()
    call(train_teacher.main, *arguments, '--resume', 'auto')
    assert_same(outcome(tmp_path), whole[1])
    names = os.listdir(tmp_path / 'data' / 'shards')
    assert 9 <= sum(name.endswith('.tar') for name in names) <= 11 and not any(name.endswith('.tmp') for name in names)


def open_sources(location, **changes):
    """The splits of --dataset wds:location."""
    return shards.open_sources(data_options(dataset=f'wds:{location}', **changes))[0]


def test_what_a_server_gives(many, server, tmp_path):
    """The images and checksums of the local shards; of a pattern only its shards."""
    opt = {'data_dir': str(tmp_path)}
    names = [shard.name for shard in read_index(many / 'shards.json', '').shards]
    parts = open_sources(f'{server.url}/{{{names[0]},{names[-1]}}}', **opt)
    assert [len(part.labels) for part in parts.values()] == [3, 3]
    train, local = (open_sources(location, **opt)['train'] for location in (server.url, many))
    assert train.content(5) == local.content(5) and train.checksum() == local.checksum()
    train.tars[0].crc32 ^= 1
    with pytest.raises(SourceError, match='train-000000.tar: is not the shard of the index .its checksum differs'):
        train.content(0)


def test_make_shards_of_a_server(call, many, server, tmp_path, capfd):
    """It checks them, and writes their index into a folder."""
    call(make_shards.main, '--check', server.url)
    assert f'{server.url}: 24 shards, 72 images: all as in shards.json' in capfd.readouterr().out
    assert 'a server does not list its files; give' in refused(call, capfd, '--index', server.url)
    last = read_index(many / 'shards.json', '').shards[-1]
    call(make_shards.main, '--index', f'{server.url}/{{train-000000.tar,{last.name}}}', '--out', tmp_path / 'index')
    index = read_index(tmp_path / 'index' / 'shards.json', '')
    assert index.location == server.url and [shard.name for shard in index.shards] == ['train-000000.tar', last.name]
    test = open_sources(tmp_path / 'index', data_dir=str(tmp_path))['test']
    assert test.content(1)[1] == read_file(many / last.name, last, 1)


@pytest.mark.parametrize('location, changes, words', [
    ('SERVER', {'shard_cache_gb': 1e-6}, '--shard_cache_gb 1e-06: an epoch reads 9 shards at the same time, which are '
                                         'up to .* MB; give --shard_cache_gb 9.2e-05 or more'),
    ('SERVER/no', {}, r"no/shards.json: cannot be fetched \(the server has no such file or refuses it\).*"
                      r"make_shards.py --index 'http.*/no/train-\{000000..000009\}.tar' --out"),
    *((url, {}, 'give an address that begins with http://, https://, s3://')
      for url in ('pipe://x', 'http://a b', 'http://x/$(id)')),
    ('s3://x/y', {}, 's3://x/y/shards.json: webdataset cannot open it .* set GOPEN_REWRITE')])
def test_refused_addresses(server, tmp_path, location, changes, words):
    with pytest.raises(UserError, match=words):
        open_sources(location.replace('SERVER', server.url), data_dir=str(tmp_path), **changes)


def test_what_is_not_installed(server, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(SourceError, match='needs the program curl, which is not installed'):
        shard_files.download(server.url, io.BytesIO())
    monkeypatch.setitem(sys.modules, 'webdataset', None)
    with pytest.raises(UserError, match='webdataset is not installed; pip install webdataset'):
        open_sources(server.url, data_dir=str(tmp_path))


@pytest.mark.parametrize('answer', [b'', b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc'])
def test_a_server_that_falls_silent(call, tmp_path, monkeypatch, capfd, answer):
    """Before and after the first bytes: one line that names the address, and no folder is left."""
    pytest.importorskip('webdataset')
    monkeypatch.setattr(shard_files, 'SILENCE', 0.2)
    connections = []
    with socket.create_server(('127.0.0.1', 0)) as listening:
        def accept():
            connections.append(listening.accept()[0])
            connections[0].sendall(answer)
        threading.Thread(target=accept).start()
        url = f'http://127.0.0.1:{listening.getsockname()[1]}/train-0.tar'
        error = refused(call, capfd, '--index', url, '--out', tmp_path / 'out')
        connections[0].close()
    assert f'{url}: cannot be fetched (nothing came for too long); check the address and the server' in error
    assert not [*tmp_path.iterdir()]


def read_file(path, shard, i):
    """The bytes of image i in the tar at `path`."""
    with open(path, 'rb') as file:
        file.seek(shard.offsets[i])
        return file.read(shard.sizes[i])


def test_the_library_reads_and_writes_the_same(many, tree, tmp_path):
    webdataset = pytest.importorskip('webdataset')
    index = read_index(many / 'shards.json', '')
    shard = index.shards[0]
    samples = [*webdataset.WebDataset(str(many / shard.name), shardshuffle=False)]
    assert [(f'{s["__key__"]}.png', int(s['cls'])) for s in samples] == \
        [*zip(shard.members, shard.labels, strict=True)]
    assert [s['png'] for s in samples] == [read_file(many / shard.name, shard, i) for i in range(3)]
    with webdataset.TarWriter(str(tmp_path / 'train-0.tar'), encoder=False) as tar:
        for sample in samples:
            tar.write({name: content for name, content in sample.items() if name in ('__key__', 'png', 'cls')})
    found = read_shard(tmp_path / 'train-0.tar')
    assert (found.members, found.labels, found.sizes) == (shard.members, shard.labels, shard.sizes)


def test_make_shards_is_interrupted(call, tree, many, tmp_path, monkeypatch, capfd):
    """No half shard has a final name; the same command continues, and the files are the same to the bit."""
    arguments = ['--data_dir', tree, '--out', tmp_path / 'out', '--shard_size', 3]
    original, left = make_shards.add, [33]

    def add(tar, name, content):
        left[0] -= 1
        if not left[0]:
            raise OSError(28, 'No space left on device')
        original(tar, name, content)
    monkeypatch.setattr(make_shards, 'add', add)
    assert 'train-000005.tar: cannot be written (No space left on device)' in (
        error := refused(call, capfd, *arguments)) and 'after a remedy the same command continues' in error
    assert sorted(os.listdir(tmp_path / 'out')) == ['.lock', *(f'train-00000{i}.tar' for i in range(5))]
    before = (tmp_path / 'out' / 'train-000004.tar').stat()
    call(make_shards.main, *arguments)
    assert (tmp_path / 'out' / 'train-000004.tar').stat().st_mtime == before.st_mtime
    for file in many.glob('*.*'):
        assert (tmp_path / 'out' / file.name).read_bytes() == file.read_bytes()
    assert 'train: 48 images in 16 shards' in capfd.readouterr().out


def copy(many, folder):
    """The files of `many` in another folder, and its index as JSON."""
    folder.mkdir()
    for file in many.glob('*.*'):
        shutil.copy(file, folder)
    return json.loads((folder / 'shards.json').read_text())


def change_byte(file, at):
    """Change a byte of a file."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_other_shards_stay(call, tree, many, tmp_path, capfd):
    arguments = ['--data_dir', tree, '--out', tmp_path / 'out', '--shard_size']
    copy(many, tmp_path / 'out')
    assert 'train-000000.tar holds other images, of another folder, --seed or' in \
        refused(call, capfd, *arguments, 3, '--seed', 1)
    assert 'holds other files (test-000003.tar, test-000004.tar' in refused(call, capfd, *arguments, 8)
    call(make_shards.main, '--check', tmp_path / 'out')
    change_byte(tmp_path / 'out' / 'test-000001.tar', 700)
    assert '1 of 24 shards: test-000001.tar differs from shards.json' in \
        refused(call, capfd, '--check', tmp_path / 'out')


@pytest.mark.parametrize('flags', ['--data_dir /nowhere', '--index /nowhere/train-0.tar'])
def test_no_folder_is_left_of_a_wrong_command(call, tmp_path, capfd, flags):
    assert '/nowhere' in refused(call, capfd, *flags.split(), '--out', tmp_path / 'out')
    assert not [*tmp_path.iterdir()]


def test_a_folder_without_a_test_set(call, tmp_path, capfd):
    """Odd names, files that are no images, sizes in MB, and --split as with the folder."""
    write_images(tmp_path / 'images', 6, classes=('all', 'b.c'))
    for name in ('0.a.png', '0_a.png', '0.a.PNG'):
        (tmp_path / 'images' / 'b.c' / name).write_bytes((tmp_path / 'images' / 'all' / '0.png').read_bytes())
    (tmp_path / 'images' / 'all' / 'notes.txt').write_text('x')
    call(make_shards.main, '--data_dir', tmp_path / 'images', '--out', tmp_path / 'out', '--shard_size', '1MB')
    out = capfd.readouterr().out
    assert '1 file left out: 1 .txt' in out and 'all: 15 images in 1 shard' in out and '--split 0.8,0.2' in out
    shard, = read_index(tmp_path / 'out' / 'shards.json', '').shards
    assert sorted(shard.members) == [*(f'all/{i}.png' for i in range(6)), 'b.c/0.png', 'b.c/0_a.PNG', 'b.c/0_a_.png',
                                     'b.c/0_a__.png', *(f'b.c/{i}.png' for i in range(1, 6))]
    opt = data_options(dataset=f'wds:{tmp_path / "out"}', split=[0.8, 0.2], batch_size=4)
    data = dataset.get_dataloaders(opt, CPU)
    assert data.sizes == '12 training images, 3 test images in --split 0.8,0.2' and data.classes == ('all', 'b.c')
    with pytest.raises(UserError, match='needs shards whose names contain train and one of test.*all-000000.tar'):
        dataset.get_dataloaders(data_options(**{**vars(opt), 'split': None}), CPU)


def test_an_index_of_foreign_shards(call, in_order, tmp_path, capfd):
    (tmp_path / 'names').write_text('\n'.join(CLASSES))
    call(make_shards.main, '--index', in_order, '--out', tmp_path, '--classes', tmp_path / 'names')
    index = read_index(tmp_path / 'shards.json', '')
    assert index.location == str(in_order) and index.classes == list(CLASSES)
    assert shards.open_sources(data_options(dataset=f'wds:{tmp_path}'))[1] == list(CLASSES)
    call(make_shards.main, '--index', in_order, '--out', tmp_path)      # keeps the names
    assert read_index(tmp_path / 'shards.json', '') == index
    (tmp_path / 'names').write_text('ant\nbee')
    assert 'mine-test-000.tar: 0012.png: its label is 2, but there are 2 classes, from 0; give --classes FILE' in \
        refused(call, capfd, '--index', in_order, '--out', tmp_path, '--classes', tmp_path / 'names')
    with pytest.raises(UserError, match=r'no shard mine-train-999.tar; there are mine-'):
        open_sources(f'{tmp_path}/mine-train-999.tar')


def test_names():
    """What the name of a shard and of its members mean."""
    assert split_name('ant/1.seg.PNG') == ('ant/1', 'seg.png') and split_name('.x') == ('', 'x')
    assert [Shard(name, 0, 0).split for name in ('in1k-train-0.tar', 'train_val-1.tar', 'trained.tar')] == \
        ['train', 'val', 'all']
    with pytest.raises(UserError, match='--dataset wds:: give a folder or URL, or FOLDER_OR_URL/train-'):
        open_sources('')


@pytest.mark.parametrize('flags, words', [
    ('--dataset folder --shard_cache_gb 3', '--shard_cache_gb 3: not for --dataset folder; it goes with wds'),
    ('--dataset wds:x --dali cpu', '--dali cpu: not for --dataset wds:x; it goes with imagenet, imagenette'),
    ('--dataset wds', '--dataset wds: no such data set; .*wds:FOLDER_OR_URL')])
def test_flags_that_do_not_go_together(flags, words):
    with pytest.raises(UserError, match=words):
        teacher_options(flags.split())


SAMPLE = {'1.png': b'1', '1.cls': b'0'}


@pytest.mark.parametrize('files, words', [
    ({'1.png': b'1'}, '1.png has no class: 1.cls is missing'),
    ({**SAMPLE, '1.cls': b'cat'}, '1.cls holds "cat", which is no number of a class'),
    ({**SAMPLE, '1.jpg': b'1'}, '1.png and 1.jpg are images of the same key'),
    ({'1.cls': b'0'}, 'it holds no image; images are .jpg')])
def test_refused_tars(tmp_path, files, words):
    write_tar(tmp_path / 'x.tar', files)
    with pytest.raises(SourceError, match=f'x.tar: no shard that can be read .{words}'):
        read_shard(tmp_path / 'x.tar')


def test_damaged_tars(many, tmp_path):
    """A byte of a header, a cut at any place, and a compressed or another file."""
    whole = (many / 'train-000000.tar').read_bytes()
    end = read_shard(many / 'train-000000.tar').offsets[1]
    header = slice(end - 512, end - 412)        # of the second image: its name
    for content in (b'', b'x' * 2000, whole[:header.start] + b'y' * 100 + whole[header.stop:], gzip.compress(whole),
                    *(whole[:n] for n in (100, 512, 700, header.start, header.stop, end, end + 10))):
        (tmp_path / 'x.tar').write_bytes(content)
        with pytest.raises(SourceError, match='x.tar: no shard that can be read'):
            read_shard(tmp_path / 'x.tar')


SHARD = {'name': 'train-0.tar', 'bytes': 9000, 'crc32': 1, 'members': ['1.png', '2.png'], 'labels': [0, 1],
         'offsets': [512, 2048], 'sizes': [9, 9]}


@pytest.mark.parametrize('change, words', [
    ({'shards': [{**SHARD, 'labels': [0, 9]}]}, 'its label is 9, but there are 4 classes'),
    ({'shards': [{**SHARD, 'sizes': [1, 10**9]}]}, 'its numbers contradict each other'),
    ({'shards': [{**SHARD, 'sizes': [1]}]}, 'its numbers contradict each other'),
    ({'shards': [Shard('x.tar', 1, 1).__dict__]}, 'its numbers contradict each other'),
    ({'shards': []}, 'it lists no shard'),
    ({'shards': [{**SHARD, 'name': '../x.tar'}]}, 'no name of a shard, as train-000000.tar'),
    ({'shards': [SHARD, SHARD]}, 'train-0.tar is listed twice'), ({'shards': [{'x': 1}]}, 'argument'),
    ({'format': 'x'}, 'its format is not "tar shards'), ({'classes': [1]}, 'a class has no name'),
    ({'shards': 1}, 'not iterable')])
def test_damaged_indices(tmp_path, change, words):
    Index(list(CLASSES), [Shard(**SHARD)]).write(tmp_path / 'shards.json')
    index = json.loads((tmp_path / 'shards.json').read_text())
    (tmp_path / 'shards.json').write_text(json.dumps({**index, **change}))
    with pytest.raises(UserError, match=f'no index of shards that can be used .*{words}.*make_shards.py --index'):
        open_sources(tmp_path)


def test_an_unreadable_image_is_skipped(many, tmp_path, capfd):
    shard = copy(many, tmp_path / 'out')['shards'][3]
    change_byte(tmp_path / 'out' / 'train-000003.tar', shard['offsets'][0])
    data = dataset.get_dataloaders(data_options(dataset=f'wds:{tmp_path / "out"}', skip_bad_images=True, num_workers=0,
                                                images_in='disk'), CPU)
    assert sum(len(index) for _, _, index in data.unaugmented_loader()) == 47
    assert f'1 unreadable image skipped: train-000003.tar: {shard["members"][0]}: not a readable image' in \
        capfd.readouterr().out


def test_a_missing_shard_is_not_skipped(many, tmp_path):
    """Missing while a run reads it, and before; of another size; and cut short without an index."""
    copy(many, tmp_path / 'out')
    opt = data_options(dataset=f'wds:{tmp_path / "out"}', skip_bad_images=True, num_workers=0, images_in='disk')
    data, file = dataset.get_dataloaders(opt, CPU), tmp_path / 'out' / 'train-000003.tar'
    content = file.read_bytes()
    file.unlink()
    for loader in (data.train_loader, data.unaugmented_loader()):
        with pytest.raises(SourceError, match='train-000003.tar: cannot be read .No such file or directory.; copy it'):
            list(loader)
    with pytest.raises(UserError, match='train-000003.tar: is missing; copy it again, or write the index again'):
        shards.open_sources(opt)
    file.write_bytes(content[:-512])
    with pytest.raises(UserError, match=f'train-000003.tar: has {len(content) - 512} bytes, not {len(content)}; copy'):
        shards.open_sources(opt)
    (tmp_path / 'out' / 'shards.json').unlink()
    file.write_bytes(content[:600])
    with pytest.raises(SourceError, match='train-000003.tar: no shard that can be read'):
        shards.open_sources(opt)


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(UserError, match=f'{tmp_path}: holds no tar file; python scripts/make_shards.py --data_dir'):
        open_sources(tmp_path)
