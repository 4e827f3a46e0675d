//! `up`: the daemon itself.

use std::path::PathBuf;

use clap::Args;

use super::DONE;
use super::failure::REFUSED;
use crate::config::{Config, ConfigError, Layer};
use crate::serve::Ended;

/// Variables of the command line that the daemon's configuration has no key for.
const CLIENT_VARIABLES: [&str; 1] = ["FLOTILLA_SOCKET"];

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla up
  flotilla up --join-file token --name machine-2
  ssh machine-1 flotilla token create | flotilla up --join-file -
  flotilla up --config /etc/flotilla/flotilla.toml --log debug

Every option is also a key of the configuration file (with _ for -) and a variable: FLOTILLA_DATA_DIR.")]
pub struct UpArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

/// Reads the configuration and hands it to `daemon`, which runs until it is told to stop.
///
/// # Errors
/// If the configuration is wrong or the daemon fails.
pub fn start(args: UpArgs, daemon: impl FnOnce(Config) -> anyhow::Result<Ended>) -> anyhow::Result<u8> {
    Ok(match daemon(args.place.load()?)? {
        Ended::Stopped => DONE,
        Ended::Left => REFUSED,
    })
}

/// Which daemon of this machine is meant, and how it is configured.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The configuration file [default: /etc/flotilla/flotilla.toml if there is one]
    #[arg(long, env = "FLOTILLA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    layer: Layer,
}

impl PlaceArgs {
    /// # Errors
    /// If the configuration is wrong.
    pub fn load(self) -> Result<Config, ConfigError> {
        let environment = std::env::vars().filter(|(name, _)| !CLIENT_VARIABLES.contains(&name.as_str()));
        Config::load(self.config.as_deref(), environment, self.layer)
    }
}
