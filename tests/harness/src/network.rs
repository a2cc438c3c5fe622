//! A network of its own for a scope: a network namespace that a small process holds, with a bridge in it for whoever joins.
//!
//! Since each has its own, several runs use the same addresses beside each other, the machine's own network is not touched, and the
//! kernel removes all of it with the last process inside. Knows nothing of who talks in it.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Context, Error, Result};
use crate::process::Process;
use crate::scope::Scope;

/// The address of the bridge: of whatever runs in the network itself, and not on a node of it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The name of the bridge.
pub const BRIDGE: &str = "lab0";
/// Making a namespace takes milliseconds; more is for machines that are busy.
const DEADLINE: Duration = Duration::from_secs(30);
/// `$1` is the bridge, `$2` its address.
const HOLDER: &str = r#"
ip link set lo up && ip link add "$1" type bridge && ip addr add "$2/24" dev "$1" && ip link set "$1" up &&
echo 1 >/proc/sys/net/ipv4/ip_forward && echo open && exec sleep infinity
"#;

/// A network that is not the machine's.
#[derive(Debug, Clone)]
pub struct Network {
    namespace: PathBuf,
}

/// Opens one, held by a process of the scope.
pub(crate) async fn open(scope: &Scope) -> Result<(Network, Process)> {
    let mut command = scope.command("unshare");
    command.args(["--net", "/bin/sh", "-c", HOLDER, "vitrine-lab-network", BRIDGE, &GATEWAY.to_string()]);
    let holder = scope.spawn("network", command)?;
    holder.wait_for_log("open", DEADLINE).await?;
    Ok((Network { namespace: PathBuf::from(format!("/proc/{}/ns/net", holder.id())) }, holder))
}

impl Network {
    /// A command that runs `program` inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let mut namespace = std::ffi::OsString::from("--net=");
        namespace.push(&self.namespace);
        command.arg(namespace).arg("--").arg(program);
        command
    }

    /// Does `work` inside, on a thread of its own. Sockets made there stay there, whoever uses them afterwards.
    ///
    /// # Errors
    /// When this process may not go there, or `work` panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = File::open(&self.namespace).context(|| format!("open {}", self.namespace.display()))?;
        let inside = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context(|| "go into a network namespace")?;
            Ok(work())
        };
        std::thread::scope(|threads| threads.spawn(inside).join())
            .unwrap_or_else(|_| Err(Error::new("work in a network of its own has panicked")))
    }
}
