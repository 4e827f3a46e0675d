//! The user's terminal while a command of a container has it.
//!
//! Invariant: a terminal that was made raw is restored on every way out: returns, errors, panics and signals that end
//! this program.

use std::io::{self, IsTerminal};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::terminal_size;
use crate::proto::TerminalSize;

/// Whether somebody sits at both ends.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Passes each key on as it is pressed, until dropped.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// # Errors
    /// If standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// Columns and rows now.
pub fn size() -> Option<TerminalSize> {
    terminal_size().map(|(columns, rows)| TerminalSize { columns: columns.into(), rows: rows.into() })
}

/// What the terminal, or the system, tells this program to do.
pub struct Signals {
    resized: Signal,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// A signal that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Resized,
    /// Ends this program, which exits with this code.
    End(u8),
}

impl Signals {
    /// # Errors
    /// If the system refuses to deliver them.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.resized.recv() => Told::Resized,
            _ = self.interrupt.recv() => Told::End(128 + libc::SIGINT as u8),
            _ = self.terminate.recv() => Told::End(128 + libc::SIGTERM as u8),
            _ = self.hangup.recv() => Told::End(128 + libc::SIGHUP as u8),
        }
    }
}
