//! `vitrine-lab`: the harness by hand, for scripts, the demo and looking around. Parses, calls the library, prints.

use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use vitrine_harness::{ControlPlane, Error, FaultServer, Result, Tool, tools};

const USAGE: &str = "usage: vitrine-lab tools            build the Kubernetes programs, or find them in the cache, and print their paths
       vitrine-lab up               run a control plane until Ctrl-C (or SIGTERM)
       vitrine-lab serve DIR [--port N]   serve a folder over HTTP until Ctrl-C, with ranges and ETags";

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["tools"] => print_tools(),
        ["up"] => run_control_plane().await,
        ["serve", folder] => serve(folder, "0").await,
        ["serve", folder, "--port", port] => serve(folder, port).await,
        _ => Err(Error::new(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print_tools() -> Result<()> {
    for (_, path) in tools::ensure(&Tool::ALL)?.iter() {
        println!("{}", path.display());
    }
    Ok(())
}

async fn run_control_plane() -> Result<()> {
    let started = std::time::Instant::now();
    let plane = ControlPlane::start().await?;
    eprintln!(
        "control plane at {} after {:.1} s; logs in {}; Ctrl-C ends it",
        plane.url(),
        started.elapsed().as_secs_f32(),
        plane.logs().display()
    );
    for (name, bytes) in plane.memory() {
        eprintln!("  {name}: {} MiB", bytes >> 20);
    }
    println!("export KUBECONFIG={}", plane.kubeconfig().display());
    wait_for_end().await
}

async fn serve(folder: &str, port: &str) -> Result<()> {
    let port = port.parse().map_err(|error| Error::new(format!("--port {port}: {error}")))?;
    let server = FaultServer::serve_folder(Path::new(folder), port)?;
    println!("{}", server.url("/"));
    wait_for_end().await
}

async fn wait_for_end() -> Result<()> {
    let listen = |kind| signal(kind).map_err(|error| Error::new(format!("cannot listen for signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
