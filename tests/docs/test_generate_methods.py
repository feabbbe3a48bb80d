import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_that_of_the_configs():
    made = subprocess.run([sys.executable, 'docs/generate_methods.py'], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert (ROOT / 'docs/methods.md').read_text() == made.stdout, 'python docs/generate_methods.py > docs/methods.md'
