//! The seeds that run: a few each time, those that once found something, and whichever are asked for.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::scenario::{Report, run};

/// A seed a line, then what it found.
const KEPT: &str = include_str!("seeds.txt");
/// The seeds of a short run begin here.
const SHORT_FROM: u64 = 28;
const SHORT_SEEDS: u64 = 4;
/// Of each seed, so many violations are told; the first one matters most.
const MAX_TOLD: usize = 4;

fn tell(report: &Report) -> String {
    let Report { seed, trace_hash, simulated, tally, events_watched, terms, revision, violations } = report;
    let mut told = format!(
        "seed {seed}: {:.0} s, {} acknowledged, {} unknown, {} reads, {events_watched} events watched, {terms} terms, \
         revision {revision}, trace {trace_hash:016x}, {} violations",
        simulated.as_secs_f64(),
        tally.acknowledged,
        tally.unknown,
        tally.reads,
        violations.len()
    );
    for violation in violations.iter().take(MAX_TOLD) {
        let _ = write!(
            told,
            "\n  seed {seed} {violation}\n    again with: SIM_TRACE=1 make sim SEEDS={seed}..{}",
            seed + 1
        );
    }
    told
}

/// Runs seeds, as many at a time as there are cores, and returns what they showed in order.
fn run_all(seeds: Vec<u64>) -> Vec<Report> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::Mutex::new(seeds.into_iter());
    let reports = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().unwrap().next() else { return };
                    let report = run(seed);
                    println!("{}", tell(&report));
                    reports.lock().unwrap().push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap();
    reports.sort_by_key(|report| report.seed);
    reports
}

/// Runs seeds and fails if one of them shows a violation.
fn assert_sound(seeds: Vec<u64>) {
    let began = Instant::now();
    let reports = run_all(seeds);
    let simulated: Duration = reports.iter().map(|report| report.simulated).sum();
    let violations: usize = reports.iter().map(|report| report.violations.len()).sum();
    let line = format!(
        "simulation: {} seeds, {:.2} simulated hours in {:.0} s, {violations} violations",
        reports.len(),
        simulated.as_secs_f64() / 3600.0,
        began.elapsed().as_secs_f64()
    );
    println!("{line}");
    if let Some(file) = std::env::var_os("SIM_LINE") {
        std::fs::write(&file, format!("{line}\n")).expect("a file for the line");
    }
    let broken: Vec<String> = reports.iter().filter(|report| !report.violations.is_empty()).map(tell).collect();
    assert!(broken.is_empty(), "{}\n{line}", broken.join("\n"));
}

/// What `make sim` runs: the seeds of `SIM_SEEDS`, given as `FROM..TO`.
#[test]
fn asked_for() {
    let Ok(wanted) = std::env::var("SIM_SEEDS") else { return };
    let parsed = wanted.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    let (from, to): (u64, u64) = parsed.expect("SIM_SEEDS is FROM..TO");
    assert_sound((from..to).collect());
}

#[test]
fn a_few_seeds_hold() {
    assert_sound((SHORT_FROM..SHORT_FROM + SHORT_SEEDS).collect());
}

#[test]
fn seeds_that_found_something_hold() {
    let seed = |line: &str| line.split_whitespace().next().and_then(|word| word.parse().ok());
    let kept = KEPT.lines().filter(|line| !line.starts_with('#')).filter_map(seed);
    assert_sound(kept.collect());
}

#[test]
fn the_same_seed_leaves_the_same_trace() {
    let (first, again) = (run(2), run(2));
    assert_eq!(first.trace_hash, again.trace_hash);
    assert_eq!(first.tally.acknowledged, again.tally.acknowledged);
    assert_ne!(first.trace_hash, run(3).trace_hash);
}
