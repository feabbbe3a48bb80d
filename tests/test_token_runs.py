"""Runs on text and on tokens of images, from the file to samples."""

import importlib

import pytest

from mim_jax import train
from mim_jax.errors import InputError
from tests.runs import assert_same_state, compiled_once, final, lines, logged  # noqa: F401 (fixtures)

TINY = dict(width=16, depth=1, heads=2)


def config(name, path, **changes):
    made = importlib.import_module(f'configs.{name}').get_config('tiny')
    made.encoder.update(TINY)
    made.data.update(path=str(path), batch_size=4)
    made.update(total_steps=4, log_every=1, eval_every=0, checkpoint_every=2, tensorboard=False)
    made.mesh.data, made.schedule.warmup_steps = 1, 1
    made.evals.generation.rows = 4
    made.evals.generation.sampler.update({'steps': 4} if 'steps' in made.evals.generation.sampler else {})
    if 'length' in made.data.reader:
        made.data.reader.length = 16
    made.update_from_flattened_dict(changes)
    return made


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / 'text.txt').write_text('One line after another, and none of them long.\n' * 40)
    return tmp_path / 'text.txt'


def last(workdir):
    values = {}
    for line in lines(workdir / 'metrics.jsonl'):
        values |= line
    return values


def test_a_text_ends_in_bits_a_byte_samples_and_a_filled_passage(corpus, tmp_path, capfd):
    assert train.run(config('mdlm', corpus), tmp_path / 'run', 'train', {}) == 0
    found = last(tmp_path / 'run')
    assert 0 < found['eval/bits_per_byte'] == pytest.approx(found['eval/bits_per_token'])
    assert 'of the training records' not in ''.join(capfd.readouterr())  # some of its own text were kept
    assert found['eval/nelbo_nats_error'] > 0 and found['train/loss'] > 0
    assert (tmp_path / 'run/samples/4.txt').read_text().startswith('--- sample 0')
    assert '⟦' in (tmp_path / 'run/infillings/4.txt').read_text()


def test_a_text_of_which_nothing_is_kept_is_warned_of(corpus, tmp_path, capfd):
    changes = {'data.holdout': 0.0, 'evals_often': ('likelihood',), 'total_steps': 1}
    assert train.run(config('mdlm', corpus, **changes), tmp_path / 'run', 'train', {}) == 0
    assert 'warning: likelihood will be of the training records' in ''.join(capfd.readouterr())


def test_a_stopped_run_ends_in_the_same_state(corpus, tmp_path):
    def go(workdir, steps):
        made = config('mdlm', corpus, total_steps=steps, evals_often=())
        made.schedule.update(end_lr=made.schedule.lr, warmup_steps=0)  # constant, whatever the end
        assert train.run(made, tmp_path / workdir, 'train', {}) == 0

    go('cut', 2)
    go('cut', 4)
    go('whole', 4)
    assert logged(tmp_path / 'cut') == [1, 2, 3, 4]
    assert_same_state(final(tmp_path / 'cut'), final(tmp_path / 'whole'))


def test_the_autoregressive_model_runs_likewise(corpus, tmp_path):
    changes = {'data.holdout': 0.2, 'data.reader.tokenizer': 'characters'}
    assert train.run(config('autoregressive', corpus, **changes), tmp_path / 'run', 'train', {}) == 0
    found = last(tmp_path / 'run')
    assert 'eval/nelbo_nats_error' not in found and found['eval/bits_per_byte'] > 0
    assert (tmp_path / 'run/samples/4.txt').exists() and not (tmp_path / 'run/infillings').exists()


def test_tokens_of_images_end_in_a_sheet_with_a_column_for_each_class(tmp_path):
    changes = {
        'evals.generation.rows': 10,
        'evals.fidelity.samples': 20,
        'evals.fidelity.batch_size': 10,
        'evals.fidelity.steps': 2,
    }
    changes['evals.fidelity.sampler.steps'] = 2
    assert train.run(config('maskgit', 'builtin:digit_levels', **changes), tmp_path / 'run', 'train', {}) == 0
    found = last(tmp_path / 'run')
    assert {'eval/class_agreement', 'eval/frechet', 'eval/nelbo_nats'} <= found.keys()
    assert (tmp_path / 'run/samples/4.png').exists() and (tmp_path / 'run/references/4.txt').exists()


@pytest.mark.parametrize(('change', 'why'), [
    ({'data.reader.length': 0}, 'length=0 has to be above 0'),
    ({'data.reader.tokenizer': 'words'}, 'tokenizer=words: it has to be bytes, characters or hf:'),
    ({'mask.schedule': 'sine'}, "schedule 'sine' is not one of linear"),
    ({'objective.weighting': 'none'}, "weighting=none: it has to be 'bound' or 'mean'"),
    ({'encoder.heads': 3}, 'width 16 is not a multiple of heads 3'),
    ({'evals.generation.sampler.name': 'ancestor'}, "has no 'ancestor'. Did you mean 'ancestral'"),
], ids=lambda x: str(x)[:30])  # fmt: skip
def test_what_cannot_be_is_one_sentence(corpus, tmp_path, change, why):
    with pytest.raises(InputError, match=why):
        train.run(config('mdlm', corpus, **change), tmp_path / 'run', 'train', {})


def test_an_empty_corpus_is_one_sentence(tmp_path):
    (tmp_path / 'empty.txt').touch()
    for share, why in ((0.05, 'empty.txt is empty'), (0.0, 'none of 1 documents can be used, as .*empty.txt')):
        with pytest.raises(InputError, match=why):
            train.run(config('mdlm', tmp_path / 'empty.txt', **{'data.holdout': share}), tmp_path / 'run', 'train', {})
