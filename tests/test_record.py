"""One trainer in a directory, on file systems with locks and without."""

import errno
import fcntl
import os

import pytest

from mim_jax import record
from mim_jax.errors import InputError


def test_a_second_trainer_is_kept_out_until_the_first_ends(tmp_path):
    with record.alone(tmp_path):
        with pytest.raises(InputError, match='another process is training in'), record.alone(tmp_path):
            pass
    with record.alone(tmp_path):
        pass


def no_lock(number: int):
    def flock(folder, how):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize('number', [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(fcntl, 'flock', no_lock(number))
    done = []
    with record.alone(tmp_path):
        done.append(1)
    err = capsys.readouterr().err
    assert done and err.count('\n') == 1 and f'--workdir={tmp_path} is on a file system without locks' in err


def test_another_trouble_with_the_lock_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, 'flock', no_lock(errno.EIO))
    with pytest.raises(OSError, match='Input/output'), record.alone(tmp_path):
        pass


def test_an_error_of_the_run_is_not_taken_for_the_lock(tmp_path):
    with pytest.raises(BlockingIOError), record.alone(tmp_path):
        raise BlockingIOError
