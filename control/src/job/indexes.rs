//! Sets of completion indexes, as a Job's status writes them: `1,3-5,7`.
//!
//! Invariant: an index is below the Job's number of completions; what is not is dropped, so that no
//! text grows the set beyond it.

use std::collections::BTreeSet;

pub(super) fn parse(text: &str, below: usize) -> BTreeSet<usize> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            indexes.extend(first..last.saturating_add(1).min(below));
        }
    }
    indexes
}

pub(super) fn format(indexes: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let runs = runs.into_iter().map(|(first, last)| match last - first {
        0 => format!("{first}"),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn upstreams_form() {
        let indexes = BTreeSet::from([1, 3, 4, 5, 7, 8]);
        assert_eq!(format(&indexes), "1,3-5,7,8");
        assert_eq!(parse("1,3-5,7,8", 100), indexes);
        assert_eq!(parse("0-99999999999, x, 5-", 3), BTreeSet::from([0, 1, 2]));
    }

    proptest! {
        #[test]
        fn there_and_back(indexes in proptest::collection::btree_set(0usize..200, 0..50)) {
            prop_assert_eq!(parse(&format(&indexes), 200), indexes);
        }
    }
}
