//! The plain bridge: one bridge a node in the daemon's own network namespace, a veth pair into each pod.
//!
//! Links go through rtnetlink, rules through `nft` in one table a bridge that is always written whole. Nothing assumes
//! the machine's first network namespace: several daemons may each have their own.
//!
//! Invariant: an address belongs to at most one sandbox; the sandboxes' records on disk say to which, and there is no
//! other book.
//! Invariant: setting up is idempotent, since a restarted daemon does it again under running pods.

mod cidr;
mod ipam;
mod links;
mod rules;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use cidr::Cidr;
use ipam::Ipam;
use links::Links;

/// The pod's end of its veth pair.
pub const POD_INTERFACE: &str = "eth0";

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{0}")]
    Invalid(String),
    #[error("all {0} addresses of {1} are taken")]
    Full(usize, Cidr),
    #[error("netlink: cannot {action}")]
    Netlink { action: &'static str, source: rtnetlink::Error },
    #[error("netlink socket")]
    Socket(#[source] io::Error),
    #[error("link {0} does not appear")]
    NoLink(String),
    #[error("nft: {0}")]
    Nft(String),
    #[error("cannot write {path}")]
    Sysctl { path: PathBuf, source: io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// At most 15 bytes; also names the nftables table.
    pub bridge: String,
    /// The node's own pod addresses. The bridge takes the first.
    pub pod_cidr: Cidr,
    pub mtu: u32,
    /// Pods reach what is beyond the node under the node's address.
    pub masquerade: bool,
    /// Destinations besides `pod_cidr` that see pods under their own addresses.
    pub native_cidrs: Vec<Cidr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the node that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub host_port: u16,
    pub container_port: u16,
    /// Only on this address of the node.
    pub host_ip: Option<Ipv4Addr>,
}

/// What leads to one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    pub sandbox: String,
    pub ip: Ipv4Addr,
    pub ports: Vec<PortMapping>,
}

pub(crate) struct Network {
    config: NetworkConfig,
    links: Links,
    ipam: Mutex<Ipam>,
    forwards: tokio::sync::Mutex<Vec<Forward>>,
}

impl Network {
    /// Makes bridge and rules, with the addresses and ports that sandboxes hold already.
    pub async fn open(config: NetworkConfig, held: Vec<Forward>) -> Result<Self, NetworkError> {
        validate(&config)?;
        let links = Links::open()?;
        links.bridge(&config).await?;
        sysctl("net/ipv4/ip_forward", "1")?;
        // By default bridged frames pass through the firewall as well, which breaks a pod's way back to itself.
        let filter_bridged = "net/bridge/bridge-nf-call-iptables";
        if fs::exists(format!("/proc/sys/{filter_bridged}")).unwrap_or(false) {
            sysctl(filter_bridged, "0")?;
        }
        let ipam = Ipam::new(config.pod_cidr, held.iter().map(|forward| forward.ip));
        let forwards: Vec<Forward> = held.into_iter().filter(|forward| !forward.ports.is_empty()).collect();
        rules::apply(&config, &forwards).await?;
        Ok(Self { config, links, ipam: Mutex::new(ipam), forwards: tokio::sync::Mutex::new(forwards) })
    }

    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.config.pod_cidr.first()
    }

    /// An address of its own for a sandbox, to be recorded on disk before it is used.
    pub fn take_address(&self) -> Result<Ipv4Addr, NetworkError> {
        let mut ipam = self.ipam.lock().unwrap_or_else(PoisonError::into_inner);
        ipam.take().ok_or(NetworkError::Full(ipam.capacity(), self.config.pod_cidr))
    }

    pub fn free_address(&self, ip: Ipv4Addr) {
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner).free(ip);
    }

    /// Puts one end of a new pair on the bridge and the other into the namespace of process `pid`.
    pub async fn connect(&self, sandbox: &str, pid: i32) -> Result<(), NetworkError> {
        self.links.veth(&host_interface(sandbox), pid, &self.config).await
    }

    pub async fn disconnect(&self, sandbox: &str) -> Result<(), NetworkError> {
        self.links.delete(&host_interface(sandbox)).await
    }

    /// Leads ports of the node to a pod.
    pub async fn forward(&self, forward: Forward) -> Result<(), NetworkError> {
        if forward.ports.is_empty() {
            return Ok(());
        }
        let mut forwards = self.forwards.lock().await;
        let mut wanted = forwards.clone();
        if let Some(port) = taken(&wanted, &forward) {
            return Err(NetworkError::Invalid(format!("host port {port} is taken on this node")));
        }
        wanted.push(forward);
        rules::apply(&self.config, &wanted).await?;
        *forwards = wanted;
        Ok(())
    }

    pub async fn unforward(&self, sandbox: &str) -> Result<(), NetworkError> {
        let mut forwards = self.forwards.lock().await;
        if forwards.iter().all(|forward| forward.sandbox != sandbox) {
            return Ok(());
        }
        let wanted: Vec<Forward> = forwards.iter().filter(|f| f.sandbox != sandbox).cloned().collect();
        rules::apply(&self.config, &wanted).await?;
        *forwards = wanted;
        Ok(())
    }
}

fn taken(forwards: &[Forward], new: &Forward) -> Option<u16> {
    let all = forwards.iter().filter(|f| f.sandbox != new.sandbox).flat_map(|forward| &forward.ports);
    let clash = |a: &PortMapping, b: &PortMapping| {
        let same_ip = a.host_ip.is_none() || b.host_ip.is_none() || a.host_ip == b.host_ip;
        a.protocol == b.protocol && a.host_port == b.host_port && same_ip
    };
    all.flat_map(|old| new.ports.iter().find(|port| clash(old, port))).map(|port| port.host_port).next()
}

/// The node's end of a sandbox's pair: a name of 15 bytes that follows from the sandbox's.
fn host_interface(sandbox: &str) -> String {
    // FNV-1a: stable across versions of everything, and a clash shows as an error rather than as a wrong link.
    let hash = sandbox
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("veth{:011x}", hash & 0xfff_ffff_ffff)
}

fn validate(config: &NetworkConfig) -> Result<(), NetworkError> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name = &config.bridge;
    if name.is_empty() || name.len() > 15 || !name.chars().all(harmless) {
        return Err(NetworkError::Invalid(format!("{name:?} is no name for a bridge")));
    }
    if !(68..=65_535).contains(&config.mtu) {
        return Err(NetworkError::Invalid(format!("an MTU of {} bytes", config.mtu)));
    }
    if config.pod_cidr.prefix_len() > 29 {
        return Err(NetworkError::Invalid(format!("{} is too small for pods", config.pod_cidr)));
    }
    Ok(())
}

fn sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = PathBuf::from(format!("/proc/sys/{name}"));
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| NetworkError::Sysctl { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_differ() {
        let (a, b) = (host_interface("pod-a"), host_interface("pod-b"));
        assert!(a.len() == 15 && b.len() == 15 && a != b);
    }

    #[test]
    fn a_host_port_leads_to_one_pod() {
        let port = |host_ip| PortMapping { protocol: Protocol::Tcp, host_port: 80, container_port: 8080, host_ip };
        let forward = |sandbox: &str, host_ip| Forward {
            sandbox: sandbox.into(),
            ip: Ipv4Addr::LOCALHOST,
            ports: vec![port(host_ip)],
        };
        let held = [forward("a", None)];
        assert_eq!(taken(&held, &forward("b", Some(Ipv4Addr::LOCALHOST))), Some(80));
        assert_eq!(taken(&held, &forward("a", None)), None);
    }
}
