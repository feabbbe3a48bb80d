"""The loop: next batch, step, log, evaluate, save."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mim_jax import build, compile, optim, record, sharding, step
from mim_jax.checkpoint import Checkpoints
from mim_jax.errors import InputError, RunError
from mim_jax.evaluate import Evaluation
from mim_jax.guard import Guard
from mim_jax.inputs import Data
from mim_jax.metrics import Compilations, Writer, feature_health
from mim_jax.progress import Clock, Progress

PREEMPTED = 143  # exit status of a run that saved and left because it was told to


@dataclass
class Run:
    """The parts of a run that stay the same while it goes."""

    config: object
    mesh: Mesh
    objective: object
    augment: Callable
    abstract: step.TrainState  # shapes and shardings
    data: Data
    checkpoints: Checkpoints
    progress: Progress
    compilations: Compilations
    writer: Writer | None = None
    signals: list[int] = field(default_factory=list)  # received

    def told_to_stop(self, now: int) -> bool:
        """Whether the run should save and leave; all hosts agree on the step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(now)
        return bool(self.signals)


def run(config, workdir: str, mode: str, origin: dict) -> int:
    """Trains to the end, or evaluates the newest checkpoint.

    Args:
        config: ConfigDict with the keys of configs/base.py.
        workdir: where the run lives.
        mode: 'train' or 'eval'.
        origin: where each value that is not the config file's comes from.

    Returns:
        Exit status: 0 when the run reached its end, 143 when it saved and left on a signal.

    Raises:
        InputError: wrong config or input.
        RunError: the run cannot go on.
    """
    workdir = Path(workdir)
    compile.keep_compilations()
    mesh = sharding.make_mesh(**config.mesh)
    with jax.set_mesh(mesh), contextlib.ExitStack() as closing:
        objective, augment, abstract = parts(config, mesh)
        record.make_workdir(workdir)
        data = Data(config, workdir, augment)
        checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, read_only=mode == 'eval')
        closing.callback(checkpoints.close)
        this = Run(config, mesh, objective, augment, abstract, data, checkpoints, Progress(config.total_steps), Compilations())
        closing.callback(this.compilations.close)
        state, position = start(this, mode)
        if mode == 'train':
            record.write_config(workdir, config, origin, data)
        this.writer = Writer(workdir, step=int(state.step), tensorboard=config.tensorboard, wandb=config.wandb, config=config.to_dict())
        closing.callback(this.writer.close)
        evaluation = Evaluation(config, objective, data, this.writer, this.progress)
        if mode == 'train':
            state = loop(this, state, position, evaluation)
        if this.signals and int(state.step) < config.total_steps:
            this.progress.say(f'told to stop: saved at step {int(state.step)}; the same command goes on from there')
            return PREEMPTED
        evaluation.final(state)
        return 0


def parts(config, mesh: Mesh):
    """(objective, augment, shapes and shardings of the state): any wrong part, option or shape fails here, before data is read."""
    sharding.check_batch(config.data.batch_size, mesh)
    objective, augment = build.objective(config), build.augment(config)
    build.schedule(config)
    try:
        shapes = jax.eval_shape(initial(config, objective, augment), compile.batch_spec(config, 2))
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f'the parts of this configuration do not fit together: {error}') from error
    return objective, augment, sharding.abstract(shapes, sharding.shardings(shapes, mesh))


def initial(config, objective, augment: Callable) -> Callable:
    """`(batch) -> TrainState` of a fresh run."""
    return partial(step.init, config.seed, objective=objective, augment=augment, tx_of=build.optimizer(config), ema=bool(config.ema))


def start(run: Run, mode: str = 'train') -> tuple[step.TrainState, dict]:
    """The newest checkpoint, or a fresh state; and the position that belongs to it."""
    if run.checkpoints.latest() is not None:
        return run.checkpoints.restore(run.abstract)
    if mode == 'eval':
        raise InputError(f'{run.checkpoints.directory} has no checkpoint to evaluate: train first')
    placed = jax.tree.map(lambda x: x.sharding, run.abstract)
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), compile.batch_spec(run.config, 2))
    state = jax.jit(initial(run.config, run.objective, run.augment), out_shardings=placed)(empty)
    return state, dict(next_sample=0, skipped_steps=0, lr_scale=1.0, rollbacks=0)


def loop(run: Run, state: step.TrainState, position: dict, evaluation: Evaluation) -> step.TrainState:
    """Steps until the last one or a signal, and saves there."""
    config, total, now = run.config, run.config.total_steps, int(state.step)
    run.writer.event('start', step=now, next_sample=position['next_sample'], devices=jax.device_count())
    if now >= total:
        return state
    train_step = prepare(run)
    names = [optim.path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(run.abstract.params)]
    guard = Guard(run.data.workdir, names, run.writer.event, position['skipped_steps'])
    if now == 0 and config.eval_every:
        evaluation.during(state)
    batches, clock = run.data.train(position['next_sample']), Clock()
    with signals(run.signals), contextlib.closing(clock):
        while now < total and not run.told_to_stop(now):
            rows, report = clock.fetch(batches)
            run.data.note(report, run.writer, now)
            state, metrics = train_step(state, sharding.put(rows, run.mesh), np.float32(position['lr_scale']))
            clock.launched(metrics['loss'], config.data.batch_size)
            now += 1
            save_now = now % config.checkpoint_every == 0 or now == total or run.told_to_stop(now)
            bad = guard.watch(now, rows, metrics)
            bad = guard.flush() if save_now else bad
            position |= dict(next_sample=position['next_sample'] + config.data.batch_size, skipped_steps=guard.skipped)
            if bad >= min(config.max_bad_steps, total):
                state, position = roll_back(run, guard, now, position)
                now, batches = int(state.step), restarted(run, batches, position)
                clock.restart()
                continue
            if now in (1, total) or now % config.log_every == 0:
                log(run, now, metrics, clock, position)
            if config.eval_every and now % config.eval_every == 0 and now < total:
                evaluation.during(state)
                clock.restart()
            if save_now:
                run.checkpoints.save(now, state, position)
                run.writer.event('save', step=now, next_sample=position['next_sample'], cpu_seconds=round(time.process_time()))
        batches.close()
    run.checkpoints.wait()
    return state


def prepare(run: Run) -> Callable:
    """The compiled train step; says what it costs."""
    config = run.config
    compiled = compile.train_step(config, run.objective, run.augment, run.abstract, run.mesh)
    run.progress.flops_per_example = compile.model_flops(config, run.objective, run.augment, run.abstract.params)
    devices, rows = run.mesh.shape['data'] * run.mesh.shape['fsdp'], config.data.batch_size
    peak = max(float(build.schedule(config)(i)) for i in (config.schedule.warmup_steps, 0))
    millions = sum(x.size for x in jax.tree.leaves(run.abstract.params)) / 1e6
    run.progress.say(
        f'{millions:.1f} M parameters; {run.data.train_size} records; batch {rows} = {devices} devices x {compiled.accumulate} micro-batches x '
        f'{rows // devices // compiled.accumulate} rows; peak learning rate {peak:.3g}; {compiled.bytes_per_device / 1e9:.2f} GB a device'
    )
    run.writer.event('compilation', name='train_step', times=run.compilations.counts['train_step'], accumulate=compiled.accumulate,
                     bytes_per_device=compiled.bytes_per_device, flops_per_example=run.progress.flops_per_example)  # fmt: skip
    return compiled.call


def log(run: Run, now: int, metrics: dict, clock: Clock, position: dict) -> None:
    """One line of numbers, on the screen and in the files."""
    metrics = jax.device_get(metrics)
    values = {f'train/{name}': float(x) for name, x in metrics.items() if name.startswith('loss') or name in ('grad_norm', 'lr')}
    values['baseline/mean_predictor_loss'] = float(metrics['baseline'])
    values |= clock.read()
    values |= run.progress.speed(values['train/examples_per_sec']) | feature_health(metrics['features'])
    values['train/skipped_steps'] = position['skipped_steps']
    values['train/compilations'] = run.compilations.counts['train_step']
    values['data/bad_samples'] = len(run.data.bad.listed)
    run.writer.scalars(now, values)
    run.progress.show(now, values)


def roll_back(run: Run, guard: Guard, now: int, position: dict) -> tuple[step.TrainState, dict]:
    """Back to the last good checkpoint, once, with half the learning rate.

    Raises:
        RunError: it has been done before.
    """
    why = f'{guard.in_a_row} steps in a row up to step {now} were not finite, first in {guard.first_bad}'
    if position['rollbacks']:
        raise RunError(f'{why}, again after going back with half the learning rate; their batches are in {guard.directory}')
    run.checkpoints.wait()
    state, back = start(run)
    back |= dict(rollbacks=1, lr_scale=position['lr_scale'] / 2, skipped_steps=guard.skipped)
    run.writer.event('rollback', step=now, to=int(state.step), lr_scale=back['lr_scale'], parameter=guard.first_bad)
    run.writer.rewind(int(state.step))
    run.progress.say(f'{why}: going back to step {int(state.step)} with half the learning rate; their batches are in {guard.directory}')
    guard.forget()
    return state, back


def restarted(run: Run, batches: Iterator, position: dict) -> Iterator:
    """The data from another position."""
    batches.close()
    return run.data.train(position['next_sample'])


@contextlib.contextmanager
def signals(received: list[int]) -> Iterator[None]:
    """Collects SIGTERM and SIGINT, so that the loop can save and leave at the end of a step; a second one kills as usual."""
    kinds = (signal.SIGTERM, signal.SIGINT)

    def note(kind, frame):
        received.append(kind)
        signal.signal(kind, signal.SIG_DFL)

    before = [signal.signal(kind, note) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
