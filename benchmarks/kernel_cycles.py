"""Counts the instruction bundles that the TPU compiler schedules for the kernel of fused attention, for which it gives no estimate of cycles.

    pip install -e '.[tpu]'
    python benchmarks/kernel_cycles.py --topology=v5p:2x2x1 --shapes=128x50x1024x16 --shapes=128x197x512x16

SHAPES are samples x tokens x width x heads; a fifth number adds masks: 1 = of keys, 2 = of queries and keys. A bundle takes a cycle at least: what
waits for memory takes longer, so the times by matrix unit and by memory bandwidth stand beside it.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).parents[1]))

from mim_jax.models import fused_attention
from mim_jax.progress import peak_flops
from mim_jax.tools import topology

TOPOLOGY = flags.DEFINE_string('topology', 'v5p:2x2x1', 'generation:shape')
SHAPES = flags.DEFINE_multi_string('shapes', ['128x50x1024x16', '128x197x512x16'], 'samples x tokens x width x heads')
PRODUCTS = dict(forward=2, backward=5)  # of the size of the scores
MOVED = 4 + 7  # arrays that the kernels read and write


def bundles(dump: Path, name: str) -> int:
    """Of one turn of the kernel's loop, in its final schedule."""
    (path,) = (p for p in dump.glob(f'*{name}*-final_bundles.txt') if 'schedule-analysis' not in p.name)
    inside = [line for line in path.read_text().splitlines() if re.match(r'\s*(0x[0-9a-f]+|0)\s+(\w\w)?\s*: >', line)]
    return len(inside) + sum(int(n) for line in inside for n in re.findall(r'vdelay (\d+)', line))


def count(dump: Path, mesh: Mesh, batch: int, tokens: int, width: int, heads: int, masks: int = 0) -> dict[str, float]:
    """M cycles of a chip, forward and backward of one layer: by bundles, by the matrix unit, by memory."""
    chip, peak = topology.chip_of(TOPOLOGY.value), peak_flops(mesh.devices.flat[0].device_kind)

    def array(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    x = array((batch, tokens, width))
    valid = array((batch, tokens if masks == 2 else 1, tokens), jnp.int8) if masks else None
    channels, samples = width // heads, fused_attention.samples(batch, tokens)
    turns = batch // samples * (width // 128) * (tokens // fused_attention.block_of(tokens, tokens, masks == 2))

    def run(q, k, v, g, valid):
        out, back = jax.vjp(lambda q, k, v: fused_attention.attend(q, k, v, valid, channels), q, k, v)
        return out, back(g)

    for path in dump.glob('*'):
        path.unlink()
    with jax.set_mesh(mesh):
        jax.jit(run).trace(x, x, x, x, valid).lower(lowering_platforms=('tpu',)).compile()
    found = {name: bundles(dump, f'{name}_kernel') * turns / chip.cores / 1e6 for name in PRODUCTS}
    found['sum'] = sum(found.values())
    found['matrix unit'] = sum(PRODUCTS.values()) * 2 * batch * heads * tokens**2 * 128 / peak * chip.clock / 1e6
    found['memory'] = MOVED * batch * tokens * width * 2 / chip.hbm * chip.clock / 1e6
    return found


def main(_):
    topology.prepare(TOPOLOGY.value)
    with tempfile.TemporaryDirectory() as folder:
        os.environ['LIBTPU_INIT_ARGS'] = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
        devices = np.array(topology.devices(TOPOLOGY.value)[:1]).reshape(1, 1, 1)
        mesh = Mesh(devices, ('data', 'fsdp', 'model'), axis_types=(AxisType.Auto,) * 3)
        print(f'{TOPOLOGY.value}, M cycles a layer\n')
        print(
            '| samples x tokens x width x heads | forward | backward | sum | matrix unit alone | memory alone |\n|---|---|---|---|---|---|'
        )
        for shape in SHAPES.value:
            found = count(Path(folder), mesh, *map(int, shape.split('x')))
            print(f'| {shape} | ' + ' | '.join(f'{x:.3f}' for x in found.values()) + ' |', flush=True)


if __name__ == '__main__':
    app.run(main)
