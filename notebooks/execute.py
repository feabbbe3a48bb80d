"""Executes notebooks top to bottom and stores what they show: python notebooks/execute.py notebooks/tour.ipynb ..."""

import hashlib
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def code(book: nbformat.NotebookNode) -> list[str]:
    """The sources of its code cells."""
    return [cell.source for cell in book.cells if cell.cell_type == 'code']


def fingerprint(book: nbformat.NotebookNode) -> str:
    """Of its code: outputs stored with another one are not what this code shows."""
    return hashlib.sha256('\0'.join(code(book)).encode()).hexdigest()


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs, run by a new kernel in its own folder, as Jupyter does.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book, timeout=None, record_timing=False, coalesce_streams=True, resources=dict(metadata=dict(path=path.parent))
    ).execute()
    book.metadata.update(language_info=dict(name='python'), executed=fingerprint(book))
    return book


if __name__ == '__main__':
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
