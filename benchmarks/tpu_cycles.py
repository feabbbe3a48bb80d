"""Compiles the whole train step of a config for TPUs that are not there, and writes what the compiler says of it.

    pip install libtpu
    python benchmarks/tpu_cycles.py --config=configs/mae.py:vit_l16 --topology=v5p:2x2x2 --per_chip=128 --out=step

writes step.hlo, the scheduled program, whose instructions carry `estimated_cycles`, and step.json: gigabytes per chip,
the compiler's count of FLOP per chip, seconds of compilation, and the instructions of kinds that carry no estimate.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')

import jax
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import config_flags

from mim_jax import compile, sharding, train

CONFIG = config_flags.DEFINE_config_file('config', 'configs/mae.py:vit_l16')
TOPOLOGY = flags.DEFINE_string('topology', 'v5p:2x2x2', 'generation:shape')
PER_CHIP = flags.DEFINE_integer('per_chip', 128, 'images per chip and step')
AUGMENT = flags.DEFINE_bool('augment', True, 'crop and flip in the step; without, records are normalised images')
OUT = flags.DEFINE_string('out', 'step', 'path of the results, without suffix')
WITHOUT_ESTIMATE = ('sort', 'gather', 'scatter', 'custom-call')


def main(_):
    config = CONFIG.value
    devices = np.array(topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGY.value).devices)
    mesh = Mesh(devices.reshape(-1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    with config.unlocked():
        config.data.batch_size, config.micro_batch = PER_CHIP.value * devices.size, PER_CHIP.value
        if not AUGMENT.value:
            config.data.update(dtype='float32', canvas=config.data.image_size)
            config.augment.update(crop=None, flip=False)
    start = time.time()
    with jax.set_mesh(mesh):
        step = compile.train_step(config, *train.parts(config, mesh), mesh).call
    text, memory = step.as_text(), step.memory_analysis()
    result = dict(
        topology=TOPOLOGY.value,
        per_chip=PER_CHIP.value,
        augment=AUGMENT.value,
        compile_seconds=round(time.time() - start, 1),
        arguments_gb=memory.argument_size_in_bytes / 1e9,
        temporaries_gb=memory.temp_size_in_bytes / 1e9,
        flops=step.cost_analysis()['flops'],
        without_estimate={op: len(re.findall(rf' {op}\(', text)) for op in WITHOUT_ESTIMATE},
    )
    Path(f'{OUT.value}.hlo').write_text(text)
    Path(f'{OUT.value}.json').write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    app.run(main)
