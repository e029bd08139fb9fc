"""Published teachers: fetched, checked, recognised and transformed. The server is a thread of this process."""
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Hostile

import train_student
import train_teacher
from helper.checkpoint import load_checkpoint, load_weights, save_checkpoint
from helper.errors import UserError
from models import model_dict
from models.load import load_net, open_checkpoint
from models.recognise import recognise
from option_checkpoints import open_teacher, set_preprocessing
from options import student_options
from scripts import check_teacher, model_transform

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ('sh', 'dirname', 'mkdir', 'mv', 'rm', 'tr', 'cmp')    # what the scripts call beside curl and wget
TOOLS = [pytest.param(tool, marks=pytest.mark.skipif(not shutil.which(tool), reason=f'no {tool} here'))
         for tool in ('curl', 'wget')]


class Server(ThreadingHTTPServer):
    """Serves files[path] from memory; requests holds (path, Range header) of every request."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.requests, self.ranges, self.cut = {}, [], True, None
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, name, content):
        self.files[f'/{name}_vanilla/ckpt_epoch_240.pth'] = content


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        wanted = self.headers['Range']
        self.server.requests.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix('bytes=').rstrip('-')) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(content)}')
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:self.server.cut])     # cut: the connection breaks off there


@pytest.fixture
def server():
    with Server() as server:
        yield server
        server.shutdown()


@pytest.fixture
def fetch(server, tmp_path):
    """fetch(*names, tool=, whole=): run the script with only that tool on the PATH, into tmp_path.

    With `whole` (bytes) the check is a comparison with them, which takes no seconds to import torch.
    """
    def run(*names, tool='curl', whole=None):
        bin = tmp_path / f'bin_{tool}'
        bin.mkdir(exist_ok=True)
        for program in (*NEEDED, tool):
            if shutil.which(program) and not (bin / program).exists():
                (bin / program).symlink_to(shutil.which(program))
        python = sys.executable
        if whole is not None:
            (tmp_path / 'whole').write_bytes(whole)
            python = tmp_path / 'python'
            python.write_text(f'#!/bin/sh\ncmp -s "$2" "{tmp_path}/whole" && echo "$3 ok" && exit\n'
                              f'echo "error: teacher $2: cut short" >&2\nexit 2\n')
            python.chmod(0o755)
        return subprocess.run(['sh', ROOT / 'scripts' / 'fetch_pretrained_teachers.sh', *names], text=True,
                              capture_output=True,
                              env={**os.environ, 'PATH': str(bin), 'PYTHON': str(python), 'TEACHER_URL': server.url,
                                   'TEACHER_DIR': str(tmp_path / 'models'), 'no_proxy': '*', 'OMP_NUM_THREADS': '1'})
    return run


@pytest.fixture
def place(tmp_path):
    """place(name): the path of the teacher's file."""
    return lambda name: tmp_path / 'models' / f'{name}_vanilla' / 'ckpt_epoch_240.pth'


def names_in(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


BYTES = random.Random(0).randbytes(200_000)
NAME = 'ckpt_epoch_240.pth'


def checkpoint_bytes(path, state, **kwargs):
    torch.save(state, path, **kwargs)
    return path.read_bytes()


def teacher_bytes(path, name):
    """In the published format: torch 1.0's, with the accuracy as a tensor."""
    return checkpoint_bytes(path, {'epoch': 240, 'model': model_dict[name](num_classes=100).state_dict(),
                                   'accuracy': torch.tensor([72.34])}, _use_new_zipfile_serialization=False)


@pytest.mark.skipif(not shutil.which('curl'), reason='no curl here')
def test_good_and_bad_teachers(server, fetch, place, tmp_path):
    """One run for a complete, a hostile, a cut, a wrong and a missing file fetches the first and names the others."""
    mark = tmp_path / 'ran'
    whole = teacher_bytes(tmp_path / 'a', 'resnet56')
    server.put('resnet56', whole)
    server.put('resnet110', checkpoint_bytes(tmp_path / 'b', {'model': Hostile(mark)}))
    server.put('wrn_40_2', teacher_bytes(tmp_path / 'c', 'wrn_40_2')[:1_000_000])
    server.put('vgg13', whole)
    done = fetch('resnet110', 'wrn_40_2', 'vgg13', 'ResNet50', 'resnet56')
    assert done.returncode == 1 and not mark.exists()
    assert place('resnet56').read_bytes() == whole
    assert 'resnet56 ok: 100 classes, 861,620 parameters, epoch 240, accuracy 72.34, in ' in done.stdout
    errors = done.stderr.splitlines()
    for line, words in zip(errors, (('resnet110', 'refused', 'posix.system'), ('wrn_40_2', 'cut short'),
                                    ('vgg13', 'not the weights of vgg13 with 100 classes'), ('ResNet50', '404'),
                                    ('resnet110 wrn_40_2 vgg13 ResNet50; run this again',)), strict=True):
        assert line.startswith('error: ') and all(word in line for word in words), line
    for name in ('resnet110', 'wrn_40_2', 'vgg13', 'ResNet50'):
        assert names_in(place(name).parent) == []

    server.requests.clear()
    again = fetch('resnet56', whole=whole)
    assert again.returncode == 0 and again.stdout == f'resnet56 ok, already in {place("resnet56")}\n'
    assert server.requests == [] and names_in(place('resnet56').parent) == [NAME]


@pytest.mark.parametrize('tool', TOOLS)
def test_broken_off_and_resumed(server, fetch, place, tool):
    server.put('resnet56', BYTES)
    server.cut = 70_000
    done = fetch('resnet56', tool=tool, whole=BYTES)
    assert done.returncode == 1 and done.stderr.startswith('error: resnet56: not fetched: ')
    assert names_in(place('resnet56').parent) == [f'{NAME}.part']
    server.cut = None
    done = fetch('resnet56', tool=tool, whole=BYTES)
    assert done.returncode == 0 and done.stderr == '' and 'resumed' in done.stdout
    assert server.requests == [(f'/resnet56_vanilla/{NAME}', None), (f'/resnet56_vanilla/{NAME}', 'bytes=70000-')]
    assert place('resnet56').read_bytes() == BYTES and names_in(place('resnet56').parent) == [NAME]


@pytest.mark.parametrize('tool', TOOLS)
@pytest.mark.parametrize('part', [BYTES, BYTES[::-1], BYTES + b'more', BYTES[1000:3000]],
                         ids=['complete', 'garbage', 'too long', 'of another file'])
def test_complete_and_wrong_parts(server, fetch, place, tool, part):
    """A complete .part is used as it is (the server returns 416); a wrong one is fetched from the start."""
    server.put('resnet56', BYTES)
    place('resnet56').parent.mkdir(parents=True)
    place('resnet56').with_name(f'{NAME}.part').write_bytes(part)
    done = fetch('resnet56', tool=tool, whole=BYTES)
    assert (done.returncode, done.stderr) == (0, '')
    assert place('resnet56').read_bytes() == BYTES and names_in(place('resnet56').parent) == [NAME]
    assert [wanted for _, wanted in server.requests] == [f'bytes={len(part)}-', *([None] if part != BYTES else [])]


@pytest.mark.parametrize('tool', TOOLS)
def test_a_server_that_cannot_resume(server, fetch, place, tool):
    server.put('resnet56', BYTES)
    server.ranges = False
    place('resnet56').parent.mkdir(parents=True)
    place('resnet56').with_name(f'{NAME}.part').write_bytes(BYTES[:500])
    done = fetch('resnet56', tool=tool, whole=BYTES)
    assert (done.returncode, done.stderr) == (0, '')
    assert place('resnet56').read_bytes() == BYTES and names_in(place('resnet56').parent) == [NAME]


@pytest.mark.parametrize('tool', TOOLS)
def test_a_damaged_file_is_set_aside(server, fetch, place, tool):
    place('resnet56').parent.mkdir(parents=True)
    place('resnet56').write_bytes(BYTES[:999])
    done = fetch('resnet56', tool=tool, whole=BYTES)          # 404: nothing may be left under the final name
    assert done.returncode == 1 and 'set aside as' in done.stdout and '404' in done.stderr
    assert names_in(place('resnet56').parent) == [f'{NAME}.damaged']
    server.put('resnet56', BYTES)
    assert fetch('resnet56', tool=tool, whole=BYTES).returncode == 0
    assert place('resnet56').read_bytes() == BYTES


def test_what_cannot_be_started(server, fetch, place, tmp_path):
    for name in ('resnet57', '', 'resnet56 resnet110', '../resnet56'):
        done = fetch('resnet56', name)
        assert done.returncode == 2 and done.stdout == '' and done.stderr == (
            f'error: {name}: no such published teacher; '
            f'there are: wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50\n')
    done = fetch('resnet56', tool='neither')
    assert done.returncode == 2 and done.stderr == 'error: neither curl nor wget is here; install one of them\n'
    assert server.requests == [] and not (tmp_path / 'models').exists()
    (tmp_path / 'models').touch()
    done = fetch('resnet56')
    assert done.returncode == 1 and done.stderr.startswith('error: resnet56: not fetched: mkdir: ')


def test_a_check_that_does_not_run_blames_no_file(place, tmp_path):
    """Without torch a complete file must not count as damaged."""
    place('resnet56').parent.mkdir(parents=True)
    place('resnet56').write_bytes(BYTES)
    (tmp_path / 'python').write_text('#!/bin/sh\necho "no module named torch" >&2\nexit 1\n')
    (tmp_path / 'python').chmod(0o755)
    env = {**os.environ, 'PYTHON': str(tmp_path / 'python'), 'TEACHER_DIR': str(tmp_path / 'models')}
    done = subprocess.run(['sh', ROOT / 'scripts' / 'fetch_pretrained_teachers.sh', 'resnet56'], env=env, text=True,
                          capture_output=True)
    assert done.returncode == 1 and 'check_teacher.py does not run: no module named torch' in done.stderr
    assert names_in(place('resnet56').parent) == [NAME]


def test_check_teacher(call, tmp_path, capsys):
    path = tmp_path / 'net.pth'
    for model, arch in (('ResNet18', 'ResNet18_cifar'), ('resnet8', 'resnet8')):      # the form with the 3x3 stem
        torch.save({'model': model_dict[arch](num_classes=10).state_dict(), 'epoch': 3, 'best_acc': 50.125}, path)
        call(check_teacher.main, path, model, '--num-classes', 10)
        out = capsys.readouterr().out
        assert out.startswith(f'{model} ok: 10 classes, ') and out.endswith(', epoch 3, best accuracy 50.12\n')
    for arguments, words in (((path, 'resnet8'), 'not the weights of resnet8 with 100 classes: fc.weight is (10, 64)'),
                             ((path, 'resnet9'), 'no such model; did you mean'),
                             ((path, 'resnet8', '--num_classes', '0'), 'give a whole number of at least 1'),
                             ((tmp_path / 'x', 'resnet8'), 'no such file'), ((path,), 'required: MODEL')):
        with pytest.raises(SystemExit) as caught:
            call(check_teacher.main, *arguments)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and error.count('\n') == 1 and words in error


@pytest.mark.parametrize('name', model_dict)
def test_every_net_is_recognised(name):
    with torch.device('meta'):
        weights = model_dict[name](num_classes=7).state_dict()
    assert recognise(weights) == (name, 7)
    assert recognise({k: v for k, v in weights.items() if not k.endswith('num_batches_tracked')}) == (name, 7)
    first = next(iter(weights))
    with pytest.raises(UserError, match=f'^x: matches no net .*nearest: {name}(, |; )') as caught:
        recognise({**{k: v for k, v in weights.items() if k != first}, 'other': weights[first]}, 'x')
    shape = tuple(weights[first].shape)
    assert str(caught.value).endswith(f'; {first} is missing, {name} has {shape}, and 1 more')


def test_what_is_no_net():
    for weights in ({}, {'a': torch.zeros(2)}, {'epoch': 3, 'fc.bias': 'ten'}):
        with pytest.raises(UserError, match='^weights: no key and shape in it fits a net'):
            recognise(weights)


@pytest.fixture(scope='module')
def resnet18():
    """torchvision's resnet18 with random weights and running statistics of one batch."""
    from torchvision.models import resnet18
    net = resnet18(weights=None)
    net(torch.rand(2, 3, 64, 64))
    return net.eval()


FORMS = {
    'plain': lambda state: state,
    'parallel': lambda state: {'state_dict': {f'module.{k}': v for k, v in state.items()}, 'epoch': 90},
    'model': lambda state: {'model': state, 'epoch': 90},
    'old': lambda state: {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')},
}


@pytest.mark.parametrize('form', FORMS)
def test_transform(call, resnet18, tmp_path, monkeypatch, capsys, form):
    monkeypatch.chdir(tmp_path)
    torch.save(FORMS[form](resnet18.state_dict()), 'in.pth')
    call(model_transform.main, 'in.pth')
    out = Path('save/models/ResNet18_vanilla/resnet18_transformed.pth')
    said = "IN in.pth: prefix 'module.' removed\n" if form == 'parallel' else ''
    assert capsys.readouterr().out == f'{said}ResNet18, 1000 classes: {out}\n' and names_in(out.parent) == [out.name]
    checkpoint = load_checkpoint(str(out), 'OUT')
    assert set(checkpoint) == {'model', 'arch', 'num_classes', 'format_version'}
    assert (checkpoint['arch'], checkpoint['num_classes']) == ('ResNet18', 1000)
    net = model_dict[checkpoint['arch']](num_classes=checkpoint['num_classes']).eval()
    load_weights(net, checkpoint['model'], 'OUT')
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(net(images), resnet18(images))


def test_transform_refuses(call, resnet18, tmp_path, capsys):
    state = resnet18.state_dict()
    whole = checkpoint_bytes(tmp_path / 'whole.pth', state)
    (tmp_path / 'cut.pth').write_bytes(whole[:len(whole) // 2])
    torch.save({k.replace('layer4.1.bn2.bias', 'layer4.1.bn3.bias'): v for k, v in state.items()}, tmp_path / 'odd.pth')
    torch.save({**state, 'fc.bias': torch.zeros(1000, dtype=torch.int64)}, tmp_path / 'whole_numbers.pth')
    torch.save({'model': Hostile(tmp_path / 'ran')}, tmp_path / 'hostile.pth')
    (tmp_path / 'folder').mkdir()
    out = tmp_path / 'out.pth'
    out.write_bytes(b'older')
    for arguments, words in (
            (('cut.pth', out), 'not a PyTorch checkpoint, or cut short'),
            (('odd.pth', out), 'matches no net of models.model_dict; nearest: ResNet18, ResNet18_cifar, ResNet34; '),
            (('odd.pth', out), '; layer4.1.bn2.bias is missing, ResNet18 has (512,), and 1 more'),
            (('whole_numbers.pth', out), 'fc.bias is torch.int64'), (('hostile.pth', out), 'refused'),
            (('none.pth', out), 'no such file'), ((), 'give a file IN'), (('whole.pth', out, out), 'no more than one'),
            (('whole.pth', tmp_path / 'folder'), 'folder: cannot be written'),
            (('whole.pth', out / 'x.pth'), 'x.pth: cannot write ')):
        with pytest.raises(SystemExit) as caught:
            call(model_transform.main, *([tmp_path / arguments[0], *arguments[1:]] if arguments else []))
        error = capsys.readouterr().err
        assert caught.value.code == 2 and error.count('\n') == 1 and words in error
    assert out.read_bytes() == b'older' and not (tmp_path / 'ran').exists()
    assert names_in(tmp_path) == ['cut.pth', 'folder', 'hostile.pth', 'odd.pth', 'out.pth', 'whole.pth',
                                  'whole_numbers.pth']


def test_torchvision_weights(call, tmp_path, monkeypatch, capsys):
    """Weights come from torch's cache; without them and without a network there is an error of one line."""
    from torchvision import models
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'home'))
    asked = []

    def no_network(request, *args, **kwargs):
        asked.append(request.full_url)
        raise urllib.error.URLError('no network')
    monkeypatch.setattr(torch.hub, 'urlopen', no_network)
    out = tmp_path / 'new' / 'out.pth'
    for name, words in (('regnet_x_400mf', '--torchvision regnet_x_400mf: no key and shape in it fits a net'),
                        ('resnet43', 'torchvision has no such classifier; did you mean resnet34'),
                        ('resnet152', '--torchvision resnet152: matches no net of models.model_dict; nearest: '),
                        ('shufflenet_v2_x0_5', 'could not be downloaded (<urlopen error no network>); bring that')):
        with pytest.raises(SystemExit) as caught:
            call(model_transform.main, '--torchvision', name, out)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and error.count('\n') == 1 and words in error
    url = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url
    assert asked == [url] and not out.exists()        # a net that does not fit is refused before it is downloaded

    state = models.shufflenet_v2_x0_5(weights=None).state_dict()
    torch.save(state, tmp_path / 'home' / 'checkpoints' / url.rsplit('/', 1)[1])
    call(model_transform.main, '--torchvision', 'shufflenet_v2_x0_5', out)
    checkpoint = load_checkpoint(str(out), 'OUT')
    assert (checkpoint['arch'], checkpoint['num_classes']) == ('shufflenet_v2_x0_5', 1000)
    assert all(torch.equal(value, checkpoint['model'][key]) for key, value in state.items())


def test_preprocessing_of_a_teacher(call, small, tmp_path, capsys):
    """Another program's file: its library or the flags decide the preprocessing, and the size without --image_size."""
    timm = pytest.importorskip('timm')
    file = tmp_path / 'x.pth'
    torch.save({'state_dict': timm.create_model('resnet10t', num_classes=4).state_dict(), 'arch': 'resnet10t'}, file)
    flags = ['--path-t', str(file), '--model_t', 'timm:resnet10t', '--dataset', 'folder']
    tree = small[small.index('--data_dir') + 1]

    def seen(*more):
        opt = student_options([*flags, '--data_dir', str(tree), *more])
        opt.model_t, checkpoint = open_teacher(opt)
        set_preprocessing(opt, None, checkpoint)
        inputs = {'mean': [.5] * 3, 'std': [.25] * 3, 'size': opt.image_size, 'interpolation': 'bilinear',
                  'fit': 'crop'}
        net = load_net(str(file), checkpoint, opt.model_t, SimpleNamespace(num_classes=4, image_size=opt.image_size,
                                                                          inputs=inputs, classes=()))
        return net.inputs, opt.image_size
    inputs, size = seen()
    assert (inputs.size, inputs.mode, size) == (176, 'bicubic', 176)
    torch.testing.assert_close(inputs.scale.flatten(), .25 / torch.tensor([.229, .224, .225]))
    out = capsys.readouterr().out
    assert 'its net takes images of 176 pixels, so --image_size is 176\n' in out
    assert 'what its net has learnt from: mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225\n' in out
    inputs, size = seen('--mean_t', '0,0,0', '--std_t', '1,1,0.5', '--size_t', '40', '--interpolation_t', 'nearest',
                        '--image_size', '24')
    assert (inputs.size, inputs.mode, size) == (40, 'nearest', 24)
    torch.testing.assert_close(inputs.scale.flatten(), torch.tensor([.25, .25, .5]))
    torch.testing.assert_close(inputs.shift.flatten(), torch.tensor([.5, .5, 1.]))
    flags[3] = 'resnet14'       # of which no library says anything
    torch.save(model_dict['resnet14'](num_classes=4).state_dict(), file)
    with pytest.raises(UserError, match='--mean_t and --std_t: .* says neither; give both, or none'):
        seen('--mean_t', '0,0,0')
    assert seen('--mean_t', '0,0,0', '--std_t', '1,1,1')[0].size == 32
    save_checkpoint(file, {'model': model_dict['resnet14'](num_classes=4).state_dict(), 'arch': 'resnet14',
                           'num_classes': 4, 'inputs': {'mean': [.4] * 3, 'std': [.2] * 3, 'size': 48,
                                                        'interpolation': 'bilinear'}})
    with pytest.raises(UserError, match='--size_t 40: .* says that its net takes images with size 48; leave it'):
        seen('--size_t', '40')
    assert seen('--size_t', '48')[1] == 48
    with pytest.raises(UserError, match='--mean_t: 123,116,104: give three numbers of 0 to 1'):
        seen('--mean_t', '123,116,104')


def test_the_size_of_images(call, small, tmp_path, capsys):
    """A student uses its teacher's size, an evaluation its checkpoint's; parameters.json records it."""
    data = [*small[:4], *small[6:], '--save_dir', tmp_path]
    call(train_teacher.main, '--model', 'resnet8', *data, '--image_size', 24)
    teacher, = tmp_path.glob('models/*/resnet8_best.pth')
    call(train_student.main, '--path-t', teacher, '--model_s', 'timm:resnet10t', *data)
    student, = tmp_path.glob('student_model/*/*_best.pth')
    assert json.loads((student.parent / 'parameters.json').read_text())['image_size'] == 24
    assert load_checkpoint(str(student), '')['inputs']['size'] == 24
    out = capsys.readouterr().out
    assert f'--path-t {teacher}: its net takes images of 24 pixels, so --image_size is 24\n' in out
    assert ' 4 classes, 24 pixels, 48 training images' in out
    assert '--model_s timm:resnet10t: is made for images of 176 pixels, these have 24\n' in out
    call(train_teacher.main, '--evaluate', teacher, *data)
    assert 'so --image_size is 24\n' in capsys.readouterr().out


def test_a_teacher_that_diverged(tmp_path):
    weights = model_dict['resnet8'](num_classes=4).state_dict()
    weights['layer1.0.bn1.running_var'][3] = float('nan')
    save_checkpoint(tmp_path / 'x.pth', {'model': weights, 'arch': 'resnet8', 'num_classes': 4})
    checkpoint = open_checkpoint(str(tmp_path / 'x.pth'))
    with pytest.raises(UserError, match='layer1.0.bn1.running_var has NaN among its values; give a checkpoint of a'):
        load_net('x', checkpoint, 'resnet8', SimpleNamespace(num_classes=4, image_size=32))


@pytest.mark.parametrize('method', [['kd', '--model_ema', '0.5'], ['simkd']])
def test_the_last_epoch_as_a_checkpoint(call, small, teacher, tmp_path, capsys, method):
    """last.pth holds the net that the run has validated: the averaged weights, or the net that the method deploys."""
    call(train_student.main, '--path-t', teacher.parent / 'last.pth', '--model_s', 'resnet8', *small, '--save_dir',
         tmp_path, '--distill', *method)
    assert f'--path-t {teacher.parent}/last.pth: is used as the checkpoint after epoch 1\n' in capsys.readouterr().out
    best, = tmp_path.glob('student_model/*/*_best.pth')
    last = best.with_name('last.pth')
    for path in (best, last):
        call(train_teacher.main, '--evaluate', path, *small[:8], '--gpu_id', 'cpu')
    out = capsys.readouterr().out
    assert f'--evaluate {last}: is used as the checkpoint after epoch 1\n' in out
    first, second = re.findall(r'^resnet8.*: top-1 .*', out, re.M)
    assert first == second
    assert ('by simkd' in first) == (method == ['simkd'])
    assert last.stat().st_size < 6 * best.stat().st_size       # the weights are in it once
    state = load_checkpoint(str(last), '')
    for changed, words in (({'stage': 'init'}, 'in its first stage, whose network has not learnt the classes yet'),
                           ({'model': None}, 'is the state of a run of an earlier version'),
                           ({'step': 'x'}, 'is an incomplete last.pth')):
        torch.save({**state, **changed}, tmp_path / 'x.pth')
        with pytest.raises(UserError, match=words):
            open_checkpoint(str(tmp_path / 'x.pth'))
