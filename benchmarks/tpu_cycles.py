"""Compiles the whole train step of a config for TPUs that are not there, and writes what the compiler says of it.

    pip install libtpu
    python benchmarks/tpu_cycles.py --config=configs/mae.py:vit_l16 --topology=v5p:2x2x2 --per_chip=128 --out=step

writes step.hlo (the scheduled program; its instructions carry `estimated_cycles`) and step.json: memory per chip,
FLOP of the compiler's count, sorts, gathers and custom calls, which carry no estimate, and the compile time.
"""

import json
import os
import re
import time
from functools import partial
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from mim_jax import build, optim, step

CONFIG = config_flags.DEFINE_config_file('config', 'configs/mae.py:vit_l16')
TOPOLOGY = flags.DEFINE_string('topology', 'v5p:2x2x2', 'generation:shape')
PER_CHIP = flags.DEFINE_integer('per_chip', 128, 'images per chip and step')
OUT = flags.DEFINE_string('out', 'step', 'path of the results, without suffix')
UNCOSTED = ('sort', 'gather', 'scatter', 'custom-call')


def program(config, batch):
    """The train step of a config, and the shapes of its state."""
    objective, augment = build.objective(config), build.augment(config)
    options = {k: v for k, v in config.optimizer.items() if k != 'name'}
    init = partial(step.init, objective=objective, augment=augment, tx_of=lambda p: optim.adamw(p, **options), ema=False)
    state = jax.eval_shape(partial(init, 0), batch)
    rate = {k: v for k, v in config.schedule.items() if k != 'name'}
    schedule = optim.schedule(**rate, batch_size=len(batch['label']), total_steps=config.total_steps)
    run = partial(
        step.train_step,
        seed=0,
        loss=step.make_loss(objective, augment),
        tx=optim.adamw(state.params, **options),
        schedule=schedule,
    )
    return run, state


def main(_):
    config = CONFIG.value
    devices = topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGY.value).devices
    mesh = Mesh(devices, ('data',), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
    n = PER_CHIP.value * len(devices)
    shapes = {
        'image': ((n, *config.data.canvas, config.data.channels), config.data.dtype),
        'size': ((n, 2), 'int32'),
        'label': ((n,), 'int32'),
        'valid': ((n,), 'bool'),
    }
    batch = {k: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for k, (shape, dtype) in shapes.items()}
    run, state = program(config, batch)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    start = time.time()
    with jax.set_mesh(mesh):
        lowered = jax.jit(run, donate_argnums=0).trace(state, batch, scale).lower(lowering_platforms=('tpu',))
    # an offloaded gather would make the program's text unprintable
    compiled = lowered.compile(compiler_options={'xla_tpu_offload_gather_to_sparsecore': 'false'})
    text, memory = compiled.as_text(), compiled.memory_analysis()
    Path(f'{OUT.value}.hlo').write_text(text)
    result = dict(
        topology=TOPOLOGY.value,
        per_chip=PER_CHIP.value,
        compile_seconds=round(time.time() - start, 1),
        arguments_gb=memory.argument_size_in_bytes / 1e9,
        temporaries_gb=memory.temp_size_in_bytes / 1e9,
        flops=compiled.cost_analysis()['flops'],
        uncosted={op: len(re.findall(rf' {op}\(', text)) for op in UNCOSTED},
    )
    Path(f'{OUT.value}.json').write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    app.run(main)
