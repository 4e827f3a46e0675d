//! Waiting longer and longer before what fails is tried again.

use jiff::Timestamp;

use super::observed::{Exit, Failure};
use crate::meta;

const FIRST_SECONDS: i64 = 10;
const LAST_SECONDS: i64 = 300;
/// A container that ran so long starts afresh.
const LASTING_SECONDS: i64 = 600;

/// 10 s, 20 s, … 5 min after so many failures in a row; nothing after none.
pub(super) fn delay_seconds(failures: u32) -> i64 {
    match failures {
        0 => 0,
        failures => FIRST_SECONDS.saturating_mul(1 << (failures - 1).min(10)).min(LAST_SECONDS),
    }
}

/// When a failure is tried again.
pub(super) fn retry_at(failure: &Failure) -> Timestamp {
    meta::plus_seconds(failure.at, delay_seconds(failure.tries.max(1)))
}

/// How many restarts in a row did not last, given how the attempt that had `crashes` before it ended.
pub(super) fn crashes_before(crashes: u32, exit: &Exit) -> u32 {
    let lasted = exit.started_at.is_some_and(|start| meta::elapsed_seconds(start, exit.finished_at) >= LASTING_SECONDS);
    if lasted { 0 } else { crashes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_minutes() {
        let delays: Vec<i64> = (0..8).map(delay_seconds).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(delay_seconds(u32::MAX), 300);
    }
}
