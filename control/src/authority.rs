//! How far the replacement of the cluster's authority has come, and what comes next: a function of what is stored, what the
//! nodes say of themselves, and the time.
//!
//! First every node learns to trust the new authority, then every node gets a certificate from it, then the old one is
//! dropped. A node that is dead holds nothing up: it finds its way back by its listed key.
//!
//! Invariant: no node's certificate is one that another living node does not trust yet, unless that one took longer than
//! [`STRAGGLER_SECONDS`].

use flotilla_api::kinds::cluster::{CaPhase, CaRotation};
use jiff::{SignedDuration, Timestamp};

/// How long a living node may hold up the others.
pub const STRAGGLER_SECONDS: i64 = 600;

/// A node, as far as authorities go. Fingerprints are in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    pub name: String,
    pub dead: bool,
    /// The authorities that it says it trusts.
    pub trusts: Vec<String>,
    /// The authority that signed its certificate, by its own account.
    pub certified_by: Option<String>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet, until this time at the latest, and for these nodes.
    Wait { until: Timestamp, nodes: Vec<String> },
    /// All trust the new authority: it signs from now on.
    Sign,
    /// All have its certificates: the old authority is no longer trusted.
    Drop,
}

/// The next step of a rotation to the authority `next`.
pub fn step(rotation: &CaRotation, next: &str, holders: &[Holder], now: Timestamp) -> Step {
    let done = |holder: &Holder| match rotation.phase {
        CaPhase::Spread => holder.trusts.iter().any(|one| one == next),
        CaPhase::Renew => holder.certified_by.as_deref() == Some(next),
    };
    let lagging = holders.iter().filter(|holder| !holder.dead && !done(holder));
    let nodes: Vec<String> = lagging.map(|holder| holder.name.clone()).collect();
    let kept_seconds = if rotation.phase == CaPhase::Renew { rotation.overlap_seconds } else { 0 };
    let wait_seconds = if nodes.is_empty() { kept_seconds } else { kept_seconds.max(STRAGGLER_SECONDS) };
    let until =
        rotation.phase_since.0.saturating_add(SignedDuration::from_secs(wait_seconds)).unwrap_or(Timestamp::MAX);
    match rotation.phase {
        _ if now < until => Step::Wait { until, nodes },
        CaPhase::Spread => Step::Sign,
        CaPhase::Renew => Step::Drop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_api::k8s_openapi::ByteString;
    use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn rotation(phase: CaPhase, overlap_seconds: i64) -> CaRotation {
        CaRotation {
            phase,
            started_at: Time(at(0)),
            phase_since: Time(at(100)),
            overlap_seconds,
            ca_certificate: "other".into(),
            sealed_ca: Some(ByteString(Vec::new())),
            bridge: "bridge".into(),
        }
    }

    fn holder(name: &str, trusts: &[&str], certified_by: &str) -> Holder {
        let trusts = trusts.iter().map(|&one| one.to_owned()).collect();
        Holder { name: name.into(), dead: false, trusts, certified_by: Some(certified_by.into()) }
    }

    #[test]
    fn nobody_signs_with_an_authority_that_a_living_node_does_not_trust() {
        let spread = rotation(CaPhase::Spread, 0);
        let behind = [holder("a", &["old", "new"], "old"), holder("b", &["old"], "old")];
        let wait = Step::Wait { until: at(100 + STRAGGLER_SECONDS), nodes: vec!["b".into()] };
        assert_eq!(step(&spread, "new", &behind, at(101)), wait);
        let ready = [holder("a", &["old", "new"], "old"), holder("b", &["old", "new"], "old")];
        assert_eq!(step(&spread, "new", &ready, at(101)), Step::Sign);
    }

    #[test]
    fn a_dead_node_holds_nothing_up_and_a_living_one_not_for_ever() {
        let spread = rotation(CaPhase::Spread, 0);
        let mut holders = [holder("a", &["new"], "old"), holder("b", &[], "old")];
        assert!(matches!(step(&spread, "new", &holders, at(99 + STRAGGLER_SECONDS)), Step::Wait { .. }));
        assert_eq!(step(&spread, "new", &holders, at(100 + STRAGGLER_SECONDS)), Step::Sign);
        holders[1].dead = true;
        assert_eq!(step(&spread, "new", &holders, at(100)), Step::Sign);
    }

    #[test]
    fn the_old_authority_stays_as_long_as_was_asked_for_and_until_all_have_renewed() {
        let renewed = [holder("a", &["new", "old"], "new")];
        let lagging = [holder("a", &["new", "old"], "old")];
        let short = rotation(CaPhase::Renew, 0);
        assert_eq!(step(&short, "new", &renewed, at(100)), Step::Drop);
        assert!(matches!(step(&short, "new", &lagging, at(100)), Step::Wait { .. }));
        let long = rotation(CaPhase::Renew, 3600);
        let wait = Step::Wait { until: at(3700), nodes: Vec::new() };
        assert_eq!(step(&long, "new", &renewed, at(3699)), wait);
        assert_eq!(step(&long, "new", &renewed, at(3700)), Step::Drop);
        assert_eq!(step(&long, "new", &lagging, at(3700)), Step::Drop);
    }
}
