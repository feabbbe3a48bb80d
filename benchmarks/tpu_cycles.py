"""Compiles the whole train step of a config for TPUs that are not there, and writes what the compiler says of it.

    pip install libtpu
    python benchmarks/tpu_cycles.py --config=configs/mae.py:vit_l16 --topology=v5p:2x2x2 --per_chip=128
    python benchmarks/tpu_cycles.py --config=configs/videomae_v2.py:vit_g14 --topology=v5p:4x4x4 --per_chip=8 --data=1 --fsdp=-1

writes runs/step.hlo, the scheduled program, and runs/step.json: gigabytes per chip, cycles (see hlo_cycles.py), model FLOP, the share of the
peak if collectives hide behind the rest, and how often operations without an estimate occur. It prints the dearest operations.
"""

import json
import math
import os
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
from hlo_cycles import CLOCK, cost
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import config_flags

from mim_jax import compile, sharding, train
from mim_jax.progress import peak_flops

CONFIG = config_flags.DEFINE_config_file('config', 'configs/mae.py:vit_l16')
TOPOLOGY = flags.DEFINE_string('topology', 'v5p:2x2x2', 'generation:shape')
PER_CHIP = flags.DEFINE_integer('per_chip', 128, 'rows per chip and step')
DATA = flags.DEFINE_integer('data', -1, 'mesh.data')
FSDP = flags.DEFINE_integer('fsdp', 1, 'mesh.fsdp')
MODEL = flags.DEFINE_integer('model', 1, 'mesh.model')
AUGMENT = flags.DEFINE_bool('augment', True, 'crop and flip in the step; without, records have the size of the model')
TOP = flags.DEFINE_integer('top', 20, 'operations to print')
OUT = flags.DEFINE_string('out', 'runs/step', 'path of the results, without suffix')


def make_mesh() -> Mesh:
    """The mesh of the flags over the chips of the topology."""
    devices = np.array(topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGY.value).devices)
    return Mesh(devices.reshape(DATA.value, FSDP.value, MODEL.value), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def adapt(config, chips: int) -> None:
    """Sets the batch, uncut, and leaves out the augmentation if told to."""
    rows = PER_CHIP.value * MODEL.value  # of a device: those that share products share their rows
    with config.unlocked():
        config.data.batch_size, config.micro_batch = PER_CHIP.value * chips, rows
        if not AUGMENT.value:
            config.data.canvas = config.data.image_size
            config.augment.update(crop=None, flip=False)
            if 'image' == config.tokenizer.key:
                config.data.dtype = 'float32'


def memory(step) -> dict[str, float]:
    """Gigabytes of a chip; `total` leaves out the arguments that the output takes the place of."""
    m = step.memory_analysis()
    arguments, temporaries, output = m.argument_size_in_bytes, m.temp_size_in_bytes, m.output_size_in_bytes
    total = arguments + temporaries + output - m.alias_size_in_bytes
    named = dict(arguments=arguments, temporaries=temporaries, output=output, total=total)
    return {name: round(n / 1e9, 2) for name, n in named.items()}


def main(_):
    config, mesh = CONFIG.value, make_mesh()
    adapt(config, mesh.size)
    compile.device_memory = lambda: (
        math.inf
    )  # the compiler refuses what does not fit a chip; this host's memory is no matter
    start = time.time()
    with jax.set_mesh(mesh):
        objective, augment, abstract = train.parts(config, mesh)
        step = compile.train_step(config, objective, augment, abstract, mesh).call
    seconds, text = time.time() - start, step.as_text()
    generation, kind = TOPOLOGY.value.partition(':')[0], mesh.devices.flat[0].device_kind
    spent = cost(text, generation)
    flop = compile.model_flops(config, objective, augment, abstract.params) * PER_CHIP.value
    peak = peak_flops(kind) or float('nan')
    result = dict(
        topology=TOPOLOGY.value,
        mesh=dict(mesh.shape),
        per_chip=PER_CHIP.value,
        augment=AUGMENT.value,
        compile_seconds=round(seconds, 1),
        gb_per_chip=memory(step),
        mcycles=round(spent.cycles / 1e6, 2),
        mcycles_charged=round(spent.charged / 1e6, 2),
        loops_of_unknown_length=spent.guessed,
        model_tflop_per_chip=flop / 1e12,
        mfu=flop / peak / (spent.cycles / CLOCK[generation]),
        without_estimate=dict(spent.without_estimate),
    )
    Path(OUT.value).parent.mkdir(parents=True, exist_ok=True)
    Path(f'{OUT.value}.hlo').write_text(text)
    Path(f'{OUT.value}.json').write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    for (name, shape), cycles in spent.top.most_common(TOP.value):
        print(f'{cycles / 1e6:8.3f} M  {shape[:44]:44}  {name[-72:]}')


if __name__ == '__main__':
    app.run(main)
