"""Processes and machines that are lost: the others say which, and the restarted run equals an undisturbed one."""
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest
import torch.distributed as dist
from conftest import ROOT, assert_same, forked, free_port, outcome, wait_for_text

import train_student
from helper import heartbeat
from helper.distributed import unused_store

HOST = socket.gethostname()
LOST = 'has ended, hangs or cannot be reached'


def test_a_store_with_the_keys_of_ended_processes():
    """Both processes get the same new part of the store, whatever an earlier start has left there."""
    shared = dist.HashStore()
    for name in ('number of 1', 'earlier/1'):
        shared.set(name, 'earlier')
    parts = [None, None]

    def meet(rank):
        parts[rank] = unused_store(shared, rank, 2, timedelta(seconds=20))
    for _ in range(2):
        threads = [Thread(target=meet, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not parts[1].check(['key'])
        parts[0].set('key', 'value')
        assert parts[1].get('key') == b'value'
    with pytest.raises(TimeoutError):
        unused_store(shared, 0, 2, timedelta(seconds=0.1))      # process 1 does not come


# hosts of the processes, seconds of silence of each, their last words; what each process prints, None: all live
SILENCE = {
    'all live': ('aab', (0, 0, 0), {}, [None, None, None]),
    'one': ('aab', (0, 0, 9), {}, ['error: process 2 (b) has ended', '', None]),
    'the first': ('aabb', (9, 0, 0, 0), {}, [None, 'error: process 0 (a) has ended', 'error: process 0 (a)', '']),
    'a machine': ('aabb', (0, 0, 9, 9), {}, ['error: processes 2 (b) and 3 (b) have ended, hang', '', None, None]),
    'no answer of the store': ('abb', (9, 9, 9), {}, [None, 'error: process 0 (a) or its machine', '']),
    'last words': ('aabb', (0, 0, 0, 9), {3: 'error: bad\n'}, ['error: bad\n', '', '', None]),
}


@pytest.mark.parametrize('case', SILENCE)
def test_who_says_what_is_lost(case):
    """One process of each machine; nothing where the lost one has said it."""
    hosts, silence, last_words, expected = SILENCE[case]
    for rank, text in enumerate(expected):
        if silence[rank] and case != 'no answer of the store':
            continue        # this process is lost itself
        one = heartbeat.Heartbeat.__new__(heartbeat.Heartbeat)
        one.rank, one.host, one.silence = rank, hosts[rank], silence
        one.signs = [{'host': host, 'last words': last_words.get(number)} for number, host in enumerate(hosts)]
        said = one.describe_loss(5)
        if not (case == 'no answer of the store' and rank == 0):
            assert said == text or (text and said.startswith(text) and said.count('\n') == 1), (case, rank, said)


@pytest.fixture
def student(small, teacher):
    """Flags of a run of 6 steps, which saves after each."""
    return ['--path_t', teacher, '--distill', 'kd', '--model_s', 'resnet8', '--skip-validation', *small, '--epochs', 2,
            '--save_every', 1e-9]


@pytest.fixture
def impatient(monkeypatch):
    """Heartbeats that wait for a shorter time."""
    for name, seconds in (('INTERVAL', 0.1), ('SOON', 1), ('LIMIT', 5)):
        monkeypatch.setattr(heartbeat, name, seconds)


def start(arguments, save, outs, store, mains=2 * (train_student.main,)):
    """Two processes as torchrun starts them, with one store for all starts."""
    return [forked(mains[rank], *arguments, '--save_dir', save, '--resume', 'auto', out=out, WORLD_SIZE='2',
                   RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                   MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE='True') for rank, out in enumerate(outs)]


def test_a_killed_process_and_a_restart(student, tmp_path, impatient, interrupt):
    """The other one says which process is lost, and ends. The same command continues, and ends in the same bits."""
    store, outs = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False), [tmp_path / r for r in '01']
    whole = start(student, tmp_path / 'whole', outs, store)
    assert [process.join() or process.exitcode for process in whole] == [0, 0]

    def killed():
        interrupt(4, signal.SIGKILL)        # in the second epoch
        train_student.main()
    outs = [tmp_path / r for r in '23']
    first, second = start(student, tmp_path / 'parts', outs, store, (train_student.main, killed))
    second.join()
    first.terminate()       # as torchrun does
    first.join()
    error = Path(f'{outs[0]}.err').read_text()
    assert first.exitcode == 1 and error.startswith(f'error: process 1 ({HOST}) {LOST}') and error.count('\n') == 1
    again = start(student, tmp_path / 'parts', outs, store)
    assert [process.join() or process.exitcode for process in again] == [0, 0]
    assert 'resuming from' in outs[0].read_text() and Path(f'{outs[0]}.err').read_text() == error
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))


def test_a_stopped_process(student, tmp_path, impatient):
    """A process that hangs breaks no connection; the other one ends all the same."""
    store, outs = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False), [tmp_path / r for r in '01']
    first, second = start([*student, '--epochs', 500], tmp_path, outs, store)
    wait_for_text(outs[0], 'epoch 1: ', first)
    os.kill(second.pid, signal.SIGSTOP)
    first.join()
    second.kill()
    error = Path(f'{outs[0]}.err').read_text()
    assert first.exitcode == 1 and error.startswith(f'error: process 1 ({HOST}) {LOST}') and error.count('\n') == 1


def torchrun(*arguments, log, before=(), **settings):
    """torchrun as a process; `before`: a command in which it runs. Its output goes to the file `log`."""
    with open(log, 'a') as file:
        return subprocess.Popen([*before, sys.executable, '-m', 'torch.distributed.run', *map(str, arguments)],
                                stdout=file, stderr=file, cwd=ROOT, **settings,
                                env={**os.environ, 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'})


def children(pid):
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    return []


def workers(agent):
    """RANK -> process of the workers of this agent."""
    found = {}
    for pid in children(agent.pid):
        with contextlib.suppress(OSError):
            environment = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
            found |= {int(entry[5:]): pid for entry in environment if entry.startswith(b'RANK=')}
    return found


def wait_until(condition, agents=(), seconds=600):
    """Wait until `condition` returns something true, while all agents run. Returns it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert all(agent.poll() is None for agent in agents) and time.monotonic() < end, 'see the log'
        time.sleep(0.05)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='finds processes in /proc')
def test_thirty_kills(student, tmp_path):
    """Kills of processes at random moments, also while they start: the weights are those of an undisturbed run."""
    run = ['--nproc_per_node', 2, '--master_port', free_port(), '--max-restarts', 60, ROOT / 'train_student.py',
           *student, '--epochs', 40, '--resume', 'auto', '--save_dir']
    assert torchrun(*run, tmp_path / 'whole', log=tmp_path / 'whole.log').wait() == 0
    log, draw, began = tmp_path / 'log', random.Random(0), time.monotonic()
    agent = torchrun(*run, tmp_path / 'parts', log=log)
    last = wait_until(lambda: next((tmp_path / 'parts').glob('*/*/last.pth'), None), [agent])
    killed = set()
    while len(killed) < 30:
        pair = wait_until(lambda: (now := workers(agent)) and len(now) == 2 and killed.isdisjoint(now.values()) and now,
                          [agent])
        if draw.random() < 0.3:
            time.sleep(draw.uniform(0, 10))
        else:       # after a step at least
            saved = last.stat().st_mtime_ns
            wait_until(lambda: last.stat().st_mtime_ns != saved, [agent])  # noqa: B023
            time.sleep(draw.uniform(0, 0.3))
        victim = pair[draw.randrange(2)]
        killed.add(victim)
        os.kill(victim, signal.SIGKILL)
        print(f'{len(killed)} kills in {time.monotonic() - began:.0f} s', flush=True)
    assert agent.wait() == 0, log.read_text()
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))
    print(f'{log.read_text().count("resuming from")} continued, the bits are the same')


class Machines:
    """Machines made of network namespaces, with a bridge between them; each runs torchrun. Needs root."""

    def __init__(self, names, folder, run):
        """run: the script and its arguments, the same on each. The first machine is the --rdzv_endpoint."""
        self.run, self.prefix, self.loops = run, f'kd{os.getpid()}', {}
        self.addresses = {name: f'10.77.0.{number}' for number, name in enumerate(names, start=1)}
        self.logs = {name: folder / f'{name}.log' for name in names}
        for name in ('switch', *names):
            self.ip('netns', 'add', self.prefix + name)
            self.within(name, 'ip', 'link', 'set', 'lo', 'up')
        self.within('switch', 'ip', 'link', 'add', 'bridge0', 'type', 'bridge')
        self.within('switch', 'ip', 'link', 'set', 'bridge0', 'up')
        for name, address in self.addresses.items():
            self.within('switch', 'ip', 'link', 'add', name, 'type', 'veth', 'peer', 'eth0', 'netns',
                        self.prefix + name)
            self.within('switch', 'ip', 'link', 'set', name, 'up', 'master', 'bridge0')
            self.within(name, 'ip', 'address', 'add', f'{address}/24', 'dev', 'eth0')
            self.cable(name, 'up')

    def ip(self, *command):
        return subprocess.run(['ip', *command], check=True, capture_output=True, text=True).stdout

    def within(self, name, *command):
        self.ip('netns', 'exec', self.prefix + name, *command)

    def cable(self, name, state):
        """Plug the network cable in ('up') or out ('down')."""
        self.within(name, 'ip', 'link', 'set', 'eth0', state)

    def kill(self, name):
        """Kill all processes of this machine."""
        for pid in self.ip('netns', 'pids', self.prefix + name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def kill_torchrun(self, name):
        """Kill torchrun, and the loop that would start it again, but not the process that trains."""
        agent, = children(self.loops[name].pid)
        self.loops[name].kill()
        os.kill(agent, signal.SIGKILL)

    def start(self, name):
        """Start torchrun on this machine, again and again, as docs/elastic.md says."""
        first = next(iter(self.addresses))
        here = ['ip', 'netns', 'exec', self.prefix + name, 'unshare', '--uts', 'sh', '-c',
                f'hostname {name}; export GLOO_SOCKET_IFNAME=eth0; until "$@"; do sleep 5; done', 'sh']
        self.loops[name] = torchrun(
            '--nnodes', f'1:{len(self.addresses)}', '--max-restarts', 9, '--rdzv_backend', 'c10d', '--rdzv_id', 1,
            '--rdzv_endpoint', f'{self.addresses[first]}:29500', '--local-addr', self.addresses[name], '--rdzv_conf',
            f'is_host={int(name == first)},last_call_timeout=5,read_timeout=900', *self.run, log=self.logs[name],
            before=here)

    def wait_for_line(self, name, begin, text, seconds=600):
        """Wait for a line with this text after `begin` characters of the machine's log. Returns it."""
        return wait_until(lambda: re.search(f'.*{re.escape(text)}.*', self.logs[name].read_text()[begin:]),
                          seconds=seconds)[0]

    def wait_for_epoch(self, begin):
        """Wait until all train together, and have ended an epoch, after `begin` characters of the first one's log."""
        together = f'{len(self.addresses)} processes, cpu'
        wait_until(lambda: together in (log := self.logs['A'].read_text()[begin:]) and
                   'train loss' in log.rpartition(together)[2])

    def remove(self):
        for name in ('switch', *self.addresses):
            self.kill(name)
            self.ip('netns', 'delete', self.prefix + name)


@pytest.fixture
def machines(student, tmp_path):
    """machines('AB'): Machines on which a long run trains; skips the test where that is not possible."""
    made = []

    def make(names):
        if not hasattr(os, 'geteuid') or os.geteuid() or not shutil.which('ip') or not shutil.which('unshare'):
            pytest.skip('network namespaces need root, ip and unshare')
        made.append(Machines(names, tmp_path, [ROOT / 'train_student.py', *student, '--batch_size', 12, '--epochs',
                                               100000, '--save_dir', tmp_path, '--resume', 'auto']))
        for name in names:
            made[0].start(name)
        made[0].wait_for_epoch(0)
        return made[0]
    yield make
    for each in made:
        each.remove()


FIRST = 'error: process 0 (A) '
LAST = 'error: process 2 (C) has ended'
STOPPED = 'SIGTERM: stopped after'
LOSSES = {      # machines; what happens; what each says; the number of those that continue meanwhile
    'cable': ('AB', lambda net: net.cable('B', 'down'), {'A': 'error: process 1 (B) has ended', 'B': FIRST}, 1),
    'killed': ('ABC', lambda net: net.kill('C'), {'A': LAST, 'B': LAST}, 2),
    'power': ('ABC', lambda net: (net.cable('C', 'down'), net.kill('C')), {'A': LAST, 'B': LAST}, 2),
    'torchrun': ('ABC', lambda net: net.kill_torchrun('C'), {'A': STOPPED}, 2),
    'first cable': ('ABC', lambda net: net.cable('A', 'down'), {
        'A': 'error: processes 1 (B) and 2 (C) have ended', 'B': FIRST, 'C': FIRST}, 1),
    'first killed': ('ABC', lambda net: net.kill('A'), {'B': FIRST, 'C': FIRST}, 0),
    'first torchrun': ('ABC', lambda net: net.kill_torchrun('A'), {'A': STOPPED}, 0)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs network namespaces')
@pytest.mark.parametrize('case', LOSSES)
def test_a_machine_is_lost_and_returns(machines, case):
    """Within a minute each side says what is lost; the others continue without it, and with it when it is back."""
    names, lose, says, left = LOSSES[case]
    net = machines(names)
    assert 'error: ' not in ''.join(log.read_text() for log in net.logs.values())
    before, began = {name: len(log.read_text()) for name, log in net.logs.items()}, time.monotonic()
    lose(net)
    for name, text in says.items():
        line = net.wait_for_line(name, before[name], text, 60)
        print(f'{name} after {time.monotonic() - began:.0f} s: {line}', flush=True)
    if left:
        net.wait_for_line('A', before['A'], f'saved by {len(names)} processes, resumed by {left}: ')
        print(f'resumed after {time.monotonic() - began:.0f} s', flush=True)

    for name in names:
        net.cable(name, 'up')
        if net.loops[name].poll() is not None:
            net.start(name)
    net.wait_for_epoch(before['A'])
    print(f'together after {time.monotonic() - began:.0f} s', flush=True)
    assert 'resuming from' in net.logs['A'].read_text()[before['A']:]
