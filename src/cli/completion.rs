//! `vitrine completion`: scripts by which shells complete this program's command line.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;
use vitrine_engine::error::{Error, Kind, Result};

use super::{Cli, output::write};

/// Print a script for a shell, or the one by which kubectl completes this plugin.
#[derive(Args, Debug)]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: For,
}

/// What a script is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum For {
    Bash,
    Zsh,
    Fish,
    Powershell,
    /// kubectl: put it into the PATH as `kubectl_complete-vitrine`
    Kubectl,
}

/// kubectl runs this with the words so far, and reads a word on each line and a directive at the end. It asks bash's own completion, so that
/// there is one that knows the command line.
const KUBECTL: &str = r#"#!/usr/bin/env bash
# kubectl calls this to complete `kubectl vitrine …`: put it into your PATH as kubectl_complete-vitrine, executable.
source <(kubectl-vitrine completion bash)
COMP_WORDS=(vitrine "$@")
COMP_CWORD=$#
COMPREPLY=()
_vitrine vitrine "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
((${#COMPREPLY[@]})) && printf '%s\n' "${COMPREPLY[@]}"
echo :4
"#;

impl Completion {
    /// Prints it.
    pub fn run(&self) -> ExitCode {
        match script(self.shell).and_then(|text| write(&text)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{} completion: {error}", super::program::name());
                ExitCode::FAILURE
            }
        }
    }
}

fn script(shell: For) -> Result<String> {
    let shell = match shell {
        For::Kubectl => return Ok(KUBECTL.to_owned()),
        For::Bash => Shell::Bash,
        For::Zsh => Shell::Zsh,
        For::Fish => Shell::Fish,
        For::Powershell => Shell::PowerShell,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vitrine", &mut text);
    String::from_utf8(text).map_err(|e| Error::with_source(Kind::Internal, "writing the script", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_learns_the_verbs() {
        for shell in [For::Bash, For::Zsh, For::Fish, For::Powershell] {
            let text = script(shell).unwrap();
            assert!(text.contains("reactivate") && text.contains("doctor"), "{shell:?}");
        }
        assert!(script(For::Kubectl).unwrap().contains("_vitrine vitrine"));
    }
}
