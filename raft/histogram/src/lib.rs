//! Histograms for what openraft counts about itself, in the little room that this deserves.
//!
//! openraft counts the sizes of its batches, whether or not anybody asks. The crate that it counts with prepares tables for
//! sixteen precisions at its first use: 26 MB that stay resident, of which openraft needs 4 KiB. This one stands in its place
//! (`[patch.crates-io]` in the workspace's manifest): as much of the interface as openraft calls, with the one precision
//! that it uses.
//!
//! Invariant: each power of two has `IN_A_GROUP` buckets, so that a value is off by an eighth at most.

use std::fmt;
use std::marker::PhantomData;

const IN_A_GROUP: usize = 4;
/// The values below `IN_A_GROUP`, and a group for each further power of two.
const BUCKETS: usize = IN_A_GROUP * 63;

/// How often which values were recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Box<[u64; BUCKETS]>,
    slot: PhantomData<T>,
}

/// A value that so many of all samples do not exceed, each rounded down to its bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "n={samples} p50={p50} p90={p90} p99={p99} p99.9={p99_9}")
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), slot: PhantomData }
    }
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    pub fn record_n(&mut self, value: u64, times: u64) {
        let count = &mut self.counts[bucket(value)];
        *count = count.saturating_add(times);
    }

    /// How many values were recorded.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.total();
        let at = |per_mille: u64| self.value_at(samples, per_mille);
        PercentileStats {
            samples,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }

    fn value_at(&self, samples: u64, per_mille: u64) -> u64 {
        let rank = (u128::from(samples) * u128::from(per_mille)).div_ceil(1000);
        let mut seen = 0_u128;
        let reached = self.counts.iter().position(|count| {
            seen += u128::from(*count);
            seen > 0 && seen >= rank
        });
        reached.map_or(0, least)
    }
}

fn bucket(value: u64) -> usize {
    match value {
        small if small < IN_A_GROUP as u64 => small as usize,
        _ => {
            let group = 61 - value.leading_zeros() as usize;
            let offset = (value >> group) as usize & (IN_A_GROUP - 1);
            IN_A_GROUP + group * IN_A_GROUP + offset
        }
    }
}

/// The least value of a bucket.
fn least(bucket: usize) -> u64 {
    match bucket.checked_sub(IN_A_GROUP) {
        None => bucket as u64,
        Some(rest) => ((IN_A_GROUP + rest % IN_A_GROUP) as u64) << (rest / IN_A_GROUP),
    }
}

/// Histograms in words, a line each.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart(Vec<(String, PercentileStats)>);

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn add<T>(mut self, name: impl Into<String>, histogram: Histogram<T>) -> Self {
        self.0.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, stats)| writeln!(f, "{name}: {stats}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_where_it_says() {
        assert_eq!((bucket(u64::MAX), least(BUCKETS - 1)), (BUCKETS - 1, 0b111 << 61));
        for index in 0..BUCKETS {
            assert_eq!(bucket(least(index)), index);
            assert!(index == 0 || bucket(least(index) - 1) == index - 1);
        }
    }

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats(), PercentileStats::default());
        (1..=100).for_each(|value| histogram.record(value));
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p1, stats.p50, stats.p99), (100, 1, 48, 96));
    }
}
