//! The shim's record on disk.
//!
//! Invariant: `state.json` is always whole, old or new; an exit is durable before anyone is told of it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use super::protocol::State;

const FILE: &str = "state.json";
const MAX_STATE_BYTES: u64 = 4 * 1024 * 1024;

pub fn save(dir: &Path, state: &State, durable: bool) -> io::Result<()> {
    let bytes = serde_json::to_vec(state)?;
    replace(&dir.join(FILE), &bytes, durable)
}

/// `None` when the shim never wrote one, or it cannot be read.
pub fn load(dir: &Path) -> Option<State> {
    let mut bytes = Vec::new();
    File::open(dir.join(FILE)).ok()?.take(MAX_STATE_BYTES).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Puts `bytes` in the place of a file at once.
pub fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durable && let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// When a process started, in clock ticks since boot; `None` when there is no such process.
pub fn started_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The fields after the command, which is in parentheses and may itself hold any character.
    let (_, rest) = stat.rsplit_once(") ")?;
    if rest.starts_with(['Z', 'X']) {
        return None;
    }
    rest.split(' ').nth(19)?.parse().ok()
}
