//! Calls between nodes: who is answered and who is not.

mod support;

use flotilla_net::*;
use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_call_each_other_and_know_who_calls() {
    let authority = authority();
    let nodes = cluster(&authority, 2).await;
    for node in &nodes {
        node.net.register(Alpn::Rpc, echo());
    }
    assert_eq!(call(&nodes[0], 2, Alpn::Rpc, "hello").await.expect("answers"), "node-1:hello");
    assert_eq!(call(&nodes[1], 1, Alpn::Rpc, "there").await.expect("answers"), "node-2:there");
    stop(nodes).await;
}
