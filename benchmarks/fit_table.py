"""What `mim_jax.tools.fit` says of every shipped config, at its default size and batch and at the largest of its paper, on some slices of TPUs that are not there.

    pip install -e '.[tpu]'
    python benchmarks/fit_table.py --cells=runs/fit --out=benchmarks/results/fit.md

A cell is one config, or CONFIG:VARIANT, on one topology, compiled in a process of its own, and is kept as CELLS/CONFIG_TOPOLOGY.json: what is there is not compiled again.
Encoders are scanned, which compiles faster and costs more cycles than the unrolled layers that most configs ship with.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPOLOGIES = ('v5p:4x4x4', 'v5e:4x4', 'v6e:8x8')
FIRST = ('mae', 'videomae', 'mdlm', 'dit', 'maskgit', 'umd', 'fsq')
LARGE = ('mae:vit_h14', 'videomae:vit_h16', 'dit:xl2', 'maskdit:xl2', 'microdit:xl2', 'mar:h')
DATA_DECIDE = {  # what training finds out from the data
    'mar': ['--config.data.channels=16'],
    'maskgit': ['--config.data.reader.shape=(16, 16)', '--config.data.reader.vocab=1000'],
    'md4': ['--config.data.reader.alphabet= abcdefghijklmnopqrstuvwxyz'],
    **dict.fromkeys(('dit:xl2', 'maskdit:xl2', 'microdit:xl2'), ['--config.data.channels=4']),
}
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--cells', type=Path, default=Path('runs/fit'), help='a folder')
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results/fit.md'), help='the table')
    parser.add_argument('--topologies', default=','.join(TOPOLOGIES))
    parser.add_argument('--configs', default=','.join(names()))
    parser.add_argument('--timeout', type=float, default=7200, help='seconds of a cell')
    options = parser.parse_args()
    options.cells.mkdir(parents=True, exist_ok=True)
    for topology in options.topologies.split(','):
        for name in options.configs.split(','):
            path = cell_path(options.cells, name, topology)
            if not path.exists():
                compile_cell(name, topology, path, options.timeout)
            options.out.write_text(table(options.cells, options.configs.split(','), options.topologies.split(',')))


def names() -> list[str]:
    """Of all configs, those in `FIRST` first and those in `LARGE` last."""
    known = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
    return [*FIRST, *(name for name in known if name not in (*FIRST, '__init__', 'base')), *LARGE]


def spec(name: str) -> str:
    """What `--config` calls it, below configs/."""
    config, colon, variant = name.partition(':')
    return f'{config}.py{colon}{variant}'


def cell_path(cells: Path, name: str, topology: str) -> Path:
    return cells / f'{name}_{topology}.json'.replace(':', '_')


def compile_cell(name: str, topology: str, path: Path, timeout: float) -> None:
    """Runs the tool, and writes its report, or why there is none."""
    sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]
    module, *variant = name.split(':')
    config = importlib.import_module(f'configs.{module}').get_config(*variant)
    given = DATA_DECIDE.get(name, DATA_DECIDE.get(module, []))
    options = ['--config.encoder.scan=True'] * ('scan' in config.encoder) + given
    command = [sys.executable, '-m', 'mim_jax.tools.fit', f'--config=configs/{spec(name)}', f'--topology={topology}']
    start, fresh = time.time(), path.with_suffix('.part')
    try:
        done = subprocess.run([*command, f'--out={fresh.absolute()}', *options], cwd=ROOT, timeout=timeout, capture_output=True, text=True)  # fmt: skip
        failed = '' if fresh.exists() else (done.stderr.strip().splitlines() or ['no word'])[-1]
    except subprocess.TimeoutExpired:
        failed = f'not compiled in {timeout / 60:.0f} minutes'
    found = dict(failed=failed) if failed else json.loads(fresh.read_text())
    fresh.unlink(missing_ok=True)
    path.write_text(json.dumps(found | dict(wall_seconds=round(time.time() - start)), indent=1) + '\n')
    print(name, topology, failed or found.get('why') or f'{found["cycles"] / 1e6:.1f} M', f'{time.time() - start:.0f} s', flush=True)  # fmt: skip


def table(cells: Path, configs: list[str], topologies: list[str]) -> str:
    """All cells there are."""
    out = [
        '# Every config on TPUs, by the compiler',
        '',
        'Nothing here ran on a TPU. `python benchmarks/fit_table.py` compiled the real train step of each config, at its default size and global batch, with',
        '`python -m mim_jax.tools.fit`; docs/performance.md says what such numbers can and cannot tell. Encoders are scanned (`encoder.scan=True`), which compiles faster and',
        'costs more cycles than the unrolled layers that most configs ship with. GiB: arguments and temporaries of a chip. Micro-batches are those that training would choose.',
        'Exchange: collectives at the published bandwidth. MFU: if no collective hides behind the rest, and if all do.',
    ]
    for topology in topologies:
        paths = {name: cell_path(cells, name, topology) for name in configs}
        rows = [row(name, json.loads(path.read_text())) for name, path in paths.items() if path.exists()]
        if rows:
            out += ['', f'## {topology}', '', '| config | batch | micro-batches x rows of a chip | GiB | M cycles | ms | exchange, ms | MFU |', '|---|---|---|---|---|---|---|---|', *rows]  # fmt: skip
    return '\n'.join(out) + '\n'


def row(name: str, cell: dict) -> str:
    """One cell as a row of the table."""
    if 'failed' in cell:
        return f'| `{spec(name)}` | | | {cell["failed"].replace("mim_jax: ", "")} | | | | |'
    if not cell['fits']:
        return f'| `{spec(name)}` | | | does not fit: {cell["need"] / GIB:.1f} of {cell["room"] / GIB:.1f} | | | | |'
    return (
        f'| `{spec(name)}` | {cell["batch"]} | {cell["micro_batches"]} x {cell["rows"]} | {cell["memory"]["total"] / GIB:.2f} | {cell["cycles"] / 1e6:.1f} | '
        f'{cell["seconds"] * 1e3:.1f} | {cell["collective_seconds"] * 1e3:.2f} | {cell["mfu_exposed"]:.1%} to {cell["mfu"]:.1%} |'
    )


if __name__ == '__main__':
    main()
