//! Nobody becomes a node, or is heard, without the right token or certificate; and a refusal leaves nothing behind.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use flotilla::proto::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};
use flotilla_net::{Alpn, Authority, ClusterId, Token};
use flotilla_tests::outsider::{Papers, knock_quic, knock_tcp};
use flotilla_tests::{Cluster, eventually};

const REFUSAL_WAIT: Duration = Duration::from_secs(30);
/// Where strangers may ask, nonsense is answered with one line.
const LINE_BYTES: usize = 600;
const EXPIRY_WAIT: Duration = Duration::from_secs(10);

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
        let answer = knock_tcp(at, &papers).await;
        assert!(is_refusal(&answer), "TCP lets a stranger in: {answer:?}");
    }
    let after = cluster.status("node-1").await.unwrap();
    assert_eq!((after.voters, after.term), (before.voters, before.term));
    assert_eq!(cluster.node_summaries("node-1").await.unwrap().len(), 1);
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
