//! What makes, starts, enters and deletes one container, behind one trait: youki's libcontainer by default, or any
//! command-line runtime that follows the OCI runtime specification.
//!
//! There is no `kill` and no `state` here: the container's init is the shim's own child, so the shim signals it without
//! a race and learns of its exit from the kernel, whatever the engine.
//!
//! Invariant: engines run in a single-threaded child of the shim, whose standard streams are already the container's.
//! libcontainer clones, which would be undefined in a process with threads.

pub mod capabilities;
mod command;
mod launch;
mod libcontainer;
pub mod seccomp;
pub mod spec;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use command::Command;
pub use libcontainer::Libcontainer;

/// Which engine runs the containers of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// youki's libcontainer, within the shim.
    #[default]
    Libcontainer,
    /// A runtime with runc's command line, such as `runc` or `crun`.
    Command { path: PathBuf },
}

impl EngineChoice {
    pub fn engine(&self) -> Box<dyn Engine> {
        match self {
            Self::Libcontainer => Box::new(Libcontainer),
            Self::Command { path } => Box::new(Command::new(path.clone())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// In the engine's own words.
    #[error("{0}")]
    Failed(String),
    #[error("cannot run {path}")]
    Spawn { path: PathBuf, source: std::io::Error },
    #[error("{path}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the engine wrote no process id to {0}")]
    NoPid(PathBuf),
}

/// Where an engine finds one container.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// Directory of the engine's own state, one a sandbox.
    pub root: &'a Path,
    pub id: &'a str,
}

pub trait Engine {
    /// Makes the container of `bundle` up to the point where its init waits to be started; returns init's process id.
    /// `console` is a listening Unix socket that receives the terminal's master when the process has a terminal.
    fn create(&self, at: At<'_>, bundle: &Path, console: Option<&Path>) -> Result<i32, EngineError>;

    /// Lets init run the container's command.
    fn start(&self, at: At<'_>) -> Result<(), EngineError>;

    /// Runs another process in a running container; `process` is a file with an OCI `process` object.
    fn exec(&self, at: At<'_>, bundle: &Path, process: &Path, console: Option<&Path>) -> Result<i32, EngineError>;

    /// Forgets a container that has ended, with its control group.
    fn delete(&self, at: At<'_>) -> Result<(), EngineError>;
}

/// An error and its causes in one line, without repeating what a cause says already.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = next.source();
    }
    text
}
