#!/usr/bin/env bash
# Runs the job to its end: a TPU that was preempted is deleted and made again, and the same command goes on.
# Written by mim_jax.tools.launch, after
#   docs.cloud.google.com/tpu/docs/queued-resources
#   docs.cloud.google.com/tpu/docs/spot
set -euo pipefail

describe=(gcloud compute tpus queued-resources describe mim-jax --project=PROJECT --zone=us-west4-a '--format=value(state.state)')
create=(gcloud compute tpus queued-resources create mim-jax --project=PROJECT --zone=us-west4-a --node-id=mim-jax --accelerator-type=v5litepod-16 --spot --runtime-version=v2-alpha-tpuv5-lite --async)
ssh=(gcloud compute tpus queued-resources ssh mim-jax --project=PROJECT --zone=us-west4-a --node=all --worker=all --batch-size=all)
delete=(gcloud compute tpus queued-resources delete mim-jax --project=PROJECT --zone=us-west4-a --force --quiet)
here=$(cd "$(dirname "$0")" && pwd)
pause=${PAUSE:-30} # seconds
attempt=$(date +%s)
failures=0
restarts=0 # of a run that stopped while its TPU stayed
trap 'echo "The TPU goes on. Run this again to follow it, or end it: ${delete[*]}" >&2; exit 130' INT

state() { # of the queued resource: NONE where there is none, UNKNOWN where gcloud cannot tell
  local said
  if said=$("${describe[@]}" 2>&1); then
    echo "${said##*$'\n'}"
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
