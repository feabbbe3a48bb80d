"""Where documents come from."""

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mim_jax.data import TextReader, open_source, open_splits
from mim_jax.errors import InputError

SST2 = Path(__file__).parents[4] / 'shared' / 'data' / 'text' / 'sst2.csv'


def text(path, labels='auto', **options):
    source = open_source(str(path), labels, media='text', **options)
    return pickle.loads(pickle.dumps(source))  # as a worker gets it


def found(source):
    return [(source[i].name, source[i].data.decode(), source[i].label) for i in range(len(source))]


@pytest.fixture
def jsonl(tmp_path):
    rows = [
        dict(id='x', text='ünï', label=1),
        dict(text='two\nlines', label=0),
        dict(text=None),
        dict(text='😀', label=1),
    ]
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    (tmp_path / 'a.jsonl').write_text('\n'.join([lines[0], '', *lines[1:]]) + '\n', encoding='utf-8-sig')
    return tmp_path / 'a.jsonl'


def test_a_file_is_a_document(tmp_path):
    for name in ('a[1].txt', 'b.md', 'c.PY'):
        (tmp_path / name).write_bytes('naïve\r\n'.encode())
        assert found(text(tmp_path / name)) == [(name, 'naïve\r\n', -1)]
    with pytest.raises(InputError, match='data.labels=x.*has no columns'):
        text(tmp_path / 'b.md', 'x')
    with pytest.raises(InputError, match='cannot read .doc files'):
        (tmp_path / 'd.doc').write_text('')
        text(tmp_path / 'd.doc')


def test_a_folder_has_classes_or_not(tmp_path):
    for name in ('b/2.txt', 'a/1.txt', 'a/deep/3.md', 'a/picture.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    source = text(tmp_path)
    assert found(source) == [('a/1.txt', 'a/1.txt', 0), ('a/deep/3.md', 'a/deep/3.md', 0), ('b/2.txt', 'b/2.txt', 1)]
    assert source.class_names == ['a', 'b'] and len(text(tmp_path / '**' / '*.txt')) == 2
    with pytest.raises(InputError, match='no text file in .*found 1 .png'):
        (tmp_path / 'only').mkdir()
        (tmp_path / 'only' / 'x.png').write_text('')
        text(tmp_path / 'only')


def test_jsonl(jsonl):
    source = text(jsonl)
    assert found(source) == [
        ('a.jsonl:1', 'ünï', 1), ('a.jsonl:3', 'two\nlines', 0), ('a.jsonl:4', '', -1), ('a.jsonl:5', '😀', 1)
    ]  # fmt: skip
    assert source.num_classes == 2 and text(jsonl, 'none').num_classes == 0
    with pytest.raises(InputError, match='data.labels=kind: .*a.jsonl has no such column, only id, text, label'):
        text(jsonl, 'kind')


def test_a_broken_line_of_a_jsonl_is_named(jsonl):
    with jsonl.open('a') as file:
        file.write('[1]\n{"text": 3}\n{"text": "cut o')
    reader = TextReader()
    source = reader.arrange(text(jsonl))
    assert [name for name, _ in source.skipped] == ['a.jsonl:4', 'a.jsonl:6', 'a.jsonl:7', 'a.jsonl:8']
    whys = [why for _, why in source.skipped]
    assert (
        'empty' in whys[0] and 'has to be a JSON object' in whys[1] and 'text is int' in whys[2] and 'JSON' in whys[3]
    )
    jsonl.write_text('broken\n')
    with pytest.raises(InputError, match='a.jsonl has no row, for line 1 is no JSON object'):
        text(jsonl)


def test_the_column_of_texts_is_told_or_asked_for(tmp_path):
    for row, column in (
        (dict(essay='e', id='1'), 'essay'),
        (dict(title='t', content='c'), 'content'),
        (dict(text='t', content='c'), 'text'),
    ):
        (tmp_path / 'a.jsonl').write_text(json.dumps(row))
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), tmp_path / 'a.parquet')
        assert found(text(tmp_path / 'a.jsonl'))[0][1] == found(text(tmp_path / 'a.parquet'))[0][1] == row[column]
    for row in (dict(title='t', summary='s'), dict(number=1)):
        (tmp_path / 'a.jsonl').write_text(json.dumps(row))
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), tmp_path / 'a.parquet')
        for name in ('a.jsonl', 'a.parquet'):
            with pytest.raises(InputError, match=f'{name}: which column is the text'):
                text(tmp_path / name)


def test_csv_with_splits(tmp_path):
    path = tmp_path / 'a.csv'
    rows = 'split,label,text\ntrain,good,"a ""quoted""\n# text"\ntest,bad,b\ntrain,bad,ünï\n,,c\n'
    path.write_text(rows, encoding='utf-8-sig')
    train, test = open_splits(str(path), media='text')
    assert found(train) == [('a.csv:2', 'a "quoted"\n# text', 1), ('a.csv:5', 'ünï', 0)]
    assert found(test) == [('a.csv:4', 'b', 0)] and test.class_names == ['bad', 'good']
    assert len(text(path)) == 4 and text(path)[3].label == -1
    with pytest.raises(InputError, match="a.csv has no row of split 'dev'"):
        text(f'{path}:dev')
    path.write_bytes('text\ncafé\n'.encode('latin-1'))
    with pytest.raises(InputError, match='a.csv: not UTF-8'):
        text(path)


def test_parquet(tmp_path):
    table = pa.table(
        dict(idx=[0, 1, 2], text=['eins', None, 'drei'], label=[1, 0, 1], split=['train', 'train', 'test'])
    )
    pq.write_table(table, tmp_path / 'a.parquet', row_group_size=2)
    train, test = open_splits(str(tmp_path / 'a.parquet'), media='text')
    assert found(train) == [('a.parquet:0', 'eins', 1), ('a.parquet:1', '', 0)] and found(test) == [
        ('a.parquet:2', 'drei', 1)
    ]
    pq.write_table(table.cast(table.schema.set(1, pa.field('text', pa.large_string()))), tmp_path / 'b.parquet')
    assert found(text(tmp_path / 'b.parquet'))[2][1] == 'drei'


def test_hugging_face(tmp_path, monkeypatch):
    class Value:
        def __init__(self, dtype):
            self.dtype = dtype

    class Saved(list):
        features = dict(text=Value('large_string'), title=Value('string'), label=Value('int64'))

        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else list.__getitem__(self, key)

        def select_columns(self, names):
            return [{name: row[name] for name in names} for row in self]

    rows = Saved([dict(text='ünï', title='t', label=1), dict(text=None, title='t', label=0)])
    library = SimpleNamespace(
        load_dataset=lambda name: dict(train=rows),
        Image=type('Image', (), {}),
        Video=type('Video', (), {}),
        Value=Value,
    )
    monkeypatch.setitem(sys.modules, 'datasets', library)
    source = open_source('hf:some/corpus', media='text')
    assert found(source) == [('corpus:train:0', 'ünï', 1), ('corpus:train:1', '', 0)]


def test_python_topics():
    train, test = open_splits('builtin:python_topics', media='text')
    assert len(train) > 60 and len(train) // 10 <= len(test) <= len(train) // 8
    names = [name for source in (train, test) for name, _, _ in found(source)]
    assert len(set(names)) == len(names) == len(train) + len(test) and 'python_topics:assert' in names
    assert all(len(data) > 100 for _, data, _ in found(test))
    assert open_source('builtin:python_topics:test', 'none', media='text').num_classes == 0
    with pytest.raises(InputError, match='builtin:python_topics holds texts, but the config is one of images'):
        open_source('builtin:python_topics')
    with pytest.raises(InputError, match='builtin:digits holds images, but the config is one of texts'):
        open_source('builtin:digits', media='text')


def test_what_is_not_text_is_one_sentence(tmp_path):
    (tmp_path / 'a.npz').write_bytes(b'')
    with pytest.raises(InputError, match='arrays of text are not read'):
        text(tmp_path / 'a.npz')
    for path in (tmp_path, tmp_path / 'a.npz', 'hf:x'):
        with pytest.raises(InputError, match='tokens are read from shards; python -m mim_jax.tools.tokenize'):
            open_source(str(path), media='tokens')
    with pytest.raises(InputError, match='does not exist; did you mean .*a.npz'):
        open_source(str(tmp_path / 'a.npy'), media='tokens')


def test_sst2():
    if not SST2.exists():
        pytest.skip(f'the developer data set is not at {SST2}')
    train, dev = open_splits(str(SST2), media='text')
    assert (len(train), len(dev), len(text(f'{SST2}:test'))) == (6920, 872, 1821)
    assert found(train)[1][1:] == ('apparently reassembled from the cutting room floor of any given daytime soap', 0)
    assert train.num_classes == 2
