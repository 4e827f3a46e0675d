//! Figures that a test measured, for the people who run it.

use std::fs::OpenOptions;
use std::io::Write;

/// The file to which figures are added; without it they are printed.
const FILE: &str = "FIGURES";

/// Tells a figure with its unit: `figure("a node died", "6 replicas ran again after 4.1 s (at most 8)")`.
pub fn figure(what: &str, value: &str) {
    let line = format!("  {what}: {value}");
    println!("{line}");
    let Some(path) = std::env::var_os(FILE) else { return };
    let written =
        OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| writeln!(file, "{line}"));
    if let Err(error) = written {
        eprintln!("cannot write {}: {error}", path.display());
    }
}
