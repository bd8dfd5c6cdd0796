#!/bin/bash
# Asks for a slice of Cloud TPUs, waits for it, and runs a command on all of its hosts:
#
#   NAME=wan ZONE=us-east5-a TYPE=v5p-32 RUNTIME=v2-alpha-tpuv5 tools/launch/tpu.sh create --spot
#   NAME=wan ZONE=us-east5-a tools/launch/tpu.sh run 'cd oneforcing_jax && . .venv/bin/activate &&
#     tools/launch/again.sh python -m oneforcing_jax.main --distributed --config=... --workdir=...'
#   NAME=wan ZONE=us-east5-a tools/launch/tpu.sh delete
#
# docs/launch/cloud_tpu.md says more.
set -eu
: "${NAME:?of the slice}" "${ZONE:?of Google Cloud}"
verb=${1:-}
shift || true
case $verb in
  create)
    : "${TYPE:?such as v5p-32}" "${RUNTIME:?such as v2-alpha-tpuv5}"
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
      --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "$@"
    until [ "$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
      --format='value(state.state)')" = ACTIVE ]; do
      sleep 30
    done
    ;;
  run)
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    ;;
  *)
    echo "expected create, run or delete, found '$verb'" >&2
    exit 1
    ;;
esac
