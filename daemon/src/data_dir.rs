//! What a data directory holds before a daemon uses it, and whether one may.
//!
//! Invariant: asked before anybody hears that this machine wants to be a node. What a node has left behind is neither used
//! nor removed by itself: a person says what becomes of it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, bail};

/// The node's identity; what has none is no node.
pub const IDENTITY: &str = "identity";
/// The node's replica.
pub const STORE: &str = "store";
/// Where a restored node is put together before it takes its place.
pub const RESTORING: &str = "restoring";
/// Says that the node that was here has left its cluster, and which it was.
const LEFT: &str = "left";
/// Says that the node has asked the others to take it out.
const LEAVING: &str = "leaving";

/// A daemon does not start here until somebody has done something about it: to try again does not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Whether a daemon may use a directory: as the node that is there, or to become one.
///
/// # Errors
/// [`Refusal`], with what to do.
pub fn check(dir: &Path) -> anyhow::Result<()> {
    let place = dir.display();
    if let Some(who) = who_left(dir)? {
        return refuse(format!("{who} has left its cluster; remove {place} to join one or to found another"));
    }
    if dir.join(IDENTITY).join("identity.pem").exists() {
        return Ok(());
    }
    if dir.join(RESTORING).exists() {
        return refuse(format!(
            "a restore of {place} was interrupted: run 'flotilla restore' again, as before, or remove {place} to join a \
             cluster or to found another"
        ));
    }
    if dir.join(STORE).exists() {
        return refuse(format!(
            "{place} holds the store of a node, but not the identity that it belongs to; put {IDENTITY}/ back if there is \
             a copy, or remove {place} to join a cluster or to found another"
        ));
    }
    Ok(())
}

/// Whether the node that was here has left its cluster.
pub fn has_left(dir: &Path) -> bool {
    dir.join(LEFT).exists()
}

/// Keeps that this node is about to ask the others to take it out: if it dies before it hears that they have, the next start
/// goes on from there.
///
/// # Errors
/// If it cannot be written.
pub fn mark_leaving(dir: &Path) -> io::Result<()> {
    File::create(dir.join(LEAVING))?.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Takes that back: the node stays.
///
/// # Errors
/// If it cannot be removed.
pub fn mark_staying(dir: &Path) -> io::Result<()> {
    fs::remove_file(dir.join(LEAVING))?;
    File::open(dir)?.sync_all()
}

/// Whether this node asked the others to take it out, and has not heard that they have.
pub fn is_leaving(dir: &Path) -> bool {
    dir.join(LEAVING).exists() && !has_left(dir)
}

/// Keeps that the node of this directory has left its cluster.
///
/// # Errors
/// If it cannot be written.
pub fn mark_left(dir: &Path, node: &str, cluster: &str) -> io::Result<()> {
    fs::write(dir.join(LEFT), format!("node {node} of cluster {cluster}\n"))?;
    File::open(dir.join(LEFT))?.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Makes room for a restore: removes what an earlier one has put in place that was cut short before it was complete.
///
/// # Errors
/// If the directory holds anything else of a node.
pub fn prepare_restore(dir: &Path) -> anyhow::Result<()> {
    let place = dir.display();
    if let Some(who) = who_left(dir)? {
        bail!("{who} has left its cluster; remove {place} to restore a backup there");
    }
    let (identity, store) = (dir.join(IDENTITY), dir.join(STORE));
    // A restore moves its store before its identity: until then it is its own only if that identity still waits.
    let staged = dir.join(RESTORING);
    let is_own = !identity.exists() && staged.join(IDENTITY).exists() && !staged.join(STORE).exists();
    if is_own && store.exists() {
        remove_store(dir)?;
    }
    if let Some(held) = [&identity, &store].into_iter().find(|path| path.exists()) {
        bail!(
            "{place} holds a node's data ({}): a backup is restored into an empty data directory only",
            held.display()
        );
    }
    Ok(())
}

/// Finishes a restore that was cut short when all was in place, but for what it was made in. Says whether one was.
///
/// # Errors
/// If what is left of it cannot be removed.
pub fn finish_restore(dir: &Path) -> anyhow::Result<bool> {
    let staged = dir.join(RESTORING);
    let is_in_place = dir.join(IDENTITY).join("identity.pem").exists() && dir.join(STORE).exists();
    if has_left(dir)
        || !is_in_place
        || !staged.exists()
        || [IDENTITY, STORE].iter().any(|one| staged.join(one).exists())
    {
        return Ok(false);
    }
    fs::remove_dir_all(&staged)
        .and_then(|()| File::open(dir)?.sync_all())
        .with_context(|| format!("cannot remove {}", staged.display()))?;
    Ok(true)
}

/// Removes the replica of a directory, and has it gone before anything that follows.
///
/// # Errors
/// If it cannot be removed.
pub fn remove_store(dir: &Path) -> anyhow::Result<()> {
    let store = dir.join(STORE);
    match fs::remove_dir_all(&store) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::open(dir).and_then(|dir| dir.sync_all()),
    }
    .with_context(|| format!("cannot remove {}", store.display()))
}

/// The node that has left, in words.
fn who_left(dir: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(dir.join(LEFT)) {
        Ok(text) => {
            let who = text.trim();
            Ok(Some(if who.is_empty() { "this node".to_owned() } else { format!("this machine ({who})") }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", dir.join(LEFT).display())),
    }
}

fn refuse<T>(words: String) -> anyhow::Result<T> {
    Err(Refusal(words).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with such files in it; what ends with a slash is a directory.
    fn holding(paths: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    fn said(result: anyhow::Result<()>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn an_empty_directory_and_one_of_a_node_may_be_used() {
        for paths in [&["lock"][..], &["identity/joining.json"], &["identity/identity.pem", "store/state"]] {
            check(holding(paths).path()).unwrap();
        }
    }

    #[test]
    fn a_node_that_left_stays_away_until_its_directory_is_removed() {
        let dir = holding(&["store/state"]);
        mark_left(dir.path(), "machine-3", "c1").unwrap();
        let place = dir.path().display();
        assert!(check(dir.path()).unwrap_err().is::<Refusal>());
        let words = said(check(dir.path()));
        assert_eq!(
            words,
            format!(
                "this machine (node machine-3 of cluster c1) has left its cluster; remove {place} to join one or to found another"
            )
        );
        assert!(said(prepare_restore(dir.path())).contains("has left its cluster"));
    }

    #[test]
    fn who_has_asked_to_go_is_leaving_until_it_has_left() {
        let dir = holding(&["identity/identity.pem", "store/state"]);
        assert!(!is_leaving(dir.path()));
        mark_leaving(dir.path()).unwrap();
        check(dir.path()).unwrap();
        assert!(is_leaving(dir.path()), "the others may not have heard of it");
        mark_staying(dir.path()).unwrap();
        assert!(!is_leaving(dir.path()));
        mark_leaving(dir.path()).unwrap();
        mark_left(dir.path(), "machine-3", "c1").unwrap();
        assert!(!is_leaving(dir.path()));
    }

    #[test]
    fn a_store_without_its_identity_is_not_used() {
        let dir = holding(&["store/state", "identity/seal.key"]);
        assert!(said(check(dir.path())).contains("holds the store of a node"));
        assert!(said(prepare_restore(dir.path())).contains("holds a node's data"));
    }

    #[test]
    fn an_interrupted_restore_is_not_taken_for_an_empty_directory_and_can_be_run_again() {
        for paths in [
            &["restoring/store/state"][..],
            &["restoring/store/state", "restoring/identity/identity.pem"],
            &["store/state", "restoring/identity/identity.pem"],
        ] {
            let dir = holding(paths);
            assert!(said(check(dir.path())).contains("was interrupted: run 'flotilla restore' again"), "{paths:?}");
            prepare_restore(dir.path()).unwrap();
            assert!(!dir.path().join(STORE).exists(), "{paths:?}");
        }
        // All was in place, but for what it was made in.
        let whole = holding(&["identity/identity.pem", "store/state", "restoring/x"]);
        check(whole.path()).unwrap();
        assert!(said(prepare_restore(whole.path())).contains("holds a node's data"));
    }

    #[test]
    fn a_restore_that_lacked_only_the_cleaning_up_is_finished() {
        let dir = holding(&["identity/identity.pem", "store/state", "restoring/x"]);
        assert!(finish_restore(dir.path()).unwrap());
        assert!(!dir.path().join(RESTORING).exists() && dir.path().join("store/state").exists());
        assert!(!finish_restore(dir.path()).unwrap(), "it is a node like any other now");
        for paths in [
            &["store/state", "restoring/identity/identity.pem"][..],
            &["identity/identity.pem", "store/state", "restoring/store/state"],
            &["identity/identity.pem", "store/state", "restoring/x", "left"],
        ] {
            assert!(!finish_restore(holding(paths).path()).unwrap(), "{paths:?}");
        }
    }

    #[test]
    fn a_restore_does_not_take_the_store_of_another_for_its_own() {
        let dir = holding(&["store/state", "restoring/store/state", "restoring/identity/identity.pem"]);
        assert!(said(prepare_restore(dir.path())).contains("holds a node's data"));
        assert!(dir.path().join("store/state").exists());
    }
}
