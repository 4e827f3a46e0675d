//! `completion`: a script that lets a shell complete what one types.

use std::io;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, DONE};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla completion bash > /etc/bash_completion.d/flotilla
  flotilla completion zsh > ~/.zfunc/_flotilla")]
pub struct CompletionArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn print(args: &CompletionArgs) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "flotilla", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script)?;
    Ok(DONE)
}
