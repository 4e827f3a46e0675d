//! Peers that hold, lack, spoil or break off a layer; the registry comes last.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use flotilla_runtime::images::{Digest, Lead, Peer, PeerStream, Peers, PullError, Search};

use crate::faults::{Layers, Server, impatient, made};
use crate::support::*;

/// What a peer does when it is asked.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Gives,
    Lacks,
    Spoils,
    /// Half of what is left, and then the end.
    Halves,
    Longer,
}

/// Peers that are named in this order for each blob.
struct Town {
    manners: Vec<Manner>,
    blobs: Vec<(Digest, Vec<u8>)>,
    opened: Arc<AtomicUsize>,
    held: Arc<Mutex<Vec<Digest>>>,
}

struct Walk {
    digest: Digest,
    leads: VecDeque<Arc<Neighbour>>,
    held: Arc<Mutex<Vec<Digest>>>,
}

struct Neighbour {
    manner: Manner,
    bytes: Vec<u8>,
    opened: Arc<AtomicUsize>,
}

#[async_trait]
impl Peers for Town {
    async fn seek(&self, digest: Digest) -> Option<Box<dyn Search>> {
        let bytes = &self.blobs.iter().find(|(known, _)| *known == digest)?.1;
        let lead = |manner| Neighbour { manner, bytes: bytes.clone(), opened: self.opened.clone() };
        let leads = self.manners.iter().map(|manner| Arc::new(lead(*manner))).collect();
        Some(Box::new(Walk { digest, leads, held: self.held.clone() }))
    }
}

#[async_trait]
impl Search for Walk {
    async fn next(&mut self) -> Lead {
        match self.leads.pop_front() {
            Some(peer) => Lead::Peer(peer),
            None => Lead::Registry,
        }
    }

    async fn held(self: Box<Self>) {
        self.held.lock().unwrap().push(self.digest);
    }
}

#[async_trait]
impl Peer for Neighbour {
    fn name(&self) -> &str {
        "a neighbour"
    }

    async fn open(&self, offset_bytes: u64) -> io::Result<PeerStream> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let mut size_bytes = self.bytes.len() as u64;
        let mut bytes = self.bytes[offset_bytes as usize..].to_vec();
        match self.manner {
            Manner::Gives => {}
            Manner::Lacks => return Err(io::ErrorKind::NotFound.into()),
            Manner::Spoils => bytes.fill(7),
            Manner::Halves => bytes.truncate(bytes.len() / 2),
            Manner::Longer => size_bytes += 1,
        }
        Ok(PeerStream { size_bytes, content: Box::new(io::Cursor::new(bytes)) })
    }
}

/// Pulls an image among such peers, and tells how often they and the registry were asked for its parts.
async fn pull(manners: &[Manner], registry: Layers) -> (usize, usize, Result<(), PullError>) {
    let made = made();
    let layer = made.layers[0];
    let town =
        Town { manners: manners.to_vec(), blobs: made.blobs.clone(), opened: Arc::default(), held: Arc::default() };
    let (opened, held) = (town.opened.clone(), town.held.clone());
    let server = Server::start(made, move |_| registry);
    let node = impatient(&server.host());
    node.images.ask_peers(Arc::new(town));
    let pulled = node.pull(&format!("{}/a:b", server.host())).await;
    if let Ok(image) = &pulled {
        assert!(node.mount(image, "c1").join("noise").exists());
        assert!(node.images.shared_blobs().contains(&layer));
    }
    assert_eq!(held.lock().unwrap().contains(&layer), pulled.is_ok(), "others are told of what is here");
    (opened.load(Ordering::SeqCst), server.layer_requests(), pulled.map(drop))
}

#[tokio::test]
async fn a_layer_that_a_peer_has_costs_the_registry_nothing() {
    let (_, requests, pulled) = pull(&[Manner::Gives], Layers::Missing).await;
    pulled.unwrap();
    assert_eq!(requests, 0);
}

#[tokio::test]
async fn another_peer_makes_up_for_one_that_lacks_spoils_or_lies_about_the_layer() {
    for bad in [Manner::Lacks, Manner::Spoils, Manner::Longer] {
        let (_, requests, pulled) = pull(&[bad, Manner::Gives], Layers::Missing).await;
        pulled.unwrap_or_else(|error| panic!("{bad:?}: {error}"));
        assert_eq!(requests, 0, "{bad:?}");
    }
}

#[tokio::test]
async fn what_one_peer_began_the_next_goes_on_with() {
    let (_, requests, pulled) = pull(&[Manner::Halves, Manner::Halves, Manner::Gives], Layers::Missing).await;
    pulled.unwrap();
    assert_eq!(requests, 0);
}

#[tokio::test]
async fn the_registry_is_asked_when_no_peer_gives_the_layer() {
    for bad in [Manner::Lacks, Manner::Spoils, Manner::Halves, Manner::Longer] {
        let (opened, requests, pulled) = pull(&[bad], Layers::Served).await;
        pulled.unwrap_or_else(|error| panic!("{bad:?}: {error}"));
        assert!(opened > 0 && requests > 0, "{bad:?}: {opened} {requests}");
    }
}

#[tokio::test]
async fn without_a_manifest_from_the_registry_no_peer_is_asked() {
    let made = made();
    let town =
        Town { manners: vec![Manner::Gives], blobs: made.blobs.clone(), opened: Arc::default(), held: Arc::default() };
    let opened = town.opened.clone();
    let options = RegistryOptions { password: true, tls: false };
    let registry = Registry::start(&options);
    let layout = tempfile::tempdir().unwrap();
    registry.push(&busybox_layout(layout.path()), "v1", "busybox:v1", &options);
    let node = Node::insecure(&[&registry.host()]);
    node.images.ask_peers(Arc::new(town));
    assert!(matches!(node.pull(&registry.name("busybox:v1")).await, Err(PullError::Unauthorized { .. })));
    assert_eq!(opened.load(Ordering::SeqCst), 0);
}
