//! Bridges and veth pairs, through rtnetlink.
//!
//! Invariant: the netlink task belongs to `Links` and ends with it.

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVeth, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use tokio::task::JoinHandle;

use super::{NetworkConfig, NetworkError, POD_INTERFACE};

pub struct Links {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Links {
    pub fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    async fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(source) => Err(NetworkError::Netlink { action: "find a link", source }),
        }
    }

    /// The bridge with its address, up.
    pub async fn bridge(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        if self.index(&config.bridge).await?.is_none() {
            let add = self.handle.link().add(LinkBridge::new(&config.bridge).mtu(config.mtu).build());
            ignore(add.execute().await, libc::EEXIST, "add the bridge")?;
        }
        let index = self.index(&config.bridge).await?.ok_or_else(|| NetworkError::NoLink(config.bridge.clone()))?;
        self.address(index, config.pod_cidr.first(), config.pod_cidr.prefix_len()).await?;
        self.set(LinkUnspec::new_with_index(index).up().build(), "bring up the bridge").await
    }

    async fn address(&self, index: u32, ip: Ipv4Addr, prefix_len: u8) -> Result<(), NetworkError> {
        let add = self.handle.address().add(index, IpAddr::V4(ip), prefix_len);
        ignore(add.execute().await, libc::EEXIST, "give the bridge its address")
    }

    async fn set(&self, message: LinkMessage, action: &'static str) -> Result<(), NetworkError> {
        self.handle.link().set(message).execute().await.map_err(|source| NetworkError::Netlink { action, source })
    }

    /// A pair between the bridge and the network namespace of process `pid`.
    pub async fn veth(&self, name: &str, pid: i32, config: &NetworkConfig) -> Result<(), NetworkError> {
        let bridge = self.index(&config.bridge).await?.ok_or_else(|| NetworkError::NoLink(config.bridge.clone()))?;
        let peer = LinkUnspec::new_with_name(POD_INTERFACE).mtu(config.mtu).setns_by_pid(pid.unsigned_abs()).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(name, POD_INTERFACE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(config.mtu)
            .build();
        let add = self.handle.link().add(pair).execute().await;
        add.map_err(|source| NetworkError::Netlink { action: "add a veth pair", source })?;
        let index = self.index(name).await?.ok_or_else(|| NetworkError::NoLink(name.into()))?;
        self.set(LinkUnspec::new_with_index(index).controller(bridge).up().build(), "join the bridge").await?;
        // Lets a pod reach itself through a port of the node.
        let hairpin = LinkUnspec::new_with_index(index)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]))
            .build();
        self.set(hairpin, "turn on hairpin").await
    }

    /// Deletes a link; one that is not there is deleted already.
    pub async fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        ignore(self.handle.link().del(index).execute().await, libc::ENODEV, "delete a link")
    }
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code().abs() == errno)
}

fn ignore(result: Result<(), rtnetlink::Error>, errno: i32, action: &'static str) -> Result<(), NetworkError> {
    match result {
        Err(error) if is(&error, errno) => Ok(()),
        Err(source) => Err(NetworkError::Netlink { action, source }),
        Ok(()) => Ok(()),
    }
}
