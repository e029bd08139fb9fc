"""The page of --web: its files, the package of its runtime, hostile class names; in Chromium, predict.py's classes."""
import base64
import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import tarfile
import threading
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, Here
from PIL import Image

import scripts.export_student as export_student
import scripts.predict as predict
from dataset.crop import RESAMPLING, resize_to_square
from export import verify, web
from helper.errors import UserError
from models import model_dict
from models.inputs import FITS

onnxruntime = pytest.importorskip('onnxruntime')
INPUTS = {'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.25, 0.3], 'size': 16, 'interpolation': 'bilinear'}
HOSTILE = ['</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"&amp;\u2028', 'dog']


@pytest.fixture(scope='module')
def package(tmp_path_factory):
    """A file with the members of onnxruntime-web's package that the page needs."""
    file = tmp_path_factory.mktemp('package') / web.PACKAGE
    with tarfile.open(file, 'w:gz') as archive:
        for name, member in web.RUNTIME.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    return file


@pytest.fixture
def pinned(package, tmp_path, monkeypatch):
    """That package in place of onnxruntime-web, and an empty cache folder."""
    monkeypatch.setattr(web, 'SHA512', base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode())
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return package


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / 'student', 'resnet8')


def write_checkpoint(folder, arch, size=16, **inputs):
    """The file of a net with random weights."""
    folder.mkdir()
    torch.manual_seed(len(arch))
    torch.save({'format_version': 1, 'model': model_dict[arch](num_classes=4).state_dict(), 'arch': arch,
                'num_classes': 4, 'inputs': {**INPUTS, 'size': size, **inputs}, 'classes': [*CLASSES]},
               folder / 'net_best.pth')
    return folder / 'net_best.pth'


def flags(checkpoint, out, tree):
    return [checkpoint, '--out', out, '--formats', 'onnx', '--dataset', 'folder', '--data_dir', tree,
            '--image_size', 16, '--batch_size', 16, '--num_workers', 0]


def fails(call, capsys, *arguments):
    """The one line of a failure."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(export_student.main, *arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and 'Traceback' not in '\n'.join(lines)
    return lines[-1]


def refused(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def page_of(folder, sizes, classes=CLASSES, name='resnet8'):
    """web.write for an export whose files have these sizes in bytes. Returns (the file that it names, the folder)."""
    folder.mkdir()
    files = {form: folder / web.ONNX_FILES[form] for form in sizes}
    for form, size in sizes.items():
        files[form].write_bytes(bytes(size))
    network = SimpleNamespace(name=name, config={'classes': [*classes], 'inputs': INPUTS})
    export = SimpleNamespace(folder=folder, network=network, dtype='uint8', file=files.get)
    return web.write(export, [*sizes, 'pt2'], None, {'ort.js': b'runtime'}), folder / web.FOLDER


def test_the_page_of_an_export(call, pinned, checkpoint, tree, tmp_path, monkeypatch, capsys):
    """With a teacher; the Python program of the docs runs on the same export, which another may replace."""
    for module in (verify, web):
        monkeypatch.setattr(module, 'RuntimeProcess', Here)
    teacher, out = write_checkpoint(tmp_path / 'teacher', 'resnet14'), tmp_path / 'exports' / 'my_student'
    call(export_student.main, *flags(checkpoint, out, tree), '--web', '--web_runtime', pinned, '--web_teacher',
         '--path-t', teacher)
    assert 'runs student.onnx; start python -m http.server -b 127.0.0.1 -d' in capsys.readouterr().out
    page = out / 'web'
    assert {file.name for file in page.iterdir()} == {*web.RUNTIME, *web.PAGE_FILES, 'networks.json', 'student.onnx',
                                                      'teacher.onnx'}
    assert page.stat().st_mode & 0o777 == 0o755 and (page / 'ort.js').read_bytes() == b'ort.js'
    assert (page / 'student.onnx').read_bytes() == (out / 'student.onnx').read_bytes()
    student, other = json.loads((page / 'networks.json').read_text())
    assert (student['role'], student['name'], student['file']) == ('student', 'resnet8', 'student.onnx')
    assert (other['role'], other['name'], other['file']) == ('teacher', 'resnet14', 'teacher.onnx')
    assert student['classes'] == [*CLASSES] and student['dtype'] == 'uint8' and student['inputs']['size'] == 16
    run_documented_program(out, tree, tmp_path, monkeypatch, capsys)

    export_student.check_out(str(out))
    (page / 'notes.txt').touch()
    assert 'holds other things than an export' in refused(export_student.check_out, str(out))


def run_documented_program(out, tree, tmp_path, monkeypatch, capsys):
    """It prints the class of predict.py, and names the input and output of the file."""
    text = (ROOT / 'docs' / 'shipping.md').read_text()
    program = re.search(r'```python\n(.*?)```', text, re.S)[1]
    assert program.count('\n') < 15
    monkeypatch.chdir(tmp_path)
    predicted = []
    for image in sorted(tree.glob('test/*/0.png')):
        shutil.copy(image, tmp_path / 'photo.jpg')
        capsys.readouterr()
        exec(program, {})
        predicted.append(capsys.readouterr().out.strip())
    session = onnxruntime.InferenceSession(str(out / 'student.onnx'))
    pixels = np.stack([np.asarray(Image.open(file)) for file in sorted(tree.glob('test/*/0.png'))])
    logits = session.run(None, {'images': pixels.transpose(0, 3, 1, 2)})[0]
    assert predicted == [CLASSES[label] for label in logits.argmax(1)]
    described = [(end.name, end.type) for end in (*session.get_inputs(), *session.get_outputs())]
    assert described == [('images', 'tensor(uint8)'), ('logits', 'tensor(float)')]


def test_the_smallest_file(tmp_path):
    named, page = page_of(tmp_path / 'int8', {'onnx': 30, 'fp16': 20, 'int8': 10})
    assert named == 'student_int8.onnx' and len((page / named).read_bytes()) == 10
    assert not (page / 'student.onnx').exists()
    assert page_of(tmp_path / 'fp16', {'onnx': 30, 'fp16': 20, 'int8': 40})[0] == 'student_fp16.onnx'


def test_hostile_names(tmp_path):
    """Names are in the JSON file alone; the page's code never makes markup of text."""
    _, page = page_of(tmp_path / 'out', {'onnx': 1}, HOSTILE, '<b>net</b>')
    network, = json.loads((page / 'networks.json').read_text())
    assert network['classes'] == HOSTILE and network['name'] == '<b>net</b>'
    for name in web.PAGE_FILES:
        assert (page / name).read_bytes() == (web.PAGE / name).read_bytes()
    code = ''.join((web.PAGE / name).read_text() for name in ('page.js', 'classifier.js'))
    assert not re.search(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|setHTML|srcdoc', code)


def test_the_content_security_policy():
    text = (web.PAGE / 'index.html').read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split(';'))
    assert rules == {'default-src': "'none'", 'script-src': "'self' 'wasm-unsafe-eval'", 'style-src': "'self'",
                     'connect-src': "'self'", 'img-src': 'data:', 'base-uri': "'none'", 'form-action': "'none'"}
    assert '//' not in re.sub(r'<!.*?>', '', text)      # no address of another server


@pytest.mark.parametrize('damage', [lambda content: content[:-9], lambda content: b'x' + content[1:], lambda _: b''],
                         ids=['cut short', 'changed', 'empty'])
def test_another_package(pinned, tmp_path, damage):
    file = tmp_path / 'other.tgz'
    file.write_bytes(damage(pinned.read_bytes()))
    line = refused(web.read_runtime, str(file))
    assert line.startswith(f'--web_runtime {file}: is not {web.PACKAGE}, or is damaged') and web.URL in line
    assert web.read_runtime(str(pinned)) == {name: name.encode() for name in web.RUNTIME}


def test_the_package_is_downloaded_once(pinned, tmp_path, monkeypatch):
    """A damaged file in the cache is downloaded again; another download is not stored."""
    asked, answers = [], [pinned.read_bytes()[:-1], pinned.read_bytes(), pinned.read_bytes()]
    monkeypatch.setattr(web.urllib.request, 'urlopen',
                        lambda url, timeout: asked.append(url) or io.BytesIO(answers.pop(0)))
    cached = tmp_path / 'cache' / 'onnxruntime-web' / web.PACKAGE
    assert f'the download of {web.URL} is damaged or was changed' in refused(web.read_runtime, None)
    assert not cached.exists()
    for _ in range(2):
        assert web.read_runtime(None)['ort.js'] == b'ort.js'
    assert asked == [web.URL] * 2
    cached.write_bytes(b'damaged')
    assert web.read_runtime(None)['ort.js'] == b'ort.js'
    assert len(asked) == 3 and cached.read_bytes() == pinned.read_bytes()


def test_no_network(call, pinned, checkpoint, tree, tmp_path, monkeypatch, capsys):
    def unreachable(url, timeout):
        raise urllib.error.URLError(OSError('Name or service not known'))
    monkeypatch.setattr(web.urllib.request, 'urlopen', unreachable)
    line = fails(call, capsys, *flags(checkpoint, tmp_path / 'out', tree), '--web')
    assert f'--web: cannot download {web.URL}' in line and 'Name or service not known' in line
    assert f'give --web_runtime {web.PACKAGE}' in line and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('more, words', [
    (['--web_runtime', 'x.tgz'], '--web_runtime: has no effect without --web; add --web'),
    (['--web_teacher'], '--web_teacher: has no effect without --web; add --web'),
    (['--web', '--formats', 'pt2'], '--web: the page runs an ONNX file; add onnx to --formats'),
    (['--web', '--web_teacher'], 'has no teacher that can be opened; give it by --path-t'),
    (['--web', '--web_runtime', 'no.tgz'], '--web_runtime no.tgz: cannot be read (No such file or directory)')])
def test_what_cannot_be_exported(call, checkpoint, tree, tmp_path, capsys, more, words):
    assert words in fails(call, capsys, *flags(checkpoint, tmp_path / 'out', tree), *more)
    assert not (tmp_path / 'out').exists()


CHROMIUM = shutil.which('chromium')
CHROMIUM_FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
                  '--disable-background-networking', '--disable-component-update', '--disable-sync',
                  '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']
CLASSIFY = '''async (url) => {
  const { classify, openNetworks, readPixels } = await import('./classifier.js');
  window.opened ??= await openNetworks();
  const { top } = await classify(window.opened[0], await readPixels(await (await fetch(url)).blob()));
  return top;
}'''
SQUARES = '''async ([url, all]) => {
  const { readPixels, toSquare } = await import('./classifier.js');
  const image = await readPixels(await (await fetch(url)).blob());
  return all.map((inputs) => Array.from(toSquare(image, inputs)));
}'''


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api')
    if not CHROMIUM:
        pytest.skip('needs Chromium: apt-get install chromium')
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def site(browser, call, tree, tmp_path_factory):
    """(folder of an export whose page has the photographs too, its address)."""
    try:
        web.read_runtime(None)
    except UserError as error:      # neither a network nor an earlier download
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp('site')
    checkpoint = write_checkpoint(folder / 'student', 'resnet8', size=32, crop_pct=0.875)
    call(export_student.main, *flags(checkpoint, folder / 'out', tree), '--image_size', 32, '--web', '--web_teacher',
         '--path-t', write_checkpoint(folder / 'teacher', 'resnet14'))
    page, rng = folder / 'out' / 'web', np.random.default_rng(0)
    for number in range(20):        # of every EXIF orientation and several sizes
        height, width = rng.integers(20, 400, 2)
        picture = Image.fromarray(rng.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = number % 8 + 1
        picture.resize((width, height), RESAMPLING['bicubic']).save(page / f'{number}.jpg', quality=90, exif=exif)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=page))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder / 'out', f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture
def opened(browser, site):
    """opened(width, scheme) -> the loaded page. At the end: no error, and no request to another server."""
    contexts, problems = [], []

    def open_page(width=1400, scheme='light'):
        contexts.append(browser.new_context(viewport={'width': width, 'height': 900}, color_scheme=scheme))
        contexts[-1].set_default_timeout(300_000)
        page = contexts[-1].new_page()
        page.on('request', lambda request: request.url.startswith((site[1], 'data:')) or problems.append(request.url))
        page.on('console', lambda message: problems.append(message.text))
        page.on('pageerror', lambda error: problems.append(str(error)))
        page.goto(site[1])
        page.get_by_text('Ready: give a photograph').wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.mark.slow
def test_the_classes_of_predict(call, opened, site, tmp_path):
    out, address = site
    files = [out / 'web' / f'{number}.jpg' for number in range(20)]
    call(predict.main, out / 'student.onnx', *files, '--output', tmp_path / 'predicted.json')
    page, differences = opened(), []
    for item in json.loads((tmp_path / 'predicted.json').read_text()):
        top = page.evaluate(CLASSIFY, address + Path(item['image']).name)
        assert top[0]['name'] == item['classes'][0]['class']
        found = {entry['name']: entry['probability'] for entry in top}
        differences += [abs(found[entry['class']] - entry['probability']) for entry in item['classes']]
    assert len(differences) == 80 and max(differences) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('size', [(90, 61), (61, 200), (7, 5), (300, 11)], ids=str)       # width, height
def test_the_pixels_of_predict(opened, site, size):
    """Equal for every fit and interpolation, larger and smaller than the image. Pillow 13 scales the tall image down
    before across, which rounds differently."""
    out, address = site
    allowed = {'nearest': 0, 'bilinear': 1, 'bicubic': 20} if size[1] > 2 * size[0] else dict.fromkeys(RESAMPLING, 0)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8))
    picture.save(out / 'web' / 'noise.png')
    wanted = [{'size': 33, 'fit': fit, 'crop_pct': share, 'interpolation': interpolation}
              for fit in FITS for share in (1.0, 0.875, 0.71) for interpolation in RESAMPLING]
    found = opened().evaluate(SQUARES, [address + 'noise.png', wanted])
    for inputs, square in zip(wanted, found, strict=True):
        expected = np.asarray(resize_to_square(picture, **inputs)).transpose(2, 0, 1)
        difference = np.abs(np.reshape(square, expected.shape) - expected).max()
        assert difference <= allowed[inputs['interpolation']], inputs


@pytest.mark.slow
@pytest.mark.parametrize('width', [400, 1400])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_what_it_shows(opened, site, width, scheme):
    """From a file and from the camera, by the keyboard; labels; no sideways scrolling."""
    page = opened(width, scheme)
    page.get_by_label('Drop a photograph on this page, or choose a file').set_input_files(site[0] / 'web' / '0.jpg')
    page.get_by_role('img', name='0.jpg').wait_for()
    status = page.get_by_role('status').inner_text()
    assert re.fullmatch(r'0\.jpg: student \w+ [\d.]+ %, teacher \w+ [\d.]+ %', status)
    tables = page.get_by_role('table')
    assert tables.count() == 2 and re.search(r'Student resnet8 [\d.]+ ms', tables.nth(0).inner_text())
    assert {cell.inner_text() for cell in tables.nth(1).get_by_role('rowheader').all()} == {*CLASSES}
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    colour = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert colour == {'light': 'rgb(255, 255, 255)', 'dark': 'rgb(22, 24, 29)'}[scheme]

    page.get_by_role('button', name='Use the camera').focus()
    page.keyboard.press('Enter')
    page.locator('#take:focus').wait_for()
    page.keyboard.press('Enter')
    page.get_by_role('img', name='Photograph of the camera').wait_for()
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    page.locator('#camera:focus').wait_for()
    assert not page.locator('#video').is_visible()


@pytest.mark.slow
def test_files_that_are_no_images_and_hostile_classes(opened, site):
    page = opened()
    page.set_input_files('#file', {'name': '<b>x</b>.png', 'mimeType': 'image/png', 'buffer': b'none'})
    page.get_by_text('<b>x</b>.png: this browser cannot read it as an image').wait_for()
    page.route('**/networks.json', lambda route: route.fulfill(json=[
        {**network, 'classes': HOSTILE} for network in route.fetch().json()]))
    page.reload()
    page.get_by_text('Ready: give a photograph').wait_for()
    page.set_input_files('#file', site[0] / 'web' / '1.jpg')
    page.get_by_role('img', name='1.jpg').wait_for()
    assert {cell.inner_text() for cell in page.get_by_role('table').nth(0).get_by_role('rowheader').all()} == {*HOSTILE}
    assert page.locator('main script, main img').count() == 0
