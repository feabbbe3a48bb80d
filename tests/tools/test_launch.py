"""The files that start a job elsewhere; no cloud is called, commands of the services are stand-ins on PATH."""

import json
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml

from mim_jax.tools import launch_job, launch_scripts
from mim_jax.tools.launch import TARGETS, main
from tests.tools.launch_schemas import JOBSET, KUEUE, SKYPILOT, misfits
from tests.tools.launched import ODD, bash, commands, on_machine, pod, program, shell_of, written

ROOT = Path(__file__).parents[2]
SHELLCHECK = Path(sysconfig.get_path('scripts')) / 'shellcheck'


def test_what_is_checked_in_is_what_is_written(tmp_path):
    kept = {
        str(path.relative_to(ROOT / 'launch')): path.read_text()
        for path in (ROOT / 'launch').rglob('*')
        if path.is_file()
    }
    kept.pop('README.md')
    assert kept == written(tmp_path, 'all'), 'python -m mim_jax.tools.launch all --out=launch'


ODD_KEYS = 'spot=false', 'accelerator=v6e-8', 'partition=long', f'command={ODD}'


@pytest.mark.parametrize(
    ('keys', 'literal'), [((), ''), (ODD_KEYS, '--exclude=SC2016')]
)  # a $ in quotes, as it is meant
def test_scripts_are_clean(tmp_path, keys, literal):
    checked = 0
    for name, text in written(tmp_path, 'all', *keys).items():
        if not name.endswith('kueue.yaml'):
            script = shell_of(name, text)
            assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0
            found = subprocess.run(
                [SHELLCHECK, '--shell=bash', literal or '--norc', '-'], input=script, text=True, capture_output=True
            )
            assert found.returncode == 0, f'{name}: {found.stdout}'
            checked += 1
    assert checked == 12


@pytest.mark.parametrize(
    ('accelerator', 'chips', 'topology', 'hosts'),
    [
        ('v5litepod-1', 1, '1x1', 1),
        ('v5litepod-4', 4, '2x2', 1),
        ('v5litepod-8', 8, '2x4', 1),
        ('v5litepod-16', 16, '4x4', 4),
        ('v5litepod-256', 256, '16x16', 64),
        ('v6e-8', 8, '2x4', 1),
        ('v6e-64', 64, '8x8', 16),
        ('v5p-8', 4, '2x2x1', 1),
        ('v5p-16', 8, '2x2x2', 2),
        ('v5p-128', 64, '4x4x4', 16),
        ('v4-1024', 512, '8x8x8', 128),
    ],
)
def test_topologies(accelerator, chips, topology, hosts):
    of = launch_job.slice_of(accelerator)
    assert (of.chips, of.topology, of.hosts) == (chips, topology, hosts)


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['gke', 'accelerator=v5e-16'], 'v5e is called v5litepod'),
        (['gke', 'accelerator=h100-8'], 'one of v4-N, v5litepod-N, v5p-N, v6e-N'),
        (['gke', 'accelerator=v6e-24'], 'the sizes of v6e are 1, 4, 8, 16, 32, 64, 128, 256'),
        (['gke', 'accelerator=v5p-9'], 'it counts cores, 2 a chip'),
        (['tpu_vm', 'accelerator=v5litepod-16'], 'it has 4 hosts, so take tpu_pod or queued'),
        (['tpu_pod', 'slices=2'], 'take queued, gke or xpk'),
        (['skypilot', 'slices=2'], 'take queued, gke or xpk'),
        (['queued', 'acelerator=v6e-4'], "did you mean 'accelerator'?"),
        (['queued', 'slices=0'], 'a whole number above 0'),
        (['queued', 'slices=true'], 'a whole number above 0'),
        (['queued', 'spot=perhaps'], 'True or False'),
        (['queued', 'name=My_Job'], 'small letters, digits and hyphens'),
        (['queued', 'zone=europe'], 'a zone, as us-west4-a'),
        (['queued', 'project=a; rm -rf b'], 'one word'),
        (['queued', 'v6e-4'], 'keys of the job look like'),
        (['queued', 'repository='], 'repository is empty'),
        (['queued', 'command=python -m mim_jax.main --workdir=runs/a'], 'has to be gs://BUCKET/'),
        (['queued', 'command=python -m mim_jax.main --workdir=s3://b/a'], 'only buckets of gs:// are mounted'),
        (['queued', 'command=python -m mim_jax.main --workdir=gs:///a'], "no bucket can be called ''"),
        (
            ['gke', "command=python -m mim_jax.main --workdir=/d/a '--config.init=gs://a;b/c'"],
            "no bucket can be called 'a;b'",
        ),
        (['slurm', 'command=python -m mim_jax.main --workdir=gs://bu/a'], 'the nodes of SLURM share a file system'),
        (
            ['slurm', 'command=python -m mim_jax.main --workdir=a --config.data.path=gs://bu'],
            'gs://bu is not mounted on slurm',
        ),
        (['colab', 'command=python -m mim_jax.main --workdir=gs://bu/a'], 'name a folder of Drive'),
        (['kaggle', 'command=python -m mim_jax.main --workdir=gs://bu/a'], 'name a folder of /kaggle/working'),
        (['queued', 'command=python -m mim_jax.main --config=configs/mae.py'], 'no --workdir=DIR'),
        (['queued', "command=python -m mim_jax.main '--workdir=gs://b/a"], 'no closing quotation'),
        (['queued', 'command=python -m mim_jax.main\n--workdir=gs://b/a'], 'one line'),
        (['cloud'], 'one of colab, kaggle, tpu_vm'),
        (['gke', '--job=nowhere.json'], 'nowhere.json: No such file'),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, capsys, words, said):
    assert main([*words, f'--out={tmp_path}']) == 2
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_an_option_that_does_not_exist_ends_with_2():
    with pytest.raises(SystemExit) as ended:
        main(['gke', '--fast'])
    assert ended.value.code == 2


def test_a_file_of_keys_is_read_and_the_command_line_comes_after_it(tmp_path):
    (tmp_path / 'job.json').write_text(json.dumps(dict(accelerator='v6e-64', slices=2, spot=False, name='from-file')))
    files = written(tmp_path / 'out', 'queued', f'--job={tmp_path / "job.json"}', 'name=mine')
    create = commands(files['queued/run.sh'])['create']
    assert '--accelerator-type=v6e-64' in create and '--node-count=2' in create and '--spot' not in create
    assert '--node-prefix=mine' in create and '--runtime-version=v2-alpha-tpuv6e' in create
    assert '--hosts=32' in files['queued/start.sh']


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('[1]', 'a JSON object'),
        ('{', 'job.json: '),
        ('{"slices": 1.5}', 'a whole number'),
        ('{"zone": 3}', 'text'),
        ('{"spots": true}', "'spot'"),
    ],
)
def test_a_wrong_file_of_keys_is_one_sentence(tmp_path, capsys, content, said):
    (tmp_path / 'job.json').write_text(content)
    assert main(['gke', f'--job={tmp_path / "job.json"}', f'--out={tmp_path / "out"}']) == 2
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1


def test_what_cannot_be_written_is_said(tmp_path, capsys):
    (tmp_path / 'gke').write_text('')
    assert main(['gke', f'--out={tmp_path}']) == 1
    assert f'cannot write {tmp_path / "gke"}' in capsys.readouterr().err


def test_a_dry_run_prints_what_the_script_runs_and_writes_nothing(tmp_path, capsys):
    written(tmp_path, 'queued', 'zone=europe-west4-b')
    capsys.readouterr()
    assert main(['queued', 'zone=europe-west4-b', f'--out={tmp_path / "dry"}', '--dry_run']) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith('#')]
    arrays = commands((tmp_path / 'queued/run.sh').read_text())
    assert list(arrays) == ['describe', 'create', 'ssh', 'delete']
    for line, words in zip(printed, arrays.values(), strict=True):
        assert shlex.split(line)[: len(words)] == words and '--zone=europe-west4-b' in words
    assert f'$(cat {tmp_path}/dry/queued/start.sh)' in printed[2]
    assert not (tmp_path / 'dry').exists()


def test_a_dry_run_has_something_to_say_of_every_target(capsys):
    assert main(['all', '--dry_run', 'accelerator=v5litepod-8']) == 0
    blocks = capsys.readouterr().out.split('# still')[:-1]
    first = ['bash job.sh', 'bash job.sh', *['gcloud compute tpus'] * 3, 'gcloud container node-pools create', 'xpk cluster create', 'sky jobs launch', 'sbatch']  # fmt: skip
    for block, command in zip(blocks, first, strict=True):
        assert f'\n{command}' in block
    assert '--machine-type=ct5lp-hightpu-8t --num-nodes=1' in blocks[5]


def test_what_is_still_to_be_filled_in_is_said(tmp_path, capsys):
    written(tmp_path, 'skypilot')
    assert 'still to be replaced: BUCKET, DATA, OWNER' in capsys.readouterr().out
    keys = ['repository=https://g.example/m.git', 'command=python -m mim_jax.main --workdir=gs://mine/a']
    written(tmp_path, 'skypilot', *keys)
    assert 'replaced' not in capsys.readouterr().out


def test_it_does_not_wait_for_jax():
    code = "import sys, mim_jax.tools.launch; sys.exit('jax' in sys.modules or 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_the_jobset_fits_its_schema(tmp_path):
    files = written(tmp_path, 'gke', 'accelerator=v5p-128', 'slices=3', 'queue=team', 'image=a.example/b@sha256:1')
    jobset, queue = yaml.safe_load(files['gke/jobset.yaml']), list(yaml.safe_load_all(files['gke/kueue.yaml']))
    assert misfits(jobset, JOBSET) == []
    assert [bad for part in queue for bad in misfits(part, KUEUE[part['kind']])] == []
    assert jobset['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'team'}
    flavor, cluster, local = queue
    assert flavor['spec']['nodeLabels'].items() <= pod(jobset)['nodeSelector'].items()
    assert pod(jobset)['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
        'cloud.google.com/gke-tpu-topology': '4x4x4',
        'cloud.google.com/gke-spot': 'true',
    }
    assert local['metadata']['name'] == 'team' and local['spec']['clusterQueue'] == cluster['metadata']['name']
    (group,) = cluster['spec']['resourceGroups']
    assert group['flavors'] == [dict(name='team', resources=[dict(name='google.com/tpu', nominalQuota=192)])]
    (slices,) = jobset['spec']['replicatedJobs']
    job = slices['template']['spec']
    assert (slices['replicas'], job['parallelism'], job['completions']) == (3, 16, 16)
    (container,) = pod(jobset)['containers']
    assert container['resources'] == dict(limits={'google.com/tpu': 4}) and container['image'] == 'a.example/b@sha256:1'
    assert '--hosts=48' in container['command'][-1]


def test_on_demand_pods_ask_for_no_spot_nodes(tmp_path):
    files = written(tmp_path, 'gke', 'spot=False')
    assert 'spot' not in files['gke/jobset.yaml'].replace('spot-vms', '')


def test_pods_stop_at_a_wrong_config_and_go_on_after_a_preemption(tmp_path):
    jobset = yaml.safe_load(written(tmp_path, 'gke')['gke/jobset.yaml'])
    job = jobset['spec']['replicatedJobs'][0]['template']['spec']
    (container,) = pod(jobset)['containers']

    def reaction(code: int | None) -> str:
        """Of JobSet, to a pod that ended with a code or was taken away, as Kubernetes describes it."""
        reason, message = 'BackoffLimitExceeded', 'Job has reached the specified backoff limit'
        for rule in job['podFailurePolicy']['rules']:
            on = rule.get('onExitCodes')
            hit = (
                code is None if on is None else code is not None and (code in on['values']) == (on['operator'] == 'In')
            )
            assert on is None or on['containerName'] == container['name']
            if hit:
                if rule['action'] == 'FailJob':
                    reason, message = (
                        'PodFailurePolicy',
                        f'Container job for pod a/b failed with exit code {code} matching FailJob rule at index 1',
                    )
                break
        for rule in jobset['spec']['failurePolicy']['rules']:
            patterns = rule.get('onJobFailureMessagePatterns', ['.'])
            if reason in rule.get('onJobFailureReasons', [reason]) and any(re.search(p, message) for p in patterns):
                return rule['action']

    assert job['backoffLimit'] == 0
    assert {code: reaction(code) for code in (2, 1, 137, 143, None)} == {
        2: 'FailJobSet',
        1: 'RestartJobSet',
        137: 'RestartJobSet',
        143: 'RestartJobSetAndIgnoreMaxRestarts',
        None: 'RestartJobSetAndIgnoreMaxRestarts',
    }


def test_the_task_of_skypilot_fits_its_schema(tmp_path):
    task = yaml.safe_load(written(tmp_path, 'skypilot', 'accelerator=v6e-64')['skypilot/job.yaml'])
    assert misfits(task, SKYPILOT) == []
    assert task['resources'] == dict(
        infra='gcp/us-west4/us-west4-a',
        accelerators='tpu-v6e-64',
        accelerator_args=dict(runtime_version='v2-alpha-tpuv6e'),
        use_spot=True,
        job_recovery=dict(recover_on_exit_codes=[143]),
    )


@pytest.mark.parametrize(
    ('where', 'value'),
    [
        (('spec', 'replicas'), 1),
        (('kind',), 'Job'),
        (('spec', 'failurePolicy', 'maxRestarts'), '10'),
        (('spec', 'replicatedJobs'), {}),
    ],
)
def test_the_schema_bites(tmp_path, where, value):
    jobset = yaml.safe_load(written(tmp_path, 'gke')['gke/jobset.yaml'])
    inside = jobset
    for key in where[:-1]:
        inside = inside[key]
    inside[where[-1]] = value
    assert len(misfits(jobset, JOBSET)) == 1


def test_notebooks_leave_their_jax_alone(tmp_path):
    files = written(tmp_path, 'colab') | written(tmp_path, 'kaggle')
    colab, kaggle = (json.loads(files[f'{name}/mim-jax.ipynb']) for name in ('colab', 'kaggle'))
    assert colab['metadata']['accelerator'] == 'TPU' and colab['metadata']['colab'] == dict(gpuType='V5E1')
    assert kaggle['metadata']['kaggle']['accelerator'] == 'tpuV5e8'
    assert "drive.mount('/content/drive')" in json.dumps(colab) and 'drive.mount' not in json.dumps(kaggle)
    for text in files.values():
        script = shell_of('x.ipynb', text)
        assert 'distributed' not in script and '--hosts=1 ' in script
        installs = [line for line in script.splitlines() if ' install ' in line]
        assert len(installs) == 2 and installs[0].endswith('--user uv') and '--python .venv/bin/python' in installs[1]


def test_an_image_with_the_code_is_used_as_it_is(tmp_path):
    files = written(tmp_path, 'gke', 'repository=') | written(tmp_path, 'xpk', 'repository=', 'image=a.example/b')
    for text in (files['gke/jobset.yaml'], files['xpk/run.sh']):
        assert 'git ' not in text and 'pip ' not in text and 'mim_jax.tools.doctor' in text
    assert '--docker-image=a.example/b' in files['xpk/run.sh']


def test_nodes_of_xpk_have_four_chips(tmp_path):
    assert '--hosts=2 ' in written(tmp_path, 'xpk', 'accelerator=v6e-8')['xpk/run.sh']
    assert '--hosts=8 ' in written(tmp_path, 'xpk', 'accelerator=v5p-32', 'slices=2')['xpk/run.sh']


def test_slurm_asks_for_what_the_job_says(tmp_path):
    text = written(tmp_path, 'slurm', 'nodes=3', 'gpus=4', 'cpus=5', 'partition=long', 'time=1-00:00:00')[
        'slurm/job.sbatch'
    ]
    asked = dict(
        line.removeprefix('#SBATCH --').partition('=')[::2] for line in text.splitlines() if line.startswith('#SBATCH')
    )
    wanted = {'nodes': '3', 'ntasks-per-node': '1', 'gpus-per-node': '4', 'cpus-per-task': '20', 'partition': 'long'}
    assert wanted.items() <= asked.items() and asked['time'] == '1-00:00:00' and 'requeue' in asked
    assert asked['signal'] == 'TERM@180'  # to the steps: B: would be to the batch shell alone
    assert text.index('#SBATCH --signal') < text.index('set -e')  # SLURM reads no options after the first command


@pytest.mark.parametrize('target', TARGETS)
def test_the_run_gets_the_words_of_the_command(tmp_path, machine, target):
    script = on_machine(target, tmp_path, f'command={ODD}')
    done = bash(script, machine, tmp_path, ATTEMPT='1', SLURM_CPUS_PER_TASK='8', SLURM_JOB_ID='7')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'ran').read_text().splitlines() == shlex.split(ODD)[1:]
    looked = (tmp_path / 'looked').read_text()
    assert '--workdir=/disk/my run' in looked and 'gcsfuse' not in script and 'mountpoint' not in script


@pytest.mark.parametrize('target', TARGETS)
def test_a_machine_that_is_not_well_runs_nothing(tmp_path, machine, target):
    (tmp_path / 'sick').write_text('1')
    done = bash(on_machine(target, tmp_path), machine, tmp_path, ATTEMPT='1', SLURM_CPUS_PER_TASK='8')
    assert done.returncode in (1, 65) and (tmp_path / 'looked').exists() and not (tmp_path / 'ran').exists()


def test_the_doctor_has_the_flags_it_is_given():
    from absl import flags

    from mim_jax.tools import doctor_looks  # noqa: F401 (defines them)

    given = re.findall('--([a-z]+)=', launch_scripts.doctor(launch_job.job_of('queued', {}), 4))
    assert given == ['hosts', 'timeout', 'workdir', 'data'] and all(name in flags.FLAGS for name in given)


@pytest.mark.parametrize('target', ['gke', 'xpk', 'queued', 'colab'])
def test_code_that_cannot_be_had_is_no_wrong_config(tmp_path, machine, target):
    program(tmp_path / 'bin', 'python3', 'exit 2\n')
    assert bash(on_machine(target, tmp_path), machine, tmp_path, ATTEMPT='1').returncode in (1, 65)
    assert not (tmp_path / 'looked').exists()


@pytest.mark.parametrize('target', ['gke', 'xpk', 'skypilot', 'kaggle'])
def test_a_signal_reaches_the_run(tmp_path, machine, target):
    (tmp_path / 'tenths').write_text('300')
    (tmp_path / 'script').write_text(on_machine(target, tmp_path))
    running = subprocess.Popen(['bash', 'script'], env=machine, cwd=tmp_path)
    try:
        wait_for(tmp_path / 'ran')
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 143
    finally:
        running.kill()
    assert (tmp_path / 'saves').read_text() == 'saved\n'


def wait_for(path: Path, lines: int = 1) -> None:
    end = time.monotonic() + 20
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < end, f'no {path.name}'
        time.sleep(0.05)


def test_slurm_requeues_what_saved_and_nothing_else(tmp_path, machine):
    script = on_machine('slurm', tmp_path)
    for status, requeued in ((0, False), (1, False), (2, False), (143, True)):
        (tmp_path / 'status').write_text(str(status))
        done = bash(script, machine, tmp_path, SLURM_CPUS_PER_TASK='8', SLURM_JOB_ID='7')
        assert (done.returncode, (tmp_path / 'requeued').exists()) == (status, requeued)
    assert (tmp_path / 'requeued').read_text() == 'requeue 7\n'


def test_a_worker_is_followed_and_not_started_twice(tmp_path, machine):
    script = on_machine('tpu_pod', tmp_path)
    (tmp_path / 'tenths').write_text('15')
    (tmp_path / 'status').write_text('143')
    first = subprocess.Popen(['bash', '-c', script], env=machine | dict(ATTEMPT='1'), cwd=tmp_path)
    wait_for(tmp_path / 'ran')
    first.kill()  # the connection breaks
    first.wait()
    again = bash(script, machine, tmp_path, ATTEMPT='1')  # gcloud connects again
    other = bash(script, machine, tmp_path, ATTEMPT='1')  # and once more, after the end
    assert again.returncode == other.returncode == 64 + 143
    assert (tmp_path / 'runs').read_text() == 'run\n'
    (tmp_path / 'status').write_text('0')
    assert bash(script, machine, tmp_path, ATTEMPT='2').returncode == 0
    assert (tmp_path / 'runs').read_text() == 'run\n' * 2


def test_a_worker_that_is_busy_is_followed_by_a_new_attempt(tmp_path, machine):
    script = on_machine('tpu_pod', tmp_path)
    (tmp_path / 'tenths').write_text('15')
    first = subprocess.Popen(['bash', '-c', script], env=machine | dict(ATTEMPT='1'), cwd=tmp_path)
    wait_for(tmp_path / 'ran')
    assert bash(script, machine, tmp_path, ATTEMPT='2').returncode == 0
    assert first.wait(20) == 0 and (tmp_path / 'runs').read_text() == 'run\n'


GCLOUD = """\
cd {folder}
printf '%q ' "$@" >>calls; echo >>calls
next() {{ local line; line=$(head -n 1 "$1"); [ "$(wc -l <"$1")" -le 1 ] || sed -i 1d "$1"; echo "$line"; }}
case "$4 $5" in
  describe*) state=$(next states)
    [ "$state" != NONE ] || {{ echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1; }}
    [ "$state" != OFFLINE ] || {{ echo 'ERROR: could not reach the server' >&2; exit 1; }}
    echo "$state" ;;
  create*) exit "$(next creates)" ;;
  ssh*) exit "$(next ends)" ;;
  delete*) exit 0 ;;
esac
"""


@pytest.fixture
def cloud(tmp_path, machine):
    """`queued` against a gcloud whose states of the resource and ends of the connection are given in their order."""
    program(tmp_path / 'bin', 'gcloud', GCLOUD.format(folder=tmp_path))
    written(tmp_path / 'files', 'queued')

    def run(states: str, ends: str = '0', creates: str = '0') -> tuple[int, list[str]]:
        for name, given in dict(states=states, ends=ends, creates=creates).items():
            (tmp_path / name).write_text('\n'.join(given.split()) + '\n')
        (tmp_path / 'calls').write_text('')
        done = bash(f'bash {tmp_path}/files/queued/run.sh', machine, tmp_path)
        calls = [line.split()[3] for line in (tmp_path / 'calls').read_text().splitlines()]
        return done.returncode, [call for call in calls if call != 'describe']

    return run


def attempts(tmp_path) -> list[str]:
    return re.findall(r'ATTEMPT=(\d+)', (tmp_path / 'calls').read_text())


def test_a_queued_run_that_reaches_its_end_gives_the_tpu_back(cloud):
    assert cloud('NONE WAITING_FOR_RESOURCES PROVISIONING ACTIVE') == (0, ['create', 'ssh', 'delete'])


def test_a_preempted_queued_resource_is_made_again(cloud):
    states = 'NONE ACTIVE SUSPENDING SUSPENDED NONE WAITING_FOR_RESOURCES ACTIVE'
    ended = cloud(states, ends='207 0')
    assert ended == (0, ['create', 'ssh', 'delete', 'create', 'ssh', 'delete'])


@pytest.mark.parametrize(('end', 'status'), [('66', 2), ('138', 74), ('65', 1), ('201', 137)])
def test_a_queued_run_that_cannot_go_on_stops(cloud, end, status):
    assert cloud('NONE ACTIVE', end) == (status, ['create', 'ssh', 'delete'])


def test_a_host_that_lost_the_others_to_a_preemption_goes_on(cloud):
    ended = cloud('ACTIVE SUSPENDED SUSPENDED NONE ACTIVE', ends='65 0')
    assert ended == (0, ['ssh', 'delete', 'create', 'ssh', 'delete'])


def test_a_run_that_saved_while_its_tpu_stays_is_started_anew(cloud, tmp_path):
    assert cloud('ACTIVE', ends='207 0') == (0, ['ssh', 'ssh', 'delete'])
    first, second = attempts(tmp_path)
    assert first != second


@pytest.mark.parametrize('end', ['255', '1', '2'])  # ssh, and what gcloud itself ends with
def test_a_lost_connection_is_taken_up_again(cloud, tmp_path, end):
    assert cloud('ACTIVE', ends=f'{end} {end} 0') == (0, ['ssh', 'ssh', 'ssh', 'delete'])
    assert len(set(attempts(tmp_path))) == 1


def test_a_tpu_that_cannot_be_reached_is_left_after_ten_times(cloud):
    assert cloud('ACTIVE', ends='255') == (1, ['ssh'] * 10)


def test_a_request_that_fails_is_made_again_but_not_for_ever(cloud):
    assert cloud('FAILED NONE NONE ACTIVE') == (0, ['delete', 'create', 'ssh', 'delete'])
    assert cloud('NONE', creates='1') == (1, ['create'] * 10)


def test_without_a_network_nothing_is_created(cloud):
    assert cloud('OFFLINE OFFLINE ACTIVE') == (0, ['ssh', 'delete'])


def test_a_tpu_vm_is_made_when_it_is_not_there_and_kept(tmp_path, machine):
    program(tmp_path / 'bin', 'gcloud', GCLOUD.format(folder=tmp_path))
    written(tmp_path / 'files', 'tpu_vm')
    for state, calls in (('NONE', 'create ssh'), ('READY', 'ssh'), ('PREEMPTED', 'delete create ssh')):
        for name, given in dict(states=state, ends='66', creates='0', calls='').items():
            (tmp_path / name).write_text(given + '\n' * bool(given))
        done = bash(f'bash {tmp_path}/files/tpu_vm/run.sh', machine, tmp_path)
        assert done.returncode == 2 and 'costs money until: gcloud' in done.stderr
        made = [line.split()[3] for line in (tmp_path / 'calls').read_text().splitlines()]
        assert made[1:] == calls.split()
