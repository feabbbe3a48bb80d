"""The list of bad samples and when it stops a run."""

import json

import pytest

from mim_jax.data import Bad, Report
from mim_jax.errors import InputError, RunError


def report(seen, *names, notes=()):
    return Report(seen, [(name, 'broken') for name in names], [(name, kind) for name, kind in notes])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_bad_record_is_listed_once_across_restarts(tmp_path):
    path = tmp_path / 'bad_samples.jsonl'
    bad = Bad(path, 'data', 100)
    assert bad.add(report(8, 'a', 'b', 'a')) == [('a', 'broken'), ('b', 'broken')]
    assert bad.add(report(8, 'a')) == []
    with path.open('a') as file:
        file.write('{"name": "half a li')  # the run was killed here
    again = Bad(path, 'data', 100)
    assert again.add(report(8, 'a', 'c')) == [('c', 'broken')]
    assert [entry['name'] for entry in lines(path)] == ['a', 'b', 'c']
    assert lines(path)[0] == dict(name='a', reason='broken')


def hosts(path, count=2):
    return [Bad(path, 'data', 100, host=host, hosts=count) for host in range(count)]


def test_hosts_have_lists_of_their_own_and_know_those_of_the_others(tmp_path):
    path, other = tmp_path / 'bad_samples.jsonl', tmp_path / 'bad_samples.1.jsonl'
    first, second = hosts(path)
    assert second.add(report(8, 'b', 'a')) == [('b', 'broken'), ('a', 'broken')]
    assert first.add(report(8, 'a', 'c')) == [('c', 'broken')]  # the other has a
    assert first.look() == [('b', 'broken'), ('a', 'broken')] and first.look() == []
    with other.open('a') as file:
        file.write('{"name": "half a li')  # not whole yet, and not for this host to cut off
    assert first.look() == [] and first.listed == {'a', 'b', 'c'}
    alone = Bad(path, 'data', 100)  # a restart on one host
    assert alone.add(report(8, 'a', 'b', 'c', 'd')) == [('d', 'broken')]
    assert [entry['name'] for entry in lines(path)] == ['c', 'd'] and other.read_text().endswith('half a li')
    hosts(path)
    assert [entry['name'] for entry in lines(other)] == ['b', 'a']


def test_hosts_judge_alike_by_the_rows_of_all(tmp_path):
    books = hosts(tmp_path / 'bad_samples.jsonl')
    for book, names in zip(books, ('', 'abcdefgh'), strict=True):
        book.add(report(8, *names))  # all of one host's are bad
        for _ in range(8):
            book.count(16, 8)  # half of all
    for book in books:
        assert book.share == 0.5
        with pytest.raises(RunError, match=r'^data: 65 of 129 records are bad, .*=0.5.*; see .*/bad_samples\*.jsonl$'):
            book.count(1, 1)


def test_what_is_left_out_is_listed_by_one_host(tmp_path):
    for book in hosts(tmp_path / 'bad_samples.jsonl'):
        book.left_out([('a', 'empty')], 8)
        assert book.listed == {'a'}
    assert [path.name for path in tmp_path.iterdir()] == ['bad_samples.jsonl']


def test_no_list_without_bad_records(tmp_path):
    bad = Bad(tmp_path / 'bad_samples.jsonl', 'data', 100)
    bad.add(report(64))
    assert bad.share == 0 and not (tmp_path / 'bad_samples.jsonl').exists()


def test_too_many_stop_the_run_but_not_before_there_is_enough_to_judge(tmp_path):
    bad = Bad(tmp_path / 'list', 'the data', 1000, max_share=0.25)
    bad.add(report(32, *'abcdefghijklmnop'))
    with pytest.raises(
        RunError, match=r'the data: 32 of 64 records are bad, more than data.max_bad_share=0.25, as q \(broken\)'
    ):
        bad.add(report(32, *'qrstuvwxyzABCDEF'))


@pytest.mark.parametrize('size, rows', [(3, 8), (1000, 64)])
def test_nothing_readable_is_an_input_error(tmp_path, size, rows):
    bad = Bad(tmp_path / 'list', 'the data', size, max_share=1.0)
    with pytest.raises(InputError, match='no readable record in the data'):
        bad.add(report(rows, *(f'n{i % size}' for i in range(rows))))


def test_records_that_were_repaired_do_not_count_after_a_restart(tmp_path):
    first = Bad(tmp_path / 'list', 'data', 1000, max_share=0.5)
    first.add(report(60, *(f'n{i}' for i in range(60))))
    again = Bad(tmp_path / 'list', 'data', 1000, max_share=0.5)
    again.add(report(64, 'n1'))
    assert again.share == 1 / 64


def test_notes_are_counted_over_the_first_epoch(tmp_path):
    bad = Bad(tmp_path / 'list', 'data', 10)
    for _ in range(3):
        bad.add(report(10, notes=[('a', 'gray'), ('b', 'gray'), ('b', 'deep')]))
    assert bad.notes == dict(gray=2, deep=1) and bad.named == dict(gray=['a', 'b'], deep=['b'])
