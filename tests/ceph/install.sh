#!/usr/bin/env bash
# Installs the Ceph that the tests run against: Debian packages, as root, only those that are missing.
# Nothing is configured and no daemon is started; the tests start their own.
# Usage: install.sh [PACKAGE...]      Those, too.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../images/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../images/lib.sh"

PACKAGES=(
  ceph-mon ceph-osd ceph-mgr radosgw # the daemons
  ceph-common # rbd, the program that the tests compare with
  librbd1 librados2 # what the store loads while it runs
  python3-rados python3-rbd curl # the harness gives its commands through them
)

lock install
install_packages "${PACKAGES[@]}" "$@"
say "ready: $(ceph-osd --version)"
