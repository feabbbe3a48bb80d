"""The files that start a job on other machines, all from one description of it, so that they cannot drift apart.

    python -m mim_jax.tools.launch TARGET [KEY=VALUE ...] [--job FILE.json] [--out DIR] [--dry_run]

TARGET is colab, kaggle, tpu_vm, tpu_pod, queued, gke, xpk, skypilot, slurm, or all of them. KEY=VALUE sets a key of the job
(mim_jax/tools/launch_job.py lists them); --job reads keys from a JSON object. The files land in DIR/TARGET, and what starts
them is printed. --dry_run writes nothing, and prints the commands that would be run. It calls no cloud.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from mim_jax.errors import InputError, RunError
from mim_jax.tools import launch_buckets as buckets
from mim_jax.tools import launch_scripts as scripts
from mim_jax.tools.launch_job import Job, job_of, option, run_words, slice_of
from mim_jax.tools.launch_kubernetes import KUBERNETES

TPU = 'docs.cloud.google.com/tpu/docs'
GKE = 'docs.cloud.google.com/kubernetes-engine/docs'


@dataclass(frozen=True)
class Launch:
    """Files by name; what starts them, with DIR for where they lie; and the commands of the services that this comes to."""

    files: Mapping[str, str]
    start: str
    commands: list[str]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.tools.launch', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('target', metavar='TARGET', help=', '.join([*TARGETS, 'all']))
    parser.add_argument('keys', metavar='KEY=VALUE', nargs='*', help='as accelerator=v6e-64')
    parser.add_argument('--job', metavar='FILE.json', help='a JSON object of keys')
    parser.add_argument(
        '--out', metavar='DIR', type=Path, default=Path('runs/launch'), help='runs/launch, if not given'
    )
    parser.add_argument('--dry_run', action='store_true', help='print the commands, write nothing')
    options = parser.parse_intermixed_args(argv)
    try:
        given = (read(Path(options.job)) if options.job else {}) | dict(key_value(key) for key in options.keys)
        for target in TARGETS if options.target == 'all' else [options.target]:
            launch(target, given, options.out, options.dry_run)
    except (InputError, RunError) as error:
        print(f'mim_jax: {error}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def read(path: Path) -> dict:
    """The keys in a file.

    Raises:
        InputError: it cannot be read, or is no JSON object.
    """
    try:
        keys = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: {getattr(error, "strerror", None) or error}') from error
    if not isinstance(keys, dict):
        raise InputError(f'{path}: it has to be a JSON object, as {{"accelerator": "v6e-64"}}')
    return keys


def key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition('=')
    if not equals:
        raise InputError(f'cannot make sense of {text!r}: keys of the job look like accelerator=v6e-64')
    return key, value


def launch(target: str, given: Mapping[str, object], out: Path, dry_run: bool) -> None:
    """Writes the files of a target and says what starts them, or prints the commands only.

    Args:
        target: a key of TARGETS.
        given: keys of the job.
        out: the files land in `out/target`.
        dry_run: write nothing.

    Raises:
        InputError: no such target, or a wrong job.
        RunError: the files cannot be written.
    """
    if target not in TARGETS:
        raise InputError(f'no target {target!r}: it is one of {", ".join(TARGETS)}, or all')
    job, folder = job_of(target, given), out / target
    made = TARGETS[target](job)
    print(f'# {target}')
    for line in made.commands if dry_run else [made.start]:
        print(line.replace('DIR', shlex.quote(str(folder))))
    if left := sorted({word for text in made.files.values() for word in re.findall(PLACEHOLDERS, text)}):
        print(f'# still to be replaced: {", ".join(left)}')
    if dry_run:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in made.files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise RunError(f'cannot write {error.filename}: {error.strerror}') from error


PLACEHOLDERS = r'\b(?:PROJECT|BUCKET|DATA|OWNER|CLUSTER)\b'


def tpu_vm(job: Job) -> Launch:
    """A Cloud TPU slice of one host (tpu_vm) or of several (tpu_pod): made where there is none, the job started on each worker."""
    tpu, here, of = 'gcloud compute tpus tpu-vm'.split(), location(job), slice_of(job.accelerator)
    commands = dict(
        describe=[*tpu, 'describe', job.name, *here, '--format=value(state)'],
        create=[*tpu, 'create', job.name, *here, *hardware(job), f'--version={job.runtime or of.family.runtime}'],
        ssh=[*tpu, 'ssh', job.name, *here, '--worker=all'],
        delete=[*tpu, 'delete', job.name, *here, '--quiet'],
    )
    head = scripts.head('Makes the TPU and starts the job.', f'{TPU}/managing-tpus-tpu-vm', f'{TPU}/jax-pods')
    run = head + scripts.arrays(commands) + scripts.TPU_VM
    return Launch(
        {'run.sh': run, 'start.sh': scripts.follow(job, of.hosts, buckets.mount(job))},
        'bash DIR/run.sh',
        scripts.lines(commands),
    )


def queued(job: Job) -> Launch:
    """A queued resource, and the loop that makes it anew when it was preempted, until the run has ended."""
    tpu, here, of = 'gcloud compute tpus queued-resources'.split(), location(job), slice_of(job.accelerator)
    nodes = (
        [f'--node-id={job.name}'] if job.slices == 1 else [f'--node-count={job.slices}', f'--node-prefix={job.name}']
    )
    runtime = f'--runtime-version={job.runtime or of.family.runtime}'
    commands = dict(
        describe=[*tpu, 'describe', job.name, *here, '--format=value(state.state)'],
        create=[*tpu, 'create', job.name, *here, *nodes, *hardware(job), runtime, '--async'],
        ssh=[*tpu, 'ssh', job.name, *here, '--node=all', '--worker=all', '--batch-size=all'],
        delete=[*tpu, 'delete', job.name, *here, '--force', '--quiet'],
    )
    head = scripts.head(
        'Runs the job to its end: a TPU that was preempted is deleted and made again, and the same command goes on.',
        f'{TPU}/queued-resources',
        f'{TPU}/spot',
    )
    files = {
        'run.sh': head + scripts.arrays(commands) + scripts.QUEUED,
        'start.sh': scripts.follow(job, of.hosts * job.slices, buckets.mount(job)),
    }
    return Launch(files, 'bash DIR/run.sh', scripts.lines(commands))


def location(job: Job) -> list[str]:
    return [f'--project={job.project}', f'--zone={job.zone}']


def hardware(job: Job) -> list[str]:
    return [f'--accelerator-type={job.accelerator}', *(['--spot'] if job.spot else [])]


def gke(job: Job) -> Launch:
    """A JobSet in a queue of Kueue, and the queue."""
    of, region = slice_of(job.accelerator), job.zone.rpartition('-')[0]
    placed = f'--placement-policy={job.name}' if of.family.policy else f'--tpu-topology={of.topology}'
    policy = (
        f'gcloud compute resource-policies create workload-policy {job.name} --project={job.project} --region={region}'
        f' --type=HIGH_THROUGHPUT --accelerator-topology={of.topology}'
    )
    pools = [policy] * (of.family.policy and of.hosts > 1) + [
        f'gcloud container node-pools create {job.name}-{n} --project={job.project} --cluster={job.cluster} --location={region}'
        f' --node-locations={job.zone} --machine-type={of.family.machine}-{of.chips // of.hosts}t'
        + f' {placed}' * (of.hosts > 1)
        + f' --num-nodes={of.hosts}'
        + (' --spot' if job.spot else '')
        for n in range(job.slices)
    ]
    once = buckets.of_cluster(job, region)
    keys = vars(job) | dict(
        chips=of.chips * job.slices,
        chips_per_host=of.chips // of.hosts,
        hosts=of.hosts,
        node=of.family.node,
        topology=of.topology,
        script=indent(scripts.whole(job, of.hosts * job.slices, buckets.check(job)), ' ' * 22).rstrip(),
        spot_node='\n                cloud.google.com/gke-spot: "true"' if job.spot else '',
        pools='\n'.join(f'#   {pool}' for pool in pools),
        notes=buckets.notes(once),
        docs=GKE,
        **buckets.of_pods(job),
    )
    files = {name: text.format(**keys) for name, text in KUBERNETES.items()}
    return Launch(files, 'kubectl apply -f DIR', [*pools, *once, 'kubectl apply -f DIR'])


def xpk(job: Job) -> Launch:
    """A workload of xpk, which makes a JobSet of its own; what it runs is one line."""
    of = slice_of(job.accelerator)
    hosts = max(1, of.chips // 4) * job.slices  # its nodes never have eight chips
    whole_nodes = ['--no-use-parallel-containers'] * (of.family.chip == 'tpu7x')  # one process for all chips of a host
    at = [f'--cluster={job.cluster}', *location(job)]
    tpus = f'--tpu-type={job.accelerator} --num-slices={job.slices}'.split()
    attach = buckets.attach(job, at)
    commands = dict(
        cluster=['xpk', 'cluster', 'create', *at, *tpus, '--spot' if job.spot else '--on-demand'],
        **attach,
        workload=['xpk', 'workload', 'create', *at, *tpus, f'--workload={job.name}', f'--docker-image={job.image}']
        + [f'--storage={words[3]}' for words in attach.values()]
        + whole_nodes
        + '--max-restarts=50 --restart-on-exit-codes=1 --termination-grace-period-seconds=120'.split()
        + [f'--command={scripts.one_line(scripts.whole(job, hosts, buckets.check(job)))}'],
    )
    docs = 'github.com/AI-Hypercomputer/xpk/blob/main/docs/usage'
    head = scripts.head(
        'Sends the job to a cluster of xpk.',
        *(f'{docs}/{page}.md' for page in ('clusters', 'storage', 'workloads', 'docker')),
    )
    each = '\n    '.join(f'"${{{name}[@]}}"' for name in attach) or 'echo "the job has no buckets"'
    run = head + scripts.arrays(commands) + scripts.XPK.format(storage=each)
    return Launch({'run.sh': run}, 'bash DIR/run.sh', [shlex.join(command) for command in commands.values()])


def skypilot(job: Job) -> Launch:
    """A task of SkyPilot, whose managed jobs look for another TPU when one is taken away."""
    of, region = slice_of(job.accelerator), job.zone.rpartition('-')[0]
    keys = vars(job) | dict(
        region=region,
        runtime=job.runtime or of.family.runtime,
        use_spot=str(job.spot).lower(),
        setup=indent(scripts.STRICT + buckets.mount(job) + scripts.install(job), '  '),
        run=indent(
            f'{scripts.STRICT}{buckets.check(job)}cd mim_jax\n{scripts.PATH}{scripts.start(job, of.hosts)}', '  '
        ),
    )
    command = f'sky jobs launch --name {job.name} DIR/job.yaml'
    return Launch({'job.yaml': scripts.SKYPILOT.format(**keys)}, command, [command])


def slurm(job: Job) -> Launch:
    """A batch job of SLURM, one process for each node, that goes back to the queue when it is preempted or out of time."""
    keys = vars(job) | dict(
        partition_line=f'#SBATCH --partition={job.partition}\n' if job.partition else '',
        doctor=scripts.doctor(job, job.nodes),
        run=shlex.join(run_words(job)),
        path=scripts.PATH,
        node_cpus=job.gpus * job.cpus,
    )
    return Launch({'job.sbatch': scripts.SLURM.format(**keys)}, 'sbatch DIR/job.sbatch', ['sbatch DIR/job.sbatch'])


def notebook(job: Job, service: str) -> Launch:
    """A notebook of Colab or Kaggle. The job gets an environment of its own, so the jax of the notebook stays as it is.

    The metadata choose the TPU (Colab: v5e-1, Kaggle: v5e-8).
    """
    metadata = dict(
        colab=dict(accelerator='TPU', colab=dict(gpuType='V5E1')),
        kaggle=dict(kaggle=dict(accelerator='tpuV5e8', isInternetEnabled=True)),
    )[service]
    python = dict(kernelspec=dict(name='python3', display_name='Python 3'), language_info=dict(name='python'))
    script = f'%%writefile job.sh\n{scripts.whole(job, 1)}'
    cells = [cell('markdown', scripts.NOTEBOOK[service])]
    cells += [
        cell('code', text) for text in (*scripts.access(option(run_words(job), 'workdir')), script, '!bash job.sh')
    ]
    text = json.dumps(dict(nbformat=4, nbformat_minor=4, metadata=metadata | python, cells=cells), indent=1) + '\n'
    return Launch({f'{job.name}.ipynb': text}, scripts.UPLOAD[service], ['bash job.sh'])


def cell(kind: str, text: str) -> dict:
    code = dict(execution_count=None, outputs=[]) if kind == 'code' else {}
    return dict(cell_type=kind, metadata={}, source=text.splitlines(True)) | code


TARGETS = dict(
    colab=lambda job: notebook(job, 'colab'),
    kaggle=lambda job: notebook(job, 'kaggle'),
    tpu_vm=tpu_vm,
    tpu_pod=tpu_vm,
    queued=queued,
    gke=gke,
    xpk=xpk,
    skypilot=skypilot,
    slurm=slurm,
)

if __name__ == '__main__':
    sys.exit(main())
