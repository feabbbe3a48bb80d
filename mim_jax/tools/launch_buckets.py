"""Buckets of a job as folders of its machines: a run appends to files, locks and renames folders, which object stores do not.

After docs.cloud.google.com/storage/docs: gcsfuse-install, gcsfuse-cli, hns-overview, and
github.com/GoogleCloudPlatform/gcsfuse/blob/master/docs/semantics.md.
"""

from collections.abc import Mapping

from mim_jax.tools.launch_job import FOLDERS, Job, buckets, option, words

UNMOUNTED = 74  # exit status of a machine that has no bucket to work in: EX_IOERR of sysexits.h

IMPLICIT = {'implicit-dirs': 'true'}  # shows folders that nobody made, but that have files
SHARED = IMPLICIT | {  # what one host writes, the others see at once; a cache may be kept for ever on large machines
    'metadata-cache:ttl-secs': '0',
    'metadata-cache:negative-ttl-secs': '0',
    'rename-dir-limit': '0',  # no folder is renamed file by file: where it is not done at once, it fails
}

INSTALL = """\
# Buckets become folders by Cloud Storage FUSE, after docs.cloud.google.com/storage/docs/gcsfuse-install.
trap 'echo "mim_jax: Cloud Storage FUSE cannot be installed, see above" >&2; exit 74' ERR
if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update # a new machine updates itself at first
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq install -y gcsfuse
fi
"""

MOUNT = """\
trap 'echo "mim_jax: gs://{bucket} cannot be mounted, see above: is it there, and may the service account of this machine use it?" >&2; exit 74' ERR
if ! mountpoint -q {folder}; then
  fusermount -uz {folder} 2>/dev/null || true # what may be left of a mount that broke
  sudo mkdir -p {folder}
  sudo chown "$(id -u)" {folder}
  gcsfuse {flags} {bucket} {folder}
fi
"""

CHECK = """\
mountpoint -q {folder} || {{ echo "mim_jax: gs://{bucket} is not mounted at {folder}" >&2; exit 74; }}
"""

RENAME = """\
# A checkpoint is renamed into place when it is complete. In a bucket without hierarchical namespace that is not done at once.
{{ probe=$(mktemp -d {folder}/.probe.XXXXXX) && touch "$probe/file" && mv "$probe" "$probe.moved"; }} || {{ rm -rf "${{probe-}}"; echo "mim_jax: gs://{bucket} has to be writable, and to have a hierarchical namespace (gcloud storage buckets create --enable-hierarchical-namespace --uniform-bucket-level-access)" >&2; exit 74; }}
rm -r "$probe.moved"
"""


def folder(bucket: str) -> str:
    return f'{FOLDERS}/{bucket}'


def options(job: Job, bucket: str) -> Mapping[str, str]:
    """Those of a mount, by their names in a config file: the bucket of the workdir is written by one host and read by all."""
    return SHARED if bucket == home(job) else IMPLICIT


def home(job: Job) -> str:
    """The bucket of the workdir, '' where it is in none."""
    named = buckets([f'--workdir={option(words(job), "workdir")}'])
    return named[0] if named else ''


def mount(job: Job) -> str:
    """Shell lines that mount the buckets where they are not mounted yet, and end with UNMOUNTED where that fails."""
    named = buckets(words(job))
    made = [
        MOUNT.format(
            bucket=bucket,
            folder=folder(bucket),
            flags=' '.join(f'--{name.replace(":", "-")}={value}' for name, value in options(job, bucket).items()),
        )
        for bucket in named
    ]
    return INSTALL + ''.join(made) + 'trap - ERR\n' + check(job) if named else ''


def check(job: Job) -> str:
    """Shell lines that end with UNMOUNTED where a bucket is not mounted, or that of the workdir is of the wrong kind."""
    lines = [CHECK.format(bucket=bucket, folder=folder(bucket)) for bucket in buckets(words(job))]
    lines += [RENAME.format(bucket=bucket, folder=folder(bucket)) for bucket in [home(job)] if bucket]
    return ''.join(lines)


def mount_options(job: Job, bucket: str) -> str:
    """As the driver of GKE takes them: flags, and keys of a config file by colons."""
    given = options(job, bucket).items()
    return ','.join(f'{name}{":" if ":" in name else "="}{value}'.removesuffix('=true') for name, value in given)


ANNOTATIONS = """
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true" # a container beside the job has the mounts; 0 = no limit of it
                gke-gcsfuse/cpu-limit: "0"
                gke-gcsfuse/memory-limit: "0"
                gke-gcsfuse/ephemeral-storage-limit: "0\""""

VOLUME_MOUNT = """
                    - name: bucket-{number}
                      mountPath: {folder}"""

VOLUME = """
                - name: bucket-{number}
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: {bucket}
                      mountOptions: {options}
                      hostNetworkPodKSA: "true" # pods on the network of their node are that account all the same"""

GRANT = (
    'gcloud storage buckets add-iam-policy-binding gs://{bucket} --role=roles/storage.objectUser'
    " --member=\"principal://iam.googleapis.com/projects/$(gcloud projects describe {project} --format='value(projectNumber)')"
    '/locations/global/workloadIdentityPools/{project}.svc.id.goog/subject/ns/default/sa/{account}"'
)


def of_pods(job: Job) -> dict[str, str]:
    """Parts of the manifest of GKE by name, all of them '' where there are no buckets."""
    named = buckets(words(job))
    keys = [
        dict(number=n, bucket=bucket, folder=folder(bucket), options=mount_options(job, bucket))
        for n, bucket in enumerate(named, 1)
    ]
    return dict(
        annotations=ANNOTATIONS if named else '',
        account=f'\n              serviceAccountName: {job.service_account}' if named else '',
        bucket_mounts=''.join(VOLUME_MOUNT.format(**each) for each in keys),
        bucket_volumes=''.join(VOLUME.format(**each) for each in keys),
    )


def notes(commands: list[str]) -> str:
    """Comment lines of a manifest."""
    what = '# Before the first job, the cluster has to have the driver of Cloud Storage FUSE, and the pods the right to use the buckets:'
    return '\n'.join(['', what, *(f'#   {command}' for command in commands)]) if commands else ''


def of_cluster(job: Job, region: str) -> list[str]:
    """Commands that let the pods of a GKE cluster mount the buckets, once for a cluster and a bucket."""
    named = buckets(words(job))
    update = f'gcloud container clusters update {job.cluster} --project={job.project} --location={region}'
    driver = [f'{update} --workload-pool={job.project}.svc.id.goog', f'{update} --update-addons=GcsFuseCsiDriver=ENABLED']  # fmt: skip
    grants = [GRANT.format(bucket=bucket, project=job.project, account=job.service_account) for bucket in named]
    return [*driver, *grants] if named else []


def storage(bucket: str) -> str:
    """What xpk calls the bucket: Kubernetes has no underscores in names."""
    return bucket.lower().replace('_', '-')


def attach(job: Job, at: list[str]) -> dict[str, list[str]]:
    """Commands by name that make the buckets known to a cluster of xpk, which then also lets its workloads use them."""
    return {
        f'storage_{n}': ['xpk', 'storage', 'attach', storage(bucket), *at, '--type=gcsfuse', f'--bucket={bucket}']
        + [f'--mount-point={folder(bucket)}', f'--mount-options={mount_options(job, bucket)}']
        + '--size=1 --readonly=false --auto-mount=false'.split()
        for n, bucket in enumerate(buckets(words(job)), 1)
    }
