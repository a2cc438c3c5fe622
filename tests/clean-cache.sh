#!/usr/bin/env bash
# Removes the cache of built tools and test images. Everything in it can be made again; that takes about 15 minutes.
set -euo pipefail
CACHE=${VITRINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vitrine}
# Only what our scripts make: the variable may point at a folder that holds other things too.
for name in bin corpus images locks qemu-bpo tools; do
  if [[ -e $CACHE/$name ]]; then
    echo "removing $CACHE/$name"
    rm -rf "${CACHE:?}/$name"
  fi
done
rmdir "$CACHE" 2>/dev/null || true
