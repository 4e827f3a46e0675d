//! What a daemon keeps in memory of its own program.
//!
//! A start runs much code that is not run again, and the kernel maps what lies around it. All that stays mapped until
//! the machine is short of memory, and then it goes last: pages of programs that run are spared. So a daemon lets go of
//! them once it runs; what it needs it gets back from the page cache, page by page.
//!
//! Invariant: only code is let go of, which nobody has written to: what is read again is what was there.

use std::io;
use std::ptr::{self, NonNull};
use std::time::Duration;

use nix::sys::mman::{MmapAdvise, madvise};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A daemon that runs for this long does not do anymore what it does only at its start.
const STARTED: Duration = Duration::from_secs(2);

/// Lets go, once, of the code that only the start needed.
pub async fn settle(stop: CancellationToken) {
    if stop.run_until_cancelled(tokio::time::sleep(STARTED)).await.is_some() {
        let freed = tokio::task::spawn_blocking(let_go_of_code).await;
        debug!(?freed, "the code of the start is let go of");
    }
}

/// The code of the program and its libraries, in bytes.
fn let_go_of_code() -> io::Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut all = 0;
    for (start, bytes) in maps.lines().filter_map(code) {
        let Some(address) = NonNull::new(ptr::with_exposed_provenance_mut(start)) else { continue };
        // SAFETY: the pages are of a file and are mapped to be read and run, never written to; whoever runs code in them
        // meanwhile has them mapped again.
        unsafe { madvise(address, bytes, MmapAdvise::MADV_DONTNEED) }?;
        all += bytes;
    }
    Ok(all)
}

/// Address and length, if a line of `/proc/PID/maps` is of a file's code. Defined by proc_pid_maps(5).
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
    let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).ok());
    is_code.then_some((start?, end?.checked_sub(start?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go_of() {
        let line = |rights: &str, file: &str| format!("55d0a000-55d0c000 {rights} 00001000 fe:00 71 {file}");
        assert_eq!(code(&line("r-xp", "        /usr/bin/flotilla")), Some((0x55d0_a000, 0x2000)));
        assert_eq!(code(&line("r-xp", "")), None, "it has nowhere to come back from");
        assert_eq!(code(&line("r-xp", "[vdso]")), None);
        for written in ["rwxp", "rw-p", "r--p", "r-xs"] {
            assert_eq!(code(&line(written, "/usr/bin/flotilla")), None, "{written}");
        }
        assert_eq!(code(""), None);
    }

    #[test]
    fn a_program_goes_on_without_what_it_let_go_of() {
        assert!(let_go_of_code().unwrap() > 0);
        let words: Vec<String> = (0..1000).map(|number| format!("{number}")).collect();
        assert_eq!(words.concat().len(), 2890);
    }
}
