#!/usr/bin/env bash
# Each worker gets this over ssh. It starts the job apart from the connection and follows its log: when a connection breaks,
# gcloud sends it again, and then it only follows. ATTEMPT tells a new start from that.
mkdir -p mim-jax && cd mim-jax || exit 1
if ! kill -0 "$(cat pid 2>/dev/null)" 2>/dev/null && [ "$(cat attempt 2>/dev/null)" != "$ATTEMPT" ]; then
  cat >job.sh <<'END_OF_JOB'
set -euo pipefail
# What fails before the run is no wrong config, which would be 2.
trap 'exit 1' ERR
[ -d mim_jax ] || git clone --quiet --no-checkout https://github.com/OWNER/mim_jax.git mim_jax
git -C mim_jax fetch --quiet origin main
git -C mim_jax checkout --quiet --detach FETCH_HEAD
cd mim_jax
# uv brings Python where the machine has an older one (TPU VMs: 3.10); the variable is for systems that guard theirs.
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
[ -d .venv ] || python3 -m uv venv --quiet --python '>=3.11,<3.13' .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
trap - ERR
export PATH="$PWD/.venv/bin:$PATH"
python -m mim_jax.tools.doctor --hosts=1 --workdir=gs://BUCKET/mae_b16 --data=DATA
exec python -m mim_jax.main --config=configs/mae.py:vit_b16 --workdir=gs://BUCKET/mae_b16 --config.data.path=DATA
END_OF_JOB
  rm -f status
  : >log
  echo "$ATTEMPT" >attempt
  nohup setsid bash -c 'bash job.sh; echo $? >status' >>log 2>&1 </dev/null &
  echo $! >pid
fi
tail -n 1000 -f --pid="$(cat pid)" log
status=$(cat status 2>/dev/null || echo 1)
exit "$((status ? status + 64 : 0))" # 64 more, for 1, 2 and 255 would be those of gcloud
