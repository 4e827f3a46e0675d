//! The `flotilla` binary: the daemon, the command line and the shim in one.

use std::process::ExitCode;

use flotilla::config::Config;
use flotilla::{cli, serve};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Before any thread exists: the shim makes containers with clone.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        return flotilla_runtime::shim_main(arguments);
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: two providers of cryptography");
        return ExitCode::FAILURE;
    }
    cli::main(daemon)
}

fn daemon(config: Config) -> anyhow::Result<serve::Ended> {
    serve::start_logging(&config)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve::run(config))
}
