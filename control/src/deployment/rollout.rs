//! One step from the old versions to the new one.
//!
//! Available pods of a set are never counted higher than its size: the set's status may be older than
//! its spec.

use flotilla_api::k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSet};
use flotilla_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Pass, replicas, sets};
use crate::plan::Context;
use crate::view::Stored;

/// How far a rolling update may go beyond and below the wanted size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub surge: i32,
    pub unavailable: i32,
}

/// The bounds in pods: percentages of surge round up, those of unavailability down; not both are 0.
pub(super) fn bounds(spec: &DeploymentSpec) -> Bounds {
    if super::recreates(spec) {
        return Bounds { surge: 0, unavailable: 0 };
    }
    let wanted = replicas(spec);
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&quarter);
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&quarter);
    let surge = amount(surge, wanted, true);
    let unavailable = amount(unavailable, wanted, false).min(wanted);
    match (surge, unavailable) {
        (0, 0) => Bounds { surge: 0, unavailable: 1 },
        (surge, unavailable) => Bounds { surge, unavailable },
    }
}

fn amount(value: &IntOrString, of: i32, round_up: bool) -> i32 {
    let percent = match value {
        IntOrString::Int(number) => return (*number).max(0),
        IntOrString::String(text) => text.strip_suffix('%').and_then(|number| number.parse::<i64>().ok()),
    };
    let hundredths = i64::from(of).saturating_mul(percent.unwrap_or(0).max(0));
    let rounded = if round_up { hundredths.saturating_add(99) / 100 } else { hundredths / 100 };
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

impl Pass<'_> {
    /// How large the current set may be, given that it now has `size` pods.
    pub(super) fn room_for_new(&self, size: i32) -> i32 {
        let wanted = replicas(self.spec);
        let most = wanted.saturating_add(bounds(self.spec).surge);
        let room = most.saturating_sub(self.sets.total()).max(0);
        size.saturating_add(room.min(wanted.saturating_sub(size)).max(0))
    }

    pub(super) fn roll(&mut self) {
        let Some(new) = self.sets.new else { return };
        let wanted = replicas(self.spec);
        let size = sets::size(new);
        let target = if size >= wanted { wanted } else { self.room_for_new(size) };
        if target != size {
            self.resize(new, target);
            return;
        }
        self.shrink_old(new);
    }

    fn shrink_old(&mut self, new: &Stored<ReplicaSet>) {
        let least = replicas(self.spec).saturating_sub(bounds(self.spec).unavailable);
        let waiting = (sets::size(new) - available(new)).max(0);
        let mut budget = self.sets.total().saturating_sub(least).saturating_sub(waiting);
        if budget <= 0 {
            return;
        }
        let old = self.sets.old.clone();
        // Pods that are not available go first: nobody misses them.
        for set in &old {
            let broken = (sets::size(set) - available(set)).clamp(0, budget);
            budget -= broken;
            self.resize(set, self.size(set) - broken);
        }
        let all = old.iter().copied().map(available).fold(available(new), i32::saturating_add);
        let mut spare = all.saturating_sub(least).min(budget);
        for set in &old {
            let healthy = self.size(set).clamp(0, spare.max(0));
            spare -= healthy;
            self.resize(set, self.size(set) - healthy);
        }
    }

    /// Old pods first, new ones when they are gone.
    pub(super) fn recreate(&mut self, cx: &Context<'_>) {
        for set in self.sets.old.clone() {
            self.resize(set, 0);
        }
        if let Some(new) = self.sets.new
            && self.old_pods_are_gone(cx)
        {
            self.resize(new, replicas(self.spec));
        }
    }
}

fn available(set: &Stored<ReplicaSet>) -> i32 {
    sets::available(set).clamp(0, sets::size(set))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn percentages_round_like_upstream() {
        let table = [
            (10, json!({}), (3, 2)),
            (1, json!({}), (1, 0)),
            (6, json!({"maxSurge": 0, "maxUnavailable": 0}), (0, 1)),
            (6, json!({"maxSurge": "0%", "maxUnavailable": "10%"}), (0, 1)),
            (6, json!({"maxSurge": 2, "maxUnavailable": "50%"}), (2, 3)),
            (3, json!({"maxSurge": "100%", "maxUnavailable": 9}), (3, 3)),
            (3, json!({"maxSurge": "x%", "maxUnavailable": 1}), (0, 1)),
        ];
        for (replicas, rolling, (surge, unavailable)) in table {
            let spec: DeploymentSpec = serde_json::from_value(json!({
                "replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            }))
            .unwrap();
            assert_eq!(bounds(&spec), Bounds { surge, unavailable }, "{replicas} {rolling}");
        }
    }
}
