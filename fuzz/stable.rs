//! Runs fuzz targets on stable Rust, as part of each crate's tests: the seeds of `fuzz/seeds/CRATE/TARGET`, then inputs
//! mutated from them with a fixed seed, so that a failure comes again.
//!
//! Invariant: the work of a target is bounded in inputs and in time; every seed is run whatever the time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

const MUTATIONS: usize = 5_000;
const TIME_LIMIT: Duration = Duration::from_secs(2);
const MAX_INPUT_BYTES: usize = 16 * 1024;

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Runs every target of a crate.
///
/// # Panics
/// If a target does, with the input that made it.
pub fn run(name: &str, targets: &[Target]) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(name);
    for (target, function) in targets {
        run_one(&seeds.join(target), target, *function);
    }
}

fn run_one(seeds: &Path, name: &str, function: fn(&[u8])) {
    let mut files: Vec<_> = fs::read_dir(seeds)
        .unwrap_or_else(|error| panic!("{}: {error}", seeds.display()))
        .map(|entry| entry.expect("a directory that can be read").path())
        .collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).expect("a seed")).collect();
    assert!(!corpus.is_empty(), "{name} has no seeds");
    corpus.iter().chain([&Vec::new()]).for_each(|input| check(name, function, input));
    let (mut dice, began) = (Dice(0x9e37_79b9_7f4a_7c15), Instant::now());
    for _ in 0..MUTATIONS {
        if began.elapsed() > TIME_LIMIT {
            break;
        }
        let mut input = corpus[dice.below(corpus.len())].clone();
        for _ in 0..=dice.below(4) {
            mutate(&mut input, &corpus, &mut dice);
        }
        input.truncate(MAX_INPUT_BYTES);
        check(name, function, &input);
    }
}

fn check(name: &str, function: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| function(input))) {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{name} fails on {hex} ({:?})", String::from_utf8_lossy(input));
        std::panic::resume_unwind(panic);
    }
}

/// One of the changes that find what decoders overlook: bits, lengths, pieces that are missing or come twice.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let end = at + dice.below(input.len() - at + 1).min(64);
    match dice.below(8) {
        0 if at < input.len() => input[at] ^= 1 << dice.below(8),
        1 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xfb, 0xfd, 0xff, b'9'][dice.below(8)],
        2 => drop(input.drain(at..end)),
        3 => input.truncate(at),
        4 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        5 => {
            let bytes: Vec<u8> = (0..=dice.below(8)).map(|_| dice.below(256) as u8).collect();
            input.splice(at..at, bytes);
        }
        6 => {
            let number = [0, 1, u64::MAX, 1 << 63, u32::MAX.into(), 1 << 31][dice.below(6)];
            let bytes = if dice.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
            input.splice(at..end, bytes);
        }
        _ => {
            let other = &corpus[dice.below(corpus.len())];
            let from = dice.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

/// xorshift64: the same numbers on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}
