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

from mim_jax import build, compile, hosts, inputs, optim, record, sharding, step, warm_start
from mim_jax.checkpoint import Checkpoints
from mim_jax.errors import InputError, RunError
from mim_jax.evaluate import Evaluation
from mim_jax.guard import Guard
from mim_jax.inputs import Data
from mim_jax.metrics import Compilations, Writer, feature_health
from mim_jax.progress import Clock, Progress

PREEMPTED = 143  # exit status of a run that saved and left because it was told to
NEVER = 2**62  # a step after every other
UNSHOWN = ('baseline', 'examples', 'finite', 'rows')  # scalars of a step that are no curve of their own under train/
CPU_FLOPS = 1e11  # per second, of a few cores


class Stop(BaseException):
    """Told to stop where nothing is half done: while it compiles or evaluates."""


@dataclass
class Signals:
    """SIGTERM and SIGINT. Amid steps they are collected, so that the loop can save and leave; else they raise Stop.

    A second one kills as usual. Where there are several hosts, JAX listens for SIGTERM. They all ask the same questions in the same
    order, and agree on one from which on the answer is yes.
    """

    received: list[int] = field(default_factory=list)
    stepping: bool = False
    asked: int = 0

    def told_to_stop(self) -> bool:
        """Whether the run should save and leave."""
        if jax.process_count() > 1 and not self.received:
            self.asked += 1
            if multihost_utils.reached_preemption_sync_point(self.asked):
                self.received.append(signal.SIGTERM)
        return bool(self.received)

    def stop_here(self) -> None:
        """Where nothing is half done: raises Stop, of several hosts on all of them at once."""
        if self.told_to_stop():
            raise Stop

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Takes the signals over."""
        kinds = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()

        def note(kind, frame):
            self.received.append(kind)
            signal.signal(kind, signal.SIG_DFL)
            if not self.stepping:
                raise Stop

        before = [signal.signal(kind, note) for kind in kinds]
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Amid steps: a signal waits until it is asked for."""
        self.stepping = True
        try:
            yield
        finally:
            self.stepping = False

    @contextlib.contextmanager
    def cut_short(self) -> Iterator[None]:
        """Amid steps, what a signal may end at once."""
        with contextlib.suppress(Stop):
            self.stepping = False
            yield
            self.stepping = True
        self.stepping = True


@dataclass
class Run:
    """The parts of a run that stay the same while it goes."""

    config: object
    mesh: Mesh
    objective: object
    augment: Callable
    abstract: step.TrainState  # shapes and shardings
    data: Data
    evaluation: Evaluation
    checkpoints: Checkpoints
    progress: Progress
    compilations: Compilations
    signals: Signals
    writer: Writer | None = None


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
    told = for_this_machine(config, origin)
    build.check(config)
    inputs.check(config)
    warm_start.check(config.init)
    inputs.settle(config, workdir)
    compile.keep_compilations(workdir, hosts.several())
    mesh, signals = sharding.make_mesh(**config.mesh), Signals()
    progress = Progress(config.total_steps, devices=mesh.size)
    for line in told:
        progress.say(line)
    try:
        with jax.set_mesh(mesh), signals.listen(), contextlib.ExitStack() as closing:
            objective, augment, abstract = parts(config, mesh)
            record.make_workdir(workdir)
            hosts.check_shared(workdir)
            if mode == 'train':
                closing.enter_context(record.alone(workdir))
            data = inputs.Data(config, workdir, augment, signals.stop_here)
            evaluation = Evaluation(config, objective, data, workdir, progress)
            checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, read_only=mode == 'eval')
            closing.callback(checkpoints.close)
            compilations = Compilations()
            closing.callback(compilations.close)
            this = Run(config, mesh, objective, augment, abstract, data, evaluation, checkpoints, progress, compilations, signals)  # fmt: skip
            return to_the_end(this, mode, origin, closing)
    except Stop:
        progress.say('told to stop; the same command goes on from the last checkpoint')
        return PREEMPTED


def for_this_machine(config, origin: dict) -> list[str]:
    """Settles what the command line left open, and what to say of it: no path of data, a batch that a CPU would never end."""
    told, data = [], config.data
    if 'data.path' not in origin:
        told.append(f'no --config.data.path: training on {data.path}, which comes with the install')
    small = data.cpu_batch_size
    if small and 'data.batch_size' not in origin and jax.default_backend() == 'cpu':
        told.append(f'on a CPU: data.batch_size={small}, not {data.batch_size}')
        data.batch_size = small
    return told


def to_the_end(run: Run, mode: str, origin: dict, closing: contextlib.ExitStack) -> int:
    """Goes on from the newest checkpoint to the last evaluation, and gives the exit status."""
    config, workdir, train = run.config, run.data.workdir, mode == 'train'
    state, position = start(run, mode)
    now = int(state.step)
    changed = record.changes(workdir, config) if train and now else {}
    if train:
        record.write_config(workdir, config, origin, run.data)
    run.writer = Writer(
        workdir,
        step=now if train else NEVER,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        config=config.to_dict(),
    )
    closing.callback(run.writer.close)
    if changed:
        run.progress.say(
            'changed since the last start: ' + ', '.join(f'{key} {a!r} -> {b!r}' for key, (a, b) in changed.items())
        )
        run.writer.event('config_changed', step=now, keys=changed)
    if train:
        state, stopped = loop(run, state, position)
        if stopped:
            run.progress.say(f'told to stop: saved at step {int(state.step)}; the same command goes on from there')
            return PREEMPTED
    run.evaluation.final(state, run.writer, again=not train)
    return 0


def parts(config, mesh: Mesh):
    """(objective, augment, shapes and shardings of the state): any wrong part, option or shape fails here, before data is read."""
    sharding.check_batch(config.data.batch_size, mesh)
    compile.cuts(config.data.batch_size // (mesh.shape['data'] * mesh.shape['fsdp']), config.micro_batch)
    objective, augment = build.objective(config), build.augment(config)
    build.schedule(config)
    try:
        shapes = jax.eval_shape(initial(config, objective, augment), compile.batch_spec(config, 2))
    except InputError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        text = f'nothing is called {error}' if isinstance(error, LookupError) else str(error).partition('\n')[0]
        raise InputError(f'the parts of this configuration do not fit together: {text}') from error
    return objective, augment, sharding.abstract(shapes, sharding.shardings(shapes, mesh))


def initial(config, objective, augment: Callable) -> Callable:
    """`(batch) -> TrainState` of a fresh run."""
    return partial(
        step.init,
        config.seed,
        objective=objective,
        augment=augment,
        tx_of=build.optimizer(config),
        ema=bool(config.ema),
    )


def start(run: Run, mode: str = 'train') -> tuple[step.TrainState, dict]:
    """The newest checkpoint, or a fresh state; and the position that belongs to it."""
    if run.checkpoints.latest() is not None:
        return run.checkpoints.restore(run.abstract)
    if mode == 'eval':
        raise InputError(f'{run.checkpoints.directory} has no checkpoint to evaluate: train first')
    placed = jax.tree.map(lambda x: x.sharding, run.abstract)
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), compile.batch_spec(run.config, 2))
    state = jax.jit(initial(run.config, run.objective, run.augment), out_shardings=placed)(empty)
    if run.config.init:
        state = warm_start.warm_start(state, run.config.init, run.config.init_part)
        part = 'network' if run.config.init_part == 'all' else 'encoder'
        run.progress.say(f'the {part} is that of {run.config.init}')
    return state, dict(next_sample=0, skipped_steps=0, lr_scale=1.0, rollbacks=0)


def loop(run: Run, state: step.TrainState, position: dict) -> tuple[step.TrainState, bool]:
    """Steps until the last one, or until told to stop, and saves there. -> the state, and whether it was told."""
    config, total, now = run.config, run.config.total_steps, int(state.step)
    run.writer.event('start', step=now, next_sample=position['next_sample'], devices=jax.device_count())
    if now >= total:
        return state, False
    train_step = prepare(run)
    run.signals.stop_here()
    names = [optim.path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(run.abstract.params)]
    judge = run.data.judge if hosts.several() else None
    guard = Guard(run.data.workdir, names, run.writer.event, position['skipped_steps'], judge)
    if evaluates(config, now) and not run.evaluation.measured(now):
        run.evaluation.during(state, run.writer)
    with run.signals.wait(), contextlib.closing(Clock()) as clock:
        state, stopped = steps(run, state, position, train_step, guard, clock)
        run.data.hear(run.writer, int(state.step))
        run.data.tell(run.writer, int(state.step))
        if run.data.bad.listed:
            run.progress.say(f'{len(run.data.bad.listed)} records could not be used: {run.data.bad.lists} says why')
    run.checkpoints.wait()
    return state, stopped


def steps(run: Run, state, position: dict, train_step: Callable, guard: Guard, clock: Clock):
    """What `loop` does step by step."""
    config, total, now, stop = run.config, run.config.total_steps, int(state.step), False
    batches = run.data.train(position['next_sample'])
    try:
        while now < total and not stop:
            rows, report = clock.fetch(batches)
            run.data.note(report, run.writer, now)
            batch = sharding.put(rows, run.mesh)
            hosts.moved(now + 1)
            state, metrics = train_step(state, batch, np.float32(position['lr_scale']))
            del batch  # what comes may need its memory
            clock.launched(metrics['loss'], config.data.batch_size)
            now += 1
            due = now % config.checkpoint_every == 0 or now == total
            bad = guard.watch(now, rows, metrics)
            bad = guard.flush() if due else bad
            position = position | dict(next_sample=position['next_sample'] + config.data.batch_size)
            if bad >= min(config.max_bad_steps, total):
                state, position = roll_back(run, guard, now, position)
                batches.close()
                now, batches = int(state.step), run.data.train(position['next_sample'])
                clock.restart()
                continue
            if now in (1, total) or now % config.log_every == 0:
                log(run, now, metrics, clock, guard.skipped)
            if evaluates(config, now) and now < total:
                hosts.rest()
                with run.signals.cut_short():
                    run.evaluation.during(state, run.writer)
                clock.restart()
            stop = run.signals.told_to_stop()
            if stop or now == total or due and not bad:  # not amid bad steps: a rollback wants to go back before them
                guard.flush()
                save(run, now, state, position | dict(skipped_steps=guard.skipped))
    finally:
        hosts.rest()
        batches.close()
    return state, stop


def evaluates(config, now: int) -> bool:
    """Whether `evals` run at this step."""
    return config.eval_every > 0 and now % config.eval_every == 0


def save(run: Run, now: int, state: step.TrainState, position: dict) -> None:
    """Starts a save of the state and of what belongs to it, once the one before it is done."""
    hosts.rest()
    run.checkpoints.save(now, state, position)
    run.writer.event('save', step=now, next_sample=position['next_sample'], cpu_seconds=round(time.process_time()))


def prepare(run: Run) -> Callable:
    """The compiled train step; says what it costs."""
    config = run.config
    compiled = compile.train_step(config, run.objective, run.augment, run.abstract, run.mesh)
    run.progress.flops_per_example = compile.model_flops(config, run.objective, run.augment, run.abstract.params)
    devices, rows = run.mesh.shape['data'] * run.mesh.shape['fsdp'], config.data.batch_size
    peak = float(jax.vmap(build.schedule(config))(np.arange(config.total_steps)).max())
    millions = sum(x.size for x in jax.tree.leaves(run.abstract.params)) / 1e6
    run.progress.say(
        f'{millions:.1f} M parameters; {run.data.train_size} records of {config.data.path}; batch {rows} = {devices} devices x {compiled.accumulate} micro-batches x '
        f'{rows // devices // compiled.accumulate} rows; peak learning rate {peak:.3g}; {compiled.bytes_per_device / 1e9:.2f} GB a device'
    )
    days = run.progress.flops_per_example * rows * config.total_steps / CPU_FLOPS / 86400
    if config.smaller and days > 1 and jax.default_backend() == 'cpu':
        run.progress.say(f'this takes about {days:,.0f} days on a CPU; made for one: --config={config.smaller}')
    run.writer.event('compilation', name='train_step', times=run.compilations.counts['train_step'], accumulate=compiled.accumulate,
                     seconds=compiled.seconds,
                     bytes_per_device=compiled.bytes_per_device, flops_per_example=run.progress.flops_per_example)  # fmt: skip
    return compiled.call


def log(run: Run, now: int, metrics: dict, clock: Clock, skipped: int) -> None:
    """One line of numbers, on the screen and in the files."""
    metrics = jax.device_get(metrics)
    values = {f'train/{name}': float(x) for name, x in metrics.items() if not np.ndim(x) and name not in UNSHOWN}
    values['baseline/mean_predictor_loss'] = float(metrics['baseline'])
    values |= clock.read()
    values |= run.progress.speed(values['train/examples_per_sec']) | feature_health(metrics['features'])
    values['train/skipped_steps'] = skipped
    values['train/compilations'] = run.compilations.counts['train_step']
    run.data.hear(run.writer, now)
    values['data/bad_samples'] = len(run.data.bad.listed)
    run.writer.scalars(now, values)
    run.progress.show(now, values)


def roll_back(run: Run, guard: Guard, now: int, position: dict) -> tuple[step.TrainState, dict]:
    """Back to the last good checkpoint, once, with half the learning rate.

    Raises:
        RunError: it has been done before.
    """
    hosts.rest()
    why = f'{guard.in_a_row} steps in a row up to step {now} were not finite, first in {guard.first_bad}'
    if position['rollbacks']:
        raise RunError(
            f'{why}, again after going back with half the learning rate; their batches are in {guard.directory}'
        )
    run.checkpoints.wait()
    state, back = start(run)
    back |= dict(rollbacks=1, lr_scale=position['lr_scale'] / 2, skipped_steps=guard.skipped)
    run.writer.event('rollback', step=now, to=int(state.step), lr_scale=back['lr_scale'], parameter=guard.first_bad)
    run.writer.rewind(int(state.step))
    run.progress.say(
        f'{why}: going back to step {int(state.step)} with half the learning rate; their batches are in {guard.directory}'
    )
    guard.forget()
    return state, back
