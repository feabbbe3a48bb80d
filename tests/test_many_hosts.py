"""Several processes on this machine as the hosts of one run: they train as one, lose one, go on as fewer or more."""
# ruff: noqa: F811  (fixtures are imported)

import json
import signal

import numpy as np
import pytest
from PIL import Image

from mim_jax.data.pipeline import shuffled
from tests.many import RECORDS, Group, free_port, reads, small, write_records
from tests.runs import compiled_once, events, final, lines, logged  # noqa: F401 (a fixture)

BATCH = 8
EVALS = {'evals_last': "('reconstruction','knn','linear_probe')", 'evals.linear_probe.epochs': 1}
LOST = (
    'lost: it ended without a word, or the network did; the same command on all hosts goes on from the last checkpoint'
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'records.npz'
    write_records(path)
    return path


@pytest.fixture
def start(tmp_path, data):
    """`start(count, name='run', **changes of the config) -> Group` of trainers that share a workdir."""
    groups = []

    def go(count, breaks=(), devices=1, each=(), cwd=(), arguments=(), **changes):
        arguments = [f'--workdir={tmp_path / "run"}', *small(data, **changes), *arguments]
        groups.append(Group(tmp_path / 'run', count, *arguments, breaks=breaks, devices=devices, each=each, cwd=cwd))
        return groups[-1]

    yield go
    for group in groups:
        group.kill()


def kill(host, place='mim_jax.sharding', name='put', call=5, what='SIGKILL'):
    return [dict(host=host, place=place, name=name, call=call, what=what)]


def in_order(folder, hosts, steps):
    """Checks that the hosts together read the records of the global order at each of these steps."""
    found = reads(folder, hosts)
    for step in steps:
        want = [shuffled(i, RECORDS, seed=0) for i in range(step * BATCH, (step + 1) * BATCH)]
        assert found[step * BATCH] == want, step


def losses(folder):
    return [line['train/loss'] for line in lines(folder / 'metrics.jsonl') if 'train/loss' in line]


@pytest.fixture(scope='module')
def alone(tmp_path_factory, data):
    """The workdir of one process with two devices that was never interrupted."""
    folder = tmp_path_factory.mktemp('alone') / 'run'
    group = Group(folder, 1, f'--workdir={folder}', *small(data, **EVALS), devices=2)
    assert group.ends()[0] == [0], group.said(0)
    return folder


def same_as(alone, folder):
    """Checks that a run ended as the one of one process."""
    assert logged(folder) == list(range(1, 9))
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-5)
    (a, there), (b, here) = final(alone), final(folder)
    assert there == here and a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_two_hosts_are_as_one(start, alone, tmp_path):
    group = start(2, **EVALS)
    assert group.ends()[0] == [0, 0], group.said(0)
    same_as(alone, tmp_path / 'run')
    in_order(tmp_path / 'run', 2, range(8))
    measured = [{k: x for line in lines(folder / 'metrics.jsonl') for k, x in line.items() if k.startswith('eval/')} for folder in (alone, tmp_path / 'run')]  # fmt: skip
    assert measured[0].keys() == measured[1].keys() >= {'eval/knn_top1', 'eval/linear_top1'}
    np.testing.assert_allclose(list(measured[0].values()), list(measured[1].values()), rtol=1e-4)
    pictures = [(folder / 'reconstructions/8.png').read_bytes() for folder in (alone, tmp_path / 'run')]
    assert pictures[0] == pictures[1]
    assert [len(events(tmp_path / 'run', kind)) for kind in ('start', 'save')] == [1, 4]
    assert '| loss' in group.said(0) and '| loss' not in group.said(1)
    told = json.loads((tmp_path / 'run/config.json').read_text())['environment']
    assert (told['hosts'], told['device']) == (2, '2 x cpu')


def test_a_host_is_lost_and_fewer_go_on(start, alone, tmp_path):
    group = start(2, breaks=kill(1))
    status, seconds = group.ends()
    assert status == [1, -signal.SIGKILL] and seconds < 60, group.said(0)
    assert group.last(0).startswith('mim_jax: host 1 (') and group.last(0).endswith(LOST)
    group = start(1, devices=2)
    assert group.ends()[0] == [0], group.said(0)
    same_as(alone, tmp_path / 'run')
    before, after = (event['next_sample'] for event in events(tmp_path / 'run', 'start'))
    assert before == 0 and after in (2 * BATCH, 4 * BATCH)  # what was saved before the fifth step, or as it was
    in_order(tmp_path / 'run', 1, range(after // BATCH, 8))


def test_told_to_stop_all_save_at_the_same_step(start, alone, tmp_path):
    group = start(2, breaks=kill(1, call=3, what='SIGTERM'), checkpoint_every=100)
    assert group.ends()[0] == [143, 143], group.said(1)
    (save,) = events(tmp_path / 'run', 'save')
    assert 3 <= save['step'] < 8 and save['next_sample'] == save['step'] * BATCH
    assert f'told to stop: saved at step {save["step"]}' in group.said(0)
    in_order(tmp_path / 'run', 2, range(save['step']))


@pytest.mark.slow
def test_all_hosts_keep_compilations_in_the_workdir(start, tmp_path, monkeypatch):
    """Host 0 writes and reads them; on CPU, unlike elsewhere, the keys of the other hosts are of their own."""
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('JAX_DEBUG_LOG_MODULES', 'jax._src.compiler')
    for hit, status, breaks in ((False, 143, kill(1, call=3, what='SIGTERM')), (True, 0, ())):
        group = start(2, breaks=breaks)
        assert group.ends()[0] == [status] * 2, group.said(0)
        assert ("cache hit for 'jit_train_step'" in group.said(0)) == hit
        for i in range(2):
            assert f"cache at '{tmp_path}/run/xla/" in group.said(i), group.said(i)
    assert not (tmp_path / 'home').exists()


MOMENTS = {  # what a host does when it is killed -> where that is in the program, and which call
    'after the roll call': ('mim_jax.build', 'check', 1),
    'compiling': ('mim_jax.compile', 'train_step', 1),
    'evaluating': ('mim_jax.evaluate:Evaluation', 'during', 1),
    'reading': ('mim_jax.data.pipeline:Collate', '__call__', 5),
    'taking the first step': ('mim_jax.sharding', 'put', 1),
    'saving': ('mim_jax.train', 'save', 2),
    'while a save goes on': ('mim_jax.sharding', 'put', 3),
}


@pytest.mark.slow
@pytest.mark.parametrize('host', [0, 1])
@pytest.mark.parametrize('moment', MOMENTS)
def test_killed_at_any_moment(start, moment, host):
    group = start(2, breaks=kill(host, *MOMENTS[moment]), evals_often="('knn',)", eval_every=4)
    status, seconds = group.ends()
    assert status[host] == -signal.SIGKILL and status[1 - host] == 1 and seconds < 60, group.said(1 - host)
    assert group.last(1 - host).startswith(f'mim_jax: host {host} (') and group.last(1 - host).endswith(LOST)


@pytest.mark.slow
@pytest.mark.parametrize('host', [0, 1])
def test_frozen(start, host):
    group = start(2, breaks=kill(host, what='SIGSTOP'))
    status, seconds = group.ends(frozen=host)
    assert status[1 - host] == 1 and seconds < 60, group.said(1 - host)
    assert group.last(1 - host).startswith(f'mim_jax: host {host} (') and group.last(1 - host).endswith(LOST)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('host', 'place', 'name'), [(0, 'mim_jax.sharding', 'put'), (1, 'mim_jax.inputs:Data', 'note')]
)
def test_a_host_that_hangs_yet_lives(start, monkeypatch, host, place, name):
    monkeypatch.setenv('HANG', '10')
    group = start(2, breaks=kill(host, place, name, 5, 'sleep 1000'), checkpoint_every=100)
    status, seconds = group.ends()
    assert status == [1, 1] and seconds < 30, group.said(0)
    for i in range(2):
        assert f'host {host} (' in group.last(i) and ' hangs: the last step to begin there was 4, 1' in group.last(i)
        assert 'Thread 0x' in group.said(i)
    assert 'in breaking' in group.said(host) and 'in breaking' not in group.said(1 - host)


@pytest.mark.slow
def test_what_takes_long_is_no_hang(start, tmp_path, monkeypatch):
    monkeypatch.setenv('HANG', '5')
    breaks = [
        *kill(1, 'mim_jax.compile', 'train_step', 1, 'sleep 15'),
        *kill(1, 'mim_jax.evaluate:Evaluation', 'during', 2, 'sleep 15'),
        *kill(0, 'mim_jax.checkpoint:Checkpoints', 'save', 2, 'sleep 15'),
    ]
    group = start(2, breaks=breaks, evals_often="('knn',)", eval_every=4, checkpoint_every=3)
    assert group.ends()[0] == [0, 0], group.said(0)
    assert [event['step'] for event in events(tmp_path / 'run', 'save')] == [3, 6, 8]


@pytest.mark.slow
def test_killed_again_and_again_and_gone_on_with_another_number(start, alone, tmp_path):
    """Of four hosts, then two, then one, then four to the end: no record twice, none left out, and the same result."""
    for count, devices, host, call in ((4, 1, 2, 3), (2, 2, 0, 4), (1, 4, 0, 3)):
        group = start(count, devices=devices, breaks=kill(host, call=call))
        status, seconds = group.ends()
        assert status.count(1) == count - 1 and status[host] == -signal.SIGKILL and seconds < 60, group.said(0)
        for other in set(range(count)) - {host}:
            assert group.last(other).startswith(f'mim_jax: host {host} ('), group.said(other)
    group = start(4, **EVALS)
    assert group.ends()[0] == [0] * 4, group.said(0)
    same_as(alone, tmp_path / 'run')
    starts, saves = (events(tmp_path / 'run', kind) for kind in ('start', 'save'))
    assert [event['devices'] for event in starts] == [4] * 4
    assert {event['next_sample'] for event in starts} <= {0} | {event['next_sample'] for event in saves}
    in_order(tmp_path / 'run', 4, range(starts[-1]['next_sample'] // BATCH, 8))


@pytest.mark.slow
@pytest.mark.parametrize(('what', 'status', 'why'), [
    ('InputError', 2, 'told to break'), ('TypeError', 1, 'TypeError: told to break'), ('OSError', 1, 'No space left on device'),
])  # fmt: skip
@pytest.mark.parametrize('host', [0, 1])
def test_what_stops_one_stops_all(start, host, what, status, why):
    group = start(2, breaks=kill(host, what=what))
    found, seconds = group.ends()
    assert found == [status] * 2 and seconds < 60, group.said(0)
    assert group.last(host) == f'mim_jax: {why}'
    other = group.last(1 - host)
    assert other.startswith(f'mim_jax: host {host} (') and other.endswith(f' stopped: {why}')
    assert 'Traceback' not in group.said(1 - host)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('moment', 'saved'), [('compiling', False), ('evaluating', False), ('evaluating amid steps', True)]
)
def test_told_to_stop_at_any_moment(start, tmp_path, moment, saved):
    place = dict(MOMENTS, **{'evaluating amid steps': ('mim_jax.evals.features:Features', 'extract', 2)})[moment]
    group = start(2, breaks=kill(1, *place, what='SIGTERM'), evals_often="('knn',)", eval_every=4, checkpoint_every=100)
    assert group.ends()[0] == [143, 143], group.said(0)
    assert [event['step'] for event in events(tmp_path / 'run', 'save')] == ([4] if saved else [])
    assert 'told to stop' in group.said(0)


@pytest.fixture
def torn(tmp_path):
    """Eight pictures, and four files that are none."""
    folder = tmp_path / 'torn'
    folder.mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f'good{i}.png')
    for i in range(4):
        (folder / f'bad{i}.png').write_text('this is not a picture')
    return {'data.path': folder, 'data.val_path': ''}


@pytest.mark.slow
def test_bad_records_are_those_of_all_hosts(start, torn, tmp_path):
    run, bad = tmp_path / 'run', [f'bad{i}.png' for i in range(4)]
    group = start(2, **torn)
    assert group.ends()[0] == [0, 0], group.said(0)
    listed = [[line['name'] for line in lines(path)] for path in sorted(run.glob('bad_samples*.jsonl'))]
    assert len(listed) == 2 and sorted({name for names in listed for name in names}) == bad
    group = start(1, devices=2, total_steps=12, **torn)
    assert group.ends()[0] == [0], group.said(0)
    assert listed == [[line['name'] for line in lines(path)] for path in sorted(run.glob('bad_samples*.jsonl'))]
    assert sorted(event['name'] for event in events(run, 'bad_sample')) == bad
    found = [line['data/bad_samples'] for line in lines(run / 'metrics.jsonl')]
    assert found == sorted(found) and found[-1] == 4 and f'4 records could not be used: {run}/bad' in group.said(0)


@pytest.mark.slow
def test_too_many_bad_records_on_all_hosts_together(start, torn):
    group = start(2, **torn, **{'data.max_bad_share': 0.2})
    assert group.ends()[0] == [1, 1], group.said(0)
    for i in range(2):
        assert 'of 16 records are bad, more than data.max_bad_share=0.2' in group.last(i)


@pytest.mark.slow
def test_hosts_that_do_not_belong_together(start, tmp_path, data):
    group = start(2, each=([], ['--config.seed=1']))
    assert group.ends()[0] == [2, 2]
    for i in range(2):
        assert 'has config.seed=1 and host 0 (' in group.last(i)
    folders = [tmp_path / str(i) for i in range(2)]
    for i, folder in enumerate(folders):
        folder.mkdir()
        images = np.zeros((RECORDS + i, 4, 4, 1), np.uint8)
        np.savez(folder / 'here.npz', images=images)
    group = start(2, cwd=folders, **{'data.path': 'here.npz', 'data.val_path': ''})
    assert group.ends()[0] == [2, 2], group.said(0)
    for i in range(2):
        assert f'training records is {RECORDS + 1} on host 1 (' in group.last(i)
    group = start(2, cwd=folders, arguments=['--workdir=run'])
    assert group.ends()[0] == [2, 2], group.said(0)
    for i in range(2):
        assert 'host 1 (' in group.last(i) and 'has to be a folder that all hosts share' in group.last(i)


@pytest.mark.slow
def test_a_host_that_does_not_come(tmp_path, data):
    arguments = [f'--workdir={tmp_path}', *small(data), '--join_timeout=3']
    environment = {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{free_port()}',
        'JAX_NUM_PROCESSES': '3',
        'JAX_PROCESS_ID': '0',
    }
    group = Group(tmp_path / 'run', 1, *arguments, **environment)
    assert group.ends()[0] == [1]
    assert '1 of 3 hosts came to 127.0.0.1:' in group.last(0) and 'missing: 1-2;' in group.last(0)


@pytest.mark.slow
def test_products_that_are_split_over_hosts(start, alone, tmp_path):
    group = start(2, **{'mesh.data': 1, 'mesh.model': 2}, **EVALS)
    assert group.ends()[0] == [0, 0], group.said(0)
    same_as(alone, tmp_path / 'run')
    assert reads(tmp_path / 'run', 1)[0] == [shuffled(i, RECORDS, seed=0) for i in range(BATCH)]


@pytest.mark.slow
def test_every_evaluator_says_and_draws_what_it_does_on_one_host(tmp_path):
    import torch

    class Network(torch.nn.Module):  # in the place of Inception
        def forward(self, x, return_features: bool = False):
            return torch.nn.functional.adaptive_avg_pool2d(x.float(), (2, 2)).flatten(1)

    torch.jit.script(Network()).save(str(tmp_path / 'network.pt'))
    for name, count, devices in (('one', 1, 2), ('two', 2, 1)):
        group = Group(tmp_path / name, count, str(tmp_path / name), module='tests.all_evaluators', devices=devices)
        assert group.ends()[0] == [0] * count, group.said(0)
    for one in (tmp_path / 'one').glob('*/metrics.jsonl'):
        found = [{}, {}]
        for values, path in zip(found, (one, tmp_path / 'two' / one.parent.name / one.name), strict=True):
            for line in lines(path):
                values |= {key: x for key, x in line.items() if key.startswith('eval/')}
        assert found[0].keys() == found[1].keys() and len(found[0])
        for key, x in found[0].items():
            assert found[1][key] == pytest.approx(x, rel=1e-3, abs=1e-5), (one.parent.name, key)
    drawn = [path.relative_to(tmp_path / 'one') for path in (tmp_path / 'one').glob('*/*s/2.*')]
    assert len(drawn) > 8
    for path in drawn:
        assert (tmp_path / 'one' / path).read_bytes() == (tmp_path / 'two' / path).read_bytes(), path
