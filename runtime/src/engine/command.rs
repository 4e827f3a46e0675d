//! An engine that is a program: anything with runc's command line.
//!
//! Invariant: every call ends within `CALL_TIMEOUT` or is killed; what the program says is read up to a bound.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use super::{At, Engine, EngineError};

const CALL_TIMEOUT: Duration = Duration::from_secs(110);
const MAX_LOG_BYTES: u64 = 64 * 1024;

pub struct Command {
    path: PathBuf,
}

impl Command {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn call(&self, at: At<'_>, args: &[&std::ffi::OsStr], own_streams: bool) -> Result<(), EngineError> {
        let io = |path: &Path, source| EngineError::Io { path: path.into(), source };
        fs::create_dir_all(at.root).map_err(|source| io(at.root, source))?;
        let log = at.root.join(format!(".{}.log", at.id));
        let _ = fs::remove_file(&log);
        let mut call = Process::new(&self.path);
        call.arg("--root").arg(at.root).arg("--log").arg(&log).args(["--log-format", "json"]).args(args);
        if !own_streams {
            call.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        call.process_group(0);
        let mut child = call.spawn().map_err(|source| EngineError::Spawn { path: self.path.clone(), source })?;
        let deadline = Instant::now() + CALL_TIMEOUT;
        let status = loop {
            match child.try_wait().map_err(|source| io(&self.path, source))? {
                Some(status) => break status,
                None if Instant::now() >= deadline => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(EngineError::Failed(format!(
                        "{} did not end in {CALL_TIMEOUT:?}",
                        self.path.display()
                    )));
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let said = last_error(&log);
        let _ = fs::remove_file(&log);
        if status.success() {
            return Ok(());
        }
        Err(EngineError::Failed(said.unwrap_or_else(|| format!("{} ended with {status}", self.path.display()))))
    }

    fn call_for_pid(&self, at: At<'_>, args: &[&std::ffi::OsStr]) -> Result<i32, EngineError> {
        let pid_file = at.root.join(format!(".{}.{}.pid", at.id, std::process::id()));
        let tail = [os("--pid-file"), pid_file.as_os_str(), os(at.id)];
        let outcome = self.call(at, &[args, &tail].concat(), true);
        let pid = fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
        let _ = fs::remove_file(&pid_file);
        outcome.and_then(|()| pid.ok_or(EngineError::NoPid(pid_file)))
    }
}

impl Engine for Command {
    fn create(&self, at: At<'_>, bundle: &Path, console: Option<&Path>) -> Result<i32, EngineError> {
        let mut args = vec![os("create"), os("--bundle"), bundle.as_os_str()];
        if let Some(console) = console {
            args.extend([os("--console-socket"), console.as_os_str()]);
        }
        self.call_for_pid(at, &args)
    }

    fn start(&self, at: At<'_>) -> Result<(), EngineError> {
        self.call(at, &[os("start"), os(at.id)], false)
    }

    fn exec(&self, at: At<'_>, _: &Path, process: &Path, console: Option<&Path>) -> Result<i32, EngineError> {
        let mut args = vec![os("exec"), os("--detach"), os("--process"), process.as_os_str()];
        if let Some(console) = console {
            args.extend([os("--console-socket"), console.as_os_str()]);
        }
        self.call_for_pid(at, &args)
    }

    fn delete(&self, at: At<'_>) -> Result<(), EngineError> {
        if !at.root.join(at.id).exists() {
            return Ok(());
        }
        self.call(at, &[os("delete"), os("--force"), os(at.id)], false)
    }
}

fn os(text: &str) -> &std::ffi::OsStr {
    std::ffi::OsStr::new(text)
}

/// The last error in a log of JSON lines.
fn last_error(log: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(log).ok()?.take(MAX_LOG_BYTES).read_to_string(&mut text).ok()?;
    text.lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|line| line["level"] == "error" || line["level"] == "fatal")
        .and_then(|line| line["msg"].as_str().map(str::to_owned))
}
