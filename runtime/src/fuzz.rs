//! Every decoder of this crate that reads bytes from a registry, an archive, a shim or a log, as functions for fuzzers and
//! for a test on stable Rust.
//!
//! Invariant: no input panics, takes more memory than its bounds, or leaves a file outside the directory that it was
//! given.

use std::io::Read;
use std::sync::atomic::AtomicBool;

use crate::images::manifest::{ConfigFile, Document, Platform};
use crate::images::tarball::TarReader;
use crate::images::unpack::stream::{LayerStream, decompress};
use crate::images::unpack::unpack;
use crate::images::{Digest, Limits, Reference, registry};
use crate::pods::logs;
use crate::shim::protocol::{Call, Inbox, Launch, Message, State};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("manifest", manifest),
    ("tar", tar),
    ("layer", layer),
    ("reference", reference),
    ("registry", registry_answer),
    ("shim", shim),
    ("log", log),
];

const MAX_UNPACKED_BYTES: u64 = 1 << 20;

fn manifest(input: &[u8]) {
    for media_type in [None, Some("application/vnd.oci.image.index.v1+json")] {
        match Document::parse(input, media_type) {
            Ok(Document::Manifest(manifest)) => {
                if let Ok(config) = ConfigFile::parse(input) {
                    _ = manifest.layers(&config);
                }
            }
            Ok(Document::Index(index)) => _ = index.choose(&Platform::here()),
            Err(_) => {}
        }
    }
    if let Ok(config) = ConfigFile::parse(input) {
        _ = (config.check_platform(&Platform::here()), config.image_config());
    }
}

/// The entries of an archive and their contents, decompressed if need be.
fn tar(input: &[u8]) {
    let Ok(stream) = decompress(input) else { return };
    let mut tar = TarReader::new(stream.take(MAX_UNPACKED_BYTES));
    let mut buffer = [0; 4096];
    while let Ok(Some(_)) = tar.next_entry() {
        while tar.read(&mut buffer).is_ok_and(|read| read > 0) {}
    }
}

/// A layer, laid down in a directory of its own.
fn layer(input: &[u8]) {
    let scratch = Scratch::new();
    let limits = Limits { unpacked_bytes: MAX_UNPACKED_BYTES, entries: 256, ..Limits::default() };
    let root = std::fs::File::open(scratch.0.join("in")).expect("a directory that was just made");
    if let Ok(mut stream) = LayerStream::new(input, MAX_UNPACKED_BYTES)
        && let Ok(unpacked) = unpack(&mut stream, root.into(), &limits, &AtomicBool::new(false))
    {
        // A file may be sparse, but nobody unpacks more than was allowed.
        assert!(unpacked.size_bytes <= MAX_UNPACKED_BYTES, "{}", unpacked.size_bytes);
    }
    let outside = std::fs::read_dir(&scratch.0).expect("its own directory").count();
    assert_eq!(outside, 1, "something was laid down outside");
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("flotilla-fuzz-{}", std::process::id()));
        _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("in")).expect("a directory can be made");
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

fn reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        let again = reference.to_string().parse::<Reference>().expect("what was printed parses");
        assert_eq!(again, reference);
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}

/// What a registry says when it asks for credentials or refuses.
fn registry_answer(input: &[u8]) {
    registry::fuzz(input);
}

/// Frames of a shim's socket, cut anywhere, and what it keeps on disk.
fn shim(input: &[u8]) {
    let (first, rest) = input.split_at(input.len() / 2);
    let (mut calls, mut messages) = (Inbox::default(), Inbox::default());
    for piece in [first, rest] {
        if calls.push(piece, Vec::new()).is_ok() {
            while let Ok(Some(call)) = calls.take::<Call>() {
                _ = calls.claim(call.fds);
            }
        }
        if messages.push(piece, Vec::new()).is_ok() {
            while let Ok(Some(_)) = messages.take::<Message>() {}
        }
    }
    _ = serde_json::from_slice::<State>(input);
    _ = serde_json::from_slice::<Launch>(input);
}

fn log(input: &[u8]) {
    logs::fuzz(input);
}

#[cfg(test)]
#[path = "../../fuzz/stable.rs"]
mod stable;

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_and_their_mutations_are_taken_or_refused() {
        super::stable::run("runtime", super::TARGETS);
    }
}
