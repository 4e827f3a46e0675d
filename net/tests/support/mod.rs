//! A cluster of endpoints on loopback, with a real authority and short times.
#![allow(dead_code)] // Each test file uses its own part.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use flotilla_net::*;
use tempfile::TempDir;

/// The longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const LIFETIME: Duration = Duration::from_secs(3600);

pub fn options(identity: Identity, dir: &TempDir) -> Options {
    let mut options = Options::new(identity, "127.0.0.1:0".parse().expect("an address"), dir.path());
    options.beat_period = Duration::from_millis(50);
    options.silence = Silence {
        suspect_after: Duration::from_millis(500),
        dead_after: Duration::from_millis(1500),
        unheard_after: Duration::from_secs(5),
        pause_after: Duration::from_millis(500),
    };
    options.dial_timeout = Duration::from_secs(2);
    options
}

/// A running node.
pub struct Node {
    pub net: Net,
    pub dir: TempDir,
    pub id: NodeId,
    pub name: String,
}

pub fn identity(authority: &Authority, id: NodeId) -> Identity {
    Identity::issue(authority, id, &name(id), &[], LIFETIME, SystemTime::now()).expect("an identity")
}

pub fn name(id: NodeId) -> String {
    format!("node-{id}")
}

/// A new authority. `RUST_LOG` makes the nodes under it talk.
pub fn authority() -> Authority {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // Only the first test of a process can set it.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    Authority::create(ClusterId::generate(), SystemTime::now()).expect("an authority")
}

impl Node {
    pub async fn start(authority: &Authority, id: NodeId) -> Node {
        Node::start_with(authority, id, |_| {}).await
    }

    pub async fn start_with(authority: &Authority, id: NodeId, change: impl FnOnce(&mut Options)) -> Node {
        let dir = tempfile::tempdir().expect("a directory");
        let mut options = options(identity(authority, id), &dir);
        change(&mut options);
        let net = Net::start(options).await.expect("starts");
        Node { net, dir, id, name: name(id) }
    }
}

impl Node {
    /// Ends the node, and begins it again with the same directory and port.
    pub async fn restart(self) -> Node {
        self.net.shutdown().await;
        self.begin_again().await
    }

    /// Begins the node again once nothing else holds its port.
    pub async fn begin_again(self) -> Node {
        let Node { net, dir, id, name } = self;
        let mut options = options((*net.credentials().identity()).clone(), &dir);
        options.listen = net.local_addr().expect("bound");
        drop(net);
        until("the port is free", || async { std::net::UdpSocket::bind(options.listen).is_ok() }).await;
        Node { net: Net::start(options).await.expect("starts"), dir, id, name }
    }
}

/// Nodes 1 to `count` that know each other.
pub async fn cluster(authority: &Authority, count: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    for id in 1..=count {
        nodes.push(Node::start(authority, id).await);
    }
    introduce(&nodes.iter().collect::<Vec<_>>());
    nodes
}

/// Lists all at each, and tells each where the others are.
pub fn introduce(nodes: &[&Node]) {
    let members: Vec<_> = nodes.iter().map(|node| (node.id, node.name.clone())).collect();
    for node in nodes {
        node.net.set_members(members.clone());
        for other in nodes {
            let record = other.net.own_record().expect("a record");
            node.net.learn((*record).clone()).expect("learns");
        }
    }
}

pub async fn stop(nodes: Vec<Node>) {
    for node in nodes {
        node.net.shutdown().await;
    }
}

/// Answers each frame with the caller's name, a colon and the frame.
pub struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, peer: PeerInfo, mut send: SendStream, mut recv: RecvStream) {
        while let Ok(Some(frame)) = read_frame_or_end(&mut recv, 1024).await {
            let answer = [peer.name.as_bytes(), b":", &frame].concat();
            if write_frame(&mut send, &answer).await.is_err() {
                return;
            }
        }
    }
}

/// A call to an [`Echo`].
pub async fn call(from: &Node, to: NodeId, alpn: Alpn, text: &str) -> Result<String, NetError> {
    let (mut send, mut recv) = from.net.open(to, alpn).await?;
    write_frame(&mut send, text.as_bytes()).await.expect("writes");
    let answer = read_frame(&mut recv, 2048).await.expect("answers");
    Ok(String::from_utf8(answer.to_vec()).expect("text"))
}

/// Waits until `from` sees `id` in `state`.
pub async fn await_state(from: &Node, id: NodeId, state: Liveness) {
    let mut peers = from.net.liveness();
    let reached = peers.wait_for(|peers| peers.get(&id).is_some_and(|peer| peer.state == state));
    tokio::time::timeout(PATIENCE, reached)
        .await
        .unwrap_or_else(|_| panic!("node {id} does not become {state:?}"))
        .expect("the network runs");
}

/// Waits until `done` says so, asking often.
pub async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let asked = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

pub fn echo() -> Arc<dyn Handler> {
    Arc::new(Echo)
}
