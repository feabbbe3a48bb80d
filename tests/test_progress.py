import io
import itertools
import time
import types

import jax
import jax.numpy as jnp
import pytest

from mim_jax.progress import Clock, Progress, matmul_flops, peak_flops

X = jnp.zeros((4, 8, 16))
W = jnp.zeros((16, 32))
PRODUCT = 2 * 4 * 8 * 16 * 32


def platform(x):
    return jax.lax.platform_dependent(x, tpu=lambda x: x @ W, default=lambda x: jnp.tile(x, 2))


@jax.custom_vjp
def custom(x):
    return x @ W


custom.defvjp(lambda x: (x @ W, None), lambda _, g: (g @ W.T,))


@pytest.mark.parametrize(
    ('fn', 'flops'),
    [
        (lambda x: x @ W, PRODUCT),
        (jax.jit(lambda x: x @ W), PRODUCT),
        (jax.checkpoint(lambda x: x @ W), PRODUCT),
        (custom, PRODUCT),
        (lambda x: jnp.einsum('bnd,bmd->bnm', x, x), 2 * 4 * 8 * 8 * 16),
        (lambda x: jax.lax.scan(lambda c, _: (c @ W @ W.T, None), x, None, length=5)[0], 10 * PRODUCT),
        (lambda x: jax.lax.cond(x[0, 0, 0] > 0, lambda x: x @ W, lambda x: x @ W @ W.T @ W, x), 3 * PRODUCT),
        (platform, 0),
        (lambda x: jnp.sin(x).sum(), 0),
    ],
)
def test_products_are_counted(fn, flops):
    assert matmul_flops(fn, X) == flops


def test_gradients_of_a_perceptron_cost_twice_its_forward():
    def loss(w, x):
        return jnp.tanh(x @ w[0] @ w[1]).sum()

    w = jnp.zeros((16, 32)), jnp.zeros((32, 8))
    assert matmul_flops(jax.grad(loss, (0, 1)), w, X) == 3 * matmul_flops(loss, w, X)


@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions_are_counted(groups):
    image, kernel = jnp.zeros((2, 4, 9, 9)), jnp.zeros((6, 4 // groups, 3, 3))
    conv = lambda x: jax.lax.conv_general_dilated(x, kernel, (2, 2), 'SAME', feature_group_count=groups)  # noqa: E731
    assert matmul_flops(conv, image) == 2 * (2 * 6 * 5 * 5) * (4 // groups * 3 * 3)


def test_peaks_of_known_devices():
    assert peak_flops('TPU v5 lite') == 197e12
    assert peak_flops('TPU v5') == peak_flops('TPU v5p') == 459e12
    assert peak_flops('NVIDIA H100 80GB HBM3') == 989e12
    assert peak_flops('cpu') is None


class Device:
    """Computes one step after the other, `seconds` each, while the loop goes on."""

    def __init__(self, seconds):
        self.seconds, self.busy_until = seconds, 0.0

    def step(self):
        self.busy_until = end = max(self.busy_until, time.perf_counter()) + self.seconds
        return types.SimpleNamespace(block_until_ready=lambda: time.sleep(max(end - time.perf_counter(), 0)))


@pytest.mark.parametrize(
    ('compute', 'data', 'share'),
    [(0.03, 0.0, 0.0), (0.06, 0.03, 0.0), (0.03, 0.06, 0.5), (0.0, 0.03, 1.0)],
)
def test_data_wait_is_what_computing_does_not_hide(compute, data, share):
    def batches():
        for i in itertools.count():
            time.sleep(data)
            yield i

    device, clock, source = Device(compute), Clock(), batches()
    for i in range(10):
        assert clock.fetch(source) == i
        clock.launched(device.step(), 4)
    found = clock.read()
    clock.close()
    first = data / 10 / max(compute, data)  # nothing hides the first fetch
    assert found['train/data_wait'] == pytest.approx(share + first * (1 - share), abs=0.12)
    assert found['train/examples_per_sec'] == pytest.approx(4 / max(compute, data), rel=0.35)


LINE = {'train/loss': 0.43219, 'train/examples_per_sec': 1530.2, 'train/data_wait': 0.012, 'train/skipped_steps': 2}


def test_a_line_a_window_when_nobody_watches():
    stream = io.StringIO()
    progress = Progress(200, flops_per_example=2e6, stream=stream)
    for step in (10, 20):
        progress.show(step, LINE | progress.speed(1530.2))
    first, second = stream.getvalue().splitlines()
    assert first == 'step 10/200  eta -  loss 0.4322  1530 examples/s  3.1 GFLOP/s  data wait 1.2%  skipped 2'
    assert second.startswith('step 20/200  eta 0:00:0')


def test_mfu_where_the_peak_is_known(monkeypatch):
    monkeypatch.setattr('mim_jax.progress.peak_flops', lambda kind: 1e9)
    stream = io.StringIO()
    progress = Progress(200, devices=4, flops_per_example=2e6, stream=stream)
    speed = progress.speed(1000)
    assert speed == {'train/flops_per_sec': 2e9, 'train/mfu': pytest.approx(2 / 4)}
    progress.show(10, LINE | speed)
    assert 'MFU 50.0%' in stream.getvalue()


def test_advice_is_given_once_and_not_for_the_warm_up():
    stream = io.StringIO()
    progress = Progress(200, stream=stream)
    for step in (10, 20, 30):
        progress.show(step, LINE | {'train/data_wait': 0.4})
        assert stream.getvalue().count('input-bound') == (step >= 20)
    assert 'input-bound: the device waits for data 40% of the time; try data.workers' in stream.getvalue()


def test_in_place_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(200, stream=stream)
    progress.show(10, LINE)
    progress.show(20, LINE)
    assert stream.getvalue().count('\r') == 2
    assert '\n' not in stream.getvalue()
    progress.say('table')
    assert stream.getvalue().endswith('\ntable\n')
