# shellcheck shell=bash
# Shared by the scripts of this folder and of ../ceph: where the cache is, how to speak, how to lock, how
# to install Debian's packages and how to reach them without touching the machine's own apt state.
# Sourced, never run.

# The cache holds what takes long to make. It may be deleted at any time; the scripts make it again.
CACHE=${VITRINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vitrine}
export PATH="$CACHE/bin:$PATH:/usr/sbin:/sbin"
STARTED=$SECONDS

# Messages go to stderr, because stdout carries the one path a caller asked for.
say() { printf '%s [%3ds] %s\n' "${0##*/}" "$((SECONDS - STARTED))" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Holds an exclusive lock named $1 until this process and all its children have ended.
lock() {
  mkdir -p "$CACHE/locks"
  exec 9>"$CACHE/locks/$1"
  if ! flock -n 9; then
    say "waiting for another run that holds $CACHE/locks/$1"
    flock 9
  fi
}

# Makes a fresh work folder $1.tmp.XXXX and prints it. Those that killed runs left behind go first,
# so it must be called with the lock held.
work_folder() {
  mkdir -p "$(dirname "$1")"
  rm -rf "$1".tmp.*
  mktemp -d "$1.tmp.XXXXXX"
}

# Runs this script again with "--inside ARGS" in mount and process namespaces of its own, all of it
# killed when this process dies in whatever way: then no mount, loop device or process is left.
run_contained() {
  [[ $EUID -eq 0 ]] || die "needs root for a loop mount; run it as root"
  setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc \
    "$BASH" "$0" --inside "$@" &
  local child=$!
  # shellcheck disable=SC2064 # the id is known now
  trap "kill -KILL $child 2>/dev/null || true" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  local status=0
  wait "$child" || status=$?
  trap - EXIT
  return "$status"
}

missing_packages() {
  local name
  for name in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || echo "$name"
  done
}

# Others may be using apt at this moment; apt waits for dpkg's lock but not for that of its lists.
update_lists() {
  local attempt
  for attempt in 1 2 3 4 5 6; do
    if apt-get update -qq; then return; fi
    say "apt-get update failed (attempt $attempt); again in 5 s"
    sleep 5
  done
  die "apt-get update failed six times; see the messages above"
}

# Installs those of the packages $@ that are missing.
install_packages() {
  local missing
  mapfile -t missing < <(missing_packages "$@")
  if [[ ${#missing[@]} -eq 0 ]]; then return; fi
  [[ $EUID -eq 0 ]] || die "missing packages; as root: apt-get install ${missing[*]}"
  say "installing ${missing[*]}"
  update_lists
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "${missing[@]}" >&2
}

# The Debian release of this machine ("bookworm").
debian_codename() (. /etc/os-release && printf '%s\n' "${VERSION_CODENAME:?this is not a Debian release}")

# Address of the Debian archive, as the machine's own apt sources have it: a site's mirror, proxy or
# pinned snapshot is respected, and no host is written down here.
debian_mirror() {
  local code mirror
  code=$(debian_codename)
  # shellcheck disable=SC2016 # apt fills these in, not the shell
  mirror=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' \
    'Created-By: Packages' | awk -v c="$code" '$1 == c && $2 == "main" { print $3; exit }')
  [[ -n $mirror ]] || die "no apt source of this machine has $code main; add one to /etc/apt"
  printf '%s\n' "${mirror%/}"
}

# The "[signed-by=…]" option of a source line, empty where the keys are in apt's own keyring.
debian_keys() {
  local keys=/usr/share/keyrings/debian-archive-keyring.gpg
  if [[ -f $keys ]]; then printf '[signed-by=%s]' "$keys"; fi
}

# Sets up an apt in folder $1 with lists and caches of its own, for the suites that follow
# ("bookworm", "bookworm-backports"…), and fetches the lists. Then: private_apt FOLDER COMMAND…
private_apt_setup() {
  local folder=$1 mirror keys suite
  shift
  mirror=$(debian_mirror)
  keys=$(debian_keys)
  mkdir -p "$folder"/{state/lists/partial,cache/archives/partial,parts}
  for suite in "$@"; do echo "deb $keys $mirror $suite main"; done >"$folder/sources.list"
  private_apt "$folder" update -qq
}

private_apt() {
  local folder=$1
  shift
  apt-get -o "Dir::Etc::sourcelist=$folder/sources.list" -o "Dir::Etc::sourceparts=$folder/parts" \
    -o "Dir::State=$folder/state" -o Dir::State::status=/var/lib/dpkg/status \
    -o "Dir::Cache=$folder/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none \
    -o APT::Install-Recommends=false -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}
