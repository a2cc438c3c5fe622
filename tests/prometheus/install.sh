#!/usr/bin/env bash
# Unpacks Debian's Prometheus into the cache: the server that scrapes in tests, and promtool, which checks the alerts. Neither is
# installed, and no service is started.
# Usage: install.sh        Afterwards $CACHE/prometheus/bin has prometheus and promtool.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../images/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../images/lib.sh"

lock prometheus
final=$CACHE/prometheus
if [[ ! -x $final/bin/promtool ]]; then
  say "fetching Debian's Prometheus into $final"
  work=$(work_folder "$final")
  private_apt_setup "$work/apt" "$(debian_codename)"
  # Without what the package needs: the two programs need the C library only.
  (cd "$work" && private_apt "$work/apt" download -qq prometheus >&2)
  dpkg-deb -x "$work"/prometheus_*.deb "$work/root"
  mkdir "$work/bin"
  mv "$work"/root/usr/bin/{prometheus,promtool} "$work/bin/"
  rm -rf "$work/apt" "$work/root" "$work"/prometheus_*.deb
  mv -T "$work" "$final"
fi
say "ready: $("$final/bin/promtool" --version 2>&1 | head -n 1)"
