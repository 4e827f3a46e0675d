//! Calls between nodes: who is answered, who is not, and what survives what.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use flotilla_net::*;
use support::*;

async fn echoing(authority: &Authority, count: u64) -> Vec<Node> {
    let nodes = cluster(authority, count).await;
    nodes.iter().for_each(|node| node.net.register(Alpn::Rpc, echo()));
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_call_each_other_and_know_who_calls() {
    let nodes = echoing(&authority(), 2).await;
    assert_eq!(call(&nodes[0], 2, Alpn::Rpc, "hello").await.expect("answers"), "node-1:hello");
    assert_eq!(call(&nodes[1], 1, Alpn::Rpc, "there").await.expect("answers"), "node-2:there");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_calls_itself_like_any_other() {
    let nodes = echoing(&authority(), 1).await;
    assert_eq!(call(&nodes[0], 1, Alpn::Rpc, "me").await.expect("answers"), "node-1:me");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_protocol_without_a_handler_is_refused_in_words() {
    let nodes = echoing(&authority(), 2).await;
    let refused = nodes[0].net.open(2, Alpn::Blob).await.expect_err("nobody serves blobs");
    assert_eq!(refused.to_string(), "node 2 refuses flotilla/blob/1: not served here");
    assert!(!refused.says_no_member());
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_listed_is_neither_called_nor_answered() {
    let authority = authority();
    let nodes = echoing(&authority, 2).await;
    let outsider = Node::start(&authority, 3).await;
    introduce(&[&outsider, &nodes[0], &nodes[1]]);
    nodes.iter().for_each(|node| node.net.set_members(vec![(1, name(1)), (2, name(2))]));
    let refused = outsider.net.open(1, Alpn::Rpc).await.expect_err("not listed");
    assert_eq!(refused.to_string(), "node 1 refuses flotilla/rpc/1: not a member of this cluster");
    assert!(refused.says_no_member());
    assert!(matches!(nodes[0].net.open(3, Alpn::Rpc).await, Err(NetError::NotAMember(3))));
    // Listed under another name, it is still not itself.
    nodes[0].net.set_members(vec![(1, name(1)), (2, name(2)), (3, "another".into())]);
    assert!(matches!(outsider.net.open(1, Alpn::Rpc).await, Err(NetError::Refused { .. })));
    stop(nodes).await;
    outsider.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_nodes_calls_end_at_once_and_it_does_not_come_back() {
    let nodes = echoing(&authority(), 2).await;
    let (mut send, mut recv) = nodes[1].net.open(1, Alpn::Rpc).await.expect("opens");
    write_frame(&mut send, b"one").await.expect("writes");
    assert_eq!(&read_frame(&mut recv, 64).await.expect("answers")[..], b"node-2:one");
    let started = Instant::now();
    nodes[0].net.revoke(2).expect("is kept");
    assert!(tokio::time::timeout(PATIENCE, read_frame(&mut recv, 64)).await.expect("in time").is_err());
    assert!(started.elapsed() < Duration::from_secs(1), "took {:?}", started.elapsed());
    nodes[0].net.set_members(vec![(1, name(1)), (2, name(2))]);
    let refused = nodes[1].net.open(1, Alpn::Rpc).await.expect_err("removed");
    assert_eq!(refused.to_string(), "node 1 refuses flotilla/rpc/1: removed from this cluster");
    let showed = nodes[1].net.credentials().identity().certificate().clone();
    assert!(nodes[0].net.admits(&Caller::new(&[showed]).expect("a certificate")).is_err());
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_node_may_be_listed_again() {
    let nodes = echoing(&authority(), 2).await;
    call(&nodes[0], 2, Alpn::Rpc, "before").await.expect("answers");
    nodes[0].net.forget(2);
    assert!(matches!(nodes[0].net.open(2, Alpn::Rpc).await, Err(NetError::NotAMember(2))));
    assert!(nodes[0].net.peers().iter().all(|record| record.id() != 2));
    introduce(&[&nodes[0], &nodes[1]]);
    assert_eq!(call(&nodes[0], 2, Alpn::Rpc, "after").await.expect("answers"), "node-1:after");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_drops_no_call_and_counts_for_the_next() {
    let authority = authority();
    let nodes = echoing(&authority, 2).await;
    let (mut send, mut recv) = nodes[0].net.open(2, Alpn::Rpc).await.expect("opens");
    write_frame(&mut send, b"one").await.expect("writes");
    read_frame(&mut recv, 64).await.expect("answers");
    for node in &nodes {
        let next = identity(&authority, node.id);
        node.net.replace_identity(next.clone()).await.expect("swaps");
        let kept = Identity::load(node.dir.path()).expect("reads").expect("is there");
        assert_eq!(kept.certificate(), next.certificate());
        assert_eq!(node.net.credentials().identity().certificate(), next.certificate());
    }
    write_frame(&mut send, b"two").await.expect("writes");
    assert_eq!(&read_frame(&mut recv, 64).await.expect("answers")[..], b"node-1:two");
    // A connection that is made now is made with the new ones.
    nodes.iter().for_each(|node| node.net.register(Alpn::Stream, echo()));
    assert_eq!(call(&nodes[0], 2, Alpn::Stream, "three").await.expect("answers"), "node-1:three");
    let other = identity(&authority, 9);
    assert!(matches!(nodes[0].net.replace_identity(other).await, Err(NetError::Identity(_))));
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_over_the_bound_ends_the_call_and_not_the_connection() {
    let nodes = echoing(&authority(), 2).await;
    let (mut send, mut recv) = nodes[0].net.open(2, Alpn::Rpc).await.expect("opens");
    write_frame(&mut send, &[0; 4096]).await.expect("writes");
    assert!(tokio::time::timeout(PATIENCE, read_frame(&mut recv, 64)).await.expect("in time").is_err());
    assert_eq!(call(&nodes[0], 2, Alpn::Rpc, "next").await.expect("answers"), "node-1:next");
    stop(nodes).await;
}

/// Counts the calls that are open at once and holds them until its streams end.
#[derive(Default)]
struct Holding {
    open: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl Handler for Holding {
    async fn handle(&self, _peer: PeerInfo, send: SendStream, mut recv: RecvStream) {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(open, Ordering::SeqCst);
        let _ = recv.read_to_end(16).await;
        self.open.fetch_sub(1, Ordering::SeqCst);
        drop(send);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_one_connection_are_bounded_and_the_rest_wait_their_turn() {
    let authority = authority();
    let nodes = cluster(&authority, 2).await;
    let holding = Arc::new(Holding::default());
    nodes[1].net.register(Alpn::Stream, holding.clone());
    let mut calls = Vec::new();
    for _ in 0..MAX_CALLS {
        let (mut send, recv) = nodes[0].net.open(2, Alpn::Stream).await.expect("opens");
        send.write_all(b"x").await.expect("writes");
        calls.push((send, recv));
    }
    until("all are held", || async { holding.open.load(Ordering::SeqCst) == MAX_CALLS as usize }).await;
    let refused = nodes[0].net.open(2, Alpn::Stream).await.expect_err("no more at once");
    assert!(matches!(refused, NetError::Timeout { node: 2, waited_ms: 2000, .. }), "{refused}");
    calls.clear();
    until("all have ended", || async { holding.open.load(Ordering::SeqCst) == 0 }).await;
    nodes[0].net.open(2, Alpn::Stream).await.expect("there is room again");
    assert_eq!(holding.most.load(Ordering::SeqCst), MAX_CALLS as usize);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_there_costs_a_bounded_time() {
    let authority = authority();
    let nodes = echoing(&authority, 1).await;
    let gone = Node::start_with(&authority, 2, |_| {}).await;
    introduce(&[&nodes[0], &gone]);
    gone.net.shutdown().await;
    drop(gone);
    let started = Instant::now();
    let waiting = (0..8).map(|_| nodes[0].net.open(2, Alpn::Rpc));
    let results = futures::future::join_all(waiting).await;
    assert!(results.iter().all(|result| matches!(result, Err(NetError::Timeout { .. } | NetError::Refused { .. }))));
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    assert!(matches!(nodes[0].net.open(7, Alpn::Rpc).await, Err(NetError::NotAMember(7))));
    nodes[0].net.set_members(vec![(1, name(1)), (7, name(7))]);
    assert!(matches!(nodes[0].net.open(7, Alpn::Rpc).await, Err(NetError::NoAddress(7))));
    stop(nodes).await;
}

/// A restarted peer says at once that it knows the old connections no more, so that nobody waits for them to time out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_is_called_again_within_a_second() {
    let authority = authority();
    let caller = Node::start(&authority, 1).await;
    // What runs on a runtime that is dropped ends without a word, as by SIGKILL.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let started = doomed.spawn(async move { Node::start_with(&authority, 2, |options| options.threads = 0).await });
    let callee = started.await.expect("starts");
    introduce(&[&caller, &callee]);
    callee.net.register(Alpn::Rpc, echo());
    call(&caller, 2, Alpn::Rpc, "before").await.expect("answers");
    doomed.shutdown_background();
    let back = callee.begin_again().await;
    back.net.register(Alpn::Rpc, echo());
    back.net.set_members(vec![(1, name(1)), (2, name(2))]);
    let started = Instant::now();
    until("the peer answers again", || async {
        let Ok((mut send, mut recv)) = caller.net.open(2, Alpn::Rpc).await else { return false };
        let answered = async {
            write_frame(&mut send, b"after").await.ok()?;
            read_frame(&mut recv, 64).await.ok()
        };
        answered.await.is_some()
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(1), "took {:?}", started.elapsed());
    stop(vec![caller, back]).await;
}

/// Idle connections are not asked for a long time here: what tells that the peer is another process is its heartbeats' way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_the_process_that_a_restarted_peer_was_before() {
    let authority = authority();
    let rarely = |options: &mut Options| {
        (options.keep_alive, options.idle_timeout) = (PATIENCE, 2 * PATIENCE);
    };
    let caller = Node::start_with(&authority, 1, rarely).await;
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let started = doomed.spawn(async move { Node::start_with(&authority, 2, |options| options.threads = 0).await });
    let callee = started.await.expect("starts");
    introduce(&[&caller, &callee]);
    callee.net.register(Alpn::Rpc, echo());
    call(&caller, 2, Alpn::Rpc, "before").await.expect("answers");
    let called = Instant::now();
    let heard_since = |node: &Node, since: Instant| {
        node.net.liveness().borrow().get(&1).and_then(|peer| peer.last_heard).is_some_and(|heard| heard > since)
    };
    until("beats went on for a while", || async { heard_since(&callee, called + Duration::from_millis(500)) }).await;
    doomed.shutdown_background();
    let back = callee.begin_again().await;
    back.net.register(Alpn::Rpc, echo());
    back.net.set_members(vec![(1, name(1)), (2, name(2))]);
    let is_beaten = || back.net.liveness().borrow().get(&1).is_some_and(|peer| peer.address.is_some());
    until("a beat comes", || async { is_beaten() }).await;
    assert_eq!(call(&caller, 2, Alpn::Rpc, "after").await.expect("answers"), "node-1:after");
    stop(vec![caller, back]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_was_shut_down_says_so() {
    let nodes = echoing(&authority(), 2).await;
    nodes[0].net.shutdown().await;
    assert!(matches!(nodes[0].net.open(2, Alpn::Rpc).await, Err(NetError::ShuttingDown)));
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_another_signed_is_not_believed() {
    let (one, two) = (authority(), authority());
    let nodes = echoing(&one, 1).await;
    let foreign = AddressRecord::sign(&identity(&two, 2), &["127.0.0.1:9".parse().expect("an address")], 1);
    assert!(matches!(nodes[0].net.learn(foreign.expect("signs")), Err(NetError::Record(_))));
    let many = vec!["127.0.0.1:9".parse().expect("an address"); MAX_ADDRESSES + 1];
    assert!(matches!(AddressRecord::sign(&identity(&one, 2), &many, 1), Err(RecordError::Addresses)));
    // Each byte of a true record matters.
    let record = AddressRecord::sign(&identity(&one, 2), &many[..1], 1).expect("signs");
    let bytes = codec::encode(&record).expect("encodes");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        if let Ok(changed) = codec::decode::<AddressRecord>(&changed) {
            assert!(nodes[0].net.learn(changed).is_err(), "byte {at}");
        }
    }
    nodes[0].net.learn(record).expect("the true one is believed");
    stop(nodes).await;
}

/// Whoever got hold of the authority's key can certify a key of its own for any node. It is another than the listed one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_key_than_the_listed_one_is_worth_nothing() {
    let authority = authority();
    let honest = Node::start(&authority, 1).await;
    let forged = Node::start(&authority, 2).await;
    for alpn in Alpn::ALL.into_iter().filter(|alpn| !alpn.is_internal()) {
        honest.net.register(alpn, echo());
    }
    introduce(&[&honest, &forged]);
    call(&forged, 1, Alpn::Rpc, "before").await.expect("no key is listed yet");
    let (mut send, mut recv) = forged.net.open(1, Alpn::Stream).await.expect("opens");
    write_frame(&mut send, b"one").await.expect("writes");
    read_frame(&mut recv, 64).await.expect("answers");

    let listed = |id, key| Listed { id, name: name(id), key: Some(key) };
    let own = honest.net.credentials().identity().key().fingerprint();
    honest.net.set_members([listed(1, own), listed(2, [7; 32])]);
    assert!(
        tokio::time::timeout(PATIENCE, read_frame(&mut recv, 64)).await.expect("in time").is_err(),
        "it is cut off"
    );
    for alpn in Alpn::ALL.into_iter().filter(|alpn| !alpn.admits_strangers()) {
        let refused = forged.net.open(1, alpn).await.expect_err("another key");
        assert!(refused.to_string().contains("not a member of this cluster"), "{alpn}: {refused}");
    }
    // The other way round: a server with another key is not spoken to.
    forged.net.register(Alpn::Rpc, echo());
    let refused = honest.net.open(2, Alpn::Rpc).await.expect_err("another key");
    assert!(matches!(refused, NetError::Unreachable { .. }), "{refused}");
    stop(vec![honest, forged]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_on_another_port_is_refused_within_a_second_of_its_removal() {
    let nodes = echoing(&authority(), 2).await;
    let showed = nodes[1].net.credentials().identity().certificate().clone();
    let caller = Caller::new(&[showed]).expect("a certificate");
    assert_eq!(nodes[0].net.admits(&caller), Ok(()));
    let net = nodes[0].net.clone();
    let mut refused = std::pin::pin!(net.until_refused(&caller));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut refused).await.is_err(), "it may speak");
    nodes[0].net.set_members(vec![(1, name(1))]);
    let why = tokio::time::timeout(Duration::from_secs(1), refused).await.expect("within a second");
    assert_eq!(why, "the node is not a member of this cluster");
    assert!(nodes[0].net.peers().iter().all(|record| record.id() != 2), "its address is forgotten");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_connection_ends_with_its_certificate() {
    let authority = authority();
    let node = Node::start(&authority, 1).await;
    let csr = NodeKey::generate().expect("a key").request().expect("a request");
    let made = SystemTime::now() - MIN_LIFETIME + Duration::from_secs(2);
    let certificate = authority.sign_client(&csr, "anna", &[], MIN_LIFETIME, made).expect("signs");
    let caller = Caller::new(&[certificate]).expect("a certificate");
    assert_eq!(node.net.admits(&caller), Ok(()));
    let why = tokio::time::timeout(PATIENCE, node.net.until_refused(&caller)).await.expect("in time");
    assert_eq!(why, "the certificate has expired, or its authority was replaced");
    node.net.shutdown().await;
}
