//! Which Changes the store takes, whoever proposes them.

use std::collections::HashSet;

use flotilla_api::{Change, Key, Write};

pub const MAX_KEY_BYTES: usize = 1024;
pub const MAX_VALUE_BYTES: usize = 2 * 1024 * 1024;
pub const MAX_CHANGE_BYTES: usize = 8 * 1024 * 1024;
pub const MAX_PRECONDITIONS: usize = 2 * Change::MAX_WRITES;
pub const MAX_NAME_BYTES: usize = 256;

/// Objects of the Event kind, in either group, live in a bounded keyspace.
pub(crate) fn is_event_kind(key: &Key) -> bool {
    let key = key.as_str();
    key.starts_with("core/events/") || key.starts_with("events.k8s.io/events/")
}

/// About what a Change takes in the log.
pub(crate) fn change_bytes(change: &Change) -> usize {
    const HEADER_BYTES: usize = 32;
    let writes: usize = change.writes.iter().map(|w| HEADER_BYTES + write_bytes(w)).sum();
    let conditions: usize = change.preconditions.iter().map(|p| HEADER_BYTES + p.key.as_str().len()).sum();
    HEADER_BYTES + writes + conditions + change.user.len() + change.manager.len()
}

fn write_bytes(write: &Write) -> usize {
    write.key().as_str().len()
        + match write {
            Write::Put { value, .. } => value.len(),
            Write::Delete { .. } => 0,
        }
}

/// Refuses a Change that breaks a bound, naming the bound.
pub(crate) fn check(change: &Change) -> Result<(), String> {
    at_most("writes", change.writes.len(), Change::MAX_WRITES)?;
    at_most("preconditions", change.preconditions.len(), MAX_PRECONDITIONS)?;
    at_most("bytes of user", change.user.len(), MAX_NAME_BYTES)?;
    at_most("bytes of manager", change.manager.len(), MAX_NAME_BYTES)?;
    let mut seen = HashSet::with_capacity(change.writes.len());
    for write in &change.writes {
        check_key(write.key())?;
        if let Write::Put { key, value } = write
            && value.len() > MAX_VALUE_BYTES
        {
            return Err(format!("{key}: {} bytes, at most {MAX_VALUE_BYTES} are allowed", value.len()));
        }
        if !seen.insert(write.key()) {
            return Err(format!("{}: written twice in one change", write.key()));
        }
    }
    change.preconditions.iter().try_for_each(|p| check_key(&p.key))?;
    at_most("bytes of change", change_bytes(change), MAX_CHANGE_BYTES)
}

pub(crate) fn check_key(key: &Key) -> Result<(), String> {
    at_most("bytes of key", key.as_str().len(), MAX_KEY_BYTES)?;
    match Key::parse(key.as_str()) {
        Some(_) => Ok(()),
        None => Err(format!("{key}: a key has four parts")),
    }
}

fn at_most(what: &str, found: usize, bound: usize) -> Result<(), String> {
    match found <= bound {
        true => Ok(()),
        false => Err(format!("{found} {what}, at most {bound} are allowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_api::GroupResource;

    fn key(name: &str) -> Key {
        Key::new(&GroupResource::new("", "pods"), "default", name)
    }

    #[test]
    fn bounds_are_named() {
        let big = Change::new("u", "m").put(key("a"), vec![0; MAX_VALUE_BYTES + 1].into());
        assert!(check(&big).unwrap_err().contains("core/pods/default/a: 2097153 bytes"));
        let twice = Change::new("u", "m").put(key("a"), "1".into()).delete(key("a"));
        assert!(check(&twice).unwrap_err().contains("written twice"));
        let many = (0..=Change::MAX_WRITES).fold(Change::new("u", "m"), |c, i| c.delete(key(&i.to_string())));
        assert!(check(&many).unwrap_err().contains("513 writes"));
        let long = Change::new("u", "m").delete(key(&"x".repeat(MAX_KEY_BYTES)));
        assert!(check(&long).unwrap_err().contains("bytes of key"));
        let sum =
            (0..6).fold(Change::new("u", "m"), |c, i| c.put(key(&i.to_string()), vec![0; MAX_VALUE_BYTES].into()));
        assert!(check(&sum).unwrap_err().contains("bytes of change"));
        assert_eq!(check(&Change::new("u", "m").put(key("a"), vec![0; MAX_VALUE_BYTES].into())), Ok(()));
    }
}
