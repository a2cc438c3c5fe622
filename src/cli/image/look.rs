//! `vitrine image list` and `show`.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;
use vitrine_engine::error::Result;

use crate::{
    api::ImagePhase,
    cli::{
        cluster::{ClusterFlags, Form, pair},
        output::write,
    },
    client::{
        images::{self, Filter},
        view,
    },
};

/// List Images.
#[derive(Args, Debug)]
pub struct List {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// With these labels, as for `kubectl -l`
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// In this phase: Queued, Importing, Active, Deactivated, Failed or Deleting
    #[arg(long, visible_alias = "status", value_name = "PHASE", value_parser = phase)]
    phase: Option<ImagePhase>,
    /// With this property; may be given several times
    #[arg(long = "property", value_name = "KEY=VALUE", value_parser = pair)]
    properties: Vec<(String, String)>,
    /// With this tag; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl List {
    /// Lists.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let cluster = flags.open().await?;
        let filter = Filter {
            selector: self.selector.clone(),
            phase: self.phase,
            properties: self.properties.clone(),
            tags: self.tags.clone(),
        };
        let images = images::list(&cluster, self.all_namespaces, &filter).await?;
        self.output.print_list(&images, self.all_namespaces)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Show everything about Images.
#[derive(Args, Debug)]
pub struct Show {
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Show {
    /// Shows.
    pub async fn run(&self, flags: &ClusterFlags) -> Result<ExitCode> {
        let cluster = flags.open().await?;
        for (number, name) in self.names.iter().enumerate() {
            let image = images::get(&cluster, name).await?;
            let wants_events = matches!(self.output, Form::Table | Form::Wide);
            let events = if wants_events { images::events(&cluster, &image).await } else { Vec::new() };
            if number > 0 && self.output != Form::Name {
                write(if self.output == Form::Yaml { "---\n" } else { "\n" })?;
            }
            self.output.print_one(&image, || view::image::sheet(&image, &events, Timestamp::now()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A phase, however it is written.
fn phase(text: &str) -> Result<ImagePhase, String> {
    let (first, rest) = text.split_at_checked(1).unwrap_or((text, ""));
    let word = format!("{}{}", first.to_uppercase(), rest.to_lowercase());
    let wrong = |_| format!("`{text}` is no phase: use Queued, Importing, Active, Deactivated, Failed or Deleting");
    serde_json::from_value(Value::String(word)).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_may_be_written_small() {
        assert_eq!(phase("active"), Ok(ImagePhase::Active));
        assert_eq!(phase("FAILED"), Ok(ImagePhase::Failed));
        assert!(phase("saving").unwrap_err().contains("Queued") && phase("").is_err());
    }
}
