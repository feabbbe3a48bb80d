"""When a process is one of several hosts, how they meet, and what is whose."""

import socket
import threading
import types
from typing import NamedTuple

import jax
import pytest

from mim_jax import hosts, launched, roll_call
from mim_jax.errors import InputError, RunError
from mim_jax.hosts import Share
from tests.many import free_port

SRUN = dict(SLURM_JOB_ID='7', SLURM_PROCID='3', SLURM_LOCALID='1', SLURM_NODEID='1', SLURM_NTASKS='4', SLURM_STEP_NUM_TASKS='4',
            SLURM_STEP_NODELIST='n[1-2]', SLURM_STEP_TASKS_PER_NODE='2(x2)')  # fmt: skip
MPIRUN = dict(OMPI_COMM_WORLD_SIZE='4', OMPI_COMM_WORLD_RANK='2', OMPI_COMM_WORLD_LOCAL_RANK='0', OMPI_COMM_WORLD_LOCAL_SIZE='2')  # fmt: skip
PLAIN = dict(JAX_COORDINATOR_ADDRESS='a:1', JAX_NUM_PROCESSES='2', JAX_PROCESS_ID='1')
TPU_ALONE = dict(TPU_ACCELERATOR_TYPE='v5litepod-8', TPU_WORKER_ID='0', TPU_HOST_BOUNDS='1,1,1', TPU_SKIP_MDS_QUERY='1')

ALONE = {
    'nothing': {},
    'one by name': dict(JAX_NUM_PROCESSES='1'),
    'one by name on a slice': dict(JAX_NUM_PROCESSES='1', TPU_WORKER_HOSTNAMES='a,b'),
    'notebook with a TPU': TPU_ALONE | dict(TPU_WORKER_HOSTNAMES='localhost'),
    'notebook with a TPU and no name': TPU_ALONE | dict(TPU_WORKER_HOSTNAMES='', TPU_PROCESS_ADDRESSES='local'),
    'compiler for TPU': dict(TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost'),
    'one host of GKE': dict(TPU_WORKER_HOSTNAMES='a.svc', TPU_WORKER_ID='0', KUBERNETES_SERVICE_HOST='10.0.0.1'),
    'one slice': dict(TPU_WORKER_HOSTNAMES='a', MEGASCALE_NUM_SLICES='1'),
    'lone task of SLURM': SRUN | dict(SLURM_NTASKS='1', SLURM_STEP_NUM_TASKS='1', SLURM_PROCID='0'),
    'shell of salloc': dict(SLURM_JOB_ID='7', SLURM_NTASKS='4', SLURM_NNODES='2', SLURM_JOB_NODELIST='n[1-2]'),
    'interactive step of salloc': SRUN | dict(SLURM_STEP_NUM_TASKS='1', SLURM_STEP_ID='4294967290'),
    'script of sbatch': dict(SLURM_JOB_ID='7', SLURM_NTASKS='4', SLURM_PROCID='0', SLURM_LOCALID='0'),
    'mpirun -n 1': dict(OMPI_COMM_WORLD_SIZE='1', OMPI_COMM_WORLD_RANK='0'),
}
SEVERAL = {  # -> count, number, address, local, method
    'plain addresses': (PLAIN, (2, 1, 'a:1', None, None)),
    'srun': (SRUN, (4, 3, None, (1, 2), 'slurm')),
    'srun with unequal nodes': (SRUN | dict(SLURM_STEP_TASKS_PER_NODE='1,3'), (4, 3, None, (1, 3), 'slurm')),
    'srun with an address': (SRUN | dict(JAX_COORDINATOR_ADDRESS='a:1'), (4, 3, 'a:1', (1, 2), 'slurm')),
    'mpirun of Open MPI 4': (MPIRUN | dict(OMPI_MCA_orte_hnp_uri='1'), (4, 2, None, (0, 2), 'ompi')),
    'mpirun of Open MPI 5': (MPIRUN, (4, 2, None, (0, 2), 'mpi4py')),
    'mpirun in a job of SLURM': (MPIRUN | SRUN | dict(SLURM_STEP_NUM_TASKS='2'), (4, 2, None, (0, 2), 'mpi4py')),
    'MPICH': (dict(PMI_SIZE='3', PMI_RANK='0'), (3, 0, None, None, 'mpi4py')),
    'srun with PMI': (SRUN | dict(PMI_SIZE='4', PMI_RANK='3'), (4, 3, None, (1, 2), 'slurm')),
    'slice of GKE': (dict(TPU_WORKER_HOSTNAMES='a,b, c', TPU_WORKER_ID='1'), (3, None, None, None, 'gketpu')),
    'slice by addresses': (dict(TPU_PROCESS_ADDRESSES='a:8476,b:8476', TPU_WORKER_HOSTNAMES='x'), (2, None, None, None, 'gketpu')),
    'two slices': (dict(TPU_WORKER_HOSTNAMES='a,b', MEGASCALE_NUM_SLICES='2'), (4, None, None, None, 'gketpu')),
    'two slices of a host': (dict(TPU_WORKER_HOSTNAMES='a', MEGASCALE_NUM_SLICES='2'), (2, None, None, None, 'gketpu')),
    'slice with an address': (dict(TPU_WORKER_HOSTNAMES='a,b', JAX_COORDINATOR_ADDRESS='a:1'), (2, None, 'a:1', None, 'gketpu')),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
    monkeypatch.setattr(launched, 'glob', lambda pattern: [])


@pytest.mark.parametrize('case', ALONE)
def test_one_host(case):
    assert launched.launched(ALONE[case]) is None


@pytest.mark.parametrize('case', SEVERAL)
def test_several_hosts(case):
    env, expected = SEVERAL[case]
    found = launched.launched(env)
    assert (found.count, found.number, found.address, found.local, found.method) == expected
    name, _, value = found.said.partition('=')
    assert name in env and (name.startswith('TPU') or str(found.count) == value or name.startswith('MEGASCALE'))


@pytest.mark.parametrize(('env', 'why'), [
    (dict(JAX_COORDINATOR_ADDRESS='a:1'), 'JAX_COORDINATOR_ADDRESS=a:1 but JAX_NUM_PROCESSES and JAX_PROCESS_ID missing'),
    (dict(JAX_NUM_PROCESSES='2'), 'JAX_NUM_PROCESSES=2 but JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID missing'),
    (PLAIN | dict(JAX_PROCESS_ID='2'), 'JAX_PROCESS_ID=2 has to be from 0 to 1'),
    (PLAIN | dict(JAX_NUM_PROCESSES='two'), 'JAX_NUM_PROCESSES=two is not a whole number'),
])  # fmt: skip
def test_said_by_half(env, why):
    with pytest.raises(InputError, match=why):
        launched.launched(env)


@pytest.mark.parametrize(('told', 'expected'), [
    ({'worker-network-endpoints': 'a:0:10.0.0.1,b:1:10.0.0.2'}, 2),
    ({'worker-network-endpoints': 'a', 'tpu-env': "NODE_ID: 'x'\nMEGASCALE_NUM_SLICES: '3'\n"}, 3),
    ({'worker-network-endpoints': 'a', 'tpu-env': "NODE_ID: 'x'"}, None),
    ({}, None),
])  # fmt: skip
def test_a_tpu_vm_asks_the_metadata_server(monkeypatch, told, expected):
    monkeypatch.setattr(launched, 'metadata', lambda key: told.get(key, ''))
    assert launched.launched({}) is None  # no chips: nobody is asked
    monkeypatch.setattr(launched, 'glob', lambda pattern: ['/dev/accel0'])
    found = launched.launched({})
    assert (found and found.count) == expected and (found is None or found.method == 'gcetpu')
    assert launched.launched({'TPU_SKIP_MDS_QUERY': '1'}) is None


def test_no_metadata_server_is_no_host_beside_this_one(monkeypatch):
    monkeypatch.setattr(launched, 'METADATA', f'http://127.0.0.1:{free_port()}/')
    assert launched.metadata('worker-network-endpoints') == ''


@pytest.mark.parametrize(('local', 'env', 'expected'), [
    (None, {}, []),  # all
    ((0, 1), dict(CUDA_VISIBLE_DEVICES='0,1,2,3'), []),
    ((1, 2), dict(CUDA_VISIBLE_DEVICES='0,1,2,3'), [2, 3]),
    ((1, 2), dict(CUDA_VISIBLE_DEVICES='0,1'), [1]),
    ((1, 2), dict(CUDA_VISIBLE_DEVICES='5'), []),  # bound to its own
    ((1, 2), {}, None),  # one, as JAX chooses
    ((1, 2), dict(JAX_LOCAL_DEVICE_IDS='0,3'), [0, 3]),
])  # fmt: skip
def test_gpus_of_a_process(local, env, expected):
    assert launched.devices_of(local, env) == expected


def test_slurm_and_mpi_know_the_first_host(monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    address, *rest = launched.place(launched.launched(SRUN), 1)
    assert address.startswith('n1:') and rest == [4, 3, None]
    with pytest.raises(InputError, match='mpi4py, or set JAX_COORDINATOR_ADDRESS=NAME:PORT'):
        launched.place(launched.launched(MPIRUN), 1)
    with pytest.raises(InputError, match=r'mim_jax\[tpu\]'):
        launched.place(launched.launched(dict(TPU_WORKER_HOSTNAMES='a,b')), 1)


def meet(count, timeout=5.0, numbers=None, **different):
    """What each of some hosts, started at once, got from the roll call, or the error."""
    address, found = f'127.0.0.1:{free_port()}', {}

    def one(i, number):
        facts = dict(jax='0.10.2', workdir='x') | different.get(f'host{number}', {})
        try:
            found[i] = roll_call.meet(address, number, count, facts, timeout)
        except (InputError, RunError) as error:
            found[i] = error

    threads = [threading.Thread(target=one, args=(i, number)) for i, number in enumerate(numbers or range(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(threads))]


def test_all_come():
    one, *others = meet(5)
    assert len(one) == 5 and socket.gethostname() in one[0] and all(other == one for other in others)


def test_who_is_missing_is_named():
    found = meet(6, 3.0, [0, 1, 3])
    for error in found:
        assert isinstance(error, RunError)
        assert '3 of 6 hosts came' in str(error) and 'missing: 2, 4-5;' in str(error) and '3 (' in str(error)


@pytest.mark.parametrize(
    ('different', 'why'),
    [
        (dict(jax='0.9'), "host 1 (.*) has jax='0.9' and host 0 (.*) '0.10.2'"),
        ({'config.seed': 1}, 'config.seed=1 .*nothing'),
    ],
)
def test_what_differs_is_named(different, why):
    for error in meet(2, host1=different):
        assert isinstance(error, InputError)
        with pytest.raises(InputError, match=why):
            raise error


def test_two_that_say_they_are_the_same():
    first, *others = meet(3, 10.0, [0, 1, 1])
    assert 'two processes say that they are host 1' in str(first) and all(str(first) == str(other) for other in others)


def test_nobody_listens():
    with pytest.raises(RunError, match=r'could not reach host 0 at 127.0.0.1:\d+ within 1 s: .*nothing listens'):
        roll_call.meet(f'127.0.0.1:{free_port()}', 1, 2, {}, 1.0)
    with pytest.raises(RunError, match='no machine is known by that name'):
        roll_call.meet('nowhere.invalid:1', 1, 2, {}, 1.0)
    with pytest.raises(InputError, match="'nowhere', is not of the form NAME:PORT"):
        roll_call.meet('nowhere', 1, 2, {}, 1.0)


def test_a_port_that_is_taken():
    with socket.create_server(('', 0)) as other, pytest.raises(RunError, match='cannot listen at port'):
        roll_call.meet(f'127.0.0.1:{other.getsockname()[1]}', 0, 2, {}, 1.0)


def test_strangers_are_ignored():
    port, found = free_port(), []
    first = threading.Thread(target=lambda: found.append(roll_call.meet(f'127.0.0.1:{port}', 0, 2, {}, 20.0)))
    first.start()
    for noise in (b'GET / HTTP/1.1\n', b'3\n', b'{"number": 1}\n', b''):
        stranger = None
        while stranger is None:
            try:
                stranger = socket.create_connection(('127.0.0.1', port))
            except ConnectionRefusedError:
                continue
        stranger.sendall(noise)
        stranger.close()
    assert len(roll_call.meet(f'127.0.0.1:{port}', 1, 2, {}, 20.0)) == 2
    first.join()
    assert len(found[0]) == 2


class Service:
    """Of JAX, as far as hosts tell each other their steps."""

    def __init__(self, **steps):
        self.told = {f'mim_jax/steps/{host[1:]}': step for host, step in steps.items()}

    def key_value_set(self, key, value, allow_overwrite):
        self.told[key] = value

    def key_value_dir_get(self, key):
        return list(self.told.items())


@pytest.fixture
def watched(monkeypatch):
    """`watched(seconds at which steps began, other hosts' steps) -> (sentence, status) or None` of host 0 of three after 1000 s."""

    def look(begun, **steps):
        ours, found = hosts.Hosts(0, ['a', 'b', 'c'], ''), []
        ours.client, ours.step = Service(**steps), 7
        clock = types.SimpleNamespace(sleep=lambda _: setattr(ours, 'parted', True))
        monkeypatch.setattr(hosts, '_ours', ours)
        monkeypatch.setattr(hosts, 'time', clock)
        for second in begun:
            clock.monotonic = lambda now=second: now
            hosts.rest() if second < 0 else hosts.moved(7)
        clock.monotonic = lambda: 1000.0
        monkeypatch.setattr(ours, 'leave', lambda text, status, **how: found.append((text, status, how)))
        ours.watch_steps()
        return found[0] if found else None

    return look


@pytest.mark.parametrize(
    ('steps', 'who'),
    [
        (dict(h1='7', h2='6'), 'host 2 (c) hangs: the last step to begin there was 6, 610 s ago'),
        (dict(h1='8', h2='8'), 'host 0 (a) hangs: the last step to begin there was 7,'),
        (dict(h1='5', h2='5'), 'host 1 (b) and host 2 (c) hang: the last step to begin there was 5,'),
        (dict(h1='7', h2='7'), 'every host hangs: the last step to begin there was 7,'),
        (dict(h2='7', other='3'), 'host 1 (b) hangs: the last step to begin there was 0,'),  # it has not told any
    ],
)
def test_who_hangs_is_named(watched, steps, who):
    text, status, how = watched([370, 380, 390], **steps)
    assert text.startswith(who) and status == 1 and how == dict(tell=True, trace=True)


@pytest.mark.parametrize(
    'begun',
    [
        [380, 390, 401],  # less than ten minutes ago
        [298, 329, 360, 391],  # a slow one among steps of half a minute and more
        [380, 390],  # the first of them may not be done: hosts may compile, each for itself
        [370, 380, 390, -1],  # an evaluation
        [370, 380, -1, 380, 390],
    ],
)
def test_what_may_take_long_is_no_hang(watched, begun):
    assert watched(begun, h1='7', h2='6') is None


class Device(NamedTuple):
    """Of a host."""

    process_index: int
    id: int


def share_of(monkeypatch, host, count, *chunks):
    """`share` of a host, where chunk i of a batch is on devices of the hosts chunks[i]."""
    where = {
        Device(who, 10 * i + j): (slice(i, i + 1),) for i, chunk in enumerate(chunks) for j, who in enumerate(chunk)
    }
    sharding = types.SimpleNamespace(devices_indices_map=lambda shape: where)
    monkeypatch.setattr(jax.sharding, 'NamedSharding', lambda mesh, spec: sharding)
    monkeypatch.setattr(jax, 'process_index', lambda: host)
    monkeypatch.setattr(jax, 'process_count', lambda: count)
    mesh = types.SimpleNamespace(empty=False, shape=dict(data=len(chunks), fsdp=1, model=len(chunks[0])))
    return hosts.share.__wrapped__(mesh)


def test_hosts_have_the_rows_of_their_devices(monkeypatch):
    assert share_of(monkeypatch, 1, 2, [0], [0], [1], [1]) == Share((2, 3), 4, 1, 2)
    assert share_of(monkeypatch, 1, 2, [0], [1], [0], [1]) == Share((1, 3), 4, 1, 2)  # a mesh that follows the wires
    split = [share_of(monkeypatch, host, 4, [0, 1], [2, 3]) for host in range(4)]  # products split over two hosts
    assert split == [Share((0,), 2, 0, 2)] * 2 + [Share((1,), 2, 1, 2)] * 2
    assert share_of(monkeypatch, 0, 2, [0, 1]) == Share((0,), 1, 0, 1)
    with pytest.raises(InputError, match='give some hosts more rows than others'):
        share_of(monkeypatch, 0, 2, [0, 0], [0, 1], [1, 1])


def test_rows_of_a_batch():
    size, rows = Share((2, 3), 4, 1, 2).of(8)
    assert size == 8 and rows.tolist() == [4, 5, 6, 7]
    assert Share((0, 2), 4, 0, 2).of(8)[1].tolist() == [0, 1, 4, 5]
    size, rows = Share((2, 3), 4, 1, 2).of(5)  # does not divide: a few more
    assert size == 6 and rows.tolist() == [3, 4, 5]
    size, rows = Share((2, 3), 4, 1, 2).of(6, clips=2)
    assert size == 8 and rows.tolist() == [4, 5, 6, 7]
    assert Share((0, 1), 2, 0, 1).of(5)[1].tolist() == [0, 1, 2, 3, 4]
