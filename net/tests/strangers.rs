//! What those get who should get nothing, on every protocol of the port.

#[path = "support/raw.rs"]
mod raw;
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use flotilla_net::*;
use raw::{Raw, Shown};
use support::*;

const MEMBERS_ONLY: [Alpn; 7] = [Alpn::Raft, Alpn::Rpc, Alpn::Stream, Alpn::Blob, Alpn::Slice, Alpn::Api, Alpn::Beat];

/// A node that serves every protocol.
async fn open_house(authority: &Authority, change: impl FnOnce(&mut Options)) -> (Node, SocketAddr) {
    let node = Node::start_with(authority, 1, change).await;
    for alpn in MEMBERS_ONLY.into_iter().filter(|alpn| *alpn != Alpn::Beat) {
        node.net.register(alpn, echo());
    }
    node.net.set_members(vec![(1, name(1)), (2, name(2))]);
    let address = node.net.local_addr().expect("bound");
    (node, address)
}

fn node(authority: &Authority, id: NodeId, age: Duration) -> Shown {
    let made = SystemTime::now() - age;
    let identity = Identity::issue(authority, id, &name(id), &[], LIFETIME, made).expect("an identity");
    (identity.key().clone(), identity.certificate().clone())
}

async fn every_member_protocol_says(authority: &Authority, shown: Option<Shown>, word: &str) {
    let (node, address) = open_house(authority, |_| {}).await;
    let raw = Raw::new();
    for alpn in MEMBERS_ONLY {
        let reason = raw.refused(address, alpn.as_str(), shown.as_ref()).await;
        assert!(reason.contains(word), "{alpn}: {reason}");
    }
    raw.stop().await;
    node.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_no_member_protocol_answers() {
    every_member_protocol_says(&authority(), None, "a node certificate is required").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_authoritys_certificate_does_not_pass_the_handshake() {
    let foreign = node(&support::authority(), 2, Duration::ZERO);
    every_member_protocol_says(&authority(), Some(foreign), "cryptographic handshake failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_does_not_pass_the_handshake() {
    let authority = authority();
    let old = node(&authority, 2, LIFETIME + Duration::from_secs(1));
    every_member_protocol_says(&authority, Some(old), "cryptographic handshake failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_certificate_is_no_nodes() {
    let authority = authority();
    let key = NodeKey::generate().expect("a key");
    let csr = key.request().expect("a request");
    let masters = ["system:masters".to_string()];
    let certificate = authority.sign_client(&csr, "root", &masters, LIFETIME, SystemTime::now()).expect("signs");
    every_member_protocol_says(&authority, Some((key, certificate)), "a node certificate is required").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_listed_is_no_member() {
    let authority = authority();
    let unlisted = node(&authority, 3, Duration::ZERO);
    every_member_protocol_says(&authority, Some(unlisted), "not a member of this cluster").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_node_is_let_in_by_the_same_door() {
    let authority = authority();
    let (node_1, address) = open_house(&authority, |_| {}).await;
    let raw = Raw::new();
    let shown = node(&authority, 2, Duration::ZERO);
    let connection = raw.connect(address, Alpn::Rpc.as_str(), Some(&shown)).await.expect("connects");
    let (mut send, mut recv) = connection.open_bi().await.expect("opens");
    write_frame(&mut send, b"hi").await.expect("writes");
    assert_eq!(&read_frame(&mut recv, 64).await.expect("answers")[..], b"node-2:hi");
    raw.stop().await;
    node_1.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_protocol_does_not_pass_the_handshake() {
    let (node, address) = open_house(&authority(), |_| {}).await;
    let raw = Raw::new();
    for alpn in ["h3", "flotilla/raft/2", ""] {
        let reason = raw.refused(address, alpn, None).await;
        assert!(reason.contains("handshake"), "{alpn:?}: {reason}");
    }
    raw.stop().await;
    node.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_says_nothing_or_too_much_is_sent_away() {
    let (node, address) = open_house(&authority(), |options| {
        options.stranger_timeout = Duration::from_millis(300);
    })
    .await;
    let raw = Raw::new();
    for alpn in [Alpn::Join, Alpn::Renew] {
        let silent = raw.connect(address, alpn.as_str(), None).await.expect("connects");
        let reason = tokio::time::timeout(PATIENCE, silent.closed()).await.expect("is closed");
        assert!(reason.to_string().contains("too slow"), "{reason}");

        // A frame that claims 4 GiB is refused by its length alone.
        let greedy = raw.connect(address, alpn.as_str(), None).await.expect("connects");
        let (mut send, mut recv) = greedy.open_bi().await.expect("opens");
        send.write_all(&[0xff; 4]).await.expect("writes");
        let ended = tokio::time::timeout(PATIENCE, recv.read_to_end(64)).await.expect("is ended");
        assert!(ended.is_err() || ended.is_ok_and(|bytes| bytes.is_empty()));
    }
    raw.stop().await;
    node.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_answered_with_one_line() {
    let (node, address) = open_house(&authority(), |_| {}).await;
    let raw = Raw::new();
    for alpn in [Alpn::Join, Alpn::Renew] {
        let connection = raw.connect(address, alpn.as_str(), None).await.expect("connects");
        let (mut send, mut recv) = connection.open_bi().await.expect("opens");
        write_frame(&mut send, &[1, 2, 3]).await.expect("writes");
        let answer = read_frame(&mut recv, 1024).await.expect("answers");
        let reason = codec::decode::<Result<(), String>>(&answer).expect("decodes").expect_err("refused");
        assert!(reason.starts_with("not a "), "{reason}");
    }
    raw.stop().await;
    node.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_tries_too_often_must_wait_and_members_are_unharmed() {
    let authority = authority();
    let rate = Rate { burst: 3, refill: Duration::from_secs(60) };
    let (node_1, address) = open_house(&authority, |options| options.stranger_rate = rate).await;
    let raw = Raw::new();
    let mut reasons = Vec::new();
    for _ in 0..5 {
        let connection = raw.connect(address, Alpn::Join.as_str(), None).await.expect("connects");
        let asked = async {
            let (mut send, mut recv) = connection.open_bi().await.ok()?;
            write_frame(&mut send, &[1, 2, 3]).await.ok()?;
            read_frame(&mut recv, 1024).await.ok()
        };
        reasons.push(match asked.await {
            Some(_) => "answered".to_string(),
            None => connection.closed().await.to_string(),
        });
    }
    assert!(reasons[..3].iter().all(|reason| reason == "answered"), "{reasons:?}");
    assert!(reasons[3..].iter().all(|reason| reason.contains("too many attempts")), "{reasons:?}");
    let member = Node::start(&authority, 2).await;
    introduce(&[&node_1, &member]);
    assert_eq!(call(&member, 1, Alpn::Rpc, "hi").await.expect("answers"), "node-2:hi");
    raw.stop().await;
    stop(vec![node_1, member]).await;
}

/// True first packets, after which nothing more comes, and ten thousand that only look like some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_do_not_keep_a_member_out() {
    let authority = authority();
    let (node_1, address) = open_house(&authority, |options| {
        options.max_handshakes = 32;
        options.max_handshakes_each = 32;
        options.handshake_timeout = Duration::from_secs(10);
    })
    .await;
    let member = Node::start(&authority, 2).await;
    introduce(&[&node_1, &member]);
    let first_packets = first_packets(128).await;
    let flood = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    for packet in &first_packets {
        flood.send_to(packet, address).await.expect("sends");
    }
    for n in 0..10_000_u32 {
        let mut packet = first_packets[0].clone();
        // Another connection id each time, for which the packet is not encrypted.
        packet[6..10].copy_from_slice(&n.to_be_bytes());
        // A full buffer drops it, as a network would.
        let _ = flood.try_send_to(&packet, address);
        if n % 256 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let started = Instant::now();
    until("the member is answered", || async { call_or_not(&member).await }).await;
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    stop(vec![node_1, member]).await;
}

async fn call_or_not(member: &Node) -> bool {
    call(member, 1, Alpn::Rpc, "hi").await.is_ok_and(|answer| answer == "node-2:hi")
}

/// What `count` clients send first, caught on a socket that does not answer.
async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let deaf = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = deaf.local_addr().expect("bound");
    let raw = Raw::new();
    let mut packets = std::collections::BTreeMap::new();
    while packets.len() < count {
        let mut packet = vec![0; 2048];
        tokio::select! {
            _ = raw.connect(address, Alpn::Rpc.as_str(), None) => panic!("nobody answers"),
            received = deaf.recv(&mut packet) => packet.truncate(received.expect("receives")),
        }
        // By connection id: what is sent again is not counted, nor what is said on giving up.
        packets.entry(packet[6..14].to_vec()).or_insert(packet);
    }
    raw.stop().await;
    packets.into_values().collect()
}
