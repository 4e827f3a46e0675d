//! A simulated disk: what was not synced may be gone after a crash, in part or in pieces.
//!
//! Invariant: nothing that was synced is lost, and nothing is there that was never written.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::disk::{Database, DbError, Durability, Item, Medium, Room};

use super::database::SimDb;
use super::world::{Host, World, world};

/// A crash of the machine, or of the process alone, whose writes the kernel still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Process,
    Power,
}

/// How the disk behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mood {
    /// A write takes up to this long.
    pub slow_ms: u64,
    /// Every write fails.
    pub fails: bool,
    /// Writes do not end before this time of the world.
    pub stalled_until: Duration,
    pub free_bytes: u64,
}

impl Default for Mood {
    fn default() -> Self {
        Self { slow_ms: 3, fails: false, stalled_until: Duration::ZERO, free_bytes: 1 << 40 }
    }
}

#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    synced: usize,
}

/// A change of names that is not durable before a sync.
#[derive(Clone, Debug)]
enum Rename {
    Add(PathBuf, Entry),
    Move(PathBuf, PathBuf),
    RemoveDir(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Dir,
    File(u64),
}

#[derive(Default)]
struct Files {
    names: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    pending: Vec<Rename>,
    contents: BTreeMap<u64, Content>,
    next: u64,
}

fn apply(names: &mut BTreeMap<PathBuf, Entry>, change: &Rename) {
    match change {
        Rename::Add(path, entry) => {
            names.insert(path.clone(), *entry);
        }
        Rename::RemoveDir(dir) => names.retain(|path, _| !path.starts_with(dir)),
        Rename::Move(from, to) => {
            let inside: Vec<PathBuf> = names.keys().filter(|path| path.starts_with(from)).cloned().collect();
            for path in inside {
                let entry = names.remove(&path).expect("a name that is there");
                let moved = match path.strip_prefix(from) {
                    Ok(rest) if rest.as_os_str().is_empty() => to.clone(),
                    Ok(rest) => to.join(rest),
                    Err(_) => path,
                };
                names.insert(moved, entry);
            }
        }
    }
}

impl Files {
    fn change(&mut self, change: Rename) {
        apply(&mut self.names, &change);
        self.pending.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Entry::File(file)) => Ok(*file),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }
}

/// The disk of one machine, which outlives its crashes.
#[derive(Default)]
pub(super) struct SimDisk {
    files: Mutex<Files>,
    mood: Mutex<Mood>,
}

impl SimDisk {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap()
    }

    pub fn mood(&self) -> Mood {
        *self.mood.lock().unwrap()
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// What is left after a crash.
    pub fn crash(&self, loss: Loss, world: &World) {
        if loss == Loss::Process {
            return;
        }
        let mut files = self.files();
        let pending = std::mem::take(&mut files.pending);
        // No file system promises an order among names that were not synced.
        for change in pending {
            let possible = match &change {
                Rename::Add(path, _) => path.parent().is_none_or(|dir| files.durable.contains_key(dir)),
                Rename::Move(from, _) => files.durable.contains_key(from),
                Rename::RemoveDir(_) => true,
            };
            if possible && !world.one_in(3) {
                apply(&mut files.durable, &change);
            }
        }
        files.names = files.durable.clone();
        for content in files.contents.values_mut() {
            let kept = world.between(content.synced as u64, content.bytes.len() as u64 + 1) as usize;
            content.bytes.truncate(kept);
            content.synced = kept;
        }
    }

    pub fn append(&self, file: u64, bytes: &[u8]) {
        if let Some(content) = self.files().contents.get_mut(&file) {
            content.bytes.extend_from_slice(bytes);
        }
    }

    pub fn bytes(&self, file: u64) -> Vec<u8> {
        self.files().contents.get(&file).map(|content| content.bytes.clone()).unwrap_or_default()
    }

    pub fn cut(&self, file: u64, length: usize) {
        if let Some(content) = self.files().contents.get_mut(&file) {
            content.bytes.truncate(length);
            content.synced = content.synced.min(length);
        }
    }

    /// What the file holds is durable, and so is every name.
    pub fn sync_file(&self, file: u64) {
        if let Some(content) = self.files().contents.get_mut(&file) {
            content.synced = content.bytes.len();
        }
    }

    /// Makes a file, or finds it.
    pub fn make_file(&self, path: &Path) -> u64 {
        let mut files = self.files();
        if let Ok(file) = files.file(path) {
            return file;
        }
        files.next += 1;
        let file = files.next;
        files.contents.insert(file, Content::default());
        files.change(Rename::Add(path.to_owned(), Entry::File(file)));
        file
    }

    pub fn make_dir(&self, path: &Path) {
        let mut files = self.files();
        let mut missing: Vec<&Path> = path.ancestors().filter(|dir| !files.names.contains_key(*dir)).collect();
        missing.reverse();
        for dir in missing {
            files.change(Rename::Add(dir.to_owned(), Entry::Dir));
        }
    }

    /// Names in this directory are durable.
    pub fn sync_names(&self, dir: &Path) {
        let mut files = self.files();
        let concerns = |path: &Path| path == dir || path.parent() == Some(dir);
        let (now, later): (Vec<Rename>, Vec<Rename>) = files.pending.drain(..).partition(|change| match change {
            Rename::Add(path, _) | Rename::RemoveDir(path) => concerns(path) || dir.starts_with(path),
            Rename::Move(from, to) => concerns(from) || concerns(to),
        });
        now.iter().for_each(|change| apply(&mut files.durable, change));
        files.pending = later;
    }
}

/// The disk as a running machine has it.
pub(super) struct Mounted {
    pub disk: Arc<SimDisk>,
    pub host: Arc<Host>,
}

impl Mounted {
    /// A machine that is down reaches its disk no more.
    fn reach(&self) -> io::Result<&SimDisk> {
        match self.host.is_off() {
            true => Err(io::Error::other("the machine is down")),
            false => Ok(&self.disk),
        }
    }

    fn write(&self) -> io::Result<&SimDisk> {
        match self.disk.mood().fails {
            true => Err(io::Error::other("the disk fails")),
            false => self.reach(),
        }
    }
}

impl Medium for Mounted {
    fn open(&self, path: &Path, _: Durability) -> Result<Box<dyn Database>, DbError> {
        let disk = self.write().map_err(|e| DbError { detail: e.to_string(), corrupt: false })?;
        disk.make_dir(path);
        disk.sync_names(path);
        Ok(Box::new(SimDb::open(self.disk.clone(), self.host.clone(), path)?))
    }

    fn holds_database(&self, path: &Path) -> io::Result<bool> {
        Ok(self.reach()?.files().names.contains_key(path))
    }

    /// Bits do not flip here.
    fn read_through(&self, _: &Path) -> Result<(), DbError> {
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.write()?.make_dir(path);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Item>> {
        let files = self.reach()?.files();
        let inside = files.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        let item = |(path, entry): (&PathBuf, &Entry)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let length = match entry {
                Entry::File(file) => files.contents[file].bytes.len(),
                Entry::Dir => 0,
            };
            Item { name, is_dir: *entry == Entry::Dir, length_bytes: length as u64 }
        };
        Ok(inside.map(item).collect())
    }

    fn reader(&self, file: &Path) -> io::Result<Box<dyn io::Read + Send>> {
        let disk = self.reach()?;
        let file = disk.files().file(file)?;
        Ok(Box::new(io::Cursor::new(disk.bytes(file))))
    }

    fn writer(&self, file: &Path) -> io::Result<Box<dyn io::Write + Send>> {
        let disk = self.write()?;
        let file = disk.make_file(file);
        disk.cut(file, 0);
        Ok(Box::new(Appending { disk: self.disk.clone(), host: self.host.clone(), file }))
    }

    /// A full disk refuses every write here: there is no reserve that would help.
    fn allocate(&self, _: &Path, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn remove_file(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let disk = self.write()?;
        let entry = disk.files().names.get(path).copied();
        match entry {
            Some(Entry::File(file)) => disk.sync_file(file),
            Some(Entry::Dir) => disk.sync_names(path),
            None => return Err(ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let disk = self.write()?;
        let mut files = disk.files();
        match files.names.contains_key(from) {
            true => files.change(Rename::Move(from.to_owned(), to.to_owned())),
            false => return Err(ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let disk = self.write()?;
        let mut files = disk.files();
        match files.names.contains_key(dir) {
            true => files.change(Rename::RemoveDir(dir.to_owned())),
            false => return Err(ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn room(&self, _path: &Path) -> io::Result<Room> {
        Ok(Room { free_bytes: self.reach()?.mood().free_bytes, total_bytes: 1 << 40 })
    }
}

struct Appending {
    disk: Arc<SimDisk>,
    host: Arc<Host>,
    file: u64,
}

impl io::Write for Appending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.host.is_off() || self.disk.mood().fails {
            return Err(io::Error::other("the disk is gone"));
        }
        // Short writes are legal.
        let length = bytes.len().min(1 + world().between(0, bytes.len().max(1) as u64) as usize);
        self.disk.append(self.file, &bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
