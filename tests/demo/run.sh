#!/usr/bin/env bash
# The demo: manifests become verified, converted, sparsely stored images under a real control plane, and two that must be refused are.
# Usage: run.sh        `make demo`. With KUBECONFIG set, that cluster is used instead of one made for the purpose; it must allow to
# install CRDs and to make Node objects, and everything is removed from it again.
# Operator and agents run as processes of this machine, each with the rights of its service account; each agent has its own disk, in
# a mount namespace. Needs root for that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

TARGET=${CARGO_TARGET_DIR:-target}/debug # shared with `make test`, so that neither compiles for itself
CACHE=${VITRINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vitrine}
NODES=(vitrine-demo-1 vitrine-demo-2)
SYSTEM=vitrine-system
TENANT=vitrine-demo
WAIT=180s # for an import; they take seconds

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() {
  printf '\033[36m$ %s\033[0m\n' "$*"
  "$@"
}

prepare() {
  [[ $EUID -eq 0 ]] || { echo "the demo mounts one disk per node: run it as root" >&2; exit 1; }
  say "Programs and disks (minutes the first time, nothing later)"
  cargo build --locked --workspace --bin vitrine --bin vitrine-lab
  tests/images/debian-disk.sh >/dev/null
  if [[ -n ${KUBECONFIG:-} ]]; then
    PATH=$(dirname "$("$TARGET/vitrine-lab" tools kubectl)"):$PATH exec "$0" --inside
  fi
  say "A control plane: etcd, kube-apiserver, kube-controller-manager"
  exec "$TARGET/vitrine-lab" run "$0" --inside
}

# Ends what was started here, and takes everything out of the cluster again.
finish() {
  local status=$?
  trap - EXIT
  trap '' INT TERM
  say "Cleaning up"
  if ((status != 0)); then tail -n 30 "$WORK"/*.log || true; fi
  kubectl delete namespace "$TENANT" --ignore-not-found --timeout=60s || true
  kubectl delete imagestores --selector vitrine-demo=true --ignore-not-found --timeout=60s || true
  kill "${PIDS[@]}" 2>/dev/null || true
  wait "${PIDS[@]}" 2>/dev/null || true
  kubectl delete nodes "${NODES[@]}" --ignore-not-found >/dev/null || true
  if [[ $FOUND == none ]]; then
    kubectl delete --ignore-not-found --wait=false -f config/ -f crds/ >/dev/null || true
  fi
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

install() {
  local node
  FOUND=$(kubectl get crd images.vitrine.dev --output name 2>/dev/null) || FOUND=none
  say "The custom resources, roles and policies"
  show kubectl apply --server-side -f crds/
  show kubectl wait --for=condition=Established crd/images.vitrine.dev crd/imagestores.vitrine.dev --timeout=30s
  # The namespace first: what is in it comes after.
  kubectl apply -f config/namespace.yaml >/dev/null
  show kubectl apply -f config/
  for node in "${NODES[@]}"; do
    kubectl create -f - <<<"{apiVersion: v1, kind: Node, metadata: {name: $node, labels: {vitrine-demo: 'true'}}}"
  done
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
  KUBECONFIG=$WORK/operator.kubeconfig "$TARGET/vitrine" operator --namespace "$SYSTEM" >"$WORK/operator.log" 2>&1 &
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
  kubectl apply -f - <<STORES
apiVersion: vitrine.dev/v1alpha1
kind: ImageStore
metadata: {name: local, labels: {vitrine-demo: "true"}}
spec: {default: true, nodeSelector: {vitrine-demo: "true"}, filesystem: {path: $WORK/node/images}}
---
apiVersion: vitrine.dev/v1alpha1
kind: ImageStore
metadata: {name: archive, labels: {vitrine-demo: "true"}}
spec:
  nodeSelector: {vitrine-demo: "true"}
  preferredFormat: {diskFormat: qcow2, compression: zstd}
  filesystem: {path: $WORK/shared, shared: true}
STORES
  show kubectl wait --for=condition=Ready imagestores --selector vitrine-demo=true --timeout=60s
  show kubectl get imagestores
}

image() {
  printf -- '---\napiVersion: vitrine.dev/v1alpha1\nkind: Image\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n' "$1" "$TENANT" "$2"
}

manifests() {
  local sum
  sum=$(awk '$2 == "zlib.qcow2" { print $1 }' "$DISKS/SHA256SUMS")
  image debian "source: {http: {url: '$URL/zlib.qcow2', checksum: 'sha256:$sum'}}"
  image debian-xz "source: {http: {url: '$URL/disk.raw.xz', checksumURL: '$URL/SHA256SUMS'}}, stores: [local, archive]"
  image debian-archived "source: {http: {url: '$URL/zstd.qcow2'}}, stores: [archive]"
  image rescue "source: {http: {url: '$URL/grub-rescue.iso'}}, diskFormat: iso"
  image wrong-checksum "source: {http: {url: '$URL/zlib.qcow2', checksum: 'sha256:$(printf '0%.0s' {1..64})'}}"
  image wrong-format "source: {http: {url: '$URL/plain.qcow2'}}, diskFormat: raw"
}

images() {
  local watch
  say "Six images: a qcow2, a compressed raw into two stores, one for the archive, an ISO, and two that must be refused"
  kubectl create namespace "$TENANT" >/dev/null
  manifests >"$WORK/images.yaml"
  show cat "$WORK/images.yaml"
  show kubectl apply -f "$WORK/images.yaml"
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
  DISKS=$(tests/images/debian-disk.sh)
  WORK=$(mktemp -d -t vitrine-demo.XXXXXX)
  PIDS=() FOUND=none
  trap finish EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
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
