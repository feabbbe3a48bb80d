"""Eight fake CPU devices for every test, so that meshes are real; set before JAX wakes up."""

import os

os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
