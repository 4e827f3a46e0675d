//! Joining, with a real authority behind a small admission.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use flotilla_net::*;
use support::*;

/// Admits whoever shows the secret of its one token.
struct Desk {
    authority: Authority,
    seal_key: SealKey,
    token: Mutex<Option<(TokenId, SecretHash)>>,
    members: Mutex<Vec<Member>>,
    asked: AtomicUsize,
}

#[async_trait]
impl Admission for Desk {
    async fn admit(&self, request: JoinRequest) -> Result<JoinGrant, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let known = self.token.lock().expect("unpoisoned").filter(|(id, _)| *id == request.token_id);
        let (id, hash) = known.ok_or_else(|| Refusal("the token was revoked or never existed".into()))?;
        if !hash.matches(id, &request.secret) {
            return Err(Refusal("the token's secret is wrong".into()));
        }
        let ips: Vec<_> = request.addresses.iter().map(|address| address.ip()).collect();
        let names = NodeNames { id: request.id, name: &request.name, addresses: &ips };
        let certificate = self
            .authority
            .sign_node(&request.csr, &names, LIFETIME, SystemTime::now())
            .map_err(|error| Refusal(error.to_string()))?;
        Ok(JoinGrant {
            cluster: self.authority.cluster(),
            certificate: certificate.to_vec(),
            authorities: vec![self.authority.certificate().to_vec()],
            bridges: Vec::new(),
            seal_key: request.replica.then(|| self.seal_key.clone()),
            members: self.members.lock().expect("unpoisoned").clone(),
        })
    }
}

/// A first node that admits others.
async fn first_node() -> (Node, Arc<Desk>) {
    let authority = authority();
    let node = Node::start(&authority, 1).await;
    let record = node.net.own_record().expect("a record");
    let desk = Arc::new(Desk {
        authority,
        seal_key: SealKey::generate(),
        token: Mutex::default(),
        members: Mutex::new(vec![Member { id: 1, name: name(1), key: None, record: Some((*record).clone()) }]),
        asked: AtomicUsize::new(0),
    });
    node.net.admit_with(desk.clone());
    (node, desk)
}

/// A token of the desk, which it knows.
fn token(desk: &Desk, addresses: Vec<SocketAddr>, expires: Option<SystemTime>) -> Token {
    let token = Token::generate(desk.authority.cluster(), desk.authority.fingerprint(), expires, addresses);
    let token = token.expect("a token");
    *desk.token.lock().expect("unpoisoned") = Some((token.id(), token.secret_hash()));
    token
}

fn parts(id: NodeId) -> JoinParts {
    let addresses = vec!["127.0.0.1:7400".parse().expect("an address")];
    let key = NodeKey::generate().expect("a key");
    JoinParts { name: name(id), id, key, addresses, version: "0.1.0".into(), replica: true }
}

fn quick() -> JoinTimeouts {
    JoinTimeouts { connect: Duration::from_secs(2), answer: Duration::from_secs(5) }
}

async fn refusal(token: &Token, parts: &JoinParts) -> JoinError {
    join(token, parts, quick(), SystemTime::now()).await.expect_err("refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_a_token_becomes_a_node() {
    let (first, desk) = first_node().await;
    let token = token(&desk, vec![first.net.local_addr().expect("bound")], None);
    let told: Token = token.to_string().parse().expect("parses");
    let joined = join(&told, &parts(2), quick(), SystemTime::now()).await.expect("joins");
    assert_eq!((joined.identity.id(), joined.identity.name()), (2, "node-2"));
    assert_eq!(joined.identity.cluster(), desk.authority.cluster());
    assert_eq!(joined.seal_key, Some(desk.seal_key.clone()));

    // What it was given is enough to take part.
    let dir = tempfile::tempdir().expect("a directory");
    joined.identity.store(dir.path()).expect("stores");
    let identity = Identity::load(dir.path()).expect("reads").expect("is there");
    let net = Net::start(options(identity, &dir)).await.expect("starts");
    let second = Node { net, dir, id: 2, name: name(2) };
    for member in joined.members {
        second.net.learn(member.record.expect("a record")).expect("learns");
    }
    let members = vec![(1, name(1)), (2, name(2))];
    first.net.set_members(members.clone());
    second.net.set_members(members);
    first.net.register(Alpn::Rpc, echo());
    assert_eq!(call(&second, 1, Alpn::Rpc, "here").await.expect("answers"), "node-2:here");
    await_state(&first, 2, Liveness::Alive).await;
    stop(vec![first, second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_holds_no_replica_gets_no_seal_key() {
    let (first, desk) = first_node().await;
    let token = token(&desk, vec![first.net.local_addr().expect("bound")], None);
    let parts = JoinParts { replica: false, ..parts(2) };
    let joined = join(&token, &parts, quick(), SystemTime::now()).await.expect("joins");
    assert_eq!(joined.seal_key, None);
    first.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_and_a_wrong_secret_are_refused_in_one_line() {
    let (first, desk) = first_node().await;
    let addresses = vec![first.net.local_addr().expect("bound")];
    let revoked = token(&desk, addresses.clone(), None);
    let valid = token(&desk, addresses, None);
    assert_eq!(refusal(&revoked, &parts(2)).await.to_string(), "the token was revoked or never existed");
    // The right id with another token's secret.
    *desk.token.lock().expect("unpoisoned") = Some((valid.id(), revoked.secret_hash()));
    assert_eq!(refusal(&valid, &parts(2)).await.to_string(), "the token's secret is wrong");
    first.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_is_not_even_shown() {
    let (first, desk) = first_node().await;
    let past = SystemTime::now() - Duration::from_secs(1);
    let token = token(&desk, vec![first.net.local_addr().expect("bound")], Some(past));
    assert_eq!(refusal(&token, &parts(2)).await.to_string(), "the token has expired; ask for a new one");
    assert_eq!(desk.asked.load(Ordering::SeqCst), 0);
    first.net.shutdown().await;
}

/// The server's side of the invariant that the secret goes to no other cluster: nothing is asked of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_clusters_token_is_not_shown_to_this_cluster() {
    let (first, desk) = first_node().await;
    let address = first.net.local_addr().expect("bound");
    let other = authority();
    let foreign = [
        // Another authority; this authority with another cluster.
        Token::generate(other.cluster(), other.fingerprint(), None, vec![address]),
        Token::generate(other.cluster(), desk.authority.fingerprint(), None, vec![address]),
    ];
    for token in foreign {
        let error = refusal(&token.expect("a token"), &parts(2)).await;
        assert!(matches!(error, JoinError::WrongCluster(at) if at == address), "{error}");
        assert!(error.to_string().contains("nothing was sent"), "{error}");
    }
    assert_eq!(desk.asked.load(Ordering::SeqCst), 0);
    first.net.shutdown().await;
}

/// A token outlives its authority for as long as nodes show the bridge. Then it is told apart from another cluster's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_replaced_authority_is_good_over_the_bridge_and_then_named_as_such() {
    let (first, desk) = first_node().await;
    let token = token(&desk, vec![first.net.local_addr().expect("bound")], None);
    let (new, bridge) = desk.authority.succeed(SystemTime::now()).expect("a successor");
    let key = first.net.credentials().identity().key().clone();
    let names = NodeNames { id: 1, name: &name(1), addresses: &[] };
    let csr = key.request().expect("a request");
    let certificate = new.sign_node(&csr, &names, LIFETIME, SystemTime::now()).expect("signs");
    let both = vec![new.certificate().clone(), desk.authority.certificate().clone()];
    let overlapping = Identity::new(key.clone(), certificate.clone(), both).expect("fits together");
    let overlapping = overlapping.with_bridges(vec![bridge]).expect("bridges");
    first.net.replace_identity(overlapping).await.expect("is used");
    join(&token, &parts(2), quick(), SystemTime::now()).await.expect("joins over the bridge");

    let alone = Identity::new(key, certificate, vec![new.certificate().clone()]).expect("fits together");
    first.net.replace_identity(alone).await.expect("is used");
    let asked = desk.asked.load(Ordering::SeqCst);
    let error = refusal(&token, &parts(3)).await;
    assert!(matches!(error, JoinError::Replaced(_)), "{error}");
    assert!(error.to_string().contains("replaced since the token was made"), "{error}");
    assert_eq!(desk.asked.load(Ordering::SeqCst), asked, "nothing was sent");
    first.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_do_not_answer_or_are_others_are_passed_over() {
    let (first, desk) = first_node().await;
    let (stranger, _) = first_node().await;
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let dead = deaf.local_addr().expect("bound");
    let addresses = vec![dead, stranger.net.local_addr().expect("bound"), first.net.local_addr().expect("bound")];
    let all = token(&desk, addresses, None);
    join(&all, &parts(2), quick(), SystemTime::now()).await.expect("joins");
    let none = token(&desk, vec![dead], None);
    assert_eq!(
        refusal(&none, &parts(2)).await.to_string(),
        format!("none of the token's addresses answers: {dead} does not answer")
    );
    stop(vec![first, stranger]).await;
}

/// Neither who is let in nor who is refused waits until an address that is silent has had all its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_address_costs_its_head_start_and_not_all_its_time() {
    let (first, desk) = first_node().await;
    let deaf = [(); 3].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    let [one, two, three] = deaf.each_ref().map(|socket| socket.local_addr().expect("bound"));
    let addresses = vec![one, two, first.net.local_addr().expect("bound"), three];
    let timeouts = JoinTimeouts { connect: Duration::from_secs(60), ..quick() };
    let began = Instant::now();
    let revoked = token(&desk, addresses.clone(), None);
    let valid = token(&desk, addresses, None);
    let refused = join(&revoked, &parts(2), timeouts, SystemTime::now()).await.expect_err("revoked");
    assert!(matches!(refused, JoinError::Refused(_)), "{refused}");
    join(&valid, &parts(2), timeouts, SystemTime::now()).await.expect("joins");
    assert!(began.elapsed() < timeouts.connect / 2, "{:?}", began.elapsed());
    assert_eq!(desk.asked.load(Ordering::SeqCst), 2, "each was asked once");
    first.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_admits_nobody_says_so() {
    let authority = authority();
    let node = Node::start(&authority, 1).await;
    let addresses = vec![node.net.local_addr().expect("bound")];
    let token = Token::generate(authority.cluster(), authority.fingerprint(), None, addresses).expect("a token");
    assert!(matches!(refusal(&token, &parts(2)).await, JoinError::Refused(_)));
    node.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_out_of_bounds_are_refused() {
    let (first, desk) = first_node().await;
    let token = token(&desk, vec![first.net.local_addr().expect("bound")], None);
    let named = JoinParts { name: "Not A Name".into(), ..parts(2) };
    assert!(matches!(refusal(&token, &named).await, JoinError::Name(_)));
    let scattered = JoinParts { addresses: vec!["127.0.0.1:1".parse().expect("an address"); 9], ..parts(2) };
    assert_eq!(refusal(&token, &scattered).await.to_string(), "more than 8 addresses");
    let wordy = JoinParts { version: "v".repeat(65), ..parts(2) };
    assert!(refusal(&token, &wordy).await.to_string().contains("version"));
    assert_eq!(desk.asked.load(Ordering::SeqCst), 0);
    first.net.shutdown().await;
}

/// Grants, but not what was asked for.
struct Careless {
    desk: Arc<Desk>,
    spoil: fn(&mut JoinGrant, &mut JoinRequest),
}

#[async_trait]
impl Admission for Careless {
    async fn admit(&self, mut request: JoinRequest) -> Result<JoinGrant, Refusal> {
        let mut spare = self.desk.admit(request.clone()).await?;
        (self.spoil)(&mut spare, &mut request);
        let mut grant = self.desk.admit(request).await?;
        (self.spoil)(&mut grant, &mut spare_request());
        Ok(grant)
    }
}

fn spare_request() -> JoinRequest {
    let csr = NodeKey::generate().expect("a key").request().expect("a request");
    let token = Token::generate(ClusterId::generate(), [0; 32], None, vec!["127.0.0.1:1".parse().expect("an address")]);
    let token = token.expect("a token");
    JoinRequest {
        token_id: token.id(),
        secret: token.secret().clone(),
        name: name(9),
        id: 9,
        csr,
        addresses: Vec::new(),
        version: String::new(),
        replica: false,
        remote: "127.0.0.1:1".parse().expect("an address"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_does_not_fit_is_not_used() {
    let (first, desk) = first_node().await;
    let token = token(&desk, vec![first.net.local_addr().expect("bound")], None);
    let spoils: [fn(&mut JoinGrant, &mut JoinRequest); 5] = [
        |grant, _| grant.cluster = ClusterId::generate(),
        |grant, _| grant.authorities = vec![authority().certificate().to_vec()],
        |_, request| request.id = 9,
        |_, request| request.name = name(9),
        |_, request| request.csr = NodeKey::generate().expect("a key").request().expect("a request"),
    ];
    for spoil in spoils {
        first.net.admit_with(Arc::new(Careless { desk: desk.clone(), spoil }));
        let error = refusal(&token, &parts(2)).await;
        assert!(matches!(error, JoinError::Misfit(_) | JoinError::Identity(_)), "{error:?}");
    }
    first.net.shutdown().await;
}
