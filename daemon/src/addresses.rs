//! Where others reach this machine: as configured, or at all its global addresses, which may change while it runs.
//!
//! Invariant: what is advertised follows the machine's addresses within [`LOOK`] and a little, unless it is configured.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use flotilla_net::Net;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;

/// How often the machine's addresses are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Signs and spreads this node's addresses anew whenever they change, and has them certified, until `stop`.
pub async fn follow(config: Arc<Config>, net: Net, stop: CancellationToken) {
    if is_fixed(&config) {
        return;
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        match advertised(&config) {
            Ok(found) => tell(&net, found),
            Err(error) => warn!(error = format!("{error:#}"), "the addresses of this machine are not known now"),
        }
    }
}

fn tell(net: &Net, found: Vec<SocketAddr>) {
    let told = net.advertised();
    // A machine without a network for a while is found where it was, if it comes back there.
    if found == told || found.iter().all(|address| address.ip().is_loopback()) {
        return;
    }
    info!(?told, ?found, "the addresses of this machine have changed");
    match net.set_advertise(found) {
        // The certificate names addresses, for clients that check them.
        Ok(()) => net.renew_now(),
        Err(error) => warn!(error = &error as &dyn std::error::Error, "the new addresses cannot be told"),
    }
}

/// Whether the configuration says once and for all where this node is found.
fn is_fixed(config: &Config) -> bool {
    !config.advertise.is_empty() || !config.listen.ip().is_unspecified()
}

/// Where others reach this node: as configured, or all global addresses.
///
/// # Errors
/// If the machine's interfaces cannot be listed.
pub fn advertised(config: &Config) -> anyhow::Result<Vec<SocketAddr>> {
    if !config.advertise.is_empty() {
        return Ok(config.advertise.clone());
    }
    let port = config.listen.port();
    if !config.listen.ip().is_unspecified() {
        return Ok(vec![config.listen]);
    }
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().context("the network interfaces cannot be listed")? {
        let Some(address) = interface.address else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) if config.listen.is_ipv6() => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        let link_local = match ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if !ip.is_loopback() && !link_local && interface.interface_name != config.bridge {
            found.push(SocketAddr::new(ip, port));
        }
    }
    if found.is_empty() {
        // A machine without a network is still a cluster of one.
        found.push(SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port));
    }
    found.truncate(flotilla_net::MAX_ADDRESSES);
    Ok(found)
}
