//! The benchmarks that single crates bring along, run as programs of their own and read.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::etcd::DISK;
use crate::report::Report;

/// What Debian calls it; outside of an ordinary user's path.
pub const RUNC: &str = "/usr/sbin/runc";
const ROUNDS: &str = "20";
const STORE_SECONDS: &str = "5";

/// A line of the store's own benchmark.
#[derive(Debug, PartialEq)]
pub struct StoreRate {
    pub replicas: usize,
    pub clients: usize,
    pub per_second: f64,
}

/// A container that runs `/bin/true`: from asking for it to knowing its exit code.
///
/// # Errors
/// If it cannot be measured.
pub fn starts(report: &mut Report) -> anyhow::Result<()> {
    let said = run("start_bench", ROUNDS)?;
    let ours = median_ms(&said, "shim with libcontainer: create to recorded exit")?;
    let theirs = median_ms(&said, "bare runc: run to end").context("is runc installed?")?;
    let what = format!("container of /bin/true, create → exit recorded, median of {ROUNDS}");
    report.beside(&what, ours, "runc run", theirs, "ms");
    Ok(())
}

/// Durable puts a second into the store itself.
///
/// # Errors
/// If they cannot be measured.
pub fn store_rates() -> anyhow::Result<Vec<StoreRate>> {
    let rates = read_store_rates(&run("put_bench", STORE_SECONDS)?);
    anyhow::ensure!(!rates.is_empty(), "put_bench told nothing");
    Ok(rates)
}

/// Runs an example that was built beside this program, and shows what it says.
fn run(example: &str, argument: &str) -> anyhow::Result<String> {
    let program = beside(&std::env::current_exe()?, example);
    let output = Command::new(&program)
        .arg(argument)
        .env("TMPDIR", DISK)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{} does not start: make bench builds it", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{said}");
    anyhow::ensure!(output.status.success(), "{example} fails: {}", output.status);
    Ok(said)
}

fn beside(program: &Path, example: &str) -> PathBuf {
    program.with_file_name("examples").join(example)
}

fn median_ms(said: &str, what: &str) -> anyhow::Result<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix(what));
    let figure = line.and_then(|line| line.split_once("median ")?.1.split_once(" ms")?.0.parse().ok());
    figure.with_context(|| format!("no figure for {what:?}"))
}

fn read_store_rates(said: &str) -> Vec<StoreRate> {
    let row = |line: &str| {
        let mut cells = line.split_ascii_whitespace();
        let replicas = cells.next()?.parse().ok()?;
        let clients = cells.next()?.parse().ok()?;
        Some(StoreRate { replicas, clients, per_second: cells.next()?.parse().ok()? })
    };
    said.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_examples_say_is_read() {
        let said = "shim: create to recorded exit median 14.5 ms, p90 20.1 ms (n=20)\nother";
        assert_eq!(median_ms(said, "shim: create to recorded exit").unwrap(), 14.5);
        assert!(median_ms(said, "other").is_err());
        let table = "replicas  clients  puts/s\n   1  100   51234  1.2\nleader cut off -> next write: median 5 ms";
        assert_eq!(read_store_rates(table), [StoreRate { replicas: 1, clients: 100, per_second: 51234.0 }]);
    }
}
