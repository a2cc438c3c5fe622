//! `vitrine-lab`: the harness by hand, for scripts, the demo and looking around. Parses, calls the library, prints.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use vitrine_harness::{ControlPlane, Error, FaultServer, Result, Tool, tools};

const USAGE: &str = "usage:
  vitrine-lab tools [NAME...]         build the Kubernetes programs (all, or those named) unless they are in the cache; print their paths
  vitrine-lab up                      run a control plane until Ctrl-C or SIGTERM; print the line that points KUBECONFIG at it
  vitrine-lab run COMMAND [ARG...]    run a command with a control plane of its own: KUBECONFIG is set, and kubectl is in PATH
  vitrine-lab serve DIR [--port N]    serve a folder over HTTP, with ranges and ETags, until Ctrl-C or SIGTERM; print the URL";

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["tools", names @ ..] => print_tools(names),
        ["up"] => run_control_plane().await,
        ["run", command, args @ ..] => run_command(command, args).await,
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

/// Ends as the command does. A signal to us ends the control plane and leaves the command to its own: Ctrl-C reaches both.
async fn run_command(command: &str, args: &[&str]) -> Result<ExitCode> {
    let plane = start().await?;
    let tools = tools::ensure(&[Tool::Kubectl])?;
    let mut path = OsString::from(tools.path(Tool::Kubectl)?.parent().unwrap_or(Path::new("/")));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut child = tokio::process::Command::new(command)
        .args(args)
        .env("KUBECONFIG", plane.kubeconfig())
        .env("PATH", path)
        // kubectl would otherwise fill a folder in the home of its user.
        .env("KUBECACHEDIR", plane.scope().dir().join("kubectl"))
        .spawn()
        .map_err(|error| Error::new(format!("cannot run {command}: {error}")))?;
    tokio::select! {
        ended = wait_for_end() => ended,
        status = child.wait() => {
            let status = status.map_err(|error| Error::new(format!("cannot wait for {command}: {error}")))?;
            // As a shell has it: 128 and the number of the signal.
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
    }
}

async fn serve(folder: &str, port: &str) -> Result<ExitCode> {
    let port = port.parse().map_err(|error| Error::new(format!("--port {port}: {error}")))?;
    let server = FaultServer::serve_folder(Path::new(folder), port)?;
    println!("{}", server.url("/"));
    wait_for_end().await
}

async fn wait_for_end() -> Result<ExitCode> {
    let listen = |kind| signal(kind).map_err(|error| Error::new(format!("cannot listen for signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}
