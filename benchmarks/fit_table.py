"""What `mim_jax.tools.fit` says of every shipped config, at its default size and batch and at the largest of its paper, on some slices of TPUs that are not there.

    pip install -e '.[tpu]'
    python benchmarks/fit_table.py --cells=runs/fit

A cell is one config, or CONFIG:VARIANT, on one topology, compiled in a process of its own, and is kept as CELLS/CONFIG_TOPOLOGY.json: what is there is not compiled again.
Encoders are scanned, which compiles faster and costs more cycles than the unrolled layers that most configs ship with. The table takes the place of the one in
docs/performance.md.
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
BEGIN, END = '<!-- fit_table.py -->', '<!-- until here -->'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--cells', type=Path, default=Path('runs/fit'), help='a folder')
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'docs/performance.md', help='a text with the table between two comments'
    )
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
            write(options.out, table(options.cells, names(), options.topologies.split(',')))


def write(path: Path, table: str) -> None:
    """Puts the table in its place."""
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f'{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}')


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
    """All cells there are, a row for each config."""
    rows = []
    for name in configs:
        paths = [cell_path(cells, name, topology) for topology in topologies]
        found = [json.loads(path.read_text()) if path.exists() else None for path in paths]
        if any(found):
            rows.append('| ' + ' | '.join([f'`{spec(name)}`', batch(found), *map(cell, found)]) + ' |')
    head = ['config', 'batch', *topologies]
    return '\n'.join([f'| {" | ".join(head)} |', '|---' * len(head) + '|', *rows])


def batch(found: list[dict | None]) -> str:
    """The global batch of a config."""
    return ', '.join(sorted({str(x['batch']) for x in found if x and 'batch' in x}))


def cell(found: dict | None) -> str:
    """Micro-batches x rows of a chip; memory; time; MFU."""
    if found is None:
        return ''
    if 'failed' in found:
        return found['failed'].replace('mim_jax: ', '')
    if not found['fits']:
        return f'does not fit: {found["need"] / GIB:.1f} of {found["room"] / GIB:.1f} GiB'
    used = ' to '.join(dict.fromkeys(f'{100 * found[key]:.2g}' for key in ('mfu_exposed', 'mfu')))
    time = f'{found["seconds"] * 1e3:.1f} + {found["collective_seconds"] * 1e3:.1f} ms'
    return f'{found["micro_batches"]} x {found["rows"]}; {found["memory"]["total"] / GIB:.2f} GiB; {time}; {used}%'


if __name__ == '__main__':
    main()
