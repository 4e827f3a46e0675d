//! Processes that outlive the command which started them, told apart from later ones that got the same number.
//!
//! Invariant: a signal goes only to the process that was started, never to one that took over its id.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::error::{DevError, Doing};

/// How often a wait looks again.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// A process id, and the tick of the system clock at which that process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub started_ticks: u64,
}

/// What `/proc/PID/stat` says.
struct Stat {
    /// Of the first thread only.
    state: char,
    threads: u32,
    started_ticks: u64,
}

impl Process {
    /// The process that has this id now.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = stat(pid)?;
        Ok(Self { pid, started_ticks: stat.started_ticks })
    }

    /// True until it has exited, whether or not somebody has collected it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // While other threads are still ending, so are the files and locks that they share with the first.
        self.current().is_some_and(|stat| !matches!(stat.state, 'Z' | 'X') || stat.threads > 1)
    }

    /// True while a signal holds it still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.current().is_some_and(|stat| stat.state == 'T')
    }

    fn current(&self) -> Option<Stat> {
        stat(self.pid).ok().filter(|stat| stat.started_ticks == self.started_ticks)
    }

    /// # Errors
    /// If the system refuses; a process that is gone is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), DevError> {
        if !self.is_alive() {
            return Ok(());
        }
        match signal::kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno).doing(|| format!("cannot send {signal} to process {}", self.pid)),
        }
    }

    /// Waits until it has exited. False if it still runs when the time is over.
    #[must_use]
    pub fn wait_gone(&self, within: Duration) -> bool {
        wait_until(within, || !self.is_alive())
    }

    /// Waits until a signal holds it still. False if it still runs when the time is over.
    #[must_use]
    pub(crate) fn wait_paused(&self, within: Duration) -> bool {
        wait_until(within, || self.is_paused())
    }

    /// One of its namespaces: `net`, `mnt`, `pid`, …
    pub(crate) fn namespace(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.pid))
    }
}

fn wait_until(within: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has another form"))
}

/// The command's name stands in parentheses and may itself hold some; fields are counted from the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let started_ticks = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, threads, started_ticks })
}

/// Every process in a pid namespace, by the id it has here.
pub(crate) fn in_pid_namespace(of: &Process) -> io::Result<Vec<i32>> {
    let wanted = fs::read_link(of.namespace("pid"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == wanted) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The id that a process of a pid namespace, or of one nested in it, has in that namespace.
pub(crate) fn innermost_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = parse_stat("7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 0 0").unwrap();
        assert_eq!((stat.state, stat.threads, stat.started_ticks), ('S', 17, 4242));
    }

    #[test]
    fn a_process_that_took_over_an_id_is_another_one() {
        let me = Process::of(std::process::id().cast_signed()).unwrap();
        assert!(me.is_alive());
        let earlier = Process { started_ticks: me.started_ticks - 1, ..me };
        assert!(!earlier.is_alive());
        earlier.signal(Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_process_that_ended_is_seen_to_be_gone_before_it_is_collected() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(child.id().cast_signed()).unwrap();
        assert!(!process.wait_gone(Duration::ZERO));
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.wait_gone(Duration::from_secs(5)));
        child.wait().unwrap();
    }
}
