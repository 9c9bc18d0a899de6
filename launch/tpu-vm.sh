#!/bin/bash
# mom-1.3b on a Cloud TPU slice by gcloud: makes the slice, installs this commit on its machines, trains.
#
#   PROJECT=mine ZONE=us-east5-a NAME=mom launch/tpu-vm.sh create|install|train|delete
#
# The folders of data and runs must be one for all machines, for instance a Filestore share mounted at /mnt/shared.
set -euo pipefail

PROJECT=${PROJECT:?the project} ZONE=${ZONE:?the zone} NAME=${NAME:-mom}
# Type, software and the mesh below go together: v5litepod-256 and v6e-256 (numbers of chips) want v2-alpha-tpuv5-lite
# and v2-alpha-tpuv6e. `mom-jax plan mom-1.3b --topology ...` says which mesh fits.
TYPE=${TYPE:-v5p-1024}  # 512 chips: of a v5p the number counts cores
VERSION=${VERSION:-v2-alpha-tpuv5}
SHARED=${SHARED:-/mnt/shared}
TPU=(gcloud compute tpus tpu-vm)

# On every machine of the slice at once.
everywhere() { "${TPU[@]}" ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"; }

case ${1:?create, install, train or delete} in
  create)
    "${TPU[@]}" create "$NAME" --project="$PROJECT" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION"
    ;;
  install)
    archive=${TMPDIR:-/tmp}/mom-jax.tar.gz
    git archive --prefix=mom-jax/ -o "$archive" HEAD
    "${TPU[@]}" scp "$archive" "$NAME:" --project="$PROJECT" --zone="$ZONE" --worker=all
    # Python 3.11 or 3.12; Ubuntu 22.04 brings an older one.
    everywhere "command -v python3.12 || { sudo add-apt-repository -y ppa:deadsnakes/ppa && \
      sudo apt-get install -y python3.12-venv; }
      tar xf mom-jax.tar.gz && cd mom-jax && python3.12 -m venv .venv && .venv/bin/pip install -q -e '.[tpu,mistral]'"
    ;;
  train)
    # One process on each machine; JAX learns from the TPU where it stands. Again, and the run resumes.
    everywhere "mom-jax/.venv/bin/mom-jax train mom-1.3b \
      --processes.coordinator auto \
      --mesh.data 8 --mesh.fsdp 64 \
      --data.path $SHARED/shards \
      --run-dir $SHARED/runs/mom-1.3b"
    ;;
  delete)
    "${TPU[@]}" delete "$NAME" --project="$PROJECT" --zone="$ZONE"
    ;;
  *)
    echo "create, install, train or delete, not $1" >&2
    exit 2
    ;;
esac
