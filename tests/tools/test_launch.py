"""The files that start a job elsewhere; no cloud is called, commands of the services are stand-ins on PATH."""

import json
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from mim_jax.tools import launch_job
from mim_jax.tools.launch import main
from tests.tools.launch_schemas import JOBSET, KUEUE, SKYPILOT, misfits
from tests.tools.launched import ODD, commands, pod, shell_of, written

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
        ('tpu7x-8', 4, '2x2x1', 1),
        ('tpu7x-16', 8, '2x2x2', 2),
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
        (['xpk', 'accelerator=v5litepod-4'], 'xpk has those of 8 chips and more, so take gke'),
        (['xpk', 'accelerator=v5litepod-1'], 'xpk has those of 8 chips and more, so take gke'),
        (['queued', 'accelerator=tpu7x-8'], 'there are no Cloud TPU VMs of it, so take gke or xpk'),
        (['skypilot', 'accelerator=tpu7x-8'], 'there are no Cloud TPU VMs of it, so take gke or xpk'),
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


def test_several_hosts_of_tpu7x_are_placed_by_a_policy(tmp_path, capsys):
    assert main(['gke', 'accelerator=tpu7x-16', 'slices=2', 'name=iron', '--dry_run']) == 0
    policy, *pools = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith('gcloud') and 'iron' in line
    ]
    assert 'create workload-policy iron ' in policy and policy.endswith('--accelerator-topology=2x2x2')
    assert len(pools) == 2 and all(
        '--machine-type=tpu7x-standard-4t --placement-policy=iron --num-nodes=2' in pool for pool in pools
    )
    files = written(tmp_path, 'gke', 'accelerator=tpu7x-8') | written(tmp_path, 'xpk', 'accelerator=tpu7x-16')
    assert not re.search('workload-policy|placement-policy|tpu-topology=', files['gke/jobset.yaml'])  # of one host
    (container,) = pod(yaml.safe_load(files['gke/jobset.yaml']))['containers']
    assert container['resources'] == dict(limits={'google.com/tpu': 4})
    workload = commands(files['xpk/run.sh'])['workload']
    assert {'--tpu-type=tpu7x-16', '--no-use-parallel-containers'} < set(workload) and '--hosts=2 ' in workload[-1]


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
        job_recovery=dict(recover_on_exit_codes=[143], max_restarts_on_errors=3),
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
