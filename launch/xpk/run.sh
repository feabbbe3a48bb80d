#!/usr/bin/env bash
# Sends the job to a cluster of xpk.
# Written by mim_jax.tools.launch, after
#   github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/clusters.md
#   github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/workloads.md
#   github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/docker.md
set -euo pipefail

cluster=(xpk cluster create --cluster=CLUSTER --tpu-type=v5litepod-16 --num-slices=1 --project=PROJECT --zone=us-west4-a --spot)
# shellcheck disable=SC2016 # the machines expand it
workload=(xpk workload create --cluster=CLUSTER --tpu-type=v5litepod-16 --num-slices=1 --project=PROJECT --zone=us-west4-a --workload=mim-jax --docker-image=python:3.12 --max-restarts=50 --restart-on-exit-codes=1 --termination-grace-period-seconds=120 '--command=set -euo pipefail; trap '"'"'exit 1'"'"' ERR; [ -d mim_jax ] || git clone --quiet --no-checkout https://github.com/OWNER/mim_jax.git mim_jax; git -C mim_jax fetch --quiet origin main; git -C mim_jax checkout --quiet --detach FETCH_HEAD; cd mim_jax; PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv; [ -d .venv ] || python3 -m uv venv --quiet --python '"'"'>=3.11,<3.13'"'"' .venv; python3 -m uv pip install --quiet --python .venv/bin/python -e '"'"'.[tpu]'"'"'; trap - ERR; export PATH="$PWD/.venv/bin:$PATH"; python -m mim_jax.tools.doctor --hosts=4 --workdir=gs://BUCKET/mae_b16 --data=DATA; exec python -m mim_jax.main --config=configs/mae.py:vit_b16 --workdir=gs://BUCKET/mae_b16 --config.data.path=DATA')

case "${1:-workload}" in
  cluster) "${cluster[@]}" ;; # once
  workload) "${workload[@]}" ;;
esac
