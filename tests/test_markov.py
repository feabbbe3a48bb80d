"""A source whose entropy is known: the bound of a trained model stays above it, and comes close."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mdlm
from mim_jax import build, step
from mim_jax.augment import tokens
from mim_jax.evals import likelihood

VALUES, LENGTH, STEPS, ROWS, TEST = 4, 24, 3500, 64, 2048


class Source:
    """A second-order Markov chain that begins as it goes on, and its LabelledData."""

    augment = staticmethod(tokens)

    def __init__(self):
        rng = np.random.default_rng(0)
        self.next = rng.dirichlet(np.full(VALUES, 0.4), (VALUES, VALUES))  # p(c | a, b)
        pairs = np.zeros((VALUES**2, VALUES**2))
        for a, b, c in np.ndindex(VALUES, VALUES, VALUES):
            pairs[a * VALUES + b, b * VALUES + c] = self.next[a, b, c]
        self.pairs = np.linalg.matrix_power(pairs, 2000)[0].reshape(VALUES, VALUES)

    def draw(self, rng, rows):
        x = np.empty((rows, LENGTH), np.int32)
        x[:, 0], x[:, 1] = np.divmod(rng.choice(VALUES**2, rows, p=self.pairs.ravel()), VALUES)
        for i in range(2, LENGTH):
            edges = self.next[x[:, i - 2], x[:, i - 1]].cumsum(-1)
            x[:, i] = (rng.random(rows)[:, None] > edges[:, :-1]).sum(-1)
        return dict(ids=x, valid=np.ones(rows, bool))

    def nats(self, x):
        """f64[rows]: -log p."""
        logs = np.log(self.next[x[:, :-2], x[:, 1:-1], x[:, 2:]])
        return -np.log(self.pairs[x[:, 0], x[:, 1]]) - logs.sum(1)

    @property
    def rate(self):
        """Nats a token, in the limit."""
        return -(self.pairs[..., None] * self.next * np.log(self.next)).sum()

    def val(self, batch_size):
        rows = self.draw(np.random.default_rng(1), TEST)
        for i in range(0, TEST, batch_size):
            yield {name: x[i : i + batch_size] for name, x in rows.items()}


def test_the_entropy_rate_is_that_of_long_samples():
    source = Source()
    x = source.draw(np.random.default_rng(5), 20_000)['ids']
    each = -np.log(source.next[x[:, :-2], x[:, 1:-1], x[:, 2:]])
    assert abs(each.mean() - source.rate) < 4 * each.mean(1).std() / 20_000**0.5


@pytest.mark.slow
@pytest.mark.parametrize('how', [dict(), dict(by='count'), dict(schedule='cosine')], ids=str)
def test_the_bound_is_never_below_the_entropy_and_comes_within_three_percent(how):
    source, config = Source(), mdlm.get_config('tiny')
    config.encoder.update(width=64, depth=3, heads=4)
    config.data.update(batch_size=ROWS)
    config.data.reader.update(length=LENGTH, tokenizer='characters', alphabet='abcd')
    config.total_steps, config.ema = STEPS, 0.995
    config.schedule.lr = 3e-3
    config.mask.update(how)
    objective, rng = build.objective(config), np.random.default_rng(2)
    tx_of = build.optimizer(config)
    state = step.init(0, source.draw(rng, 2), objective=objective, augment=tokens, tx_of=tx_of, ema=True)
    train = jax.jit(partial(step.train_step, seed=0, loss=step.make_loss(objective, tokens), tx=tx_of(state.params),
                            schedule=build.schedule(config), ema=config.ema), donate_argnums=0)  # fmt: skip
    measure, test = (
        likelihood(objective, source, draws=4, batch_size=256),
        source.draw(np.random.default_rng(1), TEST)['ids'],
    )
    truth = source.nats(test).sum() / test.size  # of the very rows the model is measured on
    for i in range(STEPS):
        state, _ = train(state, source.draw(rng, ROWS), jnp.float32(1))
        if i in (100, 1000):
            assert measure(state.params)['eval/nelbo_nats'] > truth
    found = measure(state.ema)
    print(f'bound {found["eval/nelbo_nats"]:.4f}, entropy {truth:.4f}, rate {source.rate:.4f} nats')
    assert -4 * found['eval/nelbo_nats_error'] < found['eval/nelbo_nats'] - truth < 0.03 * truth
