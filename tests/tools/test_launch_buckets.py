"""Buckets of a launched job are folders of its machines, or nothing runs."""

import shlex

import pytest
import yaml

from tests.tools.launch_schemas import JOBSET, misfits
from tests.tools.launched import (
    MOUNTED_BY_THE_SERVICE,
    ODD,
    ON_BUCKETS,
    bash,
    commands,
    on_machine,
    pod,
    program,
    written,
)

IN_A_BUCKET = ODD.replace('/disk/', 'gs://our-runs/') + ' --config.data.path=gs://our_data/cc3m/*.parquet'


@pytest.mark.parametrize('target', ON_BUCKETS)
def test_the_run_gets_folders_for_buckets(tmp_path, machine, target):
    script = on_machine(target, tmp_path, f'command={IN_A_BUCKET}')
    done = bash(script, machine, tmp_path, ATTEMPT='1')
    assert done.returncode == 0, done.stderr
    expected = [word.replace('gs://', f'{tmp_path}/gcs/') for word in shlex.split(IN_A_BUCKET)]
    assert (tmp_path / 'ran').read_text().splitlines() == expected[1:] and 'gs://' not in ' '.join(expected)
    (looked,) = (tmp_path / 'looked').read_text().splitlines()
    assert f'--workdir={tmp_path}/gcs/our-runs/my run --data={tmp_path}/gcs/our_data/cc3m/*.parquet' in looked
    assert [path.name for path in (tmp_path / 'gcs/our-runs').iterdir()] == ['mounted']  # the probe is gone
    if target not in MOUNTED_BY_THE_SERVICE:
        first, second = (line.split() for line in (tmp_path / 'mounts').read_text().splitlines())
        assert first[-2:] == ['our-runs', f'{tmp_path}/gcs/our-runs'] and '--metadata-cache-ttl-secs=0' in first
        assert second == ['--implicit-dirs=true', 'our_data', f'{tmp_path}/gcs/our_data']


@pytest.mark.parametrize('target', ON_BUCKETS)
def test_a_mount_that_is_there_stays(tmp_path, machine, target):
    script = on_machine(target, tmp_path)
    for attempt in ('1', '2'):
        (tmp_path / 'mim_jax').mkdir(exist_ok=True)
        done = bash(script, machine, tmp_path, ATTEMPT=attempt)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'runs').read_text() == 'run\n' * 2
    mounts = tmp_path / 'mounts'
    assert not mounts.exists() if target in MOUNTED_BY_THE_SERVICE else mounts.read_text().count('\n') == 1


def unmounted(done, tmp_path, said: str) -> bool:
    """Whether a machine ended with the status of its own, and said so, before anything else."""
    text = done.stdout + done.stderr
    return done.returncode in (74, 64 + 74) and said in text and not (tmp_path / 'looked').exists()


@pytest.mark.parametrize('target', ON_BUCKETS)
def test_nothing_runs_where_the_bucket_is_not_mounted(tmp_path, machine, target):
    script = on_machine(target, tmp_path)
    program(tmp_path / 'bin', 'gcsfuse', 'echo no permission >&2; exit 1\n')
    (tmp_path / 'gcs/BUCKET/mounted').unlink(missing_ok=True)
    done = bash(script, machine, tmp_path, ATTEMPT='1')
    said = 'is not mounted at' if target in MOUNTED_BY_THE_SERVICE else 'gs://BUCKET cannot be mounted'
    assert unmounted(done, tmp_path, said), done


@pytest.mark.parametrize('target', ON_BUCKETS)
def test_a_mount_that_only_seems_to_be_made_is_none(tmp_path, machine, target):
    script = on_machine(target, tmp_path)
    program(tmp_path / 'bin', 'gcsfuse', ':\n')
    (tmp_path / 'gcs/BUCKET/mounted').unlink(missing_ok=True)
    assert unmounted(bash(script, machine, tmp_path, ATTEMPT='1'), tmp_path, 'gs://BUCKET is not mounted at')


@pytest.mark.parametrize('target', ON_BUCKETS)
def test_a_bucket_that_does_not_rename_folders_is_refused(tmp_path, machine, target):
    script = on_machine(target, tmp_path)
    program(tmp_path / 'bin', 'mv', 'echo "Too many open files" >&2; exit 1\n')  # what it says without the namespace
    assert unmounted(bash(script, machine, tmp_path, ATTEMPT='1'), tmp_path, '--enable-hierarchical-namespace')
    assert [path.name for path in (tmp_path / 'gcs/BUCKET').iterdir()] == ['mounted']


@pytest.mark.parametrize('target', ['tpu_vm', 'skypilot'])
def test_what_mounts_is_installed_where_it_is_missing(tmp_path, machine, target):
    script = on_machine(target, tmp_path)
    made = tmp_path / 'bin/gcsfuse'
    made.rename(tmp_path / 'gcsfuse')
    program(tmp_path / 'bin', 'curl', 'echo key\n')
    program(tmp_path / 'bin', 'lsb_release', 'echo jammy\n')
    program(
        tmp_path / 'bin',
        'sudo',
        f'case $1 in tee) cat >>{tmp_path}/tee ;; apt-get) [ "${{!#}}" != gcsfuse ] || cp {tmp_path}/gcsfuse {made} ;; *) "$@" ;; esac\n',
    )
    done = bash(script, machine, tmp_path, ATTEMPT='1')
    assert done.returncode == 0, done.stderr
    assert 'gcsfuse-jammy main' in (tmp_path / 'tee').read_text() and (tmp_path / 'ran').exists()


def test_what_mounts_cannot_be_installed(tmp_path, machine):
    script = on_machine('tpu_vm', tmp_path)
    (tmp_path / 'bin/gcsfuse').unlink()
    program(tmp_path / 'bin', 'curl', 'exit 6\n')
    program(tmp_path / 'bin', 'lsb_release', 'echo jammy\n')
    assert unmounted(bash(script, machine, tmp_path, ATTEMPT='1'), tmp_path, 'Cloud Storage FUSE cannot be installed')


def test_pods_have_the_buckets_as_volumes(tmp_path):
    jobset = yaml.safe_load(
        written(tmp_path, 'gke', f'command={IN_A_BUCKET}', 'service_account=trainer')['gke/jobset.yaml']
    )
    assert misfits(jobset, JOBSET) == []
    template, found = jobset['spec']['replicatedJobs'][0]['template']['spec']['template'], pod(jobset)
    assert template['metadata']['annotations']['gke-gcsfuse/volumes'] == 'true'
    assert found['serviceAccountName'] == 'trainer'
    mounts = {mount['name']: mount['mountPath'] for mount in found['containers'][0]['volumeMounts']}
    volumes = {volume['name']: volume['csi'] for volume in found['volumes'] if 'csi' in volume}
    attributes = {mounts[name]: csi['volumeAttributes'] for name, csi in volumes.items()}
    assert {folder: each['bucketName'] for folder, each in attributes.items()} == {
        '/mnt/gcs/our-runs': 'our-runs',
        '/mnt/gcs/our_data': 'our_data',
    }
    options = attributes['/mnt/gcs/our-runs']['mountOptions'].split(',')
    assert {'implicit-dirs', 'metadata-cache:ttl-secs:0', 'rename-dir-limit=0'} < set(options)
    assert attributes['/mnt/gcs/our_data']['mountOptions'] == 'implicit-dirs'
    assert {each['hostNetworkPodKSA'] for each in attributes.values()} == {'true'}


def test_pods_without_buckets_have_nothing_of_them(tmp_path):
    text = written(tmp_path, 'gke', f'command={ODD}')['gke/jobset.yaml']
    assert misfits(yaml.safe_load(text), JOBSET) == [] and 'csi' not in text.replace('fuse-csi-driver', '')
    assert 'serviceAccountName' not in text and 'annotations' not in text.partition('replicatedJobs')[2]


def test_xpk_attaches_the_buckets_that_its_workload_uses(tmp_path):
    made = commands(written(tmp_path, 'xpk', f'command={IN_A_BUCKET}')['xpk/run.sh'])
    attached = {words[3]: words for name, words in made.items() if name.startswith('storage_')}
    assert list(attached) == ['our-runs', 'our-data']
    assert {'--bucket=our_data', '--mount-point=/mnt/gcs/our_data', '--readonly=false'} < set(attached['our-data'])
    assert [word for word in made['workload'] if word.startswith('--storage=')] == [
        '--storage=our-runs',
        '--storage=our-data',
    ]
    assert not any(word.startswith('--tpu-type') for word in attached['our-runs'])


def test_hosts_wait_for_those_that_are_installed_later(tmp_path):
    assert '--timeout=1800' in written(tmp_path, 'tpu_pod')['tpu_pod/start.sh']
    assert '--timeout' not in written(tmp_path, 'tpu_vm')['tpu_vm/start.sh']
