"""Samples as texts and pictures, and their statistics against counts by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import InputError
from mim_jax.evals import fid, fidelity, generation
from mim_jax.evals.fidelity import drawn, frechet, inception_score, manifold, moments
from mim_jax.evals.generation import make_sampler, statistics
from mim_jax.objectives import Sequence
from tests.evals.tokens import VOCAB, Texts, model

ANCESTRAL = dict(name='ancestral', steps=4, schedule='cosine', temperature=0.9, top_k=5)


def test_texts_and_an_infilled_one():
    objective, params, data = model()
    found = generation(objective, data, sampler=ANCESTRAL, rows=6, show=2)(params)
    assert found['sample'].startswith('--- sample 0\n') and found['sample'].count('--- sample') == 2
    before, rest = found['infilling'].split('⟦')
    inside, rest = rest.split('⟧')
    truth = next(data.val(1))['ids'][0, :5]
    shown = data.decode([truth])[0]
    assert (before, rest.split('\n')[0]) == (shown[:1], shown[4:])  # of the first document, five tokens long
    assert len(inside) == 3 and rest.endswith(f'--- hidden was\n{shown[1:4]}\n')
    assert 0 < found['eval/sample_unigram_bits'] <= np.log2(VOCAB) and 0 <= found['eval/bigram_distance'] <= 1


def test_the_autoregressive_model_writes_too_and_fills_nothing():
    objective, params, data = model(Sequence)
    found = generation(objective, data, sampler=dict(name='first_hitting', block=1), rows=3)(params)
    assert 'sample' in found and 'infilling' not in found


def test_no_bigram_of_the_data_is_of_two_documents():
    given, segment = np.array([[0, 1, 0, 1, 2, 2]]), np.array([[1, 1, 2, 2, 0, 0]])
    found = statistics(np.array([[0, 1, 0]]), given, segment)
    assert found['eval/data_bigram_bits'] == 0  # 0 1 alone, twice
    assert found['eval/data_unigram_bits'] == pytest.approx(1.0)
    assert found['eval/bigram_distance'] == pytest.approx(0.5)


def test_pictures_have_a_column_for_each_class():
    class Pictures(Texts):
        def decode(self, rows):
            return np.zeros((len(rows), 3, 4, 1), np.uint8)

    objective, params, _ = model(classes=3)
    data = Pictures(class_names=('a', 'b', 'c'), text=False)
    found = generation(objective, data, sampler=dict(name='confidence', steps=2, guidance=2.0), rows=6)(params)
    assert found['sample'].ndim == 3 and found['sample'].shape[2] == 3


def test_statistics_are_those_of_what_is_real():
    samples = np.array([[0, 0, 1, 1]])
    given, real = (
        np.array([[0, 1, 5, 5], [0, 0, 0, 0]]),
        np.array([[True, True, False, False], [True, True, True, True]]),
    )
    found = statistics(samples, given, real)
    assert found['eval/sample_unigram_bits'] == pytest.approx(1.0)
    assert found['eval/data_unigram_bits'] == pytest.approx(-(5 / 6 * np.log2(5 / 6) + 1 / 6 * np.log2(1 / 6)))
    assert found['eval/unigram_distance'] == pytest.approx(1 / 3)
    assert found['eval/sample_bigram_bits'] == pytest.approx(np.log2(3))
    assert found['eval/bigram_distance'] == pytest.approx((abs(1 / 3 - 3 / 4) + abs(1 / 3 - 1 / 4) + 1 / 3) / 2)


@pytest.mark.parametrize(('spec', 'kind', 'why'), [
    (dict(name='ancestor'), None, "has no 'ancestor'. Did you mean 'ancestral'"),
    (dict(name='ancestral', stepz=4), None, "stepz: ancestral takes no such option. Did you mean 'steps'"),
    (dict(name='ancestral', steps=4, schedule='sine'), None, "'sine' is not one of linear"),
    (dict(name='ancestral', steps=4), Sequence, "takes name='first_hitting', block=1"),
    (dict(name='first_hitting'), Sequence, "takes name='first_hitting', block=1"),
    (dict(name='first_hitting', block=2), Sequence, "takes name='first_hitting', block=1"),
    (dict(name='token'), None, "'token' is none of tokens: use ancestral"),
    (dict(name='random_order', steps=2), None, "'random_order' is none of tokens"),
    (dict(name='ancestral', steps=0), None, 'steps=0: it has to be a whole number, 1 or more'),
    (dict(name='ancestral', steps=4, block=-1), None, 'block=-1: it has to be a whole number, 0 or more'),
    (dict(name='ancestral', steps=4, temperature=-0.5), None, 'temperature=-0.5: it has to be 0 or more'),
    (dict(name='ancestral', steps=4, top_k=-1), None, 'top_k=-1: it has to be a whole number, 0 or more'),
    (dict(name='ancestral', steps=4, top_p=0.0), None, 'top_p=0.0: it has to be above 0 and at most 1'),
    (dict(name='ancestral', steps=4, top_p=float('nan')), None, 'top_p=nan: it has to be above 0'),
    (dict(name='ancestral', steps=4, method='exact'), None, 'method=exact: it has to be inverse or gumbel'),
    (dict(name='remasking', steps=4, eta=1.5), None, 'eta=1.5: it has to be between 0 and 1'),
    (dict(name='remasking', steps=4, rule='often'), None, 'rule=often: it has to be cap or rescale or confidence'),
    (dict(name='confidence', steps=4, noise=-1.0), None, 'noise=-1.0: it has to be 0 or more'),
    (dict(name='ancestral', steps=4, guidance=2.0), None, 'guidance=2.0 needs a model that is told classes'),
    (dict(steps=4), None, 'has no name'),
    (dict(name='remasking'), None, "'remasking' needs steps="),
])  # fmt: skip
def test_a_sampler_that_cannot_be_is_named(spec, kind, why):
    with pytest.raises(InputError, match=why):
        make_sampler(model(*filter(None, [kind]))[0], spec)


def test_gaussians_have_the_distance_of_their_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200_000, 2)), rng.standard_normal((200_000, 2)) * [2, 1] + [1, 0]
    assert frechet(moments(a), moments(b)) == pytest.approx(1 + (2 - 1) ** 2, abs=0.03)
    assert frechet(moments(a), moments(a)) == pytest.approx(0, abs=1e-6)


def test_precision_and_recall_tell_missing_from_strange():
    rng = np.random.default_rng(0)
    both, half = rng.standard_normal((300, 2)) + np.repeat([[0, 0], [20, 0]], 150, 0), rng.standard_normal((300, 2))
    assert manifold(both, half) > 0.9 and 0.4 < manifold(half, both) < 0.6


def test_the_score_of_certain_answers_is_the_number_of_classes():
    assert inception_score(100 * np.eye(5).repeat(4, 0)) == pytest.approx(5)
    assert inception_score(np.zeros((10, 5))) == pytest.approx(1)


def test_fidelity_names_what_it_is_of():
    objective, params, _ = model(classes=3)
    measure = partial(fidelity, objective, Texts(text=False), sampler=dict(name='confidence', steps=2))
    found = measure(samples=12, batch_size=4, steps=3)(params)
    assert (
        found['reference'].startswith('Features f32[16] of a Transformer')
        and '12 samples against 10 of 10' in found['reference']
    )
    assert 0 <= found['eval/class_agreement'] <= 1 and found['eval/frechet'] > 0
    with pytest.raises(InputError, match='needs labels'):
        fidelity(objective, Texts(num_classes=0), sampler=dict(name='confidence', steps=2))
    with pytest.raises(InputError, match='samples=3: it has to be more than 3'):
        measure(samples=3)
    with pytest.raises(InputError, match='more than 3 validation records; there are 3'):
        manifold(np.eye(3), np.eye(5)[:, :3])


class Greys(Texts):
    def decode(self, rows):
        return np.repeat(rows[:, :, None, None], 4, 2).astype(np.uint8)  # [R, N, 4, 1]


@pytest.fixture
def inception(tmp_path):
    """A TorchScript file with the signature of Inception, whose features are the sums of three rows of an image."""
    torch = pytest.importorskip('torch')

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor, return_features: bool = False):
            return images.float().sum([1, 3])[:, :3]

    torch.jit.script(Network()).save(path := str(tmp_path / 'inception.pt'))
    return path


def test_fid_is_the_distance_in_the_features_of_a_file(inception, tmp_path):
    objective, params, _ = model(classes=3)
    data, sampler = Greys(text=False), dict(name='confidence', steps=2)
    measure = partial(fid, objective, data, sampler=sampler, network=inception, samples=12, batch_size=4)
    found = measure()(params)
    _, draw = drawn(objective, data, sampler, 12, 4, 0)
    ids, _ = draw(params, next(data.val(1)))
    real = next(data.val(10))['ids']
    assert found['eval/fid'] == pytest.approx(
        frechet(moments(12.0 * ids[:, :3]), moments(12.0 * real[:, :3])), rel=1e-6
    )
    assert (
        found['fid_reference'].startswith('12 samples against 10 validation records')
        and inception in found['fid_reference']
    )
    mean, covariance = moments(12.0 * ids[:, :3])
    np.savez(tmp_path / 'data.npz', mu=mean, sigma=covariance)
    assert measure(reference=str(tmp_path / 'data.npz'))(params)['eval/fid'] == pytest.approx(0, abs=1e-3)


def test_fid_says_what_it_lacks(inception, tmp_path):
    objective = model()[0]
    (tmp_path / 'text.pt').write_text('no network')
    np.savez(tmp_path / 'empty.npz', mean=0)
    measure = partial(fid, objective, sampler=ANCESTRAL)
    with pytest.raises(InputError, match='no.pt.* is not a file'):
        measure(Greys(), network='no.pt')
    with pytest.raises(InputError, match='text.pt: not a TorchScript file'):
        measure(Greys(), network=str(tmp_path / 'text.pt'))
    with pytest.raises(InputError, match='not an .npz file with mu and sigma'):
        measure(Greys(), network=inception, reference=str(tmp_path / 'empty.npz'))


@pytest.mark.parametrize('spec', [
    ANCESTRAL, dict(name='ancestral', steps=4, cached=False), dict(name='first_hitting', top_p=0.9), dict(name='remasking', steps=3),
    dict(name='confidence', steps=3, noise=1.0, guidance=1.5),
], ids=lambda spec: spec['name'])  # fmt: skip
def test_sampling_compiles_once_and_never_talks_to_the_host(spec):
    objective, params, _ = model(classes=3)
    sample = make_sampler(objective, spec)
    arrays = jnp.zeros((3, 12), jnp.int32), jnp.ones((3, 12), bool), jnp.arange(3)
    keys = list(jax.random.split(jax.random.key(0), 3))
    first = sample(params, keys[0], *arrays)
    with jax.transfer_guard('disallow'):
        outs = [sample(params, key, *arrays) for key in keys[1:]]
    assert sample._cache_size() == 1
    assert any((out != first).any() for out in outs)
    assert 'callback' not in str(jax.make_jaxpr(sample)(params, keys[0], *arrays))
