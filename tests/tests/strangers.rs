//! Nobody becomes a node, or is heard, without the right token or certificate; and a refusal leaves nothing behind.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use flotilla::client::Target;
use flotilla::proto::cluster_client::ClusterClient;
use flotilla::proto::{ClusterStatusRequest, CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};
use flotilla_net::{Alpn, Authority, ClusterId, Token};
use flotilla_tests::outsider::{Papers, first_packets, hold_quic, knock_quic, knock_tcp};
use flotilla_tests::rest::Caller;
use flotilla_tests::{Cluster, cli, eventually, figure, process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const REFUSAL_WAIT: Duration = Duration::from_secs(30);
/// Where strangers may ask, nonsense is answered with one line.
const LINE_BYTES: usize = 600;
const EXPIRY_WAIT: Duration = Duration::from_secs(10);
/// Connections that say nothing, in so many rounds; and packets.
const FLOOD: usize = 10_000;
const ROUNDS: usize = 5;
const FIRST_PACKETS: usize = 64;
const SILENT: usize = 100;
const MAX_GROWTH_BYTES: u64 = 48 << 20;
const CLIENT_LIMIT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_good_is_refused_in_one_clear_line() {
    let mut cluster = Cluster::start(1).await;
    let good = token(&cluster, 0, 1).await;
    let parsed: Token = good.parse().unwrap();

    refused(&mut cluster, "flt1.nonsense", &["token"]).await;
    refused(&mut cluster, &format!("{good}x"), &["token"]).await;

    let unknown = Token::generate(parsed.cluster(), *parsed.authority(), None, parsed.addresses().to_vec()).unwrap();
    refused(&mut cluster, &unknown.to_string(), &["token"]).await;

    let expired = token(&cluster, 1, 0).await;
    wait_state(&cluster, &expired, "expired").await;
    refused(&mut cluster, &expired, &["expired"]).await;

    let revoked = token(&cluster, 0, 0).await;
    let id = revoked.parse::<Token>().unwrap().id().to_string();
    cluster.cluster("node-1").revoke_token(RevokeTokenRequest { id }).await.unwrap();
    refused(&mut cluster, &revoked, &["revoked"]).await;

    let elsewhere = Authority::create(ClusterId::generate(), SystemTime::now()).unwrap();
    let foreign = Token::generate(elsewhere.cluster(), elsewhere.fingerprint(), None, parsed.addresses().to_vec());
    refused(&mut cluster, &foreign.unwrap().to_string(), &["another cluster"]).await;

    let used = token(&cluster, 0, 1).await;
    let node = cluster.dev.add_node().unwrap();
    cluster.dev.start(&node, Some(&used)).unwrap();
    cluster.dev.wait_answering(&node).await.unwrap();
    refused(&mut cluster, &used, &["used"]).await;

    // After all that, the very same machines may still join with a good one.
    let fresh = token(&cluster, 0, 0).await;
    cluster.dev.start("node-2", Some(&fresh)).unwrap();
    cluster.dev.wait_ready(&["node-1".into(), "node-2".into(), node]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_turned_away_at_every_door() {
    let cluster = Cluster::start(1).await;
    let at = SocketAddr::new(cluster.dev.address("node-1").unwrap().into(), 6443);
    let before = cluster.status("node-1").await.unwrap();
    for papers in [Papers::None, Papers::foreign("node-1")] {
        for alpn in Alpn::ALL {
            let answer = knock_quic(at, alpn, &papers).await;
            let line = alpn.admits_strangers() && answer.as_ref().is_ok_and(|answer| answer.len() < LINE_BYTES);
            assert!(line || is_refusal(&answer), "{alpn} lets a stranger in: {answer:?}");
        }
    }
    let answer = knock_tcp(at, &Papers::foreign("node-1")).await;
    assert!(is_refusal(&answer), "TCP believes another authority: {answer:?}");
    over_http(&cluster).await;
    let after = cluster.status("node-1").await.unwrap();
    assert_eq!((after.voters, after.term), (before.voters, before.term));
    assert_eq!(cluster.node_summaries("node-1").await.unwrap().len(), 1);
}

/// Without a certificate one is heard, and told health and version.
async fn over_http(cluster: &Cluster) {
    let stranger = Caller::stranger(cluster, "node-1");
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        let answer = stranger.get(path).await;
        assert_eq!(answer.code, 200, "{path}: {answer:?}");
        assert!(!answer.body.contains("node-1"), "{path} tells of the cluster: {answer:?}");
    }
    for path in ["/", "/api", "/apis", "/openapi/v2", "/metrics", "/api/v1/nodes", "/healthz/store", "/none"] {
        let answer = stranger.get(path).await;
        assert_eq!(answer.code, 403, "{path}: {answer:?}");
        let liar = stranger.clone().saying("Authorization", "Bearer nonsense").get(path).await;
        assert_eq!(liar.code, 401, "{path}: {liar:?}");
    }
    let grpc = stranger.clone().saying("Content-Type", "application/grpc");
    let answer = grpc.ask(&http::Method::POST, "/flotilla.v1.Cluster/Status", None).await.unwrap();
    // 16 is UNAUTHENTICATED.
    assert!(answer.head.contains("grpc-status: 16"), "{answer:?}");
}

/// What strangers can do at once, while a client works. The bounds are those of a debug build.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_at_every_door_costs_little_memory_and_keeps_no_client_out() {
    let cluster = Cluster::start(1).await;
    let at = SocketAddr::new(cluster.dev.address("node-1").unwrap().into(), 6443);
    let dir = tempfile::tempdir().unwrap();
    let papers = dir.path().join("alice.pem");
    fs::write(&papers, cli::ok(&cluster, "node-1", &["credentials", "alice"])).unwrap();
    let daemon = cluster.dev.daemon("node-1").unwrap();
    works(at, &papers).await;
    let before = process::memory_bytes(daemon.pid).unwrap();
    let mut peak = before;
    let mut slowest = Duration::ZERO;

    // Connections that say nothing, or the beginning of a handshake and then a byte now and again.
    let mut held = Vec::new();
    for _ in 0..ROUNDS {
        for number in 0..FLOOD / ROUNDS {
            let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
            if number % 2 == 0 {
                // The length of a record that never comes whole. A server that has hung up already is as good.
                _ = stream.write_all(&[0x16, 0x03, 0x01, 0x40, 0x00, 0x01]).await;
            }
            held.push(stream);
        }
        slowest = slowest.max(works(at, &papers).await);
        peak = peak.max(process::memory_bytes(daemon.pid).unwrap());
        println!("{} silent TCP connections, {} MiB", held.len(), peak >> 20);
    }
    // First packets of QUIC, true ones and such that only look like some.
    let packets = first_packets(FIRST_PACKETS).await;
    let flood = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
    for number in 0..FLOOD as u32 {
        let mut packet = packets[number as usize % packets.len()].clone();
        if number as usize >= packets.len() {
            packet[6..10].copy_from_slice(&number.to_be_bytes());
        }
        // A full buffer drops it, as a network would.
        _ = flood.try_send_to(&packet, at);
        if number % 128 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // Those who may ask one question, and do not; and a record of TLS that is too large.
    let silent = futures::future::join_all((0..SILENT).map(|_| hold_quic(at, Alpn::Join, &Papers::None))).await;
    let mut oversized = tokio::net::TcpStream::connect(at).await.unwrap();
    oversized.write_all(&[0x16, 0x03, 0x03, 0xff, 0xff]).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), oversized.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "a record that is too large ends the connection");
    slowest = slowest.max(works(at, &papers).await);
    peak = peak.max(process::memory_bytes(daemon.pid).unwrap());
    drop((held, silent));

    let grown = peak.saturating_sub(before);
    figure(
        "a flood of strangers",
        &format!(
            "{FLOOD} silent TCP connections and {FLOOD} first packets of QUIC cost {} KiB (limit {} MiB); a client's new connection was answered within {} ms",
            grown >> 10,
            MAX_GROWTH_BYTES >> 20,
            slowest.as_millis()
        ),
    );
    assert!(grown <= MAX_GROWTH_BYTES, "{} KiB", grown >> 10);
    assert!(slowest <= CLIENT_LIMIT, "{slowest:?}");
}

/// A new connection of a good client is answered; how long that takes.
async fn works(at: SocketAddr, papers: &Path) -> Duration {
    let began = Instant::now();
    let target = Target::new(Some(&at.to_string()), Some(papers), Path::new("/none")).unwrap();
    let answered = async {
        let channel = target.connect().await.map_err(|error| error.to_string())?;
        let asked = ClusterClient::new(channel).status(ClusterStatusRequest {}).await;
        asked.map_err(|status| status.message().to_owned())
    };
    let answer = tokio::time::timeout(CLIENT_LIMIT, answered).await;
    assert!(matches!(answer, Ok(Ok(_))), "a client is kept out: {answer:?}");
    began.elapsed()
}

/// Turned away with a reason. No answer at all would leave a peer waiting; an answer would be worse.
fn is_refusal(answer: &Result<Vec<u8>, String>) -> bool {
    matches!(answer, Err(reason) if reason != "silence")
}

async fn token(cluster: &Cluster, ttl_seconds: u64, uses: u32) -> String {
    let request = CreateTokenRequest { ttl_seconds, uses, ..CreateTokenRequest::default() };
    cluster.cluster("node-1").create_token(request).await.unwrap().into_inner().token
}

async fn wait_state(cluster: &Cluster, token: &str, wanted: &str) {
    let id = token.parse::<Token>().unwrap().id().to_string();
    let state = || async {
        let listed = cluster.cluster("node-1").list_tokens(ListTokensRequest {}).await.map_err(|e| e.to_string())?;
        let state = listed.into_inner().tokens.into_iter().find(|token| token.id == id).map(|token| token.state);
        if state.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{state:?}")) }
    };
    eventually(EXPIRY_WAIT, &format!("the token is {wanted}"), state).await;
}

/// A machine tries to join, says why not in its last line, and the cluster is as before.
async fn refused(cluster: &mut Cluster, token: &str, words: &[&str]) {
    let nodes = cluster.node_summaries("node-1").await.unwrap().len();
    let node = "node-2";
    if !cluster.nodes().contains(&node.to_owned()) {
        assert_eq!(cluster.dev.add_node().unwrap(), node);
    }
    let log = cluster.dev.places().log(node);
    // Logs are appended to; each try is judged by its own.
    let _ = fs::remove_file(&log);
    match cluster.dev.start(node, Some(token)) {
        Ok(daemon) => assert!(daemon.wait_gone(REFUSAL_WAIT), "{token} is neither taken nor refused"),
        // It ended before it was seen.
        Err(error) => println!("{error}"),
    }
    let said = fs::read_to_string(&log).unwrap();
    let errors: Vec<_> = said.lines().filter(|line| line.contains("error") || line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "one clear line for {words:?}: {said}");
    assert!(words.iter().all(|word| errors[0].contains(word)), "{words:?}: {said}");
    let identity = cluster.dev.places().data(node).join("identity");
    let left: Vec<_> = fs::read_dir(&identity).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?} stays behind");
    assert_eq!(cluster.node_summaries("node-1").await.unwrap().len(), nodes);
}
