"""Text or images to packed rows of token ids or to latents: tokenised once, in any amount, and read without the tokenizer.

    python -m mim_jax.tools.tokenize SRC DST [--tokenizer bytes|characters|hf:NAME_OR_PATH] [--length N]
                                             [--separator REGEX] [--documents pack|row|cut] [--holdout SHARE] [--shards N]
    python -m mim_jax.tools.tokenize SRC DST --run=WORKDIR [--flips] [--holdout SHARE] [--shards N]

SRC is whatever `data.path` may be for text; where it has splits, or with --holdout, DST gets train/ and val/. The rows are those that
a TextReader with these options makes. Documents that cannot be used are left out, counted and listed in index.json. Everything
is read back and compared before DST appears; an existing DST is never touched. While it works, the tokens lie beside DST.

With --run SRC is images, and their tokens are the codes of an autoencoder (configs/fsq.py, configs/vq.py) or its latents (configs/kl.py): its
newest checkpoint in WORKDIR sees them as in evaluation. Labels stay. --flips adds the mirror image of each one of training.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mim_jax.data import Source, TextReader, latents, open_splits, tokens
from mim_jax.errors import InputError, RunError
from mim_jax.tools import pack


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.tools.tokenize', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('src', help='text files, a folder of them, .jsonl, .csv, .parquet, hf:NAME or builtin:NAME')
    parser.add_argument('dst', help='a folder that does not exist yet')
    parser.add_argument('--run', default='', help='workdir of a trained autoencoder of images')
    parser.add_argument('--flips', action='store_true', help='of images, their mirror images too')
    parser.add_argument('--tokenizer', default='bytes', help='bytes, characters or hf:NAME_OR_PATH')
    parser.add_argument('--alphabet', default='', help='of characters; those of the training records, if not given')
    parser.add_argument('--length', type=int, default=256, help='tokens of a row')
    parser.add_argument('--separator', default='', help='a regular expression; a document begins wherever it matches')
    parser.add_argument('--documents', default='pack', help='pack, row or cut; see TextReader')
    parser.add_argument('--holdout', type=float, default=0.0, help='share kept for validation, where there is no other')
    parser.add_argument('--labels', default='auto', help="'auto', 'none' or a column")
    parser.add_argument('--shards', type=int, default=0, help=f'files to write; 0 = one for each {pack.SHARD} rows')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='threads')
    options = vars(parser.parse_args(argv))
    how = {name: options.pop(name) for name in ('tokenizer', 'alphabet', 'length', 'separator', 'documents')}
    try:
        if options['flips'] and not options['run']:
            raise InputError('--flips is for images: --run says what makes codes of them')
        makes = dict(run=options.pop('run'), flips=options.pop('flips'))
        src, dst = options.pop('src'), Path(options.pop('dst'))
        pack.tell(images(src, dst, **makes, **options) if makes['run'] else text(src, dst, how, **options))
    except (InputError, RunError) as error:
        print(f'mim_jax: {error}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def text(
    src: str,
    dst: Path,
    how: Mapping = {},
    holdout: float = 0.0,
    labels: str = 'auto',
    shards: int = 0,
    workers: int = 1,
) -> dict[str, dict]:
    """Writes `dst`, and gives the index of each folder in it.

    Args:
        src: what `data.path` may be.
        how: options of a TextReader.
        holdout: share of the documents kept for validation, where `src` has no other.
        labels: of `open_source`.
        shards: files to write; 0 = by the number of rows.
        workers: threads.

    Raises:
        InputError: nothing readable at `src`, an option out of range, or `dst` exists.
        RunError: what was read back is not what was written, or the disk is full.
    """
    pack.new(dst)

    def opened(divide):
        return open_splits(src, '', labels, holdout, 'text', divide)

    how = {**how} | TextReader.settle(how, lambda divide: opened(divide)[0])
    reader = TextReader(**how)
    made = {name: value for name, value in how.items() if name != 'length'}
    with beside(dst) as folder:
        splits = [source and reader.arrange(source, folder) for source in opened(reader.divide)]
        return write(splits, dst, src, dict(shape=reader.shape, vocab=reader.vocab) | made, shards, workers)


def images(
    src: str,
    dst: Path,
    run: str,
    flips: bool = False,
    holdout: float = 0.0,
    labels: str = 'auto',
    shards: int = 0,
    workers: int = 1,
) -> dict[str, dict]:
    """As `text`, of images; the index says in `tokens.autoencoder` which run the codes are of, for `Autoencoder(run).decode`, and of latents in
    `tokens.mean` and `tokens.std` what each channel has over the training images.

    Args:
        src: what `data.path` may be.
        run: workdir of a run with the objective `Autoencoding`.
        flips: the mirror images of the training images too.
    """
    from mim_jax.autoencoder import Autoencoder, Codes  # JAX is slow to import, and texts do without

    pack.new(dst)
    codec = Autoencoder(run)
    train, val = open_splits(src, '', labels, holdout, codec.reader.media)
    told = dict(shape=codec.shape, autoencoder=str(Path(run).expanduser().absolute()))
    with beside(dst) as folder:
        splits = Codes(train, codec, folder / 'train', flips), val and Codes(val, codec, folder / 'val')
        told |= dict(vocab=codec.vocab) if codec.vocab else splits[0].moments()
        return write(splits, dst, src, told, shards, workers)


@contextlib.contextmanager
def beside(dst: Path) -> Iterator[Path]:
    """A folder beside `dst` for what is needed while it is made.

    Raises:
        RunError: the disk is full, or may not be written to.
    """
    try:
        dst.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=dst.absolute().parent, prefix=f'.{dst.name}.') as folder:
            yield Path(folder)
    except OSError as error:
        raise RunError(f'cannot write {dst}: {error}') from error


def write(
    splits: tuple[Source, Source | None], dst: Path, src: str, told: Mapping, shards: int = 0, workers: int = 1
) -> dict[str, dict]:
    """Writes rows of tokens as shards, for a TokenReader, or latents, for a LatentReader. Arguments, result and errors as of `pack.write`, besides

    Args:
        splits: training and validation rows (or None); their data are arrays as of the reader.
        told: what the index says of them: `shape`, `vocab` or `mean` and `std`, and what made them.
    """
    media, save = ('tokens', tokens.save) if 'vocab' in told else ('latents', latents.save)
    way = pack.Way(media, save, tokens.load, index=dict(tokens=dict(told)))
    return pack.write(splits, dst, src, way, shards, workers)


if __name__ == '__main__':
    sys.exit(main())
