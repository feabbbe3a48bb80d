"""Names of slices, and what is said where one cannot be had."""

import importlib.util
import os

import jax
import numpy as np
import pytest

from mim_jax import sharding
from mim_jax.errors import InputError
from mim_jax.progress import peak_flops
from mim_jax.tools import topology


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    jax.devices()  # JAX is awake: what is set for it comes too late
    for name in ('JAX_PLATFORMS', 'XLA_FLAGS', 'TPU_SKIP_MDS_QUERY', 'ALLOW_MULTIPLE_LIBTPU_LOAD'):
        monkeypatch.setenv(name, '')  # so that what a test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize(('name', 'meant'), [
    ('v5litepod-16', 'v5e:4x4'), ('v5p-128', 'v5p:4x4x4'), ('v6e-64', 'v6e:8x8'), ('v4-8', 'v4:2x2x1'), ('v7x:2x2x1', 'tpu7x:2x2x1'),
    ('tpu-v5e:4x4', 'v5e:4x4'), ('v5pp:2x2x2', 'v5p:2x2x2'), ('v5e', 'v5e:1x1'), ('foo:2x2', 'GENERATION:SHAPE'), ('2xv5litepod-16', '2xv5e:4x4'), ('3xv6e', '3xv6e:1x1'), ('0xv5e:4x4', 'v5e:4x4'), ('2xcpu:4', 'cpu:8'), ('cpu:0', 'cpu:8'),
])  # fmt: skip
def test_what_may_have_been_meant(name, meant):
    with pytest.raises(InputError, match=f'--topology={name}: .*{meant}'):
        topology.chip_of(name)


@pytest.mark.parametrize(
    ('name', 'both_ways', 'devices'), [('v5e', 400e9, 1), ('v5p', 1200e9, 1), ('v6e', 800e9, 1), ('tpu7x', 1200e9, 2)]
)
def test_links_are_half_of_what_is_published_of_a_chip_for_both_directions(name, both_ways, devices):
    assert topology.CHIPS[name].ici == both_ways / 2 / devices


def test_slices_of_a_name():
    assert topology.slices_of('16xv5e:4x4') == (16, 'v5e:4x4') and topology.slices_of('v5e:4x4') == (1, 'v5e:4x4')
    assert topology.chip_of('2xv5e:4x4') == topology.CHIPS['v5e']


def test_devices_of_this_process():
    assert topology.chip_of('cpu:3') is None and topology.chip_of('here') is None
    assert len(topology.devices('cpu:3')) == 3 and topology.devices('here') == jax.devices()
    with pytest.raises(InputError, match='--topology=cpu:99: JAX was started with 8 CPU devices'):
        topology.devices('cpu:99')


def test_the_environment_of_cpu_devices(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_a=1')
    topology.prepare('cpu:4')
    assert os.environ['XLA_FLAGS'] == '--xla_a=1 --xla_force_host_platform_device_count=4'


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"no TPU is needed\): pip install -e '.\[tpu\]'"):
        topology.prepare('v5e:4x4')


def test_a_lock_that_another_process_holds(monkeypatch):
    from jax.experimental import topologies

    def locked(*args, **kwargs):
        raise jax.errors.JaxRuntimeError('ABORTED: Internal error when accessing libtpu multi-process lockfile.')

    monkeypatch.setattr(topologies, 'get_topology_desc', locked)
    with pytest.raises(InputError, match='another process holds the lock .* ALLOW_MULTIPLE_LIBTPU_LOAD=1'):
        topology.devices('v5e:4x4')


def test_a_slice_the_compiler_refuses(monkeypatch):
    from jax.experimental import topologies

    def refused(*args, **kwargs):
        raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible')

    monkeypatch.setattr(topologies, 'get_topology_desc', refused)
    with pytest.raises(InputError, match='--topology=v5e:3x3: .*is not divisible.* Did you mean v5e:2x4 or v5e:4x4?'):
        topology.devices('v5e:3x3')


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
@pytest.mark.parametrize(('name', 'count'), [('v4:2x2x1', 4), ('v5e:2x2', 4), ('v5p:2x2x1', 4), ('v6e:2x4', 8), ('tpu7x:2x2x1', 8)])  # fmt: skip
def test_devices_of_slices_have_a_known_peak(name, count):
    topology.prepare(name)
    devices = topology.devices(name)
    assert len(devices) == count and peak_flops(devices[0].device_kind)


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
def test_each_slice_holds_whole_copies_of_the_parameters():
    topology.prepare('2xv5e:2x2')
    mesh = sharding.make_mesh(-1, 2, 1, devices=topology.devices('2xv5e:2x2'))
    assert dict(mesh.shape) == dict(data=4, fsdp=2, model=1)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert slices[:, :, 0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(InputError, match='mesh.data=1 does not divide over the 2 slices of TPUs'):
        sharding.make_mesh(-1, 8, 1, devices=topology.devices('2xv5e:2x2'))
