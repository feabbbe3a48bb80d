"""Runs on videos, with a folder that holds what cannot be read."""

import importlib
import re
import shutil

import numpy as np
import psutil
import pytest

from mim_jax import train
from mim_jax.data import VideoReader, batches, open_source
from tests.data.hostile import GOOD, REASONS, hostile
from tests.runs import TINY, compiled_once, events, final, lines, logged  # noqa: F401 (fixtures)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Twelve good videos among eight bad ones."""
    root = hostile(tmp_path_factory.mktemp('videos') / 'bad', size=(32, 32))
    for k in range(10):
        shutil.copy(root / GOOD[k % 2], root / f'{k}_{GOOD[k % 2]}')
    return root


def config(path, **changes):
    made = importlib.import_module('configs.videomae').get_config('tiny')
    made.tokenizer.patch = (2, 8, 8)
    made.encoder.update(TINY, grid=(2, 2, 2), positions='sinusoid')
    made.terms.pixels.predictor.update(TINY, grid=(2, 2, 2))
    made.tokenizer.native = (2, 2, 2)
    made.data.update(path=str(path), batch_size=8, image_size=(16, 16), canvas=(16, 16), max_bad_share=0.9)
    made.data.reader.update(frames=4, sampling='segment', timeout=2.0)
    made.mask.ratio = 0.5
    made.update(
        total_steps=6, log_every=1, eval_every=0, checkpoint_every=3, tensorboard=False, evals_often=(), evals_last=()
    )
    made.mesh.data, made.schedule.warmup_steps = 1, 2
    made.update_from_flattened_dict(changes)
    return made


def test_a_run_names_the_bad_videos_and_goes_on(folder, tmp_path):
    assert train.run(config(folder), tmp_path / 'run', 'train', {}) == 0
    assert logged(tmp_path / 'run') == [1, 2, 3, 4, 5, 6]
    found = {line['name']: line['reason'] for line in lines(tmp_path / 'run' / 'bad_samples.jsonl')}
    assert found.keys() == REASONS.keys() and len(lines(tmp_path / 'run' / 'bad_samples.jsonl')) == len(REASONS)
    for name, why in REASONS.items():
        assert re.search(why, found[name]), found[name]
    assert {event['name'] for event in events(tmp_path / 'run', 'bad_sample')} == REASONS.keys()
    assert all(
        np.isfinite(line['train/loss']) for line in lines(tmp_path / 'run' / 'metrics.jsonl') if 'train/loss' in line
    )
    assert len(psutil.Process().children(recursive=True)) <= len(psutil.Process().cpu_affinity()) + 2


def test_a_run_goes_on_where_it_was_with_clips_drawn_again(tmp_path):
    changes = {'data.reader.clips': 2, 'data.reader.stride': 1, 'data.canvas': (64, 64), 'schedule.warmup_steps': 1}
    for total_steps in (3, 6):
        made = config('builtin:moving_digits', total_steps=total_steps, **changes)
        assert train.run(made, tmp_path / 'run', 'train', {}) == 0
    assert logged(tmp_path / 'run') == [1, 2, 3, 4, 5, 6]
    assert final(tmp_path / 'run')[1]['next_sample'] == 48


@pytest.mark.slow
def test_memory_stays_flat_over_five_thousand_decodes(folder, capsys):
    (folder / 'stalls.mkv').unlink()  # each would take the whole timeout
    reader = VideoReader(canvas=(16, 16), frames=4, sampling='segment')
    stream = batches(open_source(str(folder), media='video'), reader, batch_size=20, steps=275)
    sizes = []
    for step, (_, report) in enumerate(stream):
        assert len(report.bad) < report.seen == 20
        if step >= 24:  # after 500, when all is imported and the allocators have settled
            sizes.append(_resident())
    early, late = np.mean(sizes[:25]), np.mean(sizes[-25:])
    with capsys.disabled():
        print(f'\nresident memory over {20 * len(sizes)} decodes: {early / 2**20:.1f} -> {late / 2**20:.1f} MiB')
    assert late < 1.05 * early


def _resident() -> int:
    """Bytes of this process and all its children."""
    total, this = 0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # a child that was replaced
            continue
    return total
