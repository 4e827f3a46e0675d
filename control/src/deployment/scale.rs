//! Following a change of size while several versions run: each keeps its share.

use flotilla_api::k8s_openapi::api::apps::v1::ReplicaSet;

use super::sets::{self, DESIRED, MAX};
use super::{Pass, recreates, replicas, rollout};
use crate::meta;
use crate::view::Stored;

fn noted(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    meta::annotation(&set.metadata, annotation)?.parse().ok()
}

impl<'a> Pass<'a> {
    /// Whether the wanted size changed since the sets were last sized.
    pub(super) fn is_scaling(&self) -> bool {
        let wanted = replicas(self.spec);
        self.sets.all().any(|set| sets::size(set) > 0 && noted(set, DESIRED).is_some_and(|noted| noted != wanted))
    }

    pub(super) fn scale(&mut self) {
        let wanted = replicas(self.spec);
        let running: Vec<_> = self.sets.all().filter(|set| sets::size(set) > 0).collect();
        if running.len() <= 1 {
            if let Some(only) = running.first().copied().or(self.latest()) {
                self.resize(only, wanted);
            }
            return;
        }
        if let Some(new) = self.sets.new
            && sets::size(new) == wanted
            && sets::available(new) == wanted
        {
            for set in self.sets.old.clone() {
                self.resize(set, 0);
            }
            return;
        }
        if !recreates(self.spec) {
            self.share_out(running);
        }
    }

    fn latest(&self) -> Option<&'a Stored<ReplicaSet>> {
        self.sets.new.or_else(|| self.sets.old.last().copied())
    }

    /// Adds or takes away pods in proportion to the sets' sizes; what does not divide goes to the largest.
    fn share_out(&mut self, mut running: Vec<&Stored<ReplicaSet>>) {
        let wanted = replicas(self.spec);
        let allowed = match wanted {
            0 => 0,
            wanted => wanted.saturating_add(rollout::bounds(self.spec).surge),
        };
        let mut left = i64::from(allowed) - i64::from(self.sets.total());
        let growing = left > 0;
        running.sort_by_key(|set| {
            let age = meta::created(&set.metadata);
            (-i64::from(sets::size(set)), if growing { -age.as_second() } else { age.as_second() })
        });
        let mut sizes: Vec<i64> = Vec::with_capacity(running.len());
        for set in &running {
            let size = i64::from(sets::size(set));
            let before = i64::from(noted(set, MAX).filter(|max| *max > 0).unwrap_or(wanted.max(1)));
            let fair = (size * i64::from(allowed) + before / 2) / before - size;
            let part = if growing { fair.clamp(0, left) } else { fair.clamp(left, 0) };
            left -= part;
            sizes.push(size + part);
        }
        if let Some(largest) = sizes.first_mut() {
            *largest = (*largest + left).max(0);
        }
        for (set, size) in running.into_iter().zip(sizes) {
            self.resize(set, i32::try_from(size).unwrap_or(0));
        }
    }
}
