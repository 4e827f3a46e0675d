//! Work that has nothing to do with the cluster and takes the machine's processors and disk away from it.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

const BLOCK_BYTES: usize = 4 << 20;
const FILE_BYTES: u64 = 256 << 20;

/// Threads that spin and threads that write and sync, until this is dropped.
pub struct Burden {
    stop: Arc<AtomicBool>,
    written_bytes: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    dir: PathBuf,
}

impl Burden {
    /// Twice as many spinning threads as there are processors, and two that keep a disk busy.
    ///
    /// # Errors
    /// If nothing can be written to `dir`, which is made.
    pub fn start(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let (stop, written_bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let processors = std::thread::available_parallelism()?.get();
        let mut burden = Self { stop, written_bytes, threads: Vec::new(), dir };
        for _ in 0..processors * 2 {
            let stop = burden.stop.clone();
            burden.threads.push(std::thread::spawn(move || spin(&stop)));
        }
        for number in 0..2 {
            let file = File::create(burden.dir.join(number.to_string()))?;
            let (stop, written_bytes) = (burden.stop.clone(), burden.written_bytes.clone());
            burden.threads.push(std::thread::spawn(move || keep_writing(file, &stop, &written_bytes)));
        }
        Ok(burden)
    }

    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Burden {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked wrote less than it should have; whoever looks at the figure sees it.
            let _ = thread.join();
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

fn spin(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

fn keep_writing(mut file: File, stop: &AtomicBool, written_bytes: &AtomicU64) {
    let block = vec![0x5a; BLOCK_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let begun = file.stream_position().and_then(|at| if at >= FILE_BYTES { file.rewind() } else { Ok(()) });
        begun.and_then(|()| file.write_all(&block)).and_then(|()| file.sync_data()).expect("the disk can be written");
        written_bytes.fetch_add(BLOCK_BYTES as u64, Ordering::Relaxed);
    }
}
