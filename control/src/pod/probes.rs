//! Probes as decisions: which is due, and what the results so far mean.

use flotilla_api::k8s_openapi::api::core::v1::{Container, Probe};
use jiff::Timestamp;

use crate::meta;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

/// The results of one attempt's probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    pub startup: Option<ProbeRecord>,
    pub liveness: Option<ProbeRecord>,
    pub readiness: Option<ProbeRecord>,
}

/// What one probe has said so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeRecord {
    pub at: Timestamp,
    pub ok: bool,
    /// Equal results in a row.
    pub streak: u32,
    /// What the results mean, the thresholds considered.
    pub passing: bool,
    pub message: String,
}

impl ProbeRecord {
    /// The record after one more result.
    pub fn after(
        before: Option<&ProbeRecord>,
        kind: ProbeKind,
        probe: &Probe,
        ok: bool,
        message: String,
        at: Timestamp,
    ) -> Self {
        let streak = before.filter(|before| before.ok == ok).map_or(0, |before| before.streak).saturating_add(1);
        // A container is alive until it proves not to be, and not ready until it proves to be.
        let was = before.map_or(kind == ProbeKind::Liveness, |before| before.passing);
        let needed = if ok { threshold(probe.success_threshold, 1) } else { threshold(probe.failure_threshold, 3) };
        let passing = if streak >= needed { ok } else { was };
        Self { at, ok, streak, passing, message }
    }

    fn has_failed(&self, probe: &Probe) -> bool {
        !self.ok && self.streak >= threshold(probe.failure_threshold, 3)
    }
}

fn threshold(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

/// What the probes of a running container ask for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    pub started: bool,
    pub ready: bool,
    /// The probe that failed too often, and the grace period it sets.
    pub unhealthy: Option<(ProbeKind, Option<i64>)>,
    pub due: Vec<ProbeKind>,
    pub next_at: Option<Timestamp>,
}

/// Judges a container that has run since `started_at`.
pub(super) fn judge(container: &Container, probes: &Probes, started_at: Timestamp, now: Timestamp) -> Verdict {
    let mut verdict = Verdict { started: true, ready: true, ..Verdict::default() };
    if let Some(probe) = &container.startup_probe {
        let record = probes.startup.as_ref();
        if !record.is_some_and(|record| record.passing) {
            verdict.started = false;
            verdict.ready = false;
            verdict.watch(ProbeKind::Startup, probe, record, started_at, now);
            // The others wait for it.
            return verdict;
        }
    }
    if let Some(probe) = &container.liveness_probe {
        verdict.watch(ProbeKind::Liveness, probe, probes.liveness.as_ref(), started_at, now);
    }
    if let Some(probe) = &container.readiness_probe {
        let record = probes.readiness.as_ref();
        verdict.ready = record.is_some_and(|record| record.passing);
        verdict.watch(ProbeKind::Readiness, probe, record, started_at, now);
    }
    verdict
}

impl Verdict {
    fn watch(
        &mut self,
        kind: ProbeKind,
        probe: &Probe,
        record: Option<&ProbeRecord>,
        started_at: Timestamp,
        now: Timestamp,
    ) {
        if kind != ProbeKind::Readiness && record.is_some_and(|record| record.has_failed(probe)) {
            self.unhealthy = Some((kind, probe.termination_grace_period_seconds));
            return;
        }
        let period = i64::from(threshold(probe.period_seconds, 10));
        let delay = i64::from(probe.initial_delay_seconds.unwrap_or(0).max(0));
        let at = match record {
            Some(record) => meta::plus_seconds(record.at, period),
            None => meta::plus_seconds(started_at, delay),
        };
        if at <= now {
            self.due.push(kind);
        } else {
            self.next_at = Some(self.next_at.map_or(at, |other| other.min(at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn container() -> Container {
        let probe =
            json!({"periodSeconds": 5, "failureThreshold": 2, "initialDelaySeconds": 3, "tcpSocket": {"port": 1}});
        serde_json::from_value(json!({"name": "a", "livenessProbe": probe, "readinessProbe": probe})).unwrap()
    }

    #[test]
    fn probes_wait_for_their_delay_and_period() {
        let container = container();
        let mut probes = Probes::default();
        let verdict = judge(&container, &probes, at(0), at(1));
        assert_eq!((verdict.due.len(), verdict.next_at, verdict.ready), (0, Some(at(3)), false));
        assert_eq!(judge(&container, &probes, at(0), at(3)).due, [ProbeKind::Liveness, ProbeKind::Readiness]);
        let probe = container.readiness_probe.as_ref().unwrap();
        probes.readiness = Some(ProbeRecord::after(None, ProbeKind::Readiness, probe, true, String::new(), at(3)));
        assert!(judge(&container, &probes, at(0), at(4)).ready);
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let container = container();
        let probe = container.liveness_probe.as_ref().unwrap();
        let next = |before: Option<&ProbeRecord>, ok, second| {
            ProbeRecord::after(before, ProbeKind::Liveness, probe, ok, String::new(), at(second))
        };
        let first = next(None, false, 1);
        assert!(first.passing);
        let healed = next(Some(&first), true, 2);
        let again = next(Some(&next(Some(&healed), false, 3)), false, 4);
        assert!(!again.passing);
        let probes = Probes { liveness: Some(again), ..Probes::default() };
        assert_eq!(judge(&container, &probes, at(0), at(5)).unhealthy, Some((ProbeKind::Liveness, None)));
    }
}
