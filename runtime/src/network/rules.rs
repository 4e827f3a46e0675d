//! The node's nftables rules for its pods: one table a bridge, replaced as a whole in one transaction.
//!
//! Invariant: the text is a function of configuration and forwards; applying it twice changes nothing.

use std::fmt::Write;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Forward, NetworkConfig, NetworkError, PortMapping};

const TIMEOUT: Duration = Duration::from_secs(10);

pub async fn apply(config: &NetworkConfig, forwards: &[Forward]) -> Result<(), NetworkError> {
    let text = table(config, forwards);
    let failed = |error: std::io::Error| NetworkError::Nft(format!("cannot run nft: {error}"));
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(text.as_bytes()).await.map_err(failed)?;
    }
    let output = tokio::time::timeout(TIMEOUT, nft.wait_with_output())
        .await
        .map_err(|_| NetworkError::Nft(format!("no answer in {TIMEOUT:?}")))?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NetworkError::Nft(said.lines().next().unwrap_or("failed without a word").to_owned()))
}

fn table(config: &NetworkConfig, forwards: &[Forward]) -> String {
    let name = format!("flotilla-pods-{}", config.bridge);
    let mut forwarded = String::new();
    for forward in forwards {
        for port in &forward.ports {
            let _ = writeln!(forwarded, "    {}", dnat(forward, port));
        }
    }
    format!(
        "table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n\
         \x20 chain forwards {{\n{forwarded}  }}\n\
         \x20 chain prerouting {{\n    type nat hook prerouting priority dstnat;\n    fib daddr type local jump forwards;\n  }}\n\
         \x20 chain output {{\n    type nat hook output priority -100;\n    fib daddr type local ip daddr != 127.0.0.0/8 jump forwards;\n  }}\n\
         \x20 chain postrouting {{\n    type nat hook postrouting priority srcnat;\n{}  }}\n}}\n",
        source_nat(config)
    )
}

fn dnat(forward: &Forward, port: &PortMapping) -> String {
    let protocol = port.protocol.name();
    let on = port.host_ip.map(|ip| format!("ip daddr {ip} ")).unwrap_or_default();
    format!(
        "meta nfproto ipv4 {on}{protocol} dport {} dnat ip to {}:{};",
        port.host_port, forward.ip, port.container_port
    )
}

fn source_nat(config: &NetworkConfig) -> String {
    let pods = config.pod_cidr;
    // A pod that reaches itself or a neighbour by a port of the node must see the answer come back the same way.
    let mut text = format!("    ip saddr {pods} ip daddr {pods} ct status dnat masquerade;\n");
    if config.masquerade {
        let native: String = config.native_cidrs.iter().map(|cidr| format!("ip daddr != {cidr} ")).collect();
        let _ = writeln!(text, "    ip saddr {pods} ip daddr != {pods} {native}ip daddr != 224.0.0.0/4 masquerade;");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Protocol;

    #[test]
    fn the_table_says_where_ports_lead_and_who_is_masked() {
        let config = NetworkConfig {
            bridge: "br0".into(),
            pod_cidr: "10.1.0.0/24".parse().unwrap(),
            mtu: 1500,
            masquerade: true,
            native_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        };
        let ports = vec![PortMapping { protocol: Protocol::Tcp, host_port: 80, container_port: 8080, host_ip: None }];
        let text = table(&config, &[Forward { sandbox: "a".into(), ip: "10.1.0.2".parse().unwrap(), ports }]);
        assert!(text.contains("tcp dport 80 dnat ip to 10.1.0.2:8080;"), "{text}");
        assert!(text.contains("ip daddr != 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade;"), "{text}");
    }
}
