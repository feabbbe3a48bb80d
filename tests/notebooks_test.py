"""Notebooks: what is stored in them belongs to their code, and they run top to bottom in a few steps."""

import base64
import io
import os
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.text import SList
from PIL import Image

from notebooks.execute import code, executed, fingerprint

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
PICTURES = dict(tour=7, colab_tpu=2)
LARGEST = 300_000  # bytes of a notebook, so that it opens at once

each = pytest.mark.parametrize('path', NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def outputs(book):
    """(number of the cell, output) of all of them."""
    return [(i, output) for i, cell in enumerate(book.cells) for output in cell.get('outputs', ())]


def pictures(book):
    """(number of the cell, picture) of all of them."""
    pngs = [(i, output.data['image/png']) for i, output in outputs(book) if 'image/png' in output.get('data', {})]
    return [(i, np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))) for i, png in pngs]


def test_all_notebooks_are_known():
    assert {path.stem for path in NOTEBOOKS} == PICTURES.keys()


@each
def test_what_is_stored_belongs_to_the_code(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.executed == fingerprint(book), f'outputs of other code: python notebooks/execute.py {path}'
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == 'code']
    assert counts == list(range(1, len(counts) + 1))


@each
def test_what_is_stored_shows_something(path):
    book = nbformat.read(path, as_version=4)
    found = pictures(book)
    assert len(found) == PICTURES[path.stem] and path.stat().st_size < LARGEST
    assert all(picture.std() > 20 for _, picture in found)
    for i, output in outputs(book):
        assert output.output_type != 'error', f'cell {i}: {output.evalue}'
        text = output.get('text', '')
        assert 'Traceback' not in text and 'mim_jax: ' not in text, f'cell {i} failed: {text}'
        assert str(Path.home()) not in text and str(ROOT) not in text, f'cell {i} tells where it was run: {text}'


@each
def test_runs_top_to_bottom(path, tmp_path, monkeypatch):
    beside = sorted(path.parent.iterdir())
    monkeypatch.setenv('MIM_JAX_STEPS', '4')
    monkeypatch.setenv('MIM_JAX_RUNS', str(tmp_path))
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'xla'))
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    one = '--xla_force_host_platform_device_count=1'  # as a reader has it, compiles in two thirds of the time
    monkeypatch.setenv('XLA_FLAGS', f'{os.environ["XLA_FLAGS"]} {one}')
    book, stored = executed(path), nbformat.read(path, as_version=4)
    assert [(i, picture.shape[2]) for i, picture in pictures(book)] == [(i, p.shape[2]) for i, p in pictures(stored)]
    assert [i for i, _ in outputs(book)] == [i for i, _ in outputs(stored)]
    assert sorted(path.parent.iterdir()) == beside


class Hosted(InteractiveShell):
    """IPython that notes commands and magics instead of running them, on a machine with a TPU."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def system(self, command):
        self.ran.append(self.var_expand(command))

    def getoutput(self, command, split=True, depth=0):
        self.system(command)
        return SList(['tpu 1 jax 0.10.2'])

    def run_line_magic(self, name, line, *args, **kwargs):
        self.ran.append(f'%{name} {self.var_expand(line)}')


@pytest.mark.parametrize('service, workdir', [('colab', '/content/drive/MyDrive/'), ('kaggle', '/kaggle/working/')])
def test_hosted_runtimes_keep_their_jax_and_the_run(service, workdir, tmp_path, monkeypatch):
    mounted = []
    drive = ModuleType('google.colab.drive')
    drive.mount = mounted.append
    colab = ModuleType('google.colab')
    colab.drive = drive
    if service == 'colab':
        monkeypatch.setitem(sys.modules, 'google.colab', colab)
    else:
        monkeypatch.setenv('KAGGLE_KERNEL_RUN_TYPE', 'Interactive')
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path))
    monkeypatch.setattr(Path, 'exists', lambda path: False)
    shell = Hosted()
    cells = code(nbformat.read(ROOT / 'notebooks/colab_tpu.ipynb', as_version=4))
    train = next(i for i, cell in enumerate(cells) if cell.strip() == '!{TRAIN}')
    for cell in cells[: train + 1]:
        shell.run_cell(cell).raise_error()
    python = '/tmp/mim_jax/.venv/bin/python'
    assert shell.ran[-1].startswith(f'{python} -m mim_jax.main --config=configs/mae_cifar10.py --workdir={workdir}')
    assert '--config.data.path=hf:' in shell.ran[-1] and '--config.dtype=bfloat16' in shell.ran[-1]
    installs = [command for command in shell.ran if 'pip install' in command and python not in command]
    assert [command.split()[-1] for command in installs] == ['uv', 'tensorboard'][: 1 + (service == 'colab')]
    assert mounted == ['/content/drive'] * (service == 'colab')
    assert 'jax' not in ' '.join(name for name in shell.user_ns if not name.startswith('_'))
