//! The real command line, as a person on this machine would use it.

use std::process::{Command, Output, Stdio};

use crate::Cluster;
use crate::cluster::binary;

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs `flotilla ARGUMENTS` against a node.
///
/// # Panics
/// If the program cannot be started.
#[must_use]
pub fn flotilla(cluster: &Cluster, node: &str, arguments: &[&str]) -> Said {
    let mut command = program();
    command.env("FLOTILLA_SOCKET", cluster.dev.places().socket(node)).args(arguments);
    said(command.stdin(Stdio::null()).output().expect("the binary can be started"))
}

/// As [`flotilla`], for commands that must succeed.
///
/// # Panics
/// If the command fails.
#[must_use]
pub fn ok(cluster: &Cluster, node: &str, arguments: &[&str]) -> String {
    let said = flotilla(cluster, node, arguments);
    assert_eq!(said.code, Some(0), "flotilla {arguments:?}: {said:?}");
    said.out
}

/// The binary, without what the caller's environment would tell it.
#[must_use]
pub fn program() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLOTILLA_")) {
        command.env_remove(name);
    }
    command
}

#[must_use]
pub fn said(output: Output) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}
