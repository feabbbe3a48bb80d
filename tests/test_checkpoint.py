import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from mim_jax import sharding
from mim_jax.checkpoint import Checkpoints
from mim_jax.errors import InputError, RunError


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    ema: dict | None
    opt_state: Any


def make_state(width=16, depth=1, fill=1.0, ema=False):
    params = {
        'encoder': {
            f'block_{i}': {'fc1': {'kernel': jnp.full((8, width), fill), 'bias': jnp.zeros(width)}}
            for i in range(depth)
        }
    }
    return State(jnp.int32(3), params, params if ema else None, optax.adamw(1e-3).init(params))


def target(state, mesh):
    shapes = jax.eval_shape(lambda: state)
    return sharding.abstract(shapes, sharding.shardings(shapes, mesh))


def one_device():
    return sharding.make_mesh(1, 1, 1)


@pytest.fixture
def checkpoints(tmp_path):
    """Opens the checkpoints of one DIR, any number of times, and closes them all."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(contextlib.closing(Checkpoints(tmp_path, **options)))


def test_what_is_saved_comes_back(tmp_path, checkpoints):
    state, saved = make_state(ema=True), checkpoints()
    assert saved.latest() is None
    assert saved.save(7, state, {'next_sample': 896, 'lr_scale': 0.5})
    saved.wait()
    restored, progress = saved.restore(target(state, one_device()))
    assert isinstance(restored, State)
    assert progress == {'next_sample': 896, 'lr_scale': 0.5}
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert (tmp_path / 'checkpoints' / '7' / 'state').is_dir()


@pytest.mark.parametrize(('first', 'second'), [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (2, 2, 2)), ((8, 1, 1), (1, 4, 2))])
def test_restore_on_another_mesh(checkpoints, first, second):
    state = make_state(fill=jnp.pi)
    written = target(state, sharding.make_mesh(*first))
    saved = checkpoints()
    saved.save(1, jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), state, written), {})
    saved.wait()
    wanted = target(state, sharding.make_mesh(*second))
    found, _ = checkpoints(read_only=True).restore(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    jax.tree.map(lambda x, s: x.sharding == s.sharding or pytest.fail(str(s)), found, wanted)


def test_read_needs_no_model(checkpoints):
    saved = checkpoints()
    saved.save(1, make_state(fill=2.0), {'next_sample': 5})
    saved.wait()
    tree, progress = checkpoints(read_only=True).read()
    kernel = tree['params']['encoder']['block_0']['fc1']['kernel']
    assert isinstance(kernel, np.ndarray)
    np.testing.assert_array_equal(kernel, np.full((8, 16), 2.0))
    assert progress == {'next_sample': 5}


def test_state_may_be_donated_while_it_is_written(checkpoints):
    saved = checkpoints()
    add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {'a': jnp.zeros((1000, 1000))}
    for step in range(4):
        saved.save(step, state, {})
        state = add(state)
    shapes = target(state, one_device())
    saved.wait()
    assert [float(saved.restore(shapes, step)[0]['a'].max()) for step in saved.steps()] == [1, 2, 3]


def test_newest_are_kept_and_a_step_is_saved_once(checkpoints):
    saved = checkpoints(keep=2)
    assert [saved.save(step, make_state(), {}) for step in (1, 2, 3, 3)] == [True, True, True, False]
    saved.wait()
    assert saved.steps() == [2, 3]


def test_half_written_is_never_picked(tmp_path, checkpoints):
    saved = checkpoints()
    saved.save(5, make_state(), {})
    saved.wait()
    folder = tmp_path / 'checkpoints'
    shutil.copytree(folder / '5', folder / '9.orbax-checkpoint-tmp')
    (folder / '8').mkdir()
    assert checkpoints(read_only=True).latest() == 5
    assert (folder / '9.orbax-checkpoint-tmp').exists()  # another process may be writing it
    saved = checkpoints()
    assert saved.latest() == 5
    assert saved.save(7, make_state(), {})
    saved.wait()
    assert saved.latest() == 7
    assert not (folder / '9.orbax-checkpoint-tmp').exists()


SAVER = """
import sys
import jax.numpy as jnp
from mim_jax.checkpoint import Checkpoints
saved = Checkpoints(sys.argv[1])
for step in range(1, 10_000):
    saved.save(step, {'params': {'a': jnp.full((500, 500), float(step)), 'b': jnp.full((7,), float(step))}}, {'step': step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_inside_a_save(tmp_path, checkpoints):
    shapes = target({'params': {'a': jnp.zeros((500, 500)), 'b': jnp.zeros(7)}}, one_device())
    for wait in (0.0, 0.003, 0.01, 0.02):
        writer = subprocess.Popen([sys.executable, '-c', SAVER, tmp_path], stdout=subprocess.PIPE, text=True)
        announced = [int(writer.stdout.readline()) for _ in range(4)][-1]
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        found, progress = checkpoints(read_only=True).restore(shapes)
        assert progress['step'] >= announced - 1  # a save is complete before the next one starts
        np.testing.assert_array_equal(found['params']['a'], np.full((500, 500), progress['step']))
        np.testing.assert_array_equal(found['params']['b'], np.full(7, progress['step']))
        shutil.rmtree(tmp_path / 'checkpoints')


@pytest.mark.parametrize(
    ('other', 'says'),
    [
        (dict(width=12), r'params/encoder/block_0/fc1/bias is (16,) there and (12,) in this'),
        (dict(depth=2), r'params/encoder/block_1/fc1/bias is no such array there and (16,) in this'),
        (dict(ema=True), r'ema/encoder/block_0/fc1/bias is no such array there and (16,) in this'),
    ],
)
def test_another_architecture_is_one_sentence(checkpoints, other, says):
    saved = checkpoints()
    saved.save(1, make_state(), {})
    with pytest.raises(InputError, match=re.escape(says)) as error:
        saved.restore(target(make_state(**other), one_device()))
    assert '\n' not in str(error.value)
    assert '--workdir' in str(error.value)


def test_no_checkpoint(checkpoints):
    saved = checkpoints()
    with pytest.raises(InputError, match='no checkpoint: there is none'):
        saved.restore({})
    saved.save(4, make_state(), {})
    saved.wait()
    with pytest.raises(InputError, match='no checkpoint of step 5: there is only of steps 4'):
        saved.restore({}, 5)


def test_unreadable_checkpoint_names_the_folder(tmp_path, checkpoints):
    saved = checkpoints()
    saved.save(4, make_state(), {})
    saved.wait()
    shutil.rmtree(tmp_path / 'checkpoints' / '4' / 'state' / 'd', ignore_errors=True)
    shutil.rmtree(tmp_path / 'checkpoints' / '4' / 'state' / 'ocdbt.process_0', ignore_errors=True)
    with pytest.raises(RunError, match='step 4; delete its folder'):
        saved.restore(target(make_state(), one_device()))


FULL_DISK = """
import sys
import jax
from mim_jax.checkpoint import Checkpoints
from mim_jax.errors import RunError
saved = Checkpoints(sys.argv[1])
try:
    for step in range(1, 9):
        saved.save(step, {'a': jax.random.normal(jax.random.key(step), (60_000,))}, {})
    saved.wait()
except RunError as error:
    print(saved.latest(), error)
"""


@pytest.mark.skipif(
    not shutil.which('unshare') or subprocess.run(['unshare', '-rm', 'true'], capture_output=True).returncode,
    reason='needs a user namespace, for a small disk to fill',
)
def test_full_disk_is_one_sentence_and_older_checkpoints_stay(tmp_path):
    mount = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'
    command = ['unshare', '-rm', 'sh', '-c', mount, 'sh', str(tmp_path), sys.executable, FULL_DISK]
    env = {**os.environ, 'PYTHONPATH': os.getcwd()}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert ran.returncode == 0, ran.stderr
    latest, _, sentence = ran.stdout.strip().partition(' ')
    assert int(latest) >= 1
    assert sentence == f'checkpoint in {tmp_path}/checkpoints could not be written: no space left on device'
    assert 'Traceback' not in ran.stderr
