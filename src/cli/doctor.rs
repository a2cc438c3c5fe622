//! `vitrine doctor`: what is wrong with an installation, and what to do about it.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use vitrine_engine::error::Result;

use super::{
    EXIT_CODES,
    cluster::{ClusterFlags, Form},
    image::Way,
    output::write,
    version::Shape,
    work,
};
use crate::client::{
    doctor::{self, Case, Level},
    site,
};

/// Look at an installation from outside: the API server, the kinds and policies, the operator, the agents, the stores, the data API, your
/// rights, and Images that stand still. Each finding says what to do. Nothing is changed. Exit code 1 if there is a problem; warnings are
/// none.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Doctor {
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    way: Way,
    /// How to show what is found
    #[arg(short, long, value_enum, default_value_t)]
    output: Shape,
}

impl Doctor {
    /// Looks, and says what it found.
    pub fn run(&self) -> ExitCode {
        work::run("doctor", self.examine())
    }

    async fn examine(&self) -> Result<ExitCode> {
        let cluster = self.cluster.open().await?;
        // An API server that does not answer is a finding.
        let found = site::namespace(&cluster, self.way.vitrine_namespace()).await;
        let namespace = found.unwrap_or_else(|_| site::USUAL_NAMESPACE.to_owned());
        let case = Case { cluster: &cluster, site: &namespace, way: self.way.choice(namespace.clone()) };
        let findings = work::until_interrupted(Box::pin(doctor::examine(&case))).await?;
        match self.output {
            Shape::Table => write(&doctor::report(&findings))?,
            Shape::Json => Form::Json.print_value(&json!({ "namespace": namespace, "findings": findings }))?,
            Shape::Yaml => Form::Yaml.print_value(&json!({ "namespace": namespace, "findings": findings }))?,
        }
        let good = doctor::worst(&findings) < Level::Problem;
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
