//! Becoming a node: found a cluster, join one with a token, or be what the data directory says.
//!
//! Invariant: a cluster whose foundation is not complete has served nobody, and is given up for another one.
//! Invariant: the identity is written last. A daemon that dies on the way starts over; nothing half-made is believed.
//! Invariant: what a machine asks to be is on disk before it asks. One that dies before it hears the answer asks for the
//! same again, and is the same node.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use flotilla_net::{
    AddressRecord, Authority, ClusterId, Identity, JoinError, JoinParts, JoinTimeouts, Joined, MAX_TOKEN_ADDRESSES,
    NodeKey, SealKey, Token,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::VERSION;
use crate::config::Config;
use crate::data_dir::{self, Refusal};
use crate::members::Member;

/// How long to look for the cluster on this machine's networks.
const LAN_LOOK: Duration = Duration::from_secs(5);

/// What a node needs to run.
pub struct Enrolment {
    pub identity: Identity,
    pub seal_key: SealKey,
    /// The members as they were when this node joined, or as it last knew them without a replica.
    pub seed: Vec<Member>,
    /// Nothing older than this is believed of them; 0 if that is not known.
    pub seed_revision: u64,
    pub records: Vec<AddressRecord>,
    /// The sealed authority, until the founder has stored it in the cluster.
    pub founding: Option<Vec<u8>>,
    /// The cluster was restored here, and does not know this machine yet.
    pub restored: bool,
    /// This node has had a replica.
    pub has_store: bool,
}

/// What stays beside the identity.
#[derive(Default, Serialize, Deserialize)]
struct Beginning {
    members: Vec<Member>,
    records: Vec<AddressRecord>,
    /// Sealed; only on the founder, and only until the cluster has it.
    authority: Option<Vec<u8>>,
    /// Only where a backup was restored, and only until the cluster knows this machine.
    #[serde(default)]
    restored: bool,
    /// A replica was made here: from then on, one that is missing was lost.
    #[serde(default)]
    has_store: bool,
}

/// Reads the identity of the data directory, or gets one: with the token, if there is one.
///
/// # Errors
/// If the directory holds something else, or the cluster refuses the token.
pub async fn enrol(
    config: &Config,
    token: anyhow::Result<Option<Token>>,
    advertise: &[SocketAddr],
) -> anyhow::Result<Enrolment> {
    let dir = directory(config);
    let unread = || {
        Refusal(format!(
            "the identity of this node in {} cannot be read; put it back if there is a copy, or delete this Node, remove {} \
             and join anew",
            dir.display(),
            config.data_dir.display()
        ))
    };
    if let Some(identity) = Identity::load(&dir).with_context(unread)? {
        let beginning = read_beginning(&dir)?;
        let is_wanted =
            !matches!(token, Ok(None)) || config.name.as_deref().is_some_and(|name| name != identity.name());
        if beginning.authority.is_none() || !is_wanted {
            return resume(config, &dir, identity, beginning, token);
        }
        info!(cluster = %identity.cluster(), "giving up a cluster whose foundation was not completed");
        data_dir::remove_store(&config.data_dir)?;
        forget(config)?;
    }
    match token? {
        Some(token) => join(config, &dir, &token, advertise).await,
        None => found(config, &dir, advertise),
    }
}

/// Goes on as the node that the data directory is of.
fn resume(
    config: &Config,
    dir: &Path,
    identity: Identity,
    beginning: Beginning,
    token: anyhow::Result<Option<Token>>,
) -> anyhow::Result<Enrolment> {
    if config.name.as_deref().is_some_and(|name| name != identity.name()) {
        return Err(Refusal(format!(
            "this data directory belongs to node {:?} of cluster {}; start it under that name, or choose another --data-dir",
            identity.name(),
            identity.cluster()
        ))
        .into());
    }
    match token {
        Ok(None) => {}
        Ok(Some(token)) => {
            agrees(&identity, token.cluster(), &config.data_dir)?;
            info!(cluster = %identity.cluster(), "this machine is a member already; the token is not used");
        }
        // Whoever has joined may have removed it.
        Err(error) => info!(reason = format!("{error:#}"), "this machine is a member already; no token is needed"),
    }
    let unread = || strange_seal_key(config);
    let seal_key = SealKey::load(dir).with_context(unread)?.with_context(unread)?;
    let (seed, seed_revision) = last_known(dir, beginning.members)?;
    Ok(Enrolment {
        identity,
        seal_key,
        seed,
        seed_revision,
        records: beginning.records,
        founding: beginning.authority,
        restored: beginning.restored,
        has_store: beginning.has_store,
    })
}

/// What a node is told whose seal key opens nothing of its cluster's.
pub fn strange_seal_key(config: &Config) -> Refusal {
    Refusal(format!(
        "the key that Secrets are sealed with, {}/seal.key, is missing, damaged or another cluster's: copy it from another \
         node of the cluster",
        directory(config).display()
    ))
}

/// A node stays in its cluster, whatever token it is given.
fn agrees(identity: &Identity, wanted: ClusterId, data_dir: &Path) -> anyhow::Result<()> {
    let own = identity.cluster();
    if own == wanted {
        return Ok(());
    }
    Err(Refusal(format!(
        "the token is of cluster {wanted}, but this machine is node {:?} of cluster {own}: leave the token away to go on \
         there; to join the other cluster, run 'flotilla leave' (or stop the daemon, if this is its last node) and remove {}",
        identity.name(),
        data_dir.display()
    ))
    .into())
}

/// What this machine had for the cluster is in the cluster now.
///
/// # Errors
/// If the file cannot be written.
pub fn founded(config: &Config) -> anyhow::Result<()> {
    let dir = directory(config);
    let beginning = read_beginning(&dir)?;
    write_beginning(&dir, &Beginning { authority: None, restored: false, ..beginning })
}

/// This node's replica has been made.
///
/// # Errors
/// If the file cannot be written.
pub fn stored(config: &Config) -> anyhow::Result<()> {
    let dir = directory(config);
    let beginning = read_beginning(&dir)?;
    write_beginning(&dir, &Beginning { has_store: true, ..beginning })
}

/// Makes this machine, in `dir`, the first node of a cluster that has an authority already.
///
/// # Errors
/// If the identity cannot be made or written.
pub fn settle(
    config: &Config,
    dir: &Path,
    id: u64,
    authority: &Authority,
    advertise: &[SocketAddr],
) -> anyhow::Result<()> {
    let (name, addresses, lifetime) = (config.name()?, ips(advertise), config.certificate_lifetime());
    let identity = Identity::issue(authority, id, &name, &addresses, lifetime, SystemTime::now())?;
    write_beginning(dir, &Beginning { restored: true, ..Beginning::default() })?;
    Ok(identity.store(dir)?)
}

fn found(config: &Config, dir: &Path, advertise: &[SocketAddr]) -> anyhow::Result<Enrolment> {
    let now = SystemTime::now();
    let authority = Authority::create(ClusterId::generate(), now)?;
    let seal_key = SealKey::generate();
    let sealed = authority.seal(&seal_key)?;
    let (name, addresses) = (config.name()?, ips(advertise));
    let identity = Identity::issue(&authority, new_id(), &name, &addresses, config.certificate_lifetime(), now)?;
    info!(cluster = %authority.cluster(), node = config.name()?, "founding a cluster");
    seal_key.store(dir)?;
    write_beginning(dir, &Beginning { authority: Some(sealed.clone()), ..Beginning::default() })?;
    identity.store(dir)?;
    let (seed, records) = (Vec::new(), Vec::new());
    let founding = Some(sealed);
    Ok(Enrolment { identity, seal_key, seed, seed_revision: 0, records, founding, restored: false, has_store: false })
}

async fn join(config: &Config, dir: &Path, token: &Token, advertise: &[SocketAddr]) -> anyhow::Result<Enrolment> {
    info!(cluster = %token.cluster(), node = config.name()?, "joining a cluster");
    let draft = Draft::take_up(dir, token, &config.name()?)?;
    let parts = JoinParts {
        name: draft.name,
        id: draft.id,
        key: NodeKey::from_pem(&draft.key)?,
        addresses: advertise.to_vec(),
        version: VERSION.to_owned(),
        replica: !config.no_replica,
    };
    let joined = match flotilla_net::join(token, &parts, JoinTimeouts::default(), SystemTime::now()).await {
        Err(error @ (JoinError::Unreachable(_) | JoinError::WrongCluster(_))) if config.discovery => {
            join_on_lan(token, &parts, error).await
        }
        joined => joined,
    };
    let joined = match joined {
        Ok(joined) => joined,
        Err(error) => {
            if !error.is_open() {
                Draft::discard(dir)?;
            }
            return Err(error).context("cannot join the cluster");
        }
    };
    let seal_key = joined.seal_key.context("the cluster gave no seal key")?;
    let records: Vec<AddressRecord> = joined.members.iter().filter_map(|member| member.record.clone()).collect();
    let seed: Vec<Member> = joined.members.into_iter().map(|m| Member { id: m.id, name: m.name, key: m.key }).collect();
    seal_key.store(dir)?;
    write_beginning(dir, &Beginning { members: seed.clone(), records: records.clone(), ..Beginning::default() })?;
    joined.identity.store(dir)?;
    Draft::discard(dir)?;
    info!(members = seed.len(), "joined");
    let identity = joined.identity;
    let founding = None;
    Ok(Enrolment { identity, seal_key, seed, seed_revision: 0, records, founding, restored: false, has_store: false })
}

/// The token's addresses lead nowhere, but its cluster may be on a network of this machine. Who answers there must prove
/// to be that cluster, as at any address.
async fn join_on_lan(token: &Token, parts: &JoinParts, error: JoinError) -> Result<Joined, JoinError> {
    info!(reason = %error, "looking for the cluster on this machine's networks");
    let seen = flotilla_net::look_for(token.cluster(), LAN_LOOK, MAX_TOKEN_ADDRESSES).await;
    match seen {
        Ok(seen) if !seen.is_empty() => {
            info!(?seen, "members of the cluster were seen");
            flotilla_net::join(&token.found_at(seen), parts, JoinTimeouts::default(), SystemTime::now()).await
        }
        Ok(_) => Err(error),
        Err(failed) => {
            warn!(error = &failed as &dyn std::error::Error, "this machine cannot look for the cluster");
            Err(error)
        }
    }
}

/// What a machine asks to be, until it is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Draft {
    pub cluster: String,
    pub name: String,
    pub id: u64,
    /// PEM.
    pub key: String,
}

impl Draft {
    const FILE: &str = "joining.json";

    /// The draft that an earlier start left, if it was for the same cluster and name, or else a new one.
    fn take_up(dir: &Path, token: &Token, name: &str) -> anyhow::Result<Self> {
        let cluster = token.cluster().to_string();
        let left: Option<Self> = read_json(dir, Self::FILE)?;
        if let Some(left) = left.filter(|left| left.cluster == cluster && left.name == name) {
            info!(id = left.id, "asking again, as the node of an earlier start");
            return Ok(left);
        }
        let draft = Self { cluster, name: name.to_owned(), id: new_id(), key: NodeKey::generate()?.to_pem() };
        draft.keep(dir)?;
        Ok(draft)
    }

    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, dir: &Path) -> anyhow::Result<()> {
        write_json(dir, Self::FILE, self)
    }

    fn discard(dir: &Path) -> anyhow::Result<()> {
        match fs::remove_file(dir.join(Self::FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("joining.json cannot be removed")
            }
            _ => Ok(()),
        }
    }
}

/// A random id that is never 0 and is exact in JSON.
pub fn new_id() -> u64 {
    rand::random_range(1..1 << 53)
}

fn ips(addresses: &[SocketAddr]) -> Vec<IpAddr> {
    addresses.iter().map(SocketAddr::ip).collect()
}

/// Keeps that this machine has left its cluster, and removes what made it a node.
///
/// # Errors
/// If the directory cannot be changed.
pub fn leave(config: &Config, node: &str, cluster: ClusterId) -> io::Result<()> {
    data_dir::mark_left(&config.data_dir, node, &cluster.to_string())?;
    forget(config)
}

/// Removes what makes this machine a node.
fn forget(config: &Config) -> io::Result<()> {
    fs::remove_dir_all(directory(config))
}

/// Where the identity and what the network remembers are kept.
pub fn directory(config: &Config) -> PathBuf {
    config.data_dir.join(data_dir::IDENTITY)
}

const BEGINNING: &str = "beginning.json";
const MEMBERS: &str = "members.json";

/// The members, as a node without a replica last heard of them.
#[derive(Serialize, Deserialize)]
struct Remembered {
    revision: u64,
    members: Vec<Member>,
}

/// Keeps who is a member as of a revision, for the next start: a node without a replica has nothing else to know it by.
///
/// # Errors
/// If it cannot be written.
pub fn remember(directory: &Path, members: Vec<Member>, revision: u64) -> anyhow::Result<()> {
    write_json(directory, MEMBERS, &Remembered { revision, members })
}

/// Who was a member when that was last kept, or else when this node joined, and as of which revision.
fn last_known(directory: &Path, joined: Vec<Member>) -> anyhow::Result<(Vec<Member>, u64)> {
    let last: Option<Remembered> = read_json(directory, MEMBERS)?;
    Ok(last.map_or((joined, 0), |last| (last.members, last.revision)))
}

fn read_beginning(dir: &Path) -> anyhow::Result<Beginning> {
    Ok(read_json(dir, BEGINNING)?.unwrap_or_default())
}

fn write_beginning(dir: &Path, beginning: &Beginning) -> anyhow::Result<()> {
    write_json(dir, BEGINNING, beginning)
}

fn read_json<T: DeserializeOwned>(dir: &Path, name: &str) -> anyhow::Result<Option<T>> {
    match fs::read(dir.join(name)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| {
                let place = dir.join(name);
                Refusal(format!(
                    "{} is damaged: put it back if there is a copy, or delete this Node, remove the data directory and join \
                     anew",
                    place.display()
                ))
            })
            .map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", dir.join(name).display())),
    }
}

/// Replaces `dir/name`, for the owner alone, whole or not at all.
fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
    let path = dir.join(name);
    replace(dir, &path, &serde_json::to_vec(value)?).with_context(|| format!("cannot write {}", path.display()))
}

fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut scratch = path.as_os_str().to_owned();
    scratch.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&scratch)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&scratch, path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layer;

    #[test]
    fn a_node_that_starts_again_knows_the_members_of_its_last_day_and_not_of_its_first() {
        let dir = tempfile::TempDir::new().unwrap();
        let joined = vec![Member::known(1, "gone"), Member::known(2, "here")];
        assert_eq!(last_known(dir.path(), joined.clone()).unwrap(), (joined.clone(), 0));
        let now = vec![Member::known(2, "here"), Member::known(3, "new")];
        remember(dir.path(), now.clone(), 70).unwrap();
        assert_eq!(last_known(dir.path(), joined).unwrap(), (now, 70));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = remember(&file, Vec::new(), 1).unwrap_err();
        assert!(error.to_string().ends_with("/file/members.json"), "{error:#}");
    }

    #[tokio::test]
    async fn a_foundation_is_given_up_for_another_wish_until_it_is_complete_and_never_after() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = dir.path().join(data_dir::STORE);
        let named = |name: &str| {
            let layer = Layer { data_dir: Some(dir.path().into()), name: Some(name.into()), ..Layer::default() };
            Config::load(Some(Path::new("/dev/null")), [], layer).unwrap()
        };
        let at: [SocketAddr; 1] = ["10.0.0.1:6443".parse().unwrap()];
        let first = enrol(&named("a"), Ok(None), &at).await.unwrap().identity.cluster();
        fs::create_dir(&store).unwrap();
        assert_eq!(enrol(&named("a"), Ok(None), &at).await.unwrap().identity.cluster(), first);
        let second = enrol(&named("b"), Ok(None), &at).await.unwrap().identity.cluster();
        assert!(second != first && !store.exists());

        founded(&named("b")).unwrap();
        let refused = enrol(&named("a"), Ok(None), &at).await.err().unwrap();
        assert!(refused.is::<Refusal>() && refused.to_string().contains("belongs to node \"b\""), "{refused}");
        let token = |cluster| Token::generate(cluster, [0; 32], None, at.to_vec()).unwrap();
        let refused = enrol(&named("b"), Ok(Some(token(first))), &at).await.err().unwrap();
        assert!(refused.is::<Refusal>(), "{refused}");
        for cluster in [first, second] {
            assert!(refused.to_string().contains(&format!("of cluster {cluster}")), "{refused}");
        }
        for token in [Ok(Some(token(second))), Err(anyhow::anyhow!("the file is gone"))] {
            assert_eq!(enrol(&named("b"), token, &at).await.unwrap().identity.cluster(), second);
        }
    }
}
