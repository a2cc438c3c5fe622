//! `vitrine-lab`: the harness by hand, for scripts, the demo and looking around. Parses, calls the library, prints.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use vitrine_harness::{
    CephCluster, CephOptions, Cluster, ControlPlane, Error, FaultServer, Result, Scope, Tool, tools,
};

const USAGE: &str = "usage:
  vitrine-lab tools [NAME...]         build the Kubernetes programs (all, or those named) unless they are in the cache; print their paths
  vitrine-lab up                      run a control plane until Ctrl-C or SIGTERM; print the line that points KUBECONFIG at it
  vitrine-lab run [--kubeconfig FILE | --nodes N] COMMAND [ARG...]
                                      run a command with a control plane of its own, or with the cluster of FILE: KUBECONFIG is set,
                                      kubectl is in PATH, TMPDIR is removed and all it started is ended with it, however it ends;
                                      with N real nodes, it runs in the network of their cluster (as root)
  vitrine-lab ceph POOL               run a Ceph cluster with that pool, its data on disk, until Ctrl-C or SIGTERM; print the path of its
                                      ceph.conf, beside which is the administrator's keyring
  vitrine-lab serve DIR [--port N]    serve a folder over HTTP, with ranges and ETags, until Ctrl-C or SIGTERM; print the URL";

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["tools", names @ ..] => print_tools(names),
        ["up"] => run_control_plane().await,
        ["run", "--kubeconfig", kubeconfig, command, args @ ..] => run_with_cluster_of(kubeconfig, command, args).await,
        ["run", "--nodes", count, command, args @ ..] => run_with_nodes(count, command, args).await,
        ["run", command, args @ ..] if !command.starts_with('-') => run_with_own_cluster(command, args).await,
        ["ceph", pool] => run_ceph(pool).await,
        ["serve", folder] => serve(folder, "0").await,
        ["serve", folder, "--port", port] => serve(folder, port).await,
        _ => Err(Error::new(USAGE)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("vitrine-lab: {error}");
        ExitCode::FAILURE
    })
}

fn print_tools(names: &[&str]) -> Result<ExitCode> {
    let named = |name: &&str| Tool::named(name).ok_or_else(|| Error::new(format!("there is no tool called {name}")));
    let mut wanted = names.iter().map(named).collect::<Result<Vec<_>>>()?;
    if wanted.is_empty() {
        wanted.extend(Tool::ALL);
    }
    for (_, path) in tools::ensure(&wanted)?.iter() {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

async fn start() -> Result<ControlPlane> {
    let started = std::time::Instant::now();
    let plane = ControlPlane::start().await?;
    let seconds = started.elapsed().as_secs_f32();
    eprintln!("control plane: {} after {seconds:.1} s, logs in {}", plane.url(), plane.logs().display());
    for (name, bytes) in plane.memory() {
        eprintln!("  {name}: {} MiB", bytes >> 20);
    }
    Ok(plane)
}

async fn run_control_plane() -> Result<ExitCode> {
    let plane = start().await?;
    println!("export KUBECONFIG={}", plane.kubeconfig().display());
    wait_for_end().await
}

async fn run_ceph(pool: &str) -> Result<ExitCode> {
    let options = CephOptions { on_disk: true, size: 64 << 30, ..CephOptions::default() };
    let cluster = CephCluster::start_with(&options).await?;
    cluster.create_pool(pool).await?;
    println!("{}", cluster.config().display());
    wait_for_end().await
}

async fn run_with_own_cluster(command: &str, args: &[&str]) -> Result<ExitCode> {
    let plane = start().await?;
    run_command(plane.scope(), &plane.kubeconfig(), command, args).await
}

async fn run_with_nodes(count: &str, command: &str, args: &[&str]) -> Result<ExitCode> {
    let count: usize = count.parse().map_err(|error| Error::new(format!("--nodes {count}: {error}")))?;
    let names: Vec<String> = (1..=count).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let started = std::time::Instant::now();
    let cluster = Cluster::start(&names).await?;
    let logs = cluster.plane().logs().display();
    eprintln!("{count} nodes are ready after {:.1} s, logs in {logs}", started.elapsed().as_secs_f32());
    run_command(cluster.plane().scope(), &cluster.plane().kubeconfig(), command, args).await
}

async fn run_with_cluster_of(kubeconfig: &str, command: &str, args: &[&str]) -> Result<ExitCode> {
    // Not made absolute: kubectl takes a list of files, too.
    run_command(&Scope::open("run")?, Path::new(kubeconfig), command, args).await
}

/// Ends as the command does. It and what it starts carry the scope's mark, so if we are killed, nothing of them remains.
async fn run_command(scope: &Scope, kubeconfig: &Path, command: &str, args: &[&str]) -> Result<ExitCode> {
    let here = std::env::current_dir().map_err(|error| Error::new(format!("no working folder: {error}")))?;
    let tools = tools::ensure(&[Tool::Kubectl])?;
    let mut path = OsString::from(tools.path(Tool::Kubectl)?.parent().unwrap_or(Path::new("/")));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    // Listened for before there is a child to leave behind.
    let mut end = End::listen()?;
    let mut child = tokio::process::Command::from(scope.command(command))
        .args(args)
        .current_dir(here)
        .stdin(Stdio::inherit())
        .env("TMPDIR", scope.dir())
        .env("KUBECONFIG", kubeconfig)
        .env("PATH", path)
        // kubectl would otherwise fill a folder in the home of its user.
        .env("KUBECACHEDIR", scope.dir().join("kubectl"))
        .spawn()
        .map_err(|error| Error::new(format!("cannot run {command}: {error}")))?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            told = end.told() => tell(&child, told),
        }
    };
    let status = status.map_err(|error| Error::new(format!("cannot wait for {command}: {error}")))?;
    // As a shell has it: 128 and the number of the signal.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Hands a request to end on to the command, which may need its cluster for what it does then. Ctrl-C has reached it without us.
fn tell(child: &tokio::process::Child, told: SignalKind) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let (Some(pid), true) = (pid, told != SignalKind::interrupt()) {
        let _ended_meanwhile = kill_process(pid, Signal::TERM);
    }
}

async fn serve(folder: &str, port: &str) -> Result<ExitCode> {
    let port = port.parse().map_err(|error| Error::new(format!("--port {port}: {error}")))?;
    let server = FaultServer::serve_folder(Path::new(folder), port)?;
    println!("{}", server.url("/"));
    wait_for_end().await
}

async fn wait_for_end() -> Result<ExitCode> {
    End::listen()?.told().await;
    Ok(ExitCode::SUCCESS)
}

/// The requests to end.
struct End {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl End {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Error::new(format!("cannot listen for signals: {error}")));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for one and says which.
    async fn told(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::terminate(),
        }
    }
}
