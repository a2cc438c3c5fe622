# shellcheck shell=bash
# What the demo does to a cluster, which may be a person's own: asks before it acts, labels all that it makes, and removes that and
# nothing else. Sourced by run.sh, never run.
#
# The namespace $SYSTEM is the claim: making it is atomic, and while the run lives, its annotation changes every few seconds. It is
# made first and removed last, so whatever else carries the label without it belongs to a run that is dead.

SYSTEM=vitrine-system
TENANT=vitrine-demo
LABEL=vitrine.dev/demo
COLUMNS_OF='custom-columns=KIND:.kind,NAME:.metadata.name,RUN:.metadata.labels.vitrine\.dev/demo'
OLDEST=31 # the minor version 1.31: selectable fields of CRDs and tokens bound to nodes are on by default
BEAT=3 # seconds between two signs of life
DEAD=40 # seconds without one after which a run counts as dead
KINDS=namespaces,customresourcedefinitions,clusterroles,clusterrolebindings
KINDS+=,validatingadmissionpolicies,validatingadmissionpolicybindings

refuse() {
  printf '\nThe demo did not begin, and changed nothing: %s\n' "$1" >&2
  exit 1
}

die() {
  printf '\n%s\n' "$1" >&2
  exit 1
}

# Runs kubectl; an answer that did not come is a reason to stop, and never "there is none".
ask() {
  kubectl "$@" --request-timeout=20s || refuse "kubectl $* failed, see above"
}

check_version() {
  local found
  found=$(ask version --output json | python3 -c '
import json, re, sys
server = json.load(sys.stdin)["serverVersion"]
print(*(re.match(r"\d+", server[part])[0] for part in ("major", "minor")))')
  # shellcheck disable=SC2086 # two words
  set -- $found
  (($# == 2)) || refuse "the server does not say its version"
  (($1 > 1 || $2 >= OLDEST)) || refuse "it needs Kubernetes 1.$OLDEST or newer, and this is $1.$2"
}

# One review for each right, written "verb resource[.group][/subresource]".
reviews() {
  python3 - "$@" <<'PYTHON'
import json, sys
for right in sys.argv[1:]:
    verb, what = right.split()
    what, _, part = what.partition("/")
    resource, _, group = what.partition(".")
    attributes = {"verb": verb, "resource": resource, "group": group, "subresource": part}
    print(json.dumps({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                      "spec": {"resourceAttributes": attributes}}))
PYTHON
}

check_rights() {
  local what verb rights=("list nodes" "create serviceaccounts/token" "delete events") answers missing
  for what in namespaces serviceaccounts customresourcedefinitions.apiextensions.k8s.io images.vitrine.dev imagestores.vitrine.dev \
    {clusterroles,clusterrolebindings,roles,rolebindings}.rbac.authorization.k8s.io \
    {validatingadmissionpolicies,validatingadmissionpolicybindings}.admissionregistration.k8s.io; do
    for verb in list create patch delete; do rights+=("$verb $what"); done
  done
  answers=$(reviews "${rights[@]}" | ask create --filename - --output \
    jsonpath='{.status.allowed} {.spec.resourceAttributes.verb} {.spec.resourceAttributes.resource} {.spec.resourceAttributes.subresource}{"\n"}')
  (($(grep -c . <<<"$answers") == ${#rights[@]})) || refuse "the server did not say what you may do"
  missing=$(awk '$1 != "true" { r = $3 ($4 ? "/" $4 : ""); if (!(r in v)) o[++n] = r; v[r] = v[r] (v[r] ? ", " : "") $2 }
    END { for (i = 1; i <= n; i++) printf "\n  %s: %s", o[i], v[o[i]] }' <<<"$answers")
  [[ -z $missing ]] || refuse "it needs the rights of cluster-admin, and you may not do this in all namespaces:$missing"
}

# The first two Nodes, or the one that there is. The agents are processes of this machine: only their tokens name these Nodes.
choose_nodes() {
  local names
  names=$(ask get nodes --ignore-not-found --output name)
  mapfile -t NODES < <(head -n 2 <<<"$names" | sed -n 's|^node/||p')
  ((${#NODES[@]} > 0)) || refuse "the cluster has no Node, and the agents' tokens must name one"
}

# What of Vitrine the cluster has, a line each: kind, name, and the run of the demo that made it or <none>.
find_vitrine() {
  local manifests all
  manifests=$(ask get --ignore-not-found --no-headers --output "$COLUMNS_OF" --filename crds/ --filename config/)
  all=$(ask get "$KINDS" --no-headers --ignore-not-found --output "$COLUMNS_OF")
  {
    printf '%s\n' "$manifests"
    awk -v tenant="$TENANT" '$3 != "<none>" || ($1 == "Namespace" && $2 == tenant) ||
      ($1 == "CustomResourceDefinition" && $2 ~ /\.vitrine\.dev$/)' <<<"$all"
  } | awk 'NF { print $1, $2, $3 }' | sort -u
}

beat_of_claim() {
  ask get namespace "$SYSTEM" --ignore-not-found --output jsonpath='{.metadata.resourceVersion}'
}

# Refuses unless all of Vitrine that is here belongs to runs of the demo that are dead; removes that.
make_way() {
  local found foreign first now end run
  found=$(find_vitrine)
  [[ -n $found ]] || return 0
  foreign=$(awk '$3 == "<none>" { printf "\n  %s %s", $1, $2 }' <<<"$found")
  [[ -z $foreign ]] || refuse "Vitrine, or something of its names, is in this cluster already, and is left alone:$foreign"
  say "Another run of the demo is here or was killed here: waiting up to $DEAD s for a sign of life"
  first=$(beat_of_claim) end=$((SECONDS + DEAD))
  while [[ -n $first ]] && ((SECONDS < end)); do
    sleep 1
    now=$(beat_of_claim)
    [[ $now == "$first" ]] || refuse "another run of the demo is using this cluster; try again when it has ended"
  done
  say "It is dead: removing what it left"
  for run in $(awk '{ print $3 }' <<<"$found" | sort -u); do
    remove_run "$run" || die "What the dead run $run left could not be removed, see above."
  done
}

show_plan() {
  local context
  context=$(kubectl config current-context)
  say "A cluster that exists: context $context at $(kubectl config view --minify --output jsonpath='{.clusters[0].cluster.server}')"
  cat <<PLAN
Made now, labelled $LABEL=$RUN, and removed at the end: the definitions in crds/; the namespace $SYSTEM, roles and policies in
config/; the namespace $TENANT with six Images; two ImageStores. Operator and agents run on this machine and not in the cluster;
the agents use tokens that name ${NODES[@]/%/,} which are not touched.
PLAN
}

# Manifests with this run's label. As JSON: kubectl writes several documents of YAML without a line between them.
labelled() {
  kubectl label --local --output json "$LABEL=$RUN" "$@"
}

# The same, made in the cluster and shown as what it comes to.
create_labelled() {
  printf '\033[36m$ kubectl create %s # labelled %s=%s\033[0m\n' "$*" "$LABEL" "$RUN"
  labelled "$@" | kubectl create --filename -
}

claim() {
  ARMED=yes # nothing but this run has its label, so removing what has it is right from here on
  labelled --filename config/namespace.yaml | kubectl annotate --local --output json --filename - "$LABEL-beat=0" |
    kubectl create --filename - || die "The namespace $SYSTEM could not be made: another demo may have been faster."
  beat $$ &
  HEART=$!
}

# Shows that the run lives. If the claim is another's or gone, this run was taken for dead and must stop.
beat() {
  local count=0 said
  while sleep "$BEAT"; do
    said=$(kubectl patch namespace "$SYSTEM" --request-timeout=10s --type json --patch "[
      {\"op\": \"test\", \"path\": \"/metadata/labels/${LABEL/\//~1}\", \"value\": \"$RUN\"},
      {\"op\": \"add\", \"path\": \"/metadata/annotations/${LABEL/\//~1}-beat\", \"value\": \"$((++count))\"}]" 2>&1) && continue
    if [[ $said == *NotFound* || $said == *[Ii]nvalid* ]]; then
      echo "the namespace $SYSTEM is not this run's any more: ending" >&2
      kill -TERM "$1"
      return
    fi
  done
}

install() {
  say "The custom resources, roles and policies"
  claim
  create_labelled --filename crds/
  show kubectl wait --for=condition=Established --filename crds/ --timeout=30s
  create_labelled --filename config/policies.yaml --filename config/rbac.yaml
}

# Takes away finalizers, which nobody is left to serve: $1 kind, the rest says which.
release() {
  local kind=$1 items
  shift
  items=$(kubectl get "$kind" "$@" --ignore-not-found --output \
    jsonpath='{range .items[?(@.metadata.finalizers)]}{.metadata.namespace}/{.metadata.name}{"\n"}{end}') || return
  while IFS=/ read -r namespace name; do
    [[ -n $name ]] || continue
    kubectl patch "$kind" "$name" ${namespace:+--namespace "$namespace"} --type merge --patch '{"metadata":{"finalizers":null}}' || return
  done <<<"$items"
}

# Removes all that carries the label of run $1. What others made with the demo's definitions is kept, and the definitions with it.
remove_run() {
  local of=$LABEL=$1 found others='' timeout=--timeout=60s
  found=$(kubectl get customresourcedefinitions --selector "$of" --ignore-not-found --output name) || return
  if [[ $found == *images.vitrine.dev* && $found == *imagestores.vitrine.dev* ]]; then
    others=$(kubectl get images,imagestores --all-namespaces --selector "!$LABEL" --ignore-not-found --output name) || return
    kubectl delete images --all-namespaces --selector "$of" --wait=false || return
    kubectl delete imagestores --selector "$of" --wait=false || return
    release images --all-namespaces --selector "$of" || return
    release imagestores --selector "$of" || return
    kubectl delete events --namespace default --field-selector involvedObject.kind=ImageStore >/dev/null || return
  fi
  if [[ $found == *imagetasks.vitrine.dev* ]]; then release imagetasks --namespace "$SYSTEM" || return; fi
  if [[ -n $others ]]; then
    printf 'Somebody else has used the demo'\''s definitions, so they stay, with the label %s:\n%s\n' "$of" "$others" >&2
    return 1
  fi
  kubectl delete "${KINDS#namespaces,}" --selector "$of" "$timeout" || return
  kubectl delete namespaces --selector "$of" --field-selector "metadata.name!=$SYSTEM" "$timeout" || return
  kubectl delete namespaces --selector "$of" "$timeout"
}
