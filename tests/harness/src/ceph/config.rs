//! What a cluster's programs read: keys, keyrings and `ceph.conf`. All of it is in the cluster's own folder.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;

use super::CephOptions;
use crate::error::{Context, Result};

/// Where OSDs and managers of all clusters look for free ports: above those of [`crate::port`], below Linux's ephemeral range. Only the
/// monitor's port must stay the same over a restart; the others are announced through it.
const BIND_PORTS: (u16, u16) = (29_100, 32_700);

/// Name and capabilities of those who are there from the beginning.
const ENTITIES: [(&str, &[(&str, &str)]); 4] = [
    ("mon.", &[("mon", "allow *")]),
    ("client.admin", &[("mon", "allow *"), ("osd", "allow *"), ("mgr", "allow *")]),
    ("osd.0", &[("mon", "allow profile osd"), ("osd", "allow *"), ("mgr", "allow profile osd")]),
    ("mgr.x", &[("mon", "allow profile mgr"), ("osd", "allow *")]),
];

/// Writes one keyring with everybody in it; returns the administrator's key. A monitor's `--mkfs` takes all of it over.
pub fn write_keyring(path: &Path) -> Result<String> {
    let mut text = String::new();
    let mut admin = String::new();
    for (name, caps) in ENTITIES {
        let key = new_key()?;
        text += &format!("[{name}]\n\tkey = {key}\n");
        text.extend(caps.iter().map(|(service, cap)| format!("\tcaps {service} = \"{cap}\"\n")));
        if name == "client.admin" {
            admin = key;
        }
    }
    write_private(path, &text)?;
    Ok(admin)
}

/// A cephx key as `ceph-authtool --gen-key` writes it: type 1 (AES), a time, the secret's length, the secret; little-endian, in base64.
fn new_key() -> Result<String> {
    let mut secret = [0_u8; 16];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut secret)).context(|| "read /dev/urandom")?;
    let mut bytes = vec![1, 0];
    bytes.extend([0; 8]);
    bytes.extend([16, 0]);
    bytes.extend(secret);
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .context(|| format!("write {}", path.display()))
}

/// A random id, as the kernel makes them.
pub fn uuid() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").context(|| "read a uuid from /proc")?;
    Ok(id.trim().to_owned())
}

/// The text of `ceph.conf` for a cluster whose files are in `dir`. Sizes and intervals are those of a cluster that lives for seconds.
pub fn text(dir: &Path, fsid: &str, port: u16, options: &CephOptions) -> String {
    let dir = dir.display();
    let (first, last) = BIND_PORTS;
    let store = if options.on_disk { "bluestore" } else { "memstore" };
    let (size, watch) = (options.size, options.watch_timeout.as_secs().max(1));
    format!(
        "[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port}]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_port_min = {first}
ms_bind_port_max = {last}
ms_bind_msgr1 = false
run_dir = {dir}
admin_socket = {dir}/$name.asok
pid_file = {dir}/$name.pid
log_file =
crash_dir = {dir}
log_to_stderr = true
err_to_stderr = true
keyring = {dir}/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
[client]
admin_socket =
log_to_stderr = false
[mon]
mon_data = {dir}/mon
mon_cluster_log_file = /dev/null
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_max_pg_per_osd = 2000
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_tick_interval = 1
[mgr]
mgr_data = {dir}/mgr
mgr_initial_modules =
mgr_stats_period = 1
mgr_tick_period = 1
[osd]
osd_data = {dir}/osd
osd_objectstore = {store}
osd_class_update_on_start = false
osd_crush_update_on_start = false
osd_client_watch_timeout = {watch}
memstore_device_bytes = {size}
bluestore_block_create = true
bluestore_block_size = {size}
bluestore_block_db_create = false
bluestore_block_wal_create = false
bluestore_fsck_on_mkfs = false
bluestore_fsck_on_mount = false
bluestore_cache_autotune = false
bluestore_cache_size = 134217728
"
    )
}
