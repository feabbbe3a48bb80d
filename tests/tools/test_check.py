"""The report on a data set."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from mim_jax.errors import InputError
from mim_jax.tools.check import check, main, overrides, text


def colours(root, sizes, mode='RGB', kind='png'):
    root.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(sizes):
        Image.fromarray(np.full((*size, 3), i * 10, np.uint8)).convert(mode).save(root / f'{i:03}.{kind}')


def test_counts_sizes_and_statistics(tmp_path):
    colours(tmp_path / 'a', [(40, 60)] * 3 + [(80, 50)] * 2)
    colours(tmp_path / 'b', [(40, 60)] * 4, mode='L')
    (tmp_path / 'b' / 'broken.jpg').write_bytes(b'nothing of a picture')
    report = check(str(tmp_path))
    assert (report['records'], report['readable']) == (10, 9)
    assert report['unreadable'] == [dict(name='b/broken.jpg', reason="not an image: starts with b'nothing of a'")]
    assert report['modes'] == dict(RGB=5, L=4) and report['channels'] == {3: 5, 1: 4} and report['bits'] == {8: 9}
    assert report['height'] == dict(min=40, median=40, max=80) and report['width'] == dict(min=50, median=60, max=60)
    assert report['shorter_side'] == {'32-63': 9} and report['classes'] == dict(a=5, b=4)
    assert report['conversions'] == {'grayscale repeated to RGB': 4}
    values = np.array([0, 10, 20, 30, 40, 0, 10, 20, 30]) / 255
    np.testing.assert_allclose(report['mean'], [values.mean()] * 3, rtol=1e-3)
    np.testing.assert_allclose(report['std'], [values.std()] * 3, rtol=1e-3)
    assert 'b/broken.jpg: not an image' in text(report)


@pytest.mark.parametrize(
    'form, channels, dtype', [('uint8', 4, 'uint8'), ('uint16', 13, 'uint16'), ('float32', 2, 'float32')]
)
def test_statistics_are_those_of_numpy(tmp_path, form, channels, dtype):
    images = np.random.default_rng(0).integers(0, 200, (20, 12, 12, channels)).astype(form)
    np.savez(tmp_path / 'x.npz', images=images)
    report = check(str(tmp_path / 'x.npz'), workers=2)
    scale = 1 if dtype == 'float32' else np.iinfo(dtype).max
    np.testing.assert_allclose(report['mean'], images.mean((0, 1, 2)) / scale, rtol=1e-3)
    np.testing.assert_allclose(report['std'], images.std((0, 1, 2)) / scale, rtol=1e-3)
    config = report['config']
    assert (config['channels'], config['dtype'], config['image_size'], config['canvas']) == (
        channels,
        dtype,
        (12, 12),
        (12, 12),
    )


def test_the_overrides_parse_as_they_are_printed(tmp_path):
    from ml_collections import ConfigDict

    from configs.base import base

    colours(tmp_path / 'x', [(100, 120), (300, 240), (250, 250)] * 4)
    config = check(str(tmp_path / 'x'))['config']
    known = base().data
    assert isinstance(known, ConfigDict) and set(config) <= set(known)
    for key, value in config.items():
        assert type(value) is type(known[key]), key
    assert f"--config.data.image_size='{config['image_size']}'" in overrides(config)


def test_channels_can_be_asked_for(tmp_path):
    colours(tmp_path / 'x', [(20, 20)] * 4)
    report = check(str(tmp_path / 'x'), channels=1)
    assert len(report['mean']) == 1 and report['conversions'] == {'colour reduced to grayscale': 4}


def test_a_limit_looks_all_over(tmp_path):
    np.savez(tmp_path / 'x.npz', images=np.arange(100, dtype=np.uint8)[:, None, None] + np.zeros((100, 4, 4), np.uint8))
    report = check(str(tmp_path / 'x.npz'), limit=10)
    assert report['looked_at'] == 10 and report['records'] == 100
    np.testing.assert_allclose(report['mean'], 45 / 255, rtol=1e-3)


def test_exit_status_and_json(tmp_path, capsys):
    colours(tmp_path / 'pictures', [(20, 20)] * 4)
    assert main([str(tmp_path / 'pictures'), '--json', str(tmp_path / 'report.json')]) == 0
    assert json.loads((tmp_path / 'report.json').read_text())['readable'] == 4
    assert '--config.data.channels=3' in capsys.readouterr().out
    assert main([str(tmp_path / 'picture')]) == 2
    assert 'did you mean' in capsys.readouterr().err
    (tmp_path / 'z').mkdir()
    (tmp_path / 'z' / 'a.jpg').write_text('no')
    assert main([str(tmp_path / 'z')]) == 2
    assert 'no readable record' in capsys.readouterr().err


def test_a_missing_library_is_not_a_bad_record(tmp_path, monkeypatch):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'x.tif', np.zeros((8, 8, 5), np.uint8), photometric='minisblack', planarconfig='contig')
    monkeypatch.setitem(sys.modules, 'tifffile', None)
    with pytest.raises(InputError, match='mim_jax.tiff'):
        check(str(tmp_path))


@pytest.mark.slow
def test_the_processes_find_what_the_threads_find(shared_images):
    path = str(shared_images / 'cifar10_test.parquet')
    one, two = check(path, workers=1, limit=2500), check(path, workers=2, limit=2500)
    np.testing.assert_allclose(one.pop('mean'), two.pop('mean'), rtol=1e-3)
    np.testing.assert_allclose(one.pop('std'), two.pop('std'), rtol=1e-3)
    del one['config'], two['config']
    assert one == two
