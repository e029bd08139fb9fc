"""Whatever fails ends in one line: mistakes on the command line, an output that breaks, a machine that is too small."""
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train_student
import train_teacher
from helper.errors import UserError, counted, printable, run_main

ROOT = Path(__file__).resolve().parents[1]


def fails_with(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize('error, code, line', [
    (UserError('--x \n\x1b[31m: no'), 2, 'error: --x \\n\\x1b[31m: no\n'),
    (KeyboardInterrupt(), 130, ''),
    (MemoryError(), 1, 'error: out of memory (MemoryError); lower --batch_size or --num_workers, or take smaller'),
    (RuntimeError('[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes'), 1,
     'error: out of memory ([enforce fail]'),
    (RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB'), 1, 'error: out of memory (CUDA'),
    (OSError(errno.EMFILE, 'Too many open files'), 1, 'error: too many open files ('),
    (BrokenPipeError(), 1, 'error: the output cannot be written: the program that read it has ended\n'),
    (OSError(errno.ENOSPC, 'No space left on device'), 1, 'error: output: No space left on device\n'),
    (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. '), 1,
     'error: a process that reads images has ended (DataLoader worker (pid 7) is killed by signal: Killed.); was'),
    (PermissionError(errno.EACCES, 'Permission denied', '/a'), 1, 'error: /a: Permission denied\n'),
    (ZeroDivisionError('two\nlines'), 1, 'error: ZeroDivisionError: two lines; this is a fault of the program: please'),
])
def test_one_line(capsys, monkeypatch, error, code, line):
    monkeypatch.setattr(os, 'dup2', lambda *_: None)        # the output of the tests is not the one that failed
    monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
    with pytest.raises(SystemExit) as caught:
        run_main(fails_with(error))
    said = capsys.readouterr().err
    assert caught.value.code == code and said.startswith(line) and said.count('\n') == bool(line)


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['x.py', '--debug'])
    with pytest.raises(SystemExit):
        run_main(fails_with(ZeroDivisionError('no')))
    said = capsys.readouterr().err
    assert said.startswith('Traceback') and "raise error\nZeroDivisionError: no\nerror: ZeroDivisionError" in said


def test_printable():
    assert printable('é ± resnet8') == 'é ± resnet8'
    assert printable('a\nb\x1b]0;x\x07\ud800\u202e') == 'a\\nb\\x1b]0;x\\x07\\ud800\\u202e'


DIGITS = '9' * 500


@pytest.mark.parametrize('flag, value, words', [
    ('--batch_size', DIGITS, 'of at most 1000000'), ('--epochs', DIGITS, 'of at most 1000000'),
    ('--epochs', '9' * 5000, 'of at most 1000000'), ('--nce_k', DIGITS, 'of at most 10000000'),
    ('--dist-timeout', DIGITS, 'of at most 1000000'), ('--init_epochs', DIGITS, 'of at most'),
    ('--lr_decay_rate', '1e200', 'above 0 and of at most 1'), ('--hkd_decay', '1e200', 'of at most 100'),
    ('--kd_T', '1e300', 'above 0 and of at most 10000'),
    ('--lr_decay_epochs', f'1,{DIGITS}', 'give epochs as whole numbers'),
    ('--path-t', '', 'this one is empty'), ('--data_dir', ' ', 'this one is empty'), ('--save_dir', '', 'empty'),
    ('--resume', '', 'empty'), ('--save_dir', '/tmp/\udcc3', 'not in the encoding of this terminal'),
    ('--trial', '\udcc3', 'a part of a folder name'), ('--trial', 'a' * 300, 'shorter names, of --trial'),
    ('--data_dir', 'a' * 300, 'no such folder'), ('--save_dir', 'a' * 300, 'shorter names, of --trial or --save_dir')])
def test_values_out_of_bounds(call, small, teacher, tmp_path, capsys, monkeypatch, flag, value, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, '--path_t', teacher, *small, flag, value)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count('\n') == 1 and flag.replace('_', '-') in said.replace('_', '-')
    assert words in said and len(said) < 2000
    assert not list(tmp_path.glob('save/*/*'))


def test_an_empty_evaluate_does_not_train(call, small, tmp_path, capsys):
    """As of a shell variable that is not set: training would replace a finished run."""
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, '--model', 'resnet8', *small, '--save_dir', tmp_path, '--evaluate', '')
    assert caught.value.code == 2 and "--evaluate: '': give a path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
@pytest.mark.parametrize('redirect, code, line', [
    ('> /dev/full', 1, 'error: output: No space left on device\n'), ('2>&-', 0, ''),
    ('| true', 1, 'error: the output cannot be written: the program that read it has ended\n')])
def test_outputs_that_break(redirect, code, line):
    """A script as the shell runs it; `| true` does not read, and the script has more to say than a pipe holds."""
    program = 'from helper.errors import run_main\nrun_main(lambda: print("x" * 10**6))'
    done = subprocess.run(['bash', '-c', f'"$0" -c \'{program}\' {redirect}; exit ${{PIPESTATUS[0]}}', sys.executable],
                          cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, line)


@pytest.mark.skipif(sys.platform == 'win32', reason='no such signals')
@pytest.mark.parametrize('script', ['train_teacher.py', 'train_student.py'])
@pytest.mark.parametrize('handler, code', [(signal.SIG_DFL, -signal.SIGINT), (signal.SIG_IGN, 7)])
def test_ctrl_c_while_it_starts(tmp_path, script, handler, code):
    """In the middle of the imports, which take seconds: no traceback. In a script's background it is ignored."""
    (tmp_path / 'helper.py').write_text('import os\nos.kill(os.getpid(), 2)\nraise SystemExit(7)\n')
    (tmp_path / script).write_text((ROOT / script).read_text())     # finds that module first
    done = subprocess.run([sys.executable, tmp_path / script], capture_output=True, text=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, handler))
    assert (done.returncode, done.stderr) == (code, '')


def test_a_compiler_that_does_not_compile(call, small, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('CXX', '/bin/false')
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, '--model', 'resnet8', *small, '--save_dir', tmp_path, '--compile')
    error = capfd.readouterr().err
    assert caught.value.code == 2 and "--compile: '/bin/false' does not compile C++; set CXX" in error
    assert error.count('\n') == 1


def test_what_the_compiler_cannot_do(call, small, tmp_path, capfd, monkeypatch):
    """Where the kernels cannot be built torch.compile is tried; its error is one line too."""
    import torch

    def library():
        raise OSError('g++ could not build winograd.cpp: no OpenMP')

    def compiled(function, **_):
        def fails(*args, **kwargs):
            raise torch._dynamo.exc.TorchDynamoException('no cache')
        return fails
    monkeypatch.setattr(torch, 'compile', compiled)
    monkeypatch.setattr('helper.compile.library', library)
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, '--model', 'resnet8', *small, '--save_dir', tmp_path, '--compile')
    out, error = capfd.readouterr()
    assert '--compile: g++ could not build winograd.cpp: no OpenMP; torch.compile does without' in out
    assert caught.value.code == 2 and 'error: --compile: no cache; leave --compile out' in error
    assert error.count('\n') == 1


def test_divergence_says_what_to_lower(call, small, teacher, tmp_path, capfd, monkeypatch):
    """The first stage's own rate, the loss's flags, and the last good state only where there is one."""
    from distiller_zoo import distiller_dict
    first_stages = [name for name, cls in distiller_dict.items() if cls.spec.first_stage]
    for method, flags, words in [
            *((name, ['--init_epochs', 3, '--init_learning_rate', 1e30], 'lower --init_learning_rate\n')
              for name in first_stages),
            ('rkd', ['--learning_rate', 1e30], 'lower --learning_rate or --beta\n'),
            ('kd', ['--learning_rate', 1e30], 'lower --learning_rate\n')]:
        with pytest.raises(SystemExit):
            call(train_student.main, '--path_t', teacher, *small, '--distill', method, *flags,
                 '--save_dir', tmp_path)
        assert capfd.readouterr().err.endswith(words)
    call(train_teacher.main, '--model', 'resnet8', *small, '--save_dir', tmp_path)

    def too_high(epoch, optimizer, opt):
        optimizer.param_groups[0]['lr'] = 1e30
    monkeypatch.setattr(train_teacher, 'adjust_learning_rate', too_high)
    with pytest.raises(SystemExit):
        call(train_teacher.main, '--model', 'resnet8', *small, '--save_dir', tmp_path, '--epochs', 2, '--resume')
    last = next(tmp_path.glob('models/*/last.pth'))
    assert capfd.readouterr().err.endswith(f'lower --learning_rate; the last good state is in {last}\n')


def test_hkd_says_that_its_teacher_is_no_auxiliary_one(call, small, teacher, tmp_path, capfd):
    call(train_student.main, '--path_t', teacher, *small, '--distill', 'hkd', '--save_dir', tmp_path)
    assert '--distill hkd: resnet14 was not itself distilled; the paper uses' in capfd.readouterr().out
    call(train_student.main, '--path_t', next(tmp_path.glob('student_model/*/resnet8_best.pth')), *small, '--distill',
         'hkd', '--save_dir', tmp_path, '--trial', 'b')
    assert 'was not itself distilled' not in capfd.readouterr().out


def test_counted():
    assert [counted(*case) for case in ((1, 'image'), (2, 'image'), (0, 'class'), (1, 'process'))] == \
        ['1 image', '2 images', '0 classes', '1 process']
