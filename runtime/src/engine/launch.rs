//! The last step inside a container: from the prepared process to the user's command.
//!
//! Invariant: a command that cannot be executed says so on the container's own stderr and exits as a shell would, with
//! 127 (not found) or 126 (not executable).

use std::ffi::{CStr, CString};

use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxSeccomp, Spec};

#[derive(Clone)]
pub struct Launch {
    /// Loaded right before the command.
    seccomp: Option<LinuxSeccomp>,
}

impl Launch {
    pub fn plain() -> Self {
        Self { seccomp: None }
    }

    pub fn with(seccomp: Option<LinuxSeccomp>) -> Self {
        Self { seccomp }
    }
}

/// Executes the command, looked for in `PATH` unless it is a path; returns only to say why not.
///
/// Unlike libc's `execvp`, a file of no known format is an error, not a shell script.
fn execute(command: &CStr, args: &[CString]) -> Errno {
    let run = |path: &CStr| {
        let Err(errno) = nix::unistd::execv(path, args);
        errno
    };
    if command.to_bytes().contains(&b'/') {
        return run(command);
    }
    let mut worst = Errno::ENOENT;
    for dir in std::env::var("PATH").unwrap_or_default().split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let Ok(path) = CString::new([dir.as_bytes(), b"/", command.to_bytes()].concat()) else { continue };
        match run(&path) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = Errno::EACCES,
            other => return other,
        }
    }
    worst
}

impl Executor for Launch {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec.process().as_ref().and_then(|p| p.args().as_ref()).ok_or(ExecutorError::InvalidArg)?;
        let args: Vec<CString> = args
            .iter()
            .map(|arg| CString::new(arg.as_bytes()).map_err(|_| ExecutorError::InvalidArg))
            .collect::<Result<_, _>>()?;
        let command = args.first().ok_or(ExecutorError::InvalidArg)?;
        if let Some(profile) = &self.seccomp {
            libcontainer::seccomp::initialize_seccomp(profile)
                .map_err(|error| ExecutorError::Other(format!("seccomp: {error}")))?;
        }
        let errno = execute(command, &args);
        eprintln!("exec {}: {}", command.to_string_lossy(), errno.desc());
        std::process::exit(if errno == Errno::ENOENT { 127 } else { 126 });
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }
}
