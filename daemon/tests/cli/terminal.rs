//! `exec -it` on a terminal: raw while it runs, as before afterwards, however it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use tokio::process::Child;

use super::daemon::Daemon;
use super::{PATIENCE, flotilla};

struct Terminal {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Terminal {
    fn open() -> Self {
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        Self { ours: master, theirs: slave }
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.theirs).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self.settings().local_flags.contains(LocalFlags::ICANON)
    }

    fn exec(&self, daemon: &Daemon, command: &[&str]) -> Child {
        let end = || self.theirs.try_clone().unwrap();
        let mut program = flotilla(daemon.socket());
        program.args(["exec", "web-a", "-it", "--"]).args(command);
        program.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    async fn until_raw(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_raw() {
            assert!(Instant::now() < deadline, "the terminal was never made raw");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn type_in(&self, text: &str) {
        File::from(self.ours.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    /// What is on the screen once `text` is.
    async fn read_until(&self, text: &'static str) -> String {
        let mut file = File::from(self.ours.try_clone().unwrap());
        let reading = tokio::task::spawn_blocking(move || {
            let mut seen = Vec::new();
            let mut chunk = [0; 1024];
            while !String::from_utf8_lossy(&seen).contains(text) {
                match file.read(&mut chunk) {
                    Ok(count) if count > 0 => seen.extend_from_slice(&chunk[..count]),
                    _ => break,
                }
            }
            String::from_utf8_lossy(&seen).into_owned()
        });
        tokio::time::timeout(PATIENCE, reading).await.expect("in time").unwrap()
    }
}

async fn code_of(mut child: Child) -> i32 {
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("in time").unwrap().code().unwrap()
}

#[tokio::test]
async fn the_command_gets_each_key_and_the_terminal_is_as_before() {
    let (daemon, terminal) = (Daemon::start(), Terminal::open());
    let before = terminal.settings();
    let child = terminal.exec(&daemon, &["cat"]);
    terminal.until_raw().await;
    terminal.type_in("key");
    assert!(terminal.read_until("key").await.contains("key"));
    terminal.type_in("\x04");
    assert_eq!(code_of(child).await, 0);
    assert_eq!(terminal.settings(), before);
}

#[tokio::test]
async fn the_command_learns_the_size_of_the_terminal() {
    let (daemon, terminal) = (Daemon::start(), Terminal::open());
    let child = terminal.exec(&daemon, &["size"]);
    let screen = terminal.read_until("101x33").await;
    assert!(screen.contains("101x33"), "{screen}");
    assert_eq!(code_of(child).await, 0);
}

#[tokio::test]
async fn a_failure_and_a_signal_leave_the_terminal_as_it_was() {
    let terminal = Terminal::open();
    let before = terminal.settings();
    let daemon = Daemon::start();
    assert_eq!(code_of(terminal.exec(&daemon, &["exit", "3"])).await, 3);
    assert_eq!(terminal.settings(), before);
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let child = terminal.exec(&daemon, &["cat"]);
        terminal.until_raw().await;
        kill(Pid::from_raw(child.id().unwrap() as i32), signal).unwrap();
        assert_eq!(code_of(child).await, code);
        assert_eq!(terminal.settings(), before);
    }
}
