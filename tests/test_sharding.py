import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mim_jax import sharding
from mim_jax.errors import InputError

PARAMS = {
    'encoder': {
        'block_0': {
            'attention': {'qkv': {'kernel': jnp.zeros((3, 8, 8)), 'bias': jnp.zeros((2, 8))}},
            'mlp': {'fc2': {'kernel': jnp.zeros((32, 6))}},
        },
        'token': jnp.zeros((1, 8)),
    }
}


def test_minus_one_takes_the_rest():
    assert dict(sharding.make_mesh(-1, 2, 2).shape) == {'data': 2, 'fsdp': 2, 'model': 2}
    assert dict(sharding.make_mesh(1, 1, 1).shape) == {'data': 1, 'fsdp': 1, 'model': 1}


@pytest.mark.parametrize('sizes', [(3, 1, -1), (-1, -1, 1), (16, 1, 1), (0, 1, 1), (-1, 3, 1)])
def test_sizes_that_do_not_multiply_are_refused(sizes):
    with pytest.raises(InputError, match='mesh.data'):
        sharding.make_mesh(*sizes)


class Device:
    """A device as far as meshes look at it."""

    device_kind, core_on_chip = 'fake', 0

    def __init__(self, number, slice_index, place, platform):
        self.id = self.process_index = number
        self.slice_index, self.platform = slice_index, platform
        self.coords = place >> 2, place >> 1 & 1, place & 1


def slices(platform='tpu'):
    """Two slices of 2 x 2 x 2 TPUs, mixed up."""
    return [Device(i, i % 2, i // 2, platform) for i in range(16)]


def test_slices_exchange_gradients_only():
    mesh = sharding.make_mesh(-1, 2, 2, slices())
    assert dict(mesh.shape) == {'data': 4, 'fsdp': 2, 'model': 2}
    for copy in mesh.devices:  # one copy of the parameters
        assert len({device.slice_index for device in copy.flat}) == 1
    assert {device.slice_index for device in mesh.devices[:, 0, 0]} == {0, 1}


def test_a_copy_that_would_lie_in_two_slices_is_refused():
    with pytest.raises(InputError, match='mesh.data=1 does not divide over the 2 slices .* use a multiple of 2'):
        sharding.make_mesh(1, 16, 1, slices())


def test_machines_of_gpus_are_no_slices():
    assert dict(sharding.make_mesh(1, 16, 1, slices('gpu')).shape) == {'data': 1, 'fsdp': 16, 'model': 1}


def test_rules_follow_paths_into_optimizer_and_ema(caplog):
    mesh = sharding.make_mesh(1, 4, 2)
    state = {'params': PARAMS, 'ema': PARAMS, 'opt_state': optax.adam(1e-3).init(PARAMS)}
    with caplog.at_level(logging.WARNING):
        placed = sharding.shardings(state, mesh)
    trees = placed['params'], placed['ema'], placed['opt_state'][0].mu, placed['opt_state'][0].nu
    for tree in trees:
        block = tree['encoder']['block_0']
        assert block['attention']['qkv']['kernel'].spec == P(None, 'fsdp', 'model')
        assert block['attention']['qkv']['bias'].spec == P()
        assert block['mlp']['fc2']['kernel'].spec == P('model', None)  # 6 does not divide over 4
        assert tree['encoder']['token'].spec == P()
    assert placed['opt_state'][0].count.spec == P()
    assert len(caplog.records) == 1 and 'fc2/kernel (32, 6)' in caplog.text


def test_rules_speak_of_the_last_axes():
    mesh = sharding.make_mesh(1, 4, 2)
    assert sharding.spec_of('blocks/mlp/fc1/kernel', (12, 8, 32), mesh) == (P(None, 'fsdp', 'model'), True)
    assert sharding.spec_of('fc1/kernel', (8,), mesh) == (P(), True)


def test_state_lands_where_the_rules_say():
    mesh = sharding.make_mesh(2, 2, 2)
    shapes = jax.eval_shape(lambda: PARAMS)
    placed = sharding.shardings(shapes, mesh)
    made = jax.jit(lambda: PARAMS, out_shardings=placed)()
    target = sharding.abstract(shapes, placed)
    assert jax.tree.map(lambda x: x.sharding, made) == jax.tree.map(lambda x: x.sharding, target)
    assert made['encoder']['block_0']['mlp']['fc2']['kernel'].addressable_shards[0].data.shape == (16, 3)


def test_put_cuts_rows_over_data_and_fsdp():
    mesh = sharding.make_mesh(2, 2, 2)
    batch = {'image': np.arange(32, dtype=np.uint8).reshape(8, 2, 2), 'label': np.arange(8)}
    placed = sharding.put(batch, mesh)
    np.testing.assert_array_equal(placed['image'], batch['image'])
    assert {shard.data.shape for shard in placed['image'].addressable_shards} == {(2, 2, 2)}


@pytest.mark.parametrize(('size', 'accumulate', 'near'), [(30, 1, '24 or 32'), (8, 2, '16'), (40, 2, '32 or 48')])
def test_batch_that_does_not_divide(size, accumulate, near):
    with pytest.raises(InputError, match=f'data.batch_size={size} .*: use {near}$'):
        sharding.check_batch(size, sharding.make_mesh(4, 2, 1), accumulate)


def test_a_batch_that_does_not_divide_over_the_hosts_says_so(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 3)
    with pytest.raises(InputError, match=r'over 2 devices \(mesh.data x mesh.fsdp\) and 3 hosts: use 6 or 12$'):
        sharding.check_batch(8, sharding.make_mesh(2, 1, 1, jax.devices()[:2]))


def test_batch_that_divides():
    sharding.check_batch(32, sharding.make_mesh(4, 2, 1), 4)
