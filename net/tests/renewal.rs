//! Renewal: on time, late, and for those only who may.

#[path = "support/raw.rs"]
mod raw;
mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use flotilla_net::*;
use raw::Raw;
use support::*;

/// Signs whatever the network lets through.
struct Signer {
    authority: Authority,
    /// How old and how long-lived its certificates are when they are made.
    age: Duration,
    lifetime: Duration,
    revision: u64,
    signed: AtomicUsize,
    signed_for: Mutex<BTreeSet<NodeId>>,
    last: Mutex<Option<RenewRequest>>,
}

impl Signer {
    fn new(authority: &Authority) -> Arc<Signer> {
        Signer::of_age(authority, Duration::ZERO, LIFETIME)
    }

    fn of_age(authority: &Authority, age: Duration, lifetime: Duration) -> Arc<Signer> {
        Arc::new(Signer { age, lifetime, ..Signer::as_of(authority, 0) })
    }

    fn as_of(authority: &Authority, revision: u64) -> Signer {
        let key = SealKey::generate();
        let authority = Authority::unseal(&key, &authority.seal(&key).expect("seals")).expect("opens");
        Signer {
            authority,
            age: Duration::ZERO,
            lifetime: LIFETIME,
            revision,
            signed: AtomicUsize::new(0),
            signed_for: Mutex::default(),
            last: Mutex::default(),
        }
    }
}

#[async_trait]
impl Renewal for Signer {
    async fn renew(&self, request: RenewRequest) -> Result<RenewGrant, Refusal> {
        let names = NodeNames { id: request.id, name: &request.name, addresses: &[] };
        let certificate = self
            .authority
            .sign_node(&request.csr, &names, self.lifetime, SystemTime::now() - self.age)
            .map_err(|error| Refusal(error.to_string()))?;
        self.signed.fetch_add(1, Ordering::SeqCst);
        self.signed_for.lock().expect("unpoisoned").insert(request.id);
        *self.last.lock().expect("unpoisoned") = Some(request);
        let authorities = vec![self.authority.certificate().to_vec()];
        Ok(RenewGrant { certificate: certificate.to_vec(), authorities, bridges: Vec::new(), revision: self.revision })
    }
}

/// A node whose certificate was made `age` ago.
async fn aged(authority: &Authority, id: NodeId, age: Duration) -> Node {
    let made = SystemTime::now() - age;
    let identity = Identity::issue(authority, id, &name(id), &[], LIFETIME, made).expect("an identity");
    Node::start_with(authority, id, |options| options.identity = identity).await
}

fn is_fresh(node: &Node) -> bool {
    node.net.credentials().identity().subject().renew_at() > SystemTime::now() + LIFETIME / 2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_past_two_thirds_of_its_life_is_renewed_by_a_peer() {
    let authority = authority();
    let signer = Signer::new(&authority);
    let nodes = vec![Node::start(&authority, 1).await, aged(&authority, 2, LIFETIME * 3 / 4).await];
    nodes[0].net.renew_with(signer.clone());
    introduce(&[&nodes[0], &nodes[1]]);
    until("it is renewed", || async { is_fresh(&nodes[1]) }).await;
    let request = signer.last.lock().expect("unpoisoned").clone().expect("asked");
    assert_eq!((request.id, request.name.as_str()), (2, "node-2"));
    assert_eq!(request.key_fingerprint, nodes[1].net.credentials().identity().key().fingerprint());
    assert_eq!(request.addresses, [nodes[1].net.local_addr().expect("bound")]);
    let kept = Identity::load(nodes[1].dir.path()).expect("reads").expect("is there");
    assert_eq!(kept.certificate(), nodes[1].net.credentials().identity().certificate());
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_off_past_its_certificates_end_renews_by_its_key_and_takes_part_again() {
    let authority = authority();
    let nodes = vec![Node::start(&authority, 1).await, aged(&authority, 2, LIFETIME * 10).await];
    nodes[0].net.register(Alpn::Rpc, echo());
    introduce(&[&nodes[0], &nodes[1]]);
    let refused = nodes[1].net.open(1, Alpn::Rpc).await;
    assert!(matches!(refused, Err(NetError::Refused { .. })), "{:?}", refused.map(|_| ()));
    nodes[0].net.renew_with(Signer::new(&authority));
    until("it is renewed", || async { is_fresh(&nodes[1]) }).await;
    assert_eq!(call(&nodes[1], 1, Alpn::Rpc, "back").await.expect("answers"), "node-2:back");
    await_state(&nodes[0], 2, Liveness::Alive).await;
    stop(nodes).await;
}

/// When all were off too long, none can prove itself to another; each that can open the authority renews by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_all_expired_renew_by_their_own_authority() {
    let authority = authority();
    let nodes = vec![aged(&authority, 1, LIFETIME * 10).await, aged(&authority, 2, LIFETIME * 10).await];
    introduce(&[&nodes[0], &nodes[1]]);
    nodes.iter().for_each(|node| node.net.renew_with(Signer::new(&authority)));
    for node in &nodes {
        until("it is renewed", || async { is_fresh(node) }).await;
    }
    await_state(&nodes[0], 2, Liveness::Alive).await;
    await_state(&nodes[1], 1, Liveness::Alive).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_or_unlisted_node_is_not_renewed() {
    let authority = authority();
    let signer = Signer::new(&authority);
    let first = Node::start(&authority, 1).await;
    first.net.renew_with(signer.clone());
    let (removed, unlisted) = (aged(&authority, 2, LIFETIME * 10).await, aged(&authority, 3, LIFETIME * 10).await);
    introduce(&[&first, &removed, &unlisted]);
    first.net.set_members(vec![(1, name(1)), (2, name(2))]);
    first.net.revoke(2).expect("is kept");
    // Both try at once and again after a second; by the time the second try of a listed one has passed, so have theirs.
    let listed = aged(&authority, 4, LIFETIME * 10).await;
    first.net.set_members(vec![(1, name(1)), (4, name(4))]);
    let record = first.net.own_record().expect("a record");
    listed.net.learn((*record).clone()).expect("learns");
    listed.net.set_members(vec![(1, name(1)), (4, name(4))]);
    until("the listed one is renewed", || async { is_fresh(&listed) }).await;
    let signed_for = signer.signed_for.lock().expect("unpoisoned").clone();
    assert!(signed_for.is_disjoint(&BTreeSet::from([2, 3])), "{signed_for:?}");
    assert!(!is_fresh(&removed) && !is_fresh(&unlisted));
    stop(vec![first, removed, unlisted, listed]).await;
}

/// Certificates of the shortest life, made so long ago that each is renewed two seconds later. Those that the stream began
/// with have ended when it still works, and so have others since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_stays_open_while_certificates_end_and_are_renewed() {
    let authority = authority();
    let short = |age: u64| (Duration::from_secs(age), MIN_LIFETIME);
    let mut nodes = Vec::new();
    for id in [1, 2] {
        let (age, lifetime) = short(56);
        let made = SystemTime::now() - age;
        let identity = Identity::issue(&authority, id, &name(id), &[], lifetime, made).expect("an identity");
        nodes.push(Node::start_with(&authority, id, |options| options.identity = identity).await);
    }
    let first_end = nodes[0].net.credentials().identity().subject().not_after;
    nodes[0].net.register(Alpn::Stream, echo());
    introduce(&[&nodes[0], &nodes[1]]);
    let (mut send, mut recv) = nodes[1].net.open(1, Alpn::Stream).await.expect("opens");
    let (age, lifetime) = short(38);
    let signer = Signer::of_age(&authority, age, lifetime);
    nodes.iter().for_each(|node| node.net.renew_with(signer.clone()));
    until("each was renewed several times, and the first certificates have ended", || async {
        signer.signed.load(Ordering::SeqCst) >= 6 && SystemTime::now() > first_end + Duration::from_secs(1)
    })
    .await;
    write_frame(&mut send, b"still here").await.expect("writes");
    assert_eq!(&read_frame(&mut recv, 64).await.expect("answers")[..], b"node-2:still here");
    await_state(&nodes[0], 2, Liveness::Alive).await;
    let fresh = Node::start(&authority, 3).await;
    introduce(&[&nodes[0], &nodes[1], &fresh]);
    assert_eq!(call(&fresh, 1, Alpn::Stream, "new").await.expect("answers"), "node-3:new");
    nodes.push(fresh);
    stop(nodes).await;
}

/// While one node was off, the other went over to a new authority and dropped the old one. They know each other's keys, and
/// that is enough; and it is the one that was off that follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_slept_through_a_change_of_authorities_follows_one_whose_key_is_listed() {
    let old = authority();
    let mut nodes = cluster(&old, 2).await;
    let listed: Vec<_> = nodes
        .iter()
        .map(|node| Listed {
            id: node.id,
            name: node.name.clone(),
            key: Some(node.net.credentials().identity().key().fingerprint()),
        })
        .collect();
    let (new, _) = old.succeed(SystemTime::now()).expect("a successor");
    let key = nodes[0].net.credentials().identity().key().clone();
    let names = NodeNames { id: 1, name: "node-1", addresses: &[] };
    let certificate = new.sign_node(&key.request().expect("a request"), &names, LIFETIME, SystemTime::now());
    let identity = Identity::new(key, certificate.expect("signs"), vec![new.certificate().clone()]);
    nodes[0].net.replace_identity(identity.expect("fits together")).await.expect("is used");
    nodes[0].net.renew_with(Arc::new(Signer::as_of(&new, 7)));
    nodes[0].net.set_members(listed.clone());

    let back = nodes.pop().expect("a second node").restart().await;
    back.net.renew_with(Arc::new(Signer::as_of(&old, 6)));
    back.net.register(Alpn::Rpc, echo());
    back.net.set_members(listed);
    let follows = [new.certificate().clone()];
    until("it follows", || async { back.net.credentials().identity().authorities() == follows }).await;
    await_state(&nodes[0], 2, Liveness::Alive).await;
    assert_eq!(call(&nodes[0], 2, Alpn::Rpc, "back").await.expect("answers"), "node-1:back");
    assert_eq!(nodes[0].net.credentials().identity().authorities(), follows, "the other did not go back");
    nodes.push(back);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_was_recorded_is_worth_nothing_on_another_connection() {
    const LABEL: &[u8] = b"EXPORTER-flotilla-renew-1";
    let authority = authority();
    let first = Node::start(&authority, 1).await;
    let signer = Signer::new(&authority);
    first.net.renew_with(signer.clone());
    first.net.set_members(vec![(1, name(1)), (2, name(2))]);
    let member = identity(&authority, 2);
    let csr = member.key().request().expect("a request");
    let (raw, address) = (Raw::new(), first.net.local_addr().expect("bound"));

    let connection = raw.connect(address, Alpn::Renew.as_str(), None).await.expect("connects");
    let mut exported = [0; 32];
    connection.export_keying_material(&mut exported, LABEL, &fingerprint(&csr)).expect("key material");
    let key = rcgen::KeyPair::from_pem(&member.key().to_pem()).expect("a key");
    let proof = rcgen::SigningKey::sign(&key, &[LABEL, &exported].concat()).expect("signs");
    let question = codec::encode(&(member.certificate().to_vec(), csr, proof)).expect("encodes");
    let ask = async |connection: quinn::Connection| {
        let (mut send, mut recv) = connection.open_bi().await.expect("opens");
        write_frame(&mut send, &question).await.expect("writes");
        let answer = read_frame(&mut recv, 64 * 1024).await.expect("answers");
        codec::decode::<Result<RenewGrant, String>>(&answer).expect("decodes")
    };
    ask(connection).await.expect("the member itself is answered");
    let replayed = raw.connect(address, Alpn::Renew.as_str(), None).await.expect("connects");
    let refused = ask(replayed).await.expect_err("it is recorded");
    assert_eq!(refused, "the request was not signed by the certificate's key");
    assert_eq!(signer.signed.load(Ordering::SeqCst), 1);
    raw.stop().await;
    first.net.shutdown().await;
}
