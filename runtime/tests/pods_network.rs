//! The pod bridge, in a network namespace of each test's own.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use common::{Node, PATIENCE, bridge, own_network, run, running, said, sandbox, until};
use flotilla_runtime::Pods;
use flotilla_runtime::network::{PortMapping, Protocol};
use flotilla_runtime::pods::{ExecSpec, SandboxSpec};

fn in_pod_network(id: &str) -> SandboxSpec {
    SandboxSpec { host_network: false, ..sandbox(id) }
}

const SERVER: &str = "while :; do echo hello from $HOSTNAME | nc -l -p 8080; done";

async fn ask(ip: Ipv4Addr, port: u16) -> String {
    until(&format!("{ip}:{port} answers"), || {
        let mut stream = TcpStream::connect_timeout(&(ip, port).into(), Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    })
    .await
}

async fn shell(pods: &Pods, sandbox: &str, key: &str, script: &str) -> (i32, String) {
    let spec = ExecSpec { args: ["sh", "-c", script].map(String::from).into(), ..Default::default() };
    let done = pods.exec_sync(sandbox, key, &spec, PATIENCE).await.unwrap();
    let text = [done.stdout, done.stderr].concat();
    (done.code, String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn pods_reach_each_other_and_the_node_reaches_them() {
    own_network();
    let mut node = Node::new();
    node.config.network = Some(bridge("10.88.1.0/24"));
    let pods = node.open().await;
    let a = pods.create_sandbox(in_pod_network("a")).await.unwrap().ip.unwrap();
    let b = pods.create_sandbox(in_pod_network("b")).await.unwrap().ip.unwrap();
    assert_ne!(a, b);
    let server = run(&pods, "a", node.container("web", SERVER)).await;
    let beside = run(&pods, "a", node.container("beside", "sleep 300")).await;
    let client = run(&pods, "b", node.container("main", "sleep 300")).await;
    for (pod, key) in [("a", &server), ("a", &beside), ("b", &client)] {
        running(&pods, pod, key).await;
    }
    let ping = shell(&pods, "b", &client, &format!("ping -c 1 -W 5 {a} && ping -c 1 -W 5 10.88.1.1")).await;
    assert_eq!(ping.0, 0, "{}", ping.1);
    assert_eq!(ask(a, 8080).await, "hello from a\n");
    let over = shell(&pods, "b", &client, &format!("nc -w 5 {a} 8080 </dev/null")).await;
    assert!(over.1.contains("hello from a"), "{over:?}");
    // Containers of a pod share its network, its name and its shared memory, and nothing of the node's.
    let shared = shell(
        &pods,
        "a",
        &beside,
        "nc -w 5 127.0.0.1 8080 </dev/null; hostname; ip addr show eth0; cat /etc/hosts; echo x >/dev/shm/y",
    )
    .await;
    assert!(shared.1.contains("hello from a\na\n") && shared.1.contains(&format!("inet {a}/24")), "{shared:?}");
    assert!(shared.1.contains(&format!("{a}\ta\n")), "{shared:?}");
    assert_eq!(shell(&pods, "a", &server, "cat /dev/shm/y").await.1, "x\n");
    assert!(!shell(&pods, "a", &beside, "ip link").await.1.contains("flotilla0"));
    pods.remove_sandbox("a").await.unwrap();
    pods.remove_sandbox("b").await.unwrap();
    let links = std::process::Command::new("ip").args(["-o", "link"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains("veth"), "a pair is left");
}

#[tokio::test]
async fn a_port_of_the_node_leads_to_the_pod() {
    own_network();
    let mut node = Node::new();
    node.config.network = Some(bridge("10.88.2.0/24"));
    let pods = node.open().await;
    let port = PortMapping { protocol: Protocol::Tcp, host_port: 9090, container_port: 8080, host_ip: None };
    let mut spec = in_pod_network("a");
    spec.ports = vec![port.clone()];
    pods.create_sandbox(spec).await.unwrap();
    let key = run(&pods, "a", node.container("web", SERVER)).await;
    running(&pods, "a", &key).await;
    let gateway = Ipv4Addr::new(10, 88, 2, 1);
    assert_eq!(ask(gateway, 9090).await, "hello from a\n");
    // From another pod, and from the pod itself.
    pods.create_sandbox(in_pod_network("b")).await.unwrap();
    let client = run(&pods, "b", node.container("main", "sleep 300")).await;
    running(&pods, "b", &client).await;
    for (pod, key) in [("b", &client), ("a", &key)] {
        let heard = shell(&pods, pod, key, &format!("nc -w 5 {gateway} 9090 </dev/null")).await;
        assert!(heard.1.contains("hello from a"), "{pod}: {heard:?}");
    }
    let mut second = in_pod_network("c");
    second.ports = vec![port];
    let taken = pods.create_sandbox(second.clone()).await.unwrap_err().to_string();
    assert!(taken.contains("9090"), "{taken}");
    assert!(pods.get("c").is_none() && !node.config.root.join("c").exists());
    pods.remove_sandbox("a").await.unwrap();
    pods.create_sandbox(second).await.unwrap();
    for id in ["b", "c"] {
        pods.remove_sandbox(id).await.unwrap();
    }
}

#[tokio::test]
async fn what_leaves_the_node_bears_its_address() {
    own_network();
    // Another machine, as a namespace behind a pair: it knows no way to the pods.
    let outside = std::process::Command::new("unshare").args(["-n", "sleep", "300"]).spawn().unwrap();
    struct Kill(std::process::Child);
    impl Drop for Kill {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let outside = Kill(outside);
    let pid = outside.0.id();
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    until("the namespace is there", || (std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()? != own).then_some(()))
        .await;
    let sh =
        |script: String| assert!(std::process::Command::new("sh").args(["-ec", &script]).status().unwrap().success());
    sh(format!(
        "ip link add up0 type veth peer name eth0 netns {pid}; ip addr add 10.99.0.1/24 dev up0; ip link set up0 up; \
         nsenter -t {pid} -n ip addr add 10.99.0.2/24 dev eth0; nsenter -t {pid} -n ip link set eth0 up"
    ));
    let mut node = Node::new();
    node.config.network = Some(bridge("10.88.3.0/24"));
    let pods = node.open().await;
    pods.create_sandbox(in_pod_network("a")).await.unwrap();
    let key = run(&pods, "a", node.container("main", "sleep 300")).await;
    running(&pods, "a", &key).await;
    let listener = std::thread::spawn(move || {
        let path = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        nix::sched::setns(path, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let (mut stream, from) = TcpListener::bind("10.99.0.2:7070").unwrap().accept().unwrap();
        stream.write_all(from.ip().to_string().as_bytes()).unwrap();
    });
    let script = "until nc -w 5 10.99.0.2 7070 </dev/null; do sleep 0.05; done";
    let seen = shell(&pods, "a", &key, script).await;
    listener.join().unwrap();
    assert!(seen.1.contains("10.99.0.1"), "{seen:?}");
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn addresses_are_remembered_and_freed() {
    own_network();
    let mut node = Node::new();
    node.config.network = Some(bridge("10.88.4.0/29"));
    let pods = node.open().await;
    let mut held = Vec::new();
    for id in ["a", "b", "c"] {
        held.push(pods.create_sandbox(in_pod_network(id)).await.unwrap().ip.unwrap());
    }
    pods.close().await;
    drop(pods);
    let pods = node.open().await;
    for id in ["d", "e"] {
        let ip = pods.create_sandbox(in_pod_network(id)).await.unwrap().ip.unwrap();
        assert!(!held.contains(&ip));
        held.push(ip);
    }
    let full = pods.create_sandbox(in_pod_network("f")).await.unwrap_err().to_string();
    assert!(full.contains("10.88.4.0/29"), "{full}");
    pods.remove_sandbox("b").await.unwrap();
    assert_eq!(pods.create_sandbox(in_pod_network("f")).await.unwrap().ip, Some(held[1]));
    let key = run(&pods, "f", node.container("main", "ip addr; echo up")).await;
    said(&pods, "f", &key, "up").await;
    for id in ["a", "c", "d", "e", "f"] {
        pods.remove_sandbox(id).await.unwrap();
    }
}
