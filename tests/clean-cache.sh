#!/usr/bin/env bash
# Removes the cache of built tools and test images. Everything in it can be made again; that takes about 15 minutes.
set -euo pipefail
CACHE=${VITRINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vitrine}
# Only what our scripts make: the variable may point at a folder that holds other things too.
for path in "${CACHE:?}"/{bin,corpus,images,locks,prometheus,prometheus.tmp.*,qemu-bpo,qemu-bpo.tmp.*,tools,bench-*}; do
  if [[ -e $path ]]; then
    echo "removing $path"
    rm -rf "$path"
  fi
done
rmdir "$CACHE" 2>/dev/null || true
