"""The text of what `launch` writes: what a machine of the job does, how a TPU is watched, and the templates of the services."""

import shlex
from collections.abc import Mapping

from mim_jax.tools.launch_job import Job, option, run_words

STRICT = 'set -euo pipefail\n'

INSTALL = """\
# What fails before the run is no wrong config, which would be 2.
trap 'exit 1' ERR
[ -d mim_jax ] || git clone --quiet --no-checkout {repository} mim_jax
git -C mim_jax fetch --quiet origin {revision}
git -C mim_jax checkout --quiet --detach FETCH_HEAD
cd mim_jax
# uv brings Python where the machine has an older one (TPU VMs: 3.10); the variable is for systems that guard theirs.
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
[ -d .venv ] || python3 -m uv venv --quiet --python '>=3.11,<3.13' .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[{extras}]'
trap - ERR
"""

PATH = 'export PATH="$PWD/.venv/bin:$PATH"\n'


def install(job: Job) -> str:
    """Shell lines that bring the code, go where it lies, and give it an environment of its own."""
    return INSTALL.format(repository=job.repository, revision=job.revision, extras=job.extras)


def doctor(job: Job, hosts: int) -> str:
    """The command that looks at the machines before the run, and says what is wrong with them; one may be installed long after another."""
    told = dict(hosts=hosts, timeout=1800 if hosts > 1 else 0)
    told |= dict(workdir=option(run_words(job), 'workdir'), data=option(run_words(job), 'config.data.path'))
    flags = [f'--{name}={value}' for name, value in told.items() if value]
    return shlex.join(['python', '-m', 'mim_jax.tools.doctor', *flags])


def start(job: Job, hosts: int) -> str:
    """Shell lines that look at the machine, and then become the run, so that its signals and its exit status are theirs."""
    return f'{doctor(job, hosts)}\nexec {shlex.join(run_words(job))}\n'


def whole(job: Job, hosts: int, buckets: str = '') -> str:
    """All that a machine does: with its `buckets` first; an image that has the code needs no installation."""
    return STRICT + buckets + (install(job) + PATH if job.repository else '') + start(job, hosts)


def one_line(script: str) -> str:
    """A script without blocks, for a service that takes one line."""
    return '; '.join(line for line in script.splitlines() if not line.startswith('#'))


def head(what: str, *docs: str) -> str:
    """The first lines of a script: what it does, and the pages it follows."""
    return (
        f'#!/usr/bin/env bash\n# {what}\n# Written by mim_jax.tools.launch, after\n#   '
        + '\n#   '.join(docs)
        + f'\n{STRICT}\n'
    )


def arrays(commands: Mapping[str, list[str]]) -> str:
    """Commands as arrays of the shell: a script runs what a dry run prints."""
    made = {name: f'{name}=({shlex.join(command)})\n' for name, command in commands.items()}
    literal = '# shellcheck disable=SC2016,SC2054 # the machines expand it, and commas are part of words\n'
    return ''.join(literal * ('$' in line or ',' in line) + line for line in made.values())


def lines(commands: Mapping[str, list[str]]) -> list[str]:
    """Commands as lines, ssh with what it sends."""
    sent = dict.fromkeys(commands, '') | dict(ssh=' --command="ATTEMPT=$(date +%s); $(cat DIR/start.sh)"')
    return [shlex.join(command) + sent[name] for name, command in commands.items()]


FOLLOW = """\
#!/usr/bin/env bash
# Each worker gets this over ssh. It starts the job apart from the connection and follows its log: when a connection breaks,
# gcloud sends it again, and then it only follows. ATTEMPT tells a new start from that.
mkdir -p {name} && cd {name} || exit 1
if ! kill -0 "$(cat pid 2>/dev/null)" 2>/dev/null && [ "$(cat attempt 2>/dev/null)" != "$ATTEMPT" ]; then
  cat >job.sh <<'END_OF_JOB'
{script}END_OF_JOB
  rm -f status
  : >log
  echo "$ATTEMPT" >attempt
  nohup setsid bash -c 'bash job.sh; echo $? >status' >>log 2>&1 </dev/null &
  echo $! >pid
fi
tail -n 1000 -f --pid="$(cat pid)" log
status=$(cat status 2>/dev/null || echo 1)
exit "$((status ? status + 64 : 0))" # 64 more, for 1, 2 and 255 would be those of gcloud
"""


def follow(job: Job, hosts: int, buckets: str) -> str:
    """What the workers of Cloud TPU VMs are sent."""
    return FOLLOW.format(name=job.name, script=whole(job, hosts, buckets))


TPU_VM = """\
here=$(cd "$(dirname "$0")" && pwd)

case $("${describe[@]}" 2>/dev/null || echo NONE) in
  NONE) "${create[@]}" ;;
  PREEMPTED | TERMINATED)
    "${delete[@]}"
    "${create[@]}"
    ;;
esac
status=0
"${ssh[@]}" --command="ATTEMPT=$(date +%s); $(cat "$here/start.sh")" || status=$?
[ "$status" -lt 64 ] || [ "$status" -eq 255 ] || status=$((status - 64))
echo "exit status $status. The TPU costs money until: ${delete[*]}" >&2
exit "$status"
"""

QUEUED = """\
here=$(cd "$(dirname "$0")" && pwd)
pause=${PAUSE:-30} # seconds
attempt=$(date +%s)
failures=0
restarts=0 # of a run that stopped while its TPU stayed
trap 'echo "The TPU goes on. Run this again to follow it, or end it: ${delete[*]}" >&2; exit 130' INT

state() { # of the queued resource: NONE where there is none, UNKNOWN where gcloud cannot tell
  local said
  if said=$("${describe[@]}" 2>&1); then
    echo "${said##*$'\\n'}"
  elif [[ $said == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$said" >&2
    echo UNKNOWN
  fi
}

failed() { # waits, and gives up after ten failures without a run between; the resource stays, for it may be running
  failures=$((failures + 1))
  if [ "$failures" -ge 10 ]; then
    echo "ten failures in a row: giving up. What may still be there costs money until: ${delete[*]}" >&2
    exit 1
  fi
  sleep "$pause"
}

finish() { # gives the TPU back
  echo "exit status $1: $2" >&2
  "${delete[@]}" || echo "not deleted, it costs money until: ${delete[*]}" >&2
  exit "$1"
}

while true; do
  now=$(state)
  echo "$(date +%T) $now" >&2
  case $now in
    NONE) "${create[@]}" || failed ;;
    SUSPENDED) "${delete[@]}" || failed ;;
    FAILED)
      "${describe[@]/--format=*/--format=yaml(state)}" >&2 || true
      "${delete[@]}" || true
      failed
      ;;
    ACTIVE)
      status=0
      "${ssh[@]}" --command="ATTEMPT=$attempt; $(cat "$here/start.sh")" || status=$?
      case $status in # start.sh adds 64 to that of the run
        0) finish 0 'the run reached its end' ;;
        66) finish 2 'the config or the input is wrong' ;;
        138) finish 74 'a bucket is not mounted' ;;
        1 | 2 | 255) failed ;; # gcloud itself, or no connection: the same attempt is followed again
        207) # 143: preempted, and saved
          failures=0
          attempt=$((attempt + 1))
          sleep "$pause"
          ;;
        *) # a host that lost the others, by a preemption, a reboot or the network, ends like one that failed
          failures=0
          sleep "$((4 * pause))"
          if [ "$(state)" = ACTIVE ]; then
            [ "$restarts" -lt 10 ] || finish "$((status - 64))" 'the run had to stop, for the eleventh time'
            restarts=$((restarts + 1))
            echo "exit status $((status - 64)): started anew, $restarts of 10 times" >&2
          fi
          attempt=$((attempt + 1))
          ;;
      esac
      ;;
    *) sleep "$pause" ;; # on its way up or down
  esac
done
"""

XPK = """\

case "${{1:-workload}}" in
  cluster) "${{cluster[@]}}" ;; # once
  storage) # once for each bucket
    {storage}
    ;;
  workload) "${{workload[@]}}" ;;
esac
"""

SKYPILOT = """\
# A managed job: SkyPilot finds the TPU, and another one when it is taken away; the same command goes on.
# Written by mim_jax.tools.launch, after
#   docs.skypilot.co/en/latest/reference/yaml-spec.html
#   docs.skypilot.co/en/latest/reference/tpu.html
#   docs.skypilot.co/en/latest/examples/managed-jobs.html
# Buckets are no file_mounts, for those rename folders file by file, and a checkpoint has to be renamed at once.
name: {name}

resources:
  infra: gcp/{region}/{zone} # less of it, as gcp, lets SkyPilot look in more places
  accelerators: tpu-{accelerator}
  accelerator_args:
    runtime_version: {runtime}
  use_spot: {use_spot}
  job_recovery:
    recover_on_exit_codes: [143] # preempted, and saved
    max_restarts_on_errors: 3 # of all other kinds, for a host that lost the others ends like one that failed

setup: |
{setup}
run: | # on every host
{run}"""

SLURM = """\
#!/usr/bin/env bash
# One process for each node. Submit it from the folder of the repository, whose .venv has: pip install -e '.[cuda]'
# Written by mim_jax.tools.launch, after
#   slurm.schedmd.com/sbatch.html
#   slurm.schedmd.com/preempt.html
#   docs.jax.dev/en/latest/multi_process.html
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={node_cpus}
#SBATCH --time={time}
{partition_line}#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
set -euo pipefail
{path}export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

srun --kill-on-bad-exit=1 {doctor}
status=0
srun --wait=300 {run} || status=$?
if [ "$status" -eq 143 ]; then # told to stop, by preemption or 180 s before the time is up, and saved
  scontrol requeue "$SLURM_JOB_ID"
elif [ "$status" -eq 1 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 10 ]; then # a host may have lost the others
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""

UPLOAD = {
    'colab': 'in Colab: File > Upload notebook > DIR, then Runtime > Run all',
    'kaggle': 'in Kaggle: New Notebook > File > Import Notebook > DIR, then Run All',
}
NOTEBOOK = {
    'colab': """\
Runtime > Change runtime type > v5e-1 TPU. The run lives in your Drive: run all cells again to go on after a disconnection.

After research.google.com/colaboratory/faq.html and github.com/googlecolab/backend-info.""",
    'kaggle': """\
Settings > Accelerator > TPU v5e-8, and Internet on. The run lives in /kaggle/working, which a committed version keeps as its output.

After kaggle.com/docs/tpu and github.com/Kaggle/docker-python.""",
}


def access(workdir: str) -> list[str]:
    """Cells that let a notebook of Colab write where the run lives."""
    if workdir.startswith('/content/drive/'):
        return ["from google.colab import drive\n\ndrive.mount('/content/drive')"]
    return []
