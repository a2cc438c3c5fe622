#!/usr/bin/env bash
# The demo: manifests become verified, converted, sparsely stored images under a real control plane, and two that must be refused are.
# Usage: run.sh        `make demo`. With VITRINE_DEMO_KUBECONFIG (make demo KUBECONFIG=…) that cluster is used instead of one made for
# the purpose; cluster.sh says what is asked of it. KUBECONFIG in the environment is not: it is there for other reasons.
# Operator and agents run as processes of this machine, each with the rights of its service account; each agent has its own disk, in
# a mount namespace. Needs root for that. All of it runs in a scope of vitrine-lab, which ends and removes everything if this is killed.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source-path=SCRIPTDIR source=cluster.sh
. tests/demo/cluster.sh

TARGET=${CARGO_TARGET_DIR:-target}/debug # shared with `make test`
CACHE=${VITRINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vitrine}
EXISTING=${VITRINE_DEMO_KUBECONFIG:-}
NODES=(vitrine-demo-1 vitrine-demo-2)
WAIT=180s # for an import; they take seconds

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() {
  printf '\033[36m$ %s\033[0m\n' "$*"
  "$@"
}

# What is served on loopback is fetched directly, and so is an API server there; a cluster elsewhere may need the proxy.
leave_proxies() {
  if [[ -n $EXISTING ]]; then
    export NO_PROXY=${NO_PROXY:-${no_proxy:-}}
    NO_PROXY+=${NO_PROXY:+,}127.0.0.1,localhost no_proxy=$NO_PROXY
    export NO_PROXY no_proxy
  else
    unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy
  fi
}

# kubectl takes a file that is not there for an empty one, and goes to localhost.
check_files() {
  local file files
  IFS=: read -ra files <<<"$EXISTING"
  for file in "${files[@]}"; do [[ -r $file ]] || die "KUBECONFIG=$EXISTING: $file cannot be read."; done
}

prepare() {
  [[ $EUID -eq 0 ]] || die "The demo mounts one disk per node: run it as root."
  check_files
  unset KUBECONFIG
  say "Programs and disks (minutes the first time, nothing later)"
  # A test has built them, and has others beside it that use them.
  [[ -n ${VITRINE_DEMO_BUILT:-} ]] || cargo build --locked --workspace --bin vitrine --bin vitrine-lab
  tests/images/debian-disk.sh >/dev/null
  "$TARGET/vitrine-lab" tools kubectl >/dev/null
  leave_proxies
  if [[ -n $EXISTING ]]; then exec "$TARGET/vitrine-lab" run --kubeconfig "$EXISTING" "$0" --inside; fi
  say "A control plane: etcd, kube-apiserver, kube-controller-manager"
  exec "$TARGET/vitrine-lab" run "$0" --inside
}

# Ends what was started here, and takes everything out of a cluster that exists; one made for the purpose ends as it is.
finish() {
  local status=$?
  set +e # from here on every step is tried, also when the terminal is gone
  trap - EXIT
  trap '' INT TERM HUP
  if ((status != 0)) && [[ -n $ARMED ]]; then tail -n 30 "$WORK"/*.log 2>/dev/null; fi
  if [[ -n $EXISTING && -n $ARMED ]]; then
    say "Removing what was made in the cluster"
    # While operator and agents run, the stored data goes too.
    kubectl delete namespaces --selector "$LABEL=$RUN" --field-selector "metadata.name=$TENANT" --timeout=60s
  fi
  if ((${#PIDS[@]} > 0)); then
    kill "${PIDS[@]}" 2>/dev/null
    wait "${PIDS[@]}" 2>/dev/null
  fi
  if [[ -n $EXISTING && -n $ARMED ]] && ! remove_run "$RUN"; then
    printf '\nNot all could be removed. What is left has the label %s=%s; the next run of the demo removes it.\n' "$LABEL" "$RUN" >&2
    status=1
  fi
  [[ -z $HEART ]] || kill "$HEART" 2>/dev/null
  rm -rf "$WORK"
  exit "$status"
}

# A kubeconfig for a service account; with a second argument, its token is bound to that node, as a pod's would be.
kubeconfig_for() {
  local account=$1 node=${2:-} token
  token=$(kubectl create token "$account" --namespace "$SYSTEM" ${node:+--bound-object-kind Node --bound-object-name "$node"})
  kubectl config view --raw --minify --flatten --output json | python3 -c '
import json, sys
config = json.load(sys.stdin)
config["users"][0]["user"] = {"token": sys.argv[1]}
json.dump(config, sys.stdout)' "$token"
}

# One agent, with its own folder at a path that is the same on every node.
start_agent() {
  local node=$1
  mkdir -p "$WORK/disk-$node/images" "$WORK/node" "$WORK/shared" "$WORK/work-$node"
  kubeconfig_for vitrine-agent "$node" >"$WORK/$node.kubeconfig"
  # shellcheck disable=SC2016 # for the shell inside
  KUBECONFIG=$WORK/$node.kubeconfig unshare --mount --propagation private -- bash -c \
    'mount --bind "$1" "$2" && shift 2 && exec "$@"' agent "$WORK/disk-$node" "$WORK/node" \
    "$TARGET/vitrine" agent --node-name "$node" --operator-namespace "$SYSTEM" --work-dir "$WORK/work-$node" \
    --store-root "$WORK/node" --store-root "$WORK/shared" --allow-source 127.0.0.1 >"$WORK/$node.log" 2>&1 &
  PIDS+=($!)
}

start() {
  local node
  say "One operator and two agents, each with the rights of its service account"
  kubeconfig_for vitrine-operator >"$WORK/operator.kubeconfig"
  KUBECONFIG=$WORK/operator.kubeconfig "$TARGET/vitrine" operator --namespace "$SYSTEM" \
    --watch-namespace "$TENANT" --store-selector "$LABEL=$RUN" >"$WORK/operator.log" 2>&1 &
  PIDS+=($!)
  for node in "${NODES[@]}"; do start_agent "$node"; done
  "$TARGET/vitrine-lab" serve "$DISKS" >"$WORK/url" 2>"$WORK/server.log" &
  PIDS+=($!)
  until [[ -s $WORK/url ]]; do sleep 0.1; done
  URL=$(head -n 1 "$WORK/url")
  URL=${URL%/}
}

stores() {
  say "Two stores: each node's own disk, and a shared archive that keeps compressed qcow2"
  kubectl create -f - <<STORES
apiVersion: vitrine.dev/v1alpha1
kind: ImageStore
metadata: {name: local, labels: {$LABEL: "$RUN"}}
spec: {filesystem: {path: $WORK/node/images}}
---
apiVersion: vitrine.dev/v1alpha1
kind: ImageStore
metadata: {name: archive, labels: {$LABEL: "$RUN"}}
spec:
  preferredFormat: {diskFormat: qcow2, compression: zstd}
  filesystem: {path: $WORK/shared, shared: true}
STORES
  show kubectl wait --for=condition=Ready imagestores --selector "$LABEL=$RUN" --timeout=60s
  show kubectl get imagestores
}

image() {
  printf -- '---\napiVersion: vitrine.dev/v1alpha1\nkind: Image\nmetadata: {name: %s, namespace: %s, labels: {%s: "%s"}}\nspec: {%s}\n' "$1" "$TENANT" "$LABEL" "$RUN" "$2"
}

manifests() {
  local sum
  sum=$(awk '$2 == "zlib.qcow2" { print $1 }' "$DISKS/SHA256SUMS")
  image debian "source: {http: {url: '$URL/zlib.qcow2', checksum: 'sha256:$sum'}}, stores: [local]"
  image debian-xz "source: {http: {url: '$URL/disk.raw.xz', checksumURL: '$URL/SHA256SUMS'}}, stores: [local, archive]"
  image debian-archived "source: {http: {url: '$URL/zstd.qcow2'}}, stores: [archive]"
  image rescue "source: {http: {url: '$URL/grub-rescue.iso'}}, diskFormat: iso, stores: [local]"
  image wrong-checksum "source: {http: {url: '$URL/zlib.qcow2', checksum: 'sha256:$(printf '0%.0s' {1..64})'}}, stores: [local]"
  image wrong-format "source: {http: {url: '$URL/plain.qcow2'}}, diskFormat: raw, stores: [local]"
}

images() {
  local watch
  say "Six images: a qcow2, a compressed raw into two stores, one for the archive, an ISO, and two that must be refused"
  kubectl create namespace "$TENANT" --dry-run=client --output yaml | labelled --filename - | kubectl create --filename - >/dev/null
  manifests >"$WORK/images.yaml"
  show cat "$WORK/images.yaml"
  show kubectl create -f "$WORK/images.yaml"
  printf '\033[36m$ kubectl get images --namespace %s --watch\033[0m\n' "$TENANT"
  kubectl get images --namespace "$TENANT" --watch &
  watch=$!
  PIDS+=("$watch")
  kubectl wait --for=condition=Ready --namespace "$TENANT" --timeout="$WAIT" \
    image/debian image/debian-xz image/debian-archived image/rescue >/dev/null
  kubectl wait --for=condition=Stalled --namespace "$TENANT" --timeout="$WAIT" image/wrong-checksum image/wrong-format >/dev/null
  sleep 1 # for the watch to show the last change
  kill "$watch"
  wait "$watch" 2>/dev/null || true
}

results() {
  local stored
  say "What became of them"
  show kubectl get images --namespace "$TENANT" --output wide
  say "One disk in three dresses has one content digest; the digest of the bytes as received differs"
  show kubectl get images --namespace "$TENANT" --output \
    custom-columns='NAME:.metadata.name,CONTENT:.status.contentDigest,SOURCE:.status.digests[0]'
  say "Where one of them is, and what that takes"
  show kubectl get image debian-xz --namespace "$TENANT" --output yaml
  say "Why the other two were refused"
  show kubectl get images wrong-checksum wrong-format --namespace "$TENANT" --output \
    jsonpath='{range .items[*]}{.metadata.name}{": "}{.status.conditions[?(@.type=="Stalled")].message}{"\n"}{end}'
  say "The stored disk, judged by qemu-img against the disk it was made from; and what it takes"
  stored=$(find "$WORK"/disk-*/images -name data -size +100M | head -n 1)
  show "$CACHE/bin/qemu-img" compare -f raw -F raw "$stored" "$DISKS/disk.raw"
  show du --apparent-size --human-readable "$stored"
  show du --human-readable "$stored"
}

inside() {
  local node
  DISKS=$(tests/images/debian-disk.sh)
  WORK=$(mktemp -d -t vitrine-demo.XXXXXX)
  RUN=$(od -An -N6 -tx1 /dev/urandom | tr -d ' ')
  PIDS=() HEART='' ARMED=''
  trap finish EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
  if [[ -n $EXISTING ]]; then
    check_version
    check_rights
    choose_nodes
    make_way
    show_plan
  else
    for node in "${NODES[@]}"; do kubectl create -f - <<<"{apiVersion: v1, kind: Node, metadata: {name: $node}}"; done
  fi
  install
  start
  stores
  images
  results
  say "Done in $SECONDS s"
}

case ${1:-} in
  --inside) inside ;;
  *) prepare ;;
esac
