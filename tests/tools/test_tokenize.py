"""Tokenising: the shards hold the rows that a TextReader makes."""

import json

import numpy as np
import pytest

from mim_jax.data import TextReader, TokenReader, batches, open_source, open_splits
from mim_jax.data.sources.base import Record, Source
from mim_jax.data.tokens import load
from mim_jax.errors import InputError
from mim_jax.tools import tokenize
from mim_jax.tools.tokenize import main


@pytest.fixture
def corpus(tmp_path):
    for i, text in enumerate(['naïve ' * 30, 'short', '', 'two\r\nlines', '日本語' * 40]):
        (tmp_path / 'src').mkdir(exist_ok=True)
        (tmp_path / 'src' / f'{i}.txt').write_bytes(text.encode())
    return tmp_path / 'src'


@pytest.mark.parametrize('documents', ['pack', 'row', 'cut'])
@pytest.mark.parametrize('tokenizer', ['bytes', 'characters'])
def test_the_rows_are_those_of_a_reader_of_text(corpus, tmp_path, tokenizer, documents, capsys):
    dst = tmp_path / 'deep' / 'dst'
    options = [f'--tokenizer={tokenizer}', f'--documents={documents}', '--length=32', '--shards=2']
    assert main([str(corpus), str(dst), *options]) == 0
    out = capsys.readouterr().out
    assert 'in 2 shards' in out and '1 left out' in out and '2.txt: empty document' in out
    assert [path.name for path in dst.parent.iterdir()] == ['dst']
    packed = open_source(str(dst), media='tokens')
    settled = TokenReader.settle(dict(shape=(), vocab=0), lambda: packed)
    reader, of_text = TokenReader(**settled), TextReader(
        length=32, documents=documents, tokenizer=tokenizer, alphabet=settled['alphabet']
    )  # fmt: skip
    source = of_text.arrange(open_splits(str(corpus), media='text')[0])
    assert reader.arrange(packed) is packed and reader.row == of_text.row and reader.vocab == of_text.vocab
    assert [packed[i].name for i in range(len(packed))] == [source[i].name for i in range(len(source))]
    both = (batches(data, how, batch_size=4, steps=6) for data, how in ((packed, reader), (source, of_text)))
    for (a, report), (b, _) in zip(*both, strict=True):
        assert a['valid'].all() and not report.bad and a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_splits_are_kept_or_held_out(corpus, tmp_path):
    assert main(['builtin:python_topics', str(tmp_path / 'topics'), '--length=512']) == 0
    train, val = open_splits(str(tmp_path / 'topics'), media='tokens')
    for packed, source in zip((train, val), open_splits('builtin:python_topics', media='text'), strict=True):
        size = sum(len(source[i].data) for i in range(len(source)))
        assert sum(int(load(packed[i].data)[2].sum()) for i in range(len(packed))) == size
    assert main([str(corpus / '0.txt'), str(tmp_path / 'one'), '--holdout=0.2', '--tokenizer=characters']) == 0
    train, val = open_splits(str(tmp_path / 'one'), media='tokens')
    assert len(val) and train.tokens == val.tokens


def test_wrong_input_is_one_sentence_and_leaves_nothing(corpus, tmp_path, capsys):
    for arguments, why in (
        ([str(corpus), str(corpus)], 'exists already'),
        ([str(corpus), str(tmp_path / 'dst'), '--tokenizer=words'], 'data.reader.tokenizer=words'),
        ([str(tmp_path / 'srd'), str(tmp_path / 'dst')], 'did you mean'),
        ([str(corpus / '2.txt'), str(tmp_path / 'dst')], 'none of 1 documents can be used'),
    ):
        assert main(arguments) == 2 and why in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['src']


def test_shards_of_another_shape_or_kind_are_one_sentence(corpus, tmp_path):
    main([str(corpus), str(tmp_path / 'dst'), '--length=32'])
    source = open_source(str(tmp_path / 'dst'), media='tokens')
    for options, why in (
        (dict(shape=(16,), vocab=256), r'data.reader.shape=\[16\], but the shards of .*dst were made with \[32\]'),
        (dict(shape=(32,), vocab=99), 'data.reader.vocab=99, but the shards of .* with 256'),
    ):
        with pytest.raises(InputError, match=why):
            TokenReader(**options).arrange(source)
    with pytest.raises(InputError, match='holds packed tokens, but the config is one of texts'):
        open_source(str(tmp_path / 'dst'), media='text')


class Codes(Source):
    """What an autoencoder would say of images."""

    num_classes, class_names = 2, ['a', 'b']

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return Record(self.name(index), np.full((2, 3), index * 100), index % 2)

    def name(self, index):
        return f'image:{index}'


def test_codes_of_images_take_the_same_way(tmp_path):
    told = dict(shape=(2, 3), vocab=512)
    indices = tokenize.write((Codes(), None), tmp_path / 'dst', 'images', told)
    assert [*indices] == [str(tmp_path / 'dst')] and json.loads((tmp_path / 'dst' / 'index.json').read_text())[
        'count'
    ] == 5
    source = open_source(str(tmp_path / 'dst'), media='tokens')
    reader = TokenReader(**TokenReader.settle(dict(shape=(), vocab=0, tokenizer=''), lambda: source))
    assert reader.shape == (2, 3) and reader.vocab == 512 and source.class_names == ['a', 'b']
    batch, _ = next(batches(reader.arrange(source), reader, batch_size=5, shuffle=False, steps=1))
    assert batch['ids'].tolist() == [[100 * i] * 6 for i in range(5)] and batch['label'].tolist() == [0, 1, 0, 1, 0]
