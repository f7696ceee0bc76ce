//! `lab`: a cloud on one Linux machine. `docs/lab.md` tells how it is used and built.

mod apt;
mod base;
mod cgroup;
mod cli;
mod cloud;
mod failure;
mod fleet;
mod forward;
mod host;
mod mirror;
mod net;
mod output;
mod paths;
mod programs;
mod record;
mod run;
mod serve;
mod shell;
mod socket;
mod spec;
mod ssh_files;
mod supervisor;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
