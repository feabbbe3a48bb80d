"""python docs/generate_methods.py > docs/methods.md: one row for each config that names a paper."""

import ast
import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """# Methods

Each row is a file of `configs/`; the parts are the files and functions of the same names in `mim_jax/`.
`python docs/generate_methods.py > docs/methods.md` makes this page.

| config | paper and headline | mask | hide | encoder | terms: predictor → target, loss |
|---|---|---|---|---|---|"""

QUIET = (0, '', 'none')  # values that say nothing


def call(spec) -> str:
    """'random(ratio=0.75)' of dict(name='random', ratio=0.75)."""
    options = ', '.join(f'{name}={value}' for name, value in spec.items() if name != 'name' and value not in QUIET)
    return f'`{spec.name}({options})`'


def term(spec, config) -> str:
    """Who predicts what, and how it is compared; of noise: which answer, where, and how much it counts."""
    if 'predictor' in spec:
        return f'{call(spec.predictor)} → {call(spec.target)}, `{spec.loss.name}`'
    compared = 'noised patches' if spec.noised else spec.of
    return f'{call(config.predictor)} → {compared} on {spec.on}, {spec.weight:g} x `mse`'


def row(path: Path) -> str:
    """The table row of a config file."""
    config = importlib.import_module(f'configs.{path.stem}').get_config()
    title = ast.get_docstring(ast.parse(path.read_text())).partition('\n')[0]
    paper = re.sub(r'arXiv (\d{4}\.\d{4,5})', r'[arXiv \1](https://arxiv.org/abs/\1)', title)
    terms = [term(t, config) for t in config.get('terms', {}).values()]
    terms += [f'without noise: {term(t, config)}' for t in config.get('clean_terms', {}).values()]
    if 'head' in config:
        terms = [
            f'{call(config.predictor)} → {call(config.head)} → {config.objective.answer} of each hidden token, `mse`'
        ]
    parts = [call(config[slot]) if slot in config else '' for slot in ('mask', 'hide', 'encoder')]
    parts[-1] = f'{call(config.mixer)} before the mask, then {parts[-1]}' if 'mixer' in config else parts[-1]
    parts = ' | '.join(parts)
    return f'| `{path.name}` | {paper} | {parts} | {"<br>".join(terms) or call(config.objective)} |'


def page() -> str:
    """The whole page."""
    sys.path.insert(0, str(ROOT))
    files = sorted(path for path in (ROOT / 'configs').glob('*.py') if path.stem not in ('__init__', 'base'))
    return '\n'.join([HEAD, *map(row, files), ''])


if __name__ == '__main__':
    sys.stdout.write(page())
