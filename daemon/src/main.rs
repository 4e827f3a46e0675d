//! The `flotilla` binary: the daemon, the command line and the shim in one.

use std::process::ExitCode;

use flotilla::cli;
use flotilla::config::Config;

fn main() -> ExitCode {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: two providers of cryptography");
        return ExitCode::FAILURE;
    }
    cli::main(daemon)
}

fn daemon(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("{} has no daemon in this build", config.name)
}
