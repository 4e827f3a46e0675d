//! The real `kubectl`, as a person would use it against one node of a cluster.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::Cluster;
use crate::cli::{self, Said};

/// `kubectl` with a configuration of its own, which goes away with it.
pub struct Kubectl {
    program: PathBuf,
    home: TempDir,
    config: PathBuf,
}

impl Kubectl {
    /// As an administrator, at the API of `node`.
    ///
    /// # Panics
    /// If the node gives no configuration.
    #[must_use]
    pub fn new(cluster: &Cluster, node: &str) -> Self {
        Self::with(&cli::ok(cluster, node, &["kubeconfig"]))
    }

    /// With this configuration.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn with(kubeconfig: &str) -> Self {
        let home = tempfile::tempdir().expect("a directory can be made");
        let config = home.path().join("kubeconfig");
        std::fs::write(&config, kubeconfig).expect("the configuration can be written");
        Self { program: "kubectl".into(), home, config }
    }

    /// The same, with another `kubectl` than the machine's.
    #[must_use]
    pub fn with_program(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    /// Where files for it may lie.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// A file with this content, to be named on the command line.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, content).expect("a file can be written");
        path.display().to_string()
    }

    /// `kubectl`, not started yet.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.config).env("HOME", self.home.path()).current_dir(self.home.path());
        for proxy in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(proxy);
        }
        command.args(arguments);
        command
    }

    /// What it says, with nothing on standard input.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Said {
        cli::said(self.command(arguments).stdin(Stdio::null()).output().expect("kubectl can be started"))
    }

    /// What it says, with this on standard input.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn pipe(&self, arguments: &[&str], input: &str) -> Said {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl can be started");
        let mut stdin = child.stdin.take().expect("standard input is a pipe");
        // It may end without reading all of it.
        _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        cli::said(child.wait_with_output().expect("kubectl ends"))
    }

    /// Standard output of a command that must succeed and must have nothing to complain about.
    ///
    /// # Panics
    /// If it does not.
    pub fn ok(&self, arguments: &[&str]) -> String {
        succeeded(arguments, self.run(arguments))
    }

    /// As [`Self::ok`], with this on standard input.
    ///
    /// # Panics
    /// If the command fails.
    pub fn ok_with(&self, arguments: &[&str], input: &str) -> String {
        succeeded(arguments, self.pipe(arguments, input))
    }

    /// Standard error of a command that must fail.
    ///
    /// # Panics
    /// If it succeeds.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_ne!(said.code, Some(0), "kubectl {arguments:?} succeeds: {said:?}");
        said.err
    }
}

fn succeeded(arguments: &[&str], said: Said) -> String {
    assert_eq!(said.code, Some(0), "kubectl {arguments:?}: {said:?}");
    assert_eq!(said.err, "", "kubectl {arguments:?} complains; it says {:?}", said.out);
    said.out
}
