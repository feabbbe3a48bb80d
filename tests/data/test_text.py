"""Documents to rows: nothing is lost, nothing comes twice, no document sees another."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from mim_jax.data import TextReader, batches, one_pass, open_splits
from mim_jax.data import text as module
from mim_jax.data.sources.base import Record, Source
from mim_jax.data.text import best_fit
from mim_jax.data.tokens import UNKNOWN
from mim_jax.errors import InputError

SHARED = Path(__file__).parents[3] / 'shared' / 'data' / 'text'
HOW = ('pack', 'row', 'cut')


class Documents(Source):
    """Documents in memory; the label of the i-th is i."""

    def __init__(self, texts):
        self.texts, self.num_classes, self.class_names = texts, len(texts), None

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return Record(self.name(index), self.texts[index], index)

    def name(self, index):
        return f'documents:{index}'


def lines(count=60, seed=0):
    """Documents of 1 to 40 characters, some of several bytes; each begins with its number and the rest is its own letter."""
    rng = np.random.default_rng(seed)
    return [f'{i:02}'.encode() + ('aé日😀'[i % 4] * int(n)).encode() for i, n in enumerate(rng.integers(0, 40, count))]


def rows_of(source, reader):
    """[(ids, segment, bytes, label, name)] of each row, as a batch has them."""
    found = []
    for i in range(len(source)):
        record = source[i]
        out = {key: np.zeros((1, *shape), dtype) for key, (shape, dtype) in reader.row.items()}
        reader(record.data, None, out)
        found.append((*(out[key][0] for key in ('ids', 'segment', 'bytes')), record.label, record.name))
    return found


def parts(rows):
    """The ids of each segment of each row."""
    return [ids[segment == s] for ids, segment, *_ in rows for s in range(1, segment.max() + 1)]


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('length', [7, 16, 64, 1000])
def test_every_byte_comes_once_and_in_its_document(how, length):
    documents, reader = lines(), TextReader(length=length, documents=how)
    rows = rows_of(reader.arrange(Documents(documents)), reader)
    for ids, segment, size, *_ in rows:
        used = int((segment > 0).sum())
        assert (segment[:used] > 0).all() and not segment[used:].any() and not ids[used:].any() and size == used
        assert set(np.diff(segment[:used])) <= {0, 1} and segment[0] == 1
    found = [bytes(part.tolist()) for part in parts(rows)]
    assert sum(map(len, found)) == sum(map(len, documents))
    whole = [part for part in found if part in documents]
    if how != 'cut':
        assert sorted(whole) == sorted(d for d in documents if len(d) <= length)
        assert sorted(found) == sorted(d[i : i + length] for d in documents for i in range(0, len(d), length))
    else:
        assert b''.join(found) == b''.join(documents) and all((row[1] > 0).all() for row in rows[:-1])
        assert len(rows) == -(-sum(map(len, documents)) // length)
    if how == 'row':
        assert len(rows) == len(found) and all(row[1].max() == 1 for row in rows)


def test_rows_are_the_same_every_time_and_in_every_process():
    reader = TextReader(length=32)
    first, again = (reader.arrange(Documents(lines())) for _ in range(2))
    for source in (again, pickle.loads(pickle.dumps(first))):
        for i in range(len(first)):
            np.testing.assert_array_equal(first[i].data, source[i].data)
            assert first[i][::2] == source[i][::2]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('length', [16, 128, 1000])
def test_packing_is_dense_and_never_too_much(seed, length):
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(3 / length, 3000), length)
    rows = best_fit(sizes, length)
    used = np.bincount(rows, sizes)
    assert used.max() <= length and sizes.sum() / (len(used) * length) > 0.9
    np.testing.assert_array_equal(np.unique(rows), np.arange(len(used)))


def test_the_fullest_row_that_has_room_is_taken():
    assert best_fit(np.array([3, 6, 2, 7, 2]), 10).tolist() == [0, 1, 1, 0, 1]
    assert best_fit(np.array([10, 10]), 10).tolist() == [0, 1]


@pytest.mark.parametrize('how', HOW)
def test_a_row_has_a_label_where_it_is_of_one_document(how):
    documents = [b'a' * 9, b'b' * 4, b'c' * 3, b'd' * 20]
    reader = TextReader(length=10, documents=how)
    source = reader.arrange(Documents(documents))
    for ids, segment, _, label, _ in rows_of(source, reader):
        letters = {chr(i) for i in ids[segment > 0]}
        assert label == ('abcd'.index(letters.pop()) if len(letters) == 1 else -1)
    assert source.num_classes == (4 if how == 'row' else 0)


def test_names_tell_where_a_row_begins():
    reader = TextReader(length=10, documents='row')
    source = reader.arrange(Documents([b'a' * 25, b'b']))
    names = [source.name(i) for i in range(len(source))]
    assert names == ['documents:0', 'documents:0@10', 'documents:0@20', 'documents:1']


@pytest.mark.parametrize('tokenizer', ['bytes', 'characters'])
def test_bytes_of_rows_add_up_in_any_tokenizer(tokenizer):
    documents = lines()
    alphabet = ''.join(sorted(set(b''.join(documents).decode())))
    reader = TextReader(length=16, tokenizer=tokenizer, alphabet=alphabet)
    rows = rows_of(reader.arrange(Documents(documents)), reader)
    assert sum(row[2] for row in rows) == sum(map(len, documents))
    for ids, segment, size, *_ in rows:
        assert tokenizer == 'bytes' or len(reader.decode(ids[segment > 0]).encode()) == size


def test_what_cannot_be_used_is_left_out_and_named(tmp_path):
    for name, data in {
        'a.txt': 'né'.encode('latin-1'),
        'b.txt': b'',
        'c.txt': b'\xef\xbb\xbfwith a mark\r\n',
        'd.txt': b'\xef\xbb\xbf',
        'e.txt': b'fine',
    }.items():
        (tmp_path / name).write_bytes(data)
    for tokenizer, bad in (('bytes', 'bd'), ('characters', 'abd')):
        reader = TextReader(length=64, tokenizer=tokenizer, alphabet='fine')
        source = reader.arrange(reader.divide(open_splits(str(tmp_path), media='text')[0]))
        assert [name for name, _ in source.skipped] == [f'{letter}.txt' for letter in bad]
        assert all('empty document' in why or 'not UTF-8 at byte 1' in why for _, why in source.skipped)
        assert len(source) == 1
    reader = TextReader(length=64)
    found = parts(rows_of(reader.arrange(open_splits(str(tmp_path), media='text')[0]), reader))
    assert [bytes(part.tolist()) for part in found] == ['né'.encode('latin-1'), b'with a mark\r\n', b'fine']


def test_nothing_usable_is_one_sentence():
    with pytest.raises(InputError, match=r'none of 2 documents can be used, as documents:0 \(empty document\)'):
        TextReader().arrange(Documents([b'', b'']))


def test_too_much_for_the_memory_names_the_tool(monkeypatch, tmp_path):
    monkeypatch.setattr(module, 'MOST', 100)
    with pytest.raises(InputError, match='mim_jax.tools.tokenize'):
        TextReader().arrange(Documents(lines()))
    reader = TextReader()
    scratched = reader.arrange(Documents(lines()), tmp_path)
    monkeypatch.undo()
    for a, b in zip(rows_of(scratched, reader), rows_of(reader.arrange(Documents(lines())), reader), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_unknown_characters_are_noted():
    reader = TextReader(length=8, tokenizer='characters', alphabet='ab')
    out = {key: np.zeros((1, *shape), dtype) for key, (shape, dtype) in reader.row.items()}
    notes = [reader(reader.arrange(Documents([text]))[0].data, None, out) for text in (b'abba', b'abc')]
    assert notes == [(), (UNKNOWN,)]


@pytest.mark.parametrize(
    'separator, expected',
    [
        ('', ['one\ntwo\r\n\nthree']),
        ('^', ['one\n', 'two\r\n', '\n', 'three']),
        ('^.', ['one\n', 'two\r\n\n', 'three']),
        ('^t', ['one\n', 'two\r\n\n', 'three']),
        ('^th', ['one\ntwo\r\n\n', 'three']),
        ('nothing', ['one\ntwo\r\n\nthree']),
        (r'(?<=\n\n)', ['one\ntwo\r\n\n', 'three']),
        ('$', ['one', '\ntwo\r', '\n', '\nthree']),
    ],
)
def test_a_separator_is_where_a_document_begins(separator, expected):
    source = TextReader(separator=separator).divide(Documents([b'one\ntwo\r\n\nthree', b'', b'last']))
    found = [source[i] for i in range(len(source))]
    assert [record.data.decode() for record in found] == [*expected, '', 'last']
    assert {record.label for record in found[: len(expected)]} == {0} and found[-1].label == 2
    if separator == '^th':
        assert [record.name for record in found[:2]] == ['documents:0:1', 'documents:0:4']


def test_a_share_of_the_documents_is_held_out(tmp_path):
    (tmp_path / 'a.txt').write_text(''.join(f'line {i}\n' for i in range(10)))
    reader = TextReader(separator='^')
    train, val = open_splits(str(tmp_path / 'a.txt'), holdout=0.3, media='text', divide=reader.divide)
    assert (len(train), len(val)) == (7, 3)
    found = [source[i].data.decode() for source in (train, val) for i in range(len(source))]
    assert sorted(found) == [f'line {i}\n' for i in range(10)]


@pytest.mark.parametrize('text', ['words and lines\n' * 20, '日本' * 50, 'x' * 100])
def test_the_end_of_a_single_document_is_held_out(tmp_path, text):
    (tmp_path / 'a.txt').write_text(text)
    train, val = open_splits(str(tmp_path / 'a.txt'), holdout=0.1, media='text', divide=TextReader().divide)
    first, last = train[0].data.decode(), val[0].data.decode()
    assert first + last == text and 0.05 <= len(last) / len(text) < 0.15
    assert '\n' not in text or first.endswith('\n')
    assert (train.name(0), val.name(0)) == ('a.txt:1', f'a.txt:{1 + first.count(chr(10))}')


@pytest.mark.parametrize('holdout', [0.01, 0.99])
def test_a_document_too_short_to_share_is_one_sentence(tmp_path, holdout):
    (tmp_path / 'a.txt').write_text('ab')
    with pytest.raises(InputError, match='a.txt with 2 bytes leaves one part empty'):
        open_splits(str(tmp_path / 'a.txt'), holdout=holdout, media='text', divide=TextReader().divide)


@pytest.mark.parametrize(
    'options, why',
    [
        (dict(length=0), 'length=0 has to be above 0'),
        (dict(documents='packed'), 'documents=packed pack, row or cut'),
        (dict(separator='('), r'data.reader.separator=\(: no regular expression'),
        (dict(tokenizer='words'), 'data.reader.tokenizer=words'),
    ],
)
def test_wrong_options_are_one_sentence(options, why):
    with pytest.raises(InputError, match=why):
        TextReader(**options)


def test_batches_are_whole_epochs_of_rows():
    reader = TextReader(length=32)
    source = reader.arrange(Documents(lines()))
    size = sum(map(len, lines()))
    assert sum(batch['bytes'].sum() for batch, _ in one_pass(source, reader, batch_size=4)) == size
    stream = batches(source, reader, batch_size=len(source), steps=2)
    for batch, report in stream:
        assert batch['bytes'].sum() == size and batch['valid'].all() and not report.bad
        assert batch['ids'].shape == batch['segment'].shape == (len(source), 32)


@pytest.mark.parametrize(
    'name, separator, documents',
    [
        ('tinyshakespeare.txt', '', 1),
        ('python_stdlib.txt', '^# ==== ', 141),
        ('wikitext2_valid.txt', '^ = [^=]', 61),
        ('sst2.csv', '', 6920),
    ],
)
def test_real_text(name, separator, documents):
    if not SHARED.is_dir():
        pytest.skip(f'the developer data set is not at {SHARED}')
    reader = TextReader(length=512, separator=separator)
    source = open_splits(str(SHARED / name), media='text', divide=reader.divide)[0]
    assert len(source) == documents
    rows = reader.arrange(source)
    used = np.stack([rows[i].data for i in range(len(rows))])[:, 1] > 0
    assert used.mean() > 0.98 and not rows.skipped
    if name.endswith('.txt'):
        assert used.sum() == (SHARED / name).stat().st_size
