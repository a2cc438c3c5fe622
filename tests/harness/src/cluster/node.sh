# A node of a cluster: what `Node` runs as a node's first process, once outside and once inside the node's namespaces.
# All of the node ends with it, as by a power cut; what it has on disk stays in $folder.
#
# Usage: node.sh outside|inside   with the variables that Node sets: name, number, folder, mark, tools, cni, runtime
set -eu

# One group for each hierarchy of cgroup v1, or one for all of cgroup v2; it becomes the root of the node's own view.
join_groups() {
  for hierarchy in $(hierarchies); do
    group=$hierarchy/$mark/$name
    mkdir -p "$group"
    # A cpuset takes no process before it has processors and memory.
    for each in "$hierarchy/$mark" "$group"; do
      [ -e "$hierarchy/cpuset.mems" ] || continue
      cat "$hierarchy/cpuset.cpus" >"$each/cpuset.cpus"
      cat "$hierarchy/cpuset.mems" >"$each/cpuset.mems"
      echo 1 >"$each/cgroup.clone_children"
    done
    echo $$ >"$group/cgroup.procs"
  done
}

hierarchies() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo /sys/fs/cgroup; else ls -d /sys/fs/cgroup/*/; fi
}

outside() {
  join_groups
  # By this the node finds the network that it is a part of.
  exec 3</proc/self/ns/net
  exec unshare --net --cgroup --mount --uts --ipc --pid --fork --kill-child --mount-proc --propagation private /bin/sh "$0" inside
}

# The kubelet needs to see and make groups below the node's own.
mount_groups() {
  version2=$([ -e /sys/fs/cgroup/cgroup.controllers ] && echo yes || true)
  controllers=$(cut -f 1 /proc/cgroups | tail -n +2)
  mounted=$(for each in $controllers; do [ ! -d "/sys/fs/cgroup/$each" ] || echo "$each"; done)
  umount -l /sys/fs/cgroup
  if [ -n "$version2" ]; then
    mount -t cgroup2 cgroup /sys/fs/cgroup
    # A group with processes of its own hands no controllers down.
    mkdir -p /sys/fs/cgroup/init
    while read -r process; do echo "$process" >/sys/fs/cgroup/init/cgroup.procs || true; done </sys/fs/cgroup/cgroup.procs
    for each in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$each" >/sys/fs/cgroup/cgroup.subtree_control; done
    return
  fi
  mount -t tmpfs cgroup /sys/fs/cgroup
  for each in $mounted; do
    mkdir "/sys/fs/cgroup/$each"
    mount -t cgroup -o "$each" cgroup "/sys/fs/cgroup/$each"
  done
  mkdir /sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
}

# What a node writes is its own: its disk in $folder, and what does not outlive it in memory.
mount_folders() {
  mount -t tmpfs -o mode=755 run /run
  mkdir -p "$folder/lib" "$folder/log"
  mount --bind "$folder/lib" /var/lib
  mount --bind "$folder/log" /var/log
  # The kubelet sets these for the whole machine unless they read as it wants them.
  for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
    file=/run/$(echo "${setting%=*}" | tr / -)
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
  done
  mount --make-rshared /
}

network() { nsenter --net=/proc/self/fd/3 -- "$@"; }

# A cable to the bridge. That of the node's former life may still be being removed.
plug_in() {
  ip link set lo up
  until ip link add eth0 type veth peer name "$name" netns /proc/self/fd/3; do sleep 0.2; done
  network ip link set "$name" master "$bridge" up
  ip addr add "$address/24" dev eth0
  ip link set eth0 up
  ip route add default via "$gateway"
  # Every node has the pods of 10.244.<number>.0/24.
  network ip route replace "10.244.$number.0/24" via "$address"
  for other in 1 2 3 4 5 6 7 8 9; do
    [ "$other" = "$number" ] || ip route add "10.244.$other.0/24" via "${address%.*}.$((10 + other))"
  done
  echo 1 >/proc/sys/net/ipv4/ip_forward
  exec 3<&-
}

inside() {
  hostname "$name"
  mount_groups
  mount_folders
  plug_in
  PATH=$runtime:$tools:$PATH
  containerd --config "$folder/containerd.toml" >>"$folder/containerd.log" 2>&1 &
  until ctr version >/dev/null 2>&1; do sleep 0.1; done
  ctr --namespace k8s.io images import "$folder/pause.tar"
  kube-proxy --kubeconfig="$folder/proxy.kubeconfig" --proxy-mode=nftables --hostname-override="$name" \
    --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 >>"$folder/kube-proxy.log" 2>&1 &
  kubelet --config="$folder/kubelet.json" --kubeconfig="$folder/kubelet.kubeconfig" --hostname-override="$name" \
    --node-ip="$address" >>"$folder/kubelet.log" 2>&1 &
  wait
}

"$1"
