//! What clients did to registers, and whether one order of events explains all of it.
//!
//! A register is one object whose value is replaced again and again. Each write writes a value of its own, and the store
//! gives each change of an object a revision. So the order in which writes took effect is known: a watcher has seen it.
//! What is left to ask is whether that order agrees with what every client saw, and when: then the history is
//! linearizable (Herlihy and Wing, 1990).

use std::collections::BTreeMap;

/// A write without an answer may take effect at any later time.
pub const NEVER: u64 = u64::MAX;

/// A value that a register took, in the order of its revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub revision: u64,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// Read this version.
    Read(Version),
    /// Wrote a value, if the register was still at revision `after`; `revision` is the answer, if there was one.
    Wrote { value: String, after: Option<u64>, revision: Option<u64> },
}

/// One operation on a register; times are nanoseconds on one clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub began_ns: u64,
    pub ended_ns: u64,
    pub did: Did,
}

/// Everything that contradicts `order`, the versions that the register took, in words.
#[must_use]
pub fn contradictions(order: &[Version], operations: &[Operation]) -> Vec<String> {
    let mut found = twice(order);
    let places: BTreeMap<u64, usize> = order.iter().enumerate().map(|(place, one)| (one.revision, place)).collect();
    let by_value: BTreeMap<&str, usize> =
        order.iter().enumerate().map(|(place, one)| (one.value.as_str(), place)).collect();
    let mut placed = Vec::new();
    for operation in operations {
        match place(operation, order, &places, &by_value) {
            Ok(Some(place)) => placed.push((operation, place)),
            Ok(None) => {}
            Err(reason) => found.push(reason),
        }
    }
    found.extend(out_of_time(&mut placed));
    found
}

/// Every value is written once, so one that comes twice was applied twice.
fn twice(order: &[Version]) -> Vec<String> {
    let mut seen = BTreeMap::new();
    let mut found = Vec::new();
    for pair in order.windows(2).filter(|pair| pair[0].revision >= pair[1].revision) {
        found.push(format!("revision {} comes before {}", pair[0].revision, pair[1].revision));
    }
    for version in order {
        if let Some(before) = seen.insert(&version.value, version.revision) {
            found.push(format!("{} was applied at {before} and again at {}", version.value, version.revision));
        }
    }
    found
}

/// Where in the order an operation took effect; `None` if it never did and need not have.
fn place(
    operation: &Operation,
    order: &[Version],
    places: &BTreeMap<u64, usize>,
    by_value: &BTreeMap<&str, usize>,
) -> Result<Option<usize>, String> {
    match &operation.did {
        Did::Read(version) => match places.get(&version.revision) {
            Some(place) if order[*place] == *version => Ok(Some(*place)),
            _ => Err(format!("{version:?} was read and never was")),
        },
        Did::Wrote { value, after, revision } => {
            let found = by_value.get(value.as_str()).copied();
            let Some(place) = found else {
                let lost = |revision| Err(format!("{value} was acknowledged at {revision} and is lost"));
                return revision.map_or(Ok(None), lost);
            };
            if revision.is_some_and(|revision| revision != order[place].revision) {
                return Err(format!("{value} was acknowledged at {revision:?} and is at {}", order[place].revision));
            }
            let before = place.checked_sub(1).map(|before| order[before].revision);
            match after {
                Some(_) if *after != before => Err(format!("{value} was to follow {after:?} and follows {before:?}")),
                _ => Ok(Some(place)),
            }
        }
    }
}

/// An operation that began after another had ended must not have taken effect before it.
fn out_of_time(placed: &mut [(&Operation, usize)]) -> Vec<String> {
    let mut ended: Vec<_> = placed.to_vec();
    ended.sort_by_key(|(operation, _)| operation.ended_ns);
    placed.sort_by_key(|(operation, _)| operation.began_ns);
    let mut found = Vec::new();
    let mut ended = ended.into_iter().peekable();
    // The latest version that an operation which has ended by now read or wrote.
    let mut latest: Option<(usize, &Operation)> = None;
    for (operation, place) in placed.iter() {
        while let Some((before, at)) = ended.next_if(|(before, _)| before.ended_ns < operation.began_ns) {
            if latest.is_none_or(|(latest, _)| latest < at) {
                latest = Some((at, before));
            }
        }
        let Some((least, before)) = latest else { continue };
        let is_write = matches!(operation.did, Did::Wrote { .. });
        if *place < least || (is_write && *place == least) {
            found.push(format!("{operation:?} began after {before:?} had ended and took effect before it"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(revision: u64) -> Version {
        Version { revision, value: format!("v{revision}") }
    }

    fn order() -> Vec<Version> {
        [10, 20, 30].map(version).to_vec()
    }

    fn read(revision: u64, began_ns: u64, ended_ns: u64) -> Operation {
        Operation { began_ns, ended_ns, did: Did::Read(version(revision)) }
    }

    fn wrote(value: u64, after: Option<u64>, revision: Option<u64>, began_ns: u64, ended_ns: u64) -> Operation {
        Operation { began_ns, ended_ns, did: Did::Wrote { value: format!("v{value}"), after, revision } }
    }

    #[test]
    fn what_fits_the_order_is_not_complained_about() {
        let operations = [
            read(10, 0, 5),
            wrote(20, Some(10), Some(20), 6, 9),
            // While a write is under way a read may see it or not, and a later one must.
            wrote(30, None, Some(30), 10, 20),
            read(20, 11, 12),
            read(30, 13, 19),
            // Nobody knows of it, and it may never have been.
            wrote(99, None, None, 0, NEVER),
        ];
        assert_eq!(contradictions(&order(), &operations), Vec::<String>::new());
    }

    #[test]
    fn a_write_without_an_answer_counts_from_when_it_took_effect() {
        let late = wrote(20, None, None, 0, NEVER);
        assert_eq!(contradictions(&order(), &[late.clone(), read(20, 50, 60)]), Vec::<String>::new());
        let found = contradictions(&order(), &[read(30, 1, 2), wrote(20, None, None, 3, NEVER)]);
        assert!(found[0].contains("took effect before it"), "{found:?}");
    }

    #[test]
    fn each_kind_of_contradiction_is_found() {
        let table: [(&[Operation], &str); 7] = [
            (&[read(30, 0, 1), read(20, 2, 3)], "took effect before it"),
            (&[read(20, 0, 1), wrote(20, None, Some(20), 2, 3)], "took effect before it"),
            (&[wrote(40, None, Some(40), 0, 1)], "is lost"),
            (&[wrote(20, None, Some(21), 0, 1)], "acknowledged at Some(21)"),
            (&[wrote(30, Some(10), Some(30), 0, 1)], "was to follow Some(10)"),
            (&[read(25, 0, 1)], "never was"),
            (
                &[Operation { did: Did::Read(Version { revision: 20, value: "x".into() }), ..read(20, 0, 1) }],
                "never was",
            ),
        ];
        for (operations, expected) in table {
            let found = contradictions(&order(), operations);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
    }

    #[test]
    fn a_value_that_was_applied_twice_is_found() {
        let again = Version { revision: 40, value: "v20".into() };
        let found = contradictions(&[version(10), version(20), again], &[]);
        assert!(found[0].contains("again at 40"), "{found:?}");
    }
}
