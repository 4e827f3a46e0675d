//! The table of figures: each with its peer's and the ratio of the two.

use std::fmt;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<[String; 4]>,
    failed: bool,
}

impl Report {
    /// A figure of ours and the same of a peer; both in the same unit.
    pub fn beside(&mut self, what: &str, ours: f64, peer: &str, theirs: f64, unit: &str) {
        let ratio = if theirs > 0.0 { format!("{:.2}", ours / theirs) } else { "–".to_owned() };
        let [ours, theirs] = [ours, theirs].map(|value| format!("{} {unit}", short(value)));
        self.row([what.to_owned(), ours, format!("{peer} {theirs}"), ratio]);
    }

    /// A figure without a peer, and what it is aimed at.
    pub fn aimed(&mut self, what: &str, ours: f64, aim: f64, unit: &str) {
        let ratio = format!("{:.2}", ours / aim);
        self.row([what.to_owned(), format!("{} {unit}", short(ours)), format!("aim ≤ {} {unit}", short(aim)), ratio]);
    }

    pub fn alone(&mut self, what: &str, ours: f64, unit: &str) {
        self.row([what.to_owned(), format!("{} {unit}", short(ours)), "–".into(), "–".into()]);
    }

    pub fn failed(&mut self, section: &str, error: &anyhow::Error) {
        self.failed = true;
        self.row([section.to_owned(), format!("failed: {error:#}"), "–".into(), "–".into()]);
    }

    /// True if no section failed.
    pub fn is_complete(&self) -> bool {
        !self.failed
    }

    fn row(&mut self, row: [String; 4]) {
        println!("{}: {}; {}; ratio {}", row[0], row[1], row[2], row[3]);
        self.rows.push(row);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| Figure | Flotilla | Beside | Ratio |\n|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

/// Durations in the order of their length, to ask for shares of them.
#[derive(Debug)]
pub struct Spread(Vec<Duration>);

impl Spread {
    /// # Errors
    /// If there is none.
    pub fn of(mut times: Vec<Duration>) -> anyhow::Result<Self> {
        anyhow::ensure!(!times.is_empty(), "nothing was measured");
        times.sort_unstable();
        Ok(Self(times))
    }

    /// So many in a hundred took at most this long, in milliseconds. Rounded up: 99 of 50 is the longest.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).clamp(1, self.0.len());
        self.0[rank - 1].as_secs_f64() * 1e3
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Three digits at most behind the first, none behind a hundred.
fn short(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_never_flatter() {
        let spread = Spread::of((1..=50).rev().map(Duration::from_millis).collect()).unwrap();
        assert_eq!([50, 99, 100].map(|percent| spread.percentile_ms(percent)), [25.0, 50.0, 50.0]);
        let one = Spread::of(vec![Duration::from_millis(7)]).unwrap();
        assert_eq!(one.percentile_ms(50), 7.0);
        assert!(Spread::of(Vec::new()).is_err());
    }
}
