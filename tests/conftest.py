"""Eight fake CPU devices, so that meshes are real, and quick compilations, since tiny programs run but once; set before JAX wakes up."""

import os
from importlib.metadata import version

import pytest

flags = '--xla_force_host_platform_device_count=8'
if version('jaxlib').startswith('0.10.'):  # fusions by the older way compile in half the time; others may not know them
    flags += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')


@pytest.fixture(params=['tpu', 'default'])
def form(request, monkeypatch):
    """Runs the branch that a platform would get, here."""
    import jax

    def platform_dependent(*args, default, tpu):
        return (tpu if request.param == 'tpu' else default)(*args)

    monkeypatch.setattr(jax.lax, 'platform_dependent', platform_dependent)
    return request.param
