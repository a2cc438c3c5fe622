#!/usr/bin/env bash
# Boots a disk that debian-disk.sh made, or one converted from it, in an emulated machine.
# Usage: boot.sh FILE FORMAT [SECONDS]     FORMAT as qemu names it (raw, qcow2…); SECONDS: limit, 180
# Exits 0 when the guest says that it runs and that its disk reads right. FILE is not changed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -ge 2 ]] || die "usage: boot.sh FILE FORMAT [SECONDS]"
FILE=$1 FORMAT=$2 LIMIT=${3:-180}
[[ -r $FILE ]] || die "no such file: $FILE"
CONSOLE=$(mktemp)
trap 'rm -f "$CONSOLE"' EXIT

say "booting $FILE as $FORMAT (limit $LIMIT s)"
# Emulation only: it is there on every machine. The guest turns itself off. Whoever dies takes the
# next one along, down to the emulator.
setpriv --pdeathsig KILL timeout --foreground "$LIMIT" setpriv --pdeathsig KILL qemu-system-x86_64 \
  -accel tcg,thread=multi -cpu max -m 256 -nodefaults -no-reboot -display none -net none \
  -serial "file:$CONSOLE" -drive "file=$FILE,format=$FORMAT,if=virtio,snapshot=on" </dev/null >&2 ||
  say "qemu ended with status $?"
if grep -a 'VITRINE-GUEST-BOOTED content=good' "$CONSOLE" | tr -d '\r'; then
  say "booted"
else
  tail -n 20 "$CONSOLE" >&2
  die "the guest of $FILE did not say that it runs with a good disk; its console ends above"
fi
