"""Who may import whom; the house stays a house only while this holds."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / 'mim_jax'
JAX = {'jax', 'flax.struct'}
LINEN = JAX | {'flax'}
NO_DEVICE = ('jax', 'flax', 'optax', 'orbax')

# room -> (what of mim_jax it may import besides itself, foreign packages it may import or None for any).
LAW = {
    'masks': ([], JAX),
    'losses': ([], JAX),
    'samplers': ([], JAX),
    'noise.py': (['masks'], JAX),
    'augment': (['errors'], JAX),
    'tokenizers': (['masks', 'errors'], JAX),
    'hiding': (['masks', 'errors', 'tokenizers.tokens'], JAX),  # the type it is handed
    'models': (['masks', 'errors', 'sharding'], LINEN),  # the last for kernels that the compiler cannot cut
    'targets': (['masks', 'errors', 'tokenizers.tokens'], LINEN),
    'objectives': (['masks', 'errors', 'noise'], LINEN),
    'data': (['errors'], None),
    'configs': ([], {'ml_collections'}),
}


def imports(path):
    """Full names of the modules a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            if node.module in ('mim_jax', 'flax'):
                yield from (f'{node.module}.{alias.name}' for alias in node.names)
            else:
                yield node.module


def within(name, packages):
    return any(name == package or name.startswith(f'{package}.') for package in packages)


def breaches(room, name):
    """Why a file of the room may not import the module, or None."""
    ours, foreign = LAW[room]
    if within(name, ['mim_jax']):
        allowed = within(name, [f'mim_jax.{other}' for other in [*ours, room]])
    elif within(name, ['configs']):
        allowed = room == 'configs'
    else:
        allowed = foreign is None or name.split('.')[0] in sys.stdlib_module_names or within(name, foreign)
    return None if allowed else f'imports {name}'


def files(room):
    if room.endswith('.py'):
        return [HOUSE / room]
    return sorted((ROOT / room if room == 'configs' else HOUSE / room).rglob('*.py'))


@pytest.mark.parametrize('room', LAW)
def test_a_room_imports_only_what_it_may(room):
    found = [
        f'{path.relative_to(ROOT)} {why}'
        for path in files(room)
        for name in imports(path)
        if (why := breaches(room, name))
    ]
    assert not found


def test_data_never_touches_a_device():
    found = [(path.name, name) for path in files('data') for name in imports(path) if within(name, NO_DEVICE)]
    assert not found


def test_core_has_neither_torch_nor_tensorflow():
    banned = ['torch', 'torchvision', 'tensorflow', 'timm', 'transformers']
    found = [(path.name, name) for path in HOUSE.rglob('*.py') for name in imports(path) if within(name, banned)]
    assert found == [('fid.py', 'torch')]  # when it is asked for, and only to run a file of TorchScript


def test_nothing_imports_main_or_train_but_commands():
    found = [
        (path.name, name)
        for path in HOUSE.rglob('*.py')
        if path.parent.name != 'tools'  # commands beside main, which read the same flags and compile the same step
        for name in imports(path)
        if within(name, ['mim_jax.main', 'mim_jax.train']) and (path.name, name) != ('main.py', 'mim_jax.train')
    ]
    assert not found


def test_build_alone_knows_all_parts():
    parts = [f'mim_jax.{room}' for room in ('tokenizers', 'hiding', 'models', 'targets', 'losses', 'objectives')]
    for path in HOUSE.glob('*.py'):
        if path.name != 'build.py':
            assert not [name for name in imports(path) if within(name, parts)], path.name


@pytest.mark.parametrize(
    ('room', 'name'),
    [
        ('masks', 'flax.linen'),
        ('masks', 'mim_jax.models'),
        ('models', 'mim_jax.losses'),
        ('data', 'mim_jax.build'),
        ('configs', 'mim_jax.models'),
        ('losses', 'optax'),
    ],
)
def test_the_law_bites(room, name):
    assert breaches(room, name)
