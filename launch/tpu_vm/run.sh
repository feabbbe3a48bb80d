#!/usr/bin/env bash
# Makes the TPU and starts the job.
# Written by mim_jax.tools.launch, after
#   docs.cloud.google.com/tpu/docs/managing-tpus-tpu-vm
#   docs.cloud.google.com/tpu/docs/jax-pods
set -euo pipefail

describe=(gcloud compute tpus tpu-vm describe mim-jax --project=PROJECT --zone=us-west4-a '--format=value(state)')
create=(gcloud compute tpus tpu-vm create mim-jax --project=PROJECT --zone=us-west4-a --accelerator-type=v5litepod-8 --spot --version=v2-alpha-tpuv5-lite)
ssh=(gcloud compute tpus tpu-vm ssh mim-jax --project=PROJECT --zone=us-west4-a --worker=all)
delete=(gcloud compute tpus tpu-vm delete mim-jax --project=PROJECT --zone=us-west4-a --quiet)
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
