"""The data of a run, good and hostile."""
# ruff: noqa: F811  (fixtures are imported)

import importlib
import json

import numpy as np
import pytest

from mim_jax import inputs
from mim_jax.data import Bad
from mim_jax.errors import InputError, RunError
from tests.runs import hostile, picture  # noqa: F401 (fixtures)

BAD = {'truncated.jpg': 'truncated', 'zero.jpg': 'empty file', 'text.jpg': 'not an image', 'one.png': '1 x 1 pixels'}
CONVERTED = {'cmyk.jpg': 'CMYK', 'gray.png': 'grayscale', 'deep.png': '16 bits', 'moving.webp': 'animation'}


def config(path, **changes):
    found = importlib.import_module('configs.mae').get_config('tiny')
    found.data.update(path=str(path), batch_size=4, image_size=(8, 8), canvas=(16, 16))
    found.update_from_flattened_dict(changes)
    return found


class Writer:
    def __init__(self):
        self.events = []

    def event(self, kind, **fields):  # as metrics.Writer
        self.events.append(dict(event=kind, **fields))


def read(data, batches):
    """Takes batches as the loop does. -> the events."""
    writer, stream = Writer(), data.train(0)
    for step in range(batches):
        batch, report = next(stream)
        data.note(report, writer, step)
        assert batch['image'].shape == (4, 16, 16, 3) and not batch['image'][~batch['valid']].any()
    stream.close()
    data.tell(writer, batches)
    return writer.events


def test_a_hostile_folder_is_told_name_by_name(hostile, tmp_path):
    events = read(inputs.Data(config(hostile), tmp_path, None), 6)
    bad = {event['name']: event['reason'] for event in events if event['event'] == 'bad_sample'}
    listed = [json.loads(line) for line in (tmp_path / 'bad_samples.jsonl').read_text().splitlines()]
    assert {line['name']: line['reason'] for line in listed} == bad and len(listed) == len(bad) == 4
    assert all(BAD[name] in reason for name, reason in bad.items())
    told = {name: event['conversion'] for event in events if event['event'] == 'converted' for name in event['names']}
    assert told.keys() == CONVERTED.keys()
    kinds = [event['conversion'] for event in events if event['event'] == 'converted']
    assert len(kinds) == len(set(kinds)) and all(any(part in kind for kind in kinds) for part in CONVERTED.values())


def test_a_run_shorter_than_an_epoch_tells_its_conversions_at_the_end(hostile, tmp_path):
    events = read(inputs.Data(config(hostile), tmp_path, None), 2)
    assert all(event['step'] == 2 for event in events if event['event'] == 'converted')
    assert any(event['event'] == 'converted' for event in events)


def test_a_restart_lists_nothing_twice(hostile, tmp_path):
    for _ in range(2):
        read(inputs.Data(config(hostile), tmp_path, None), 3)
    assert len((tmp_path / 'bad_samples.jsonl').read_text().splitlines()) == 4


def test_the_first_of_several_hosts_tells_what_all_list(hostile, tmp_path):
    data, writer = inputs.Data(config(hostile), tmp_path, None), Writer()
    data.bad = Bad(tmp_path / 'bad_samples.jsonl', 'data', 12, hosts=2)
    (tmp_path / 'bad_samples.1.jsonl').write_text('{"name": "b", "reason": "broken"}\n')
    data.hear(writer, 1)
    assert not writer.events  # no row has been bad
    for examples in (4, 3):
        data.judge(examples)
        data.hear(writer, 1)
    assert writer.events == [dict(event='bad_sample', step=1, name='b', reason='broken')] and data.bad.share == 1 / 8


def test_too_much_is_bad(hostile, tmp_path):
    with pytest.raises(
        RunError, match=r'4 of 12 records are bad, more than data.max_bad_share=0.3, as .*; see .*bad_samples.jsonl'
    ):
        read(inputs.Data(config(hostile, **{'data.max_bad_share': 0.3}), tmp_path, None), 3)


def test_nothing_readable(tmp_path):
    for i in range(3):
        (tmp_path / f'{i}.jpg').write_text('text')
    with pytest.raises(
        InputError, match='no readable record in .*: all of the first 4 records are bad, as 0.jpg .not an image'
    ):
        read(inputs.Data(config(tmp_path), tmp_path, None), 1)


@pytest.mark.parametrize('key', ['data.path', 'data.val_path'])
def test_a_path_that_does_not_exist(hostile, tmp_path, key):
    inputs.check(config(hostile))
    with pytest.raises(InputError, match=f'{tmp_path}/hostil does not exist; did you mean {hostile}?'):
        inputs.check(config(hostile, **{key: f'{tmp_path}/hostil'}))


@pytest.mark.parametrize('path', ['builtin:digits', 'tfds:cifar10', '/data/*.jpg', '/data/x.parquet:train'])
def test_what_is_no_plain_path_is_left_to_its_source(path):
    inputs.check(config(path))


def test_labelled_data_for_the_evaluators(tmp_path):
    np.savez(tmp_path / 'a.npz', images=picture(10, 8, 8, 3), labels=np.arange(10) % 3)
    plain = config(tmp_path / 'a.npz', **{'data.canvas': (8, 8)})
    assert inputs.Data(plain, tmp_path, None).unlabelled.endswith(
        'has no validation records: set data.val_path or data.holdout'
    )
    data = inputs.Data(config(tmp_path / 'a.npz', **{'data.holdout': 0.3, 'data.canvas': (8, 8)}), tmp_path, 'augment')
    labelled = data.labelled
    assert (data.unlabelled, data.train_size, labelled.num_train, labelled.num_classes, labelled.augment) == (
        '',
        7,
        7,
        3,
        'augment',
    )
    batches = list(labelled.train(4, seed=0, shuffle=False))
    assert sum(batch['valid'].sum() for batch in batches) == 7 and len(batches) == 2
    assert sum(batch['valid'].sum() for batch in labelled.val(2)) == 3
    first, _, last = [row for batch in labelled.val(2) for row in batch['image']][:3]
    (some,) = labelled.val(2, count=2)
    np.testing.assert_array_equal(some['image'], [first, last])
    assert sum(batch['valid'].sum() for batch in labelled.val(2, count=9)) == 3
    assert len(list(labelled.train(4, seed=0))) == 1 and len(list(labelled.train(4, seed=0, steps=5))) == 5


def test_no_labels(hostile, tmp_path):
    assert inputs.Data(config(hostile), tmp_path, None).unlabelled == f'{hostile} has no labels'


def test_evaluations_get_one_row_of_each_record_however_many_clips_training_takes(tmp_path):
    made = importlib.import_module('configs.videomae').get_config('tiny')
    made.data.update(batch_size=8, canvas=(16, 16))
    made.data.reader.update(frames=2, clips=4)
    data = inputs.Data(made, tmp_path, None)
    assert len(set(next(data.train(0))[0]['label'][:4])) == 1
    label = next(iter(data.labelled.val(8)))['label']
    np.testing.assert_array_equal(label, [data.val_source[i].label for i in range(8)])
    np.testing.assert_array_equal(next(iter(data.labelled.val(8, dict(clips=2))))['label'], np.repeat(label[:4], 2))


def text_config(path, **changes):
    found = importlib.import_module('configs.base').base()
    found.data.update(path=str(path), batch_size=2)
    with found.unlocked():
        found.data.reader = dict(
            name='TextReader', length=8, tokenizer='bytes', alphabet='', separator='', documents='pack'
        )
    found.update_from_flattened_dict(changes)
    return found.lock()


def corpus(tmp_path, **files):
    (tmp_path / 'text').mkdir()
    for name, data in files.items():
        (tmp_path / 'text' / f'{name}.txt').write_bytes(data)
    return tmp_path / 'text'


def remember(workdir, config, step=None):
    """As a run leaves it."""
    workdir.mkdir()
    (workdir / 'config.json').write_text(json.dumps(config.to_dict()))
    if step is not None:
        (workdir / 'checkpoints' / str(step)).mkdir(parents=True)


CHARACTERS = {'data.reader.tokenizer': 'characters'}


def test_an_alphabet_is_that_of_the_training_records_and_stays(tmp_path):
    path, workdir = corpus(tmp_path, a='bé\n'.encode(), b=b'\xff', c=b'ca'), tmp_path / 'run'
    first = text_config(path, **CHARACTERS)
    inputs.settle(first, workdir)
    assert first.data.reader.alphabet == '\nabcé' and first.is_locked
    remember(workdir, first, 3)
    (path / 'd.txt').write_text('xyz')
    again, fresh, tuned = (text_config(path, **CHARACTERS) for _ in range(3))
    tuned.init = str(workdir)
    for config, where, alphabet in (
        (again, workdir, '\nabcé'),
        (fresh, tmp_path / 'other', '\nabcxyzé'),
        (tuned, tmp_path / 'other', '\nabcé'),
    ):
        inputs.settle(config, where)
        assert config.data.reader.alphabet == alphabet


def test_only_the_part_that_is_trained_on_has_a_say(tmp_path):
    path = corpus(tmp_path, a=b'aaaaaaaab')
    config = text_config(path / 'a.txt', **CHARACTERS, **{'data.holdout': 0.1})
    inputs.settle(config, tmp_path / 'run')
    assert config.data.reader.alphabet == 'a'


@pytest.mark.parametrize('step', [None, 3])
def test_another_vocabulary_than_that_of_the_checkpoint_is_one_sentence(tmp_path, step):
    path, workdir = corpus(tmp_path, a=b'abc'), tmp_path / 'run'
    remember(workdir, text_config(path, **CHARACTERS, **{'data.reader.alphabet': 'abc'}), step)
    for changes, why in (
        (
            CHARACTERS | {'data.reader.alphabet': 'cdba'},
            "alphabet has 4 characters, .* trained with 3: 'd' are new, '' are missing",
        ),
        (
            {'data.reader.tokenizer': 'bytes'},
            'data.reader.tokenizer=bytes, but the checkpoints in .*run were trained with characters',
        ),
    ):
        if step is None:
            inputs.settle(text_config(path, **changes), workdir)
            continue
        with pytest.raises(InputError, match=why):
            inputs.settle(text_config(path, **changes), workdir)


def test_shards_say_what_they_are(tmp_path):
    from mim_jax.tools import tokenize

    path = corpus(tmp_path, a=b'abc' * 10, b=b'cab')
    tokenize.main([str(path), str(tmp_path / 'dst'), '--tokenizer=characters', '--length=16'])
    config = text_config(tmp_path / 'dst')
    with config.unlocked():
        config.data.reader = dict(name='TokenReader', shape=(), vocab=0, tokenizer='', alphabet='')
    inputs.settle(config, tmp_path / 'run')
    reader = config.data.reader
    assert (reader.shape, reader.vocab, reader.tokenizer, reader.alphabet) == ((16,), 4, 'characters', 'abc')
    batch, _ = next(inputs.Data(config, tmp_path, None).train(0))
    assert batch['ids'].shape == (2, 16) and batch['bytes'].max() <= 16


def test_other_readers_are_settled_as_they_are(tmp_path):
    found = config('builtin:digits')
    before = found.to_dict()
    inputs.settle(found, tmp_path)
    assert found.to_dict() == before


def test_documents_that_cannot_be_used_are_listed(tmp_path):
    path = corpus(tmp_path, a=b'a' * 20, b=b'', c=b'\xff', d=b'aa')
    data = inputs.Data(text_config(path, **CHARACTERS, **{'data.reader.alphabet': 'a'}), tmp_path, None)
    listed = [json.loads(line) for line in (tmp_path / 'bad_samples.jsonl').read_text().splitlines()]
    assert [line['name'] for line in listed] == ['b.txt', 'c.txt'] and data.bad.listed == {'b.txt', 'c.txt'}
    assert data.train_size == 3 and data.labelled.num_classes == 0
    for shared in (path / 'd.txt', path / 'a.txt'):
        shared.unlink()
    (path / 'd.txt').write_text('a')
    with pytest.raises(RunError, match='2 of 3 records are bad, more than data.max_bad_share=0.5, as b.txt'):
        inputs.Data(text_config(path, **CHARACTERS, **{'data.reader.alphabet': 'a'}), tmp_path, None)
