//! The cable and the switch: a bridge in a namespace of its own, with a veth to each node and one to the machine.
//!
//! The machine sees one link, named after the network it leads to. Making that link is what claims the network: the
//! kernel lets only one be made, so that clusters may come up side by side.
//!
//! Invariant: when the fabric's namespace dies, so do all its links, at both ends.

use std::fmt;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{DevError, Doing};
use super::space::Space;

/// Networks for clusters are taken from 10.99.0.0/16.
const FIRST_OCTETS: [u8; 2] = [10, 99];
/// The machine's own address in each network.
const GATEWAY_HOST: u8 = 254;
/// Host numbers above are left to the gateway.
pub const MAX_NODES: usize = 100;
/// Behind its router each node has the same address, as behind routers of one make.
const LAN_ROUTER: &str = "192.168.1.1";
const LAN_NODE: &str = "192.168.1.2";
const BRIDGE: &str = "br0";

/// A /24 for the nodes of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet([u8; 3]);

impl Subnet {
    /// The address of the node with this host number.
    #[must_use]
    pub fn node(self, host: u8) -> Ipv4Addr {
        self.host(host)
    }

    /// The address of the machine on which the cluster runs.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        self.host(GATEWAY_HOST)
    }

    fn host(self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, number)
    }

    /// The machine's end of the cable. Link names hold at most 15 characters.
    fn link(self) -> String {
        let [a, b, c] = self.0;
        format!("fld{a:02x}{b:02x}{c:02x}")
    }

    /// A fixed address, so that neighbours need not forget the old one when a node comes back.
    fn mac(self, number: u8) -> String {
        let [a, b, c] = self.0;
        format!("02:00:{a:02x}:{b:02x}:{c:02x}:{number:02x}")
    }

    fn overlaps(self, network: u32, mask: u32) -> bool {
        let own = u32::from(self.host(0));
        let common = mask & 0xffff_ff00;
        own & common == network & common
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/24", self.host(0))
    }
}

impl FromStr for Subnet {
    type Err = DevError;

    fn from_str(text: &str) -> Result<Self, DevError> {
        let address = text.strip_suffix("/24").and_then(|address| address.parse::<Ipv4Addr>().ok());
        match address.map(|address| address.octets()) {
            Some([a, b, c, 0]) => Ok(Self([a, b, c])),
            _ => Err(DevError::BadSubnet(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Subnet {
    type Error = DevError;

    fn try_from(text: String) -> Result<Self, DevError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// How a node's router masquerades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nat {
    /// All see the node at one port, as most home routers do it: a hole can be punched.
    Cone,
    /// Each sees it at another port: no hole can be punched.
    Symmetric,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Fabric {
    pub space: Space,
    pub subnet: Subnet,
}

impl Fabric {
    /// Makes the bridge and joins it to the machine, in `wanted` or in the first network that nobody uses.
    pub(crate) fn create(mark: &Path, wanted: Option<Subnet>) -> Result<Self, DevError> {
        let space = Space::network(mark)?;
        Self::connect(space, wanted).inspect_err(|_| {
            // The error that brought us here says more than one from cleaning up.
            let _ = space.kill();
        })
    }

    fn connect(space: Space, wanted: Option<Subnet>) -> Result<Self, DevError> {
        ip_in(
            &space,
            &format!("link add {BRIDGE} type bridge mcast_snooping 0\nlink set {BRIDGE} up\nlink set lo up\n"),
        )?;
        let subnet = claim(&space, wanted)?;
        let link = subnet.link();
        ip_in(&space, &format!("link set uplink master {BRIDGE} up\n"))?;
        ip(&format!("addr add {}/24 dev {link}\nlink set {link} up\n", subnet.gateway()))?;
        Ok(Self { space, subnet })
    }

    /// Lays a cable to a node that was just switched on.
    pub(crate) fn plug_in(&self, node: &Space, number: u8, host: u8) -> Result<(), DevError> {
        let (port, pid, mac) = (port(number), node.holder.pid, self.subnet.mac(number));
        // The port of the node's former life goes with its namespace, but the kernel takes its time.
        let _ = ip_in(&self.space, &format!("link del {port}\n"));
        ip_in(
            &self.space,
            &format!(
                "link add {port} type veth peer name eth0 address {mac} netns {pid}\n\
                 link set {port} master {BRIDGE} up\n"
            ),
        )?;
        let address = self.subnet.node(host);
        ip_in(node, &format!("link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\n"))
    }

    /// Lays a cable to a node that was just switched on from a router of its own, which is what the bridge sees. The router
    /// lets in only what belongs to something that went out. It lasts as long as the node's network.
    pub(crate) fn plug_in_behind(
        &self,
        mark: &Path,
        node: &Space,
        number: u8,
        host: u8,
        nat: Nat,
    ) -> Result<(), DevError> {
        let router = Space::network(mark)?;
        self.plug_in(&router, number, host)?;
        let (pid, gateway) = (node.holder.pid, self.subnet.gateway());
        ip_in(
            &router,
            &format!(
                "route add default via {gateway}\n\
                 link add lan0 type veth peer name eth0 netns {pid}\n\
                 addr add {LAN_ROUTER}/24 dev lan0\nlink set lan0 up\n"
            ),
        )?;
        let translate = match nat {
            Nat::Cone => "masquerade",
            Nat::Symmetric => "masquerade fully-random",
        };
        let rules = format!(
            "table ip nat {{\n\
             chain out {{ type nat hook postrouting priority 100; oifname \"eth0\" {translate}; }}\n\
             chain in {{ type filter hook input priority 0; iifname \"eth0\" ct state new drop; }}\n\
             chain through {{ type filter hook forward priority 0; iifname \"eth0\" ct state new drop; }}\n\
             }}\n"
        );
        feed(router.network_command("nft")?, &["-f", "-"], "cannot set up a router", &rules)?;
        let forward = || fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        router.in_network(forward)?.doing(|| "cannot let a router forward".into())?;
        ip_in(
            node,
            &format!(
                "link set lo up\naddr add {LAN_NODE}/24 dev eth0\nlink set eth0 up\nroute add default via {LAN_ROUTER}\n"
            ),
        )
    }

    /// Takes a node's address away and gives it another.
    pub(crate) fn renumber(&self, node: &Space, from: u8, to: u8) -> Result<(), DevError> {
        let (from, to) = (self.subnet.node(from), self.subnet.node(to));
        ip_in(node, &format!("addr del {from}/24 dev eth0\naddr add {to}/24 dev eth0\n"))
    }

    /// Pulls a node's cable out, or puts it back.
    pub(crate) fn set_link(&self, number: u8, up: bool) -> Result<(), DevError> {
        ip_in(&self.space, &format!("link set {} {}\n", port(number), if up { "up" } else { "down" }))
    }

    /// False while the node's cable is out.
    pub(crate) fn is_linked(&self, number: u8) -> bool {
        let Ok(mut command) = self.space.network_command("ip") else { return false };
        let output = command.args(["-o", "link", "show", "dev", &port(number)]).stderr(Stdio::null()).output();
        output.is_ok_and(|output| has_flag(&String::from_utf8_lossy(&output.stdout), "UP"))
    }

    /// Removes the machine's link at once, so that its network can be claimed again, and then the rest.
    pub(crate) fn remove(&self) -> Result<(), DevError> {
        if self.space.holder.is_alive() {
            let _ = ip_in(&self.space, "link del uplink\n");
        }
        self.space.kill()
    }
}

/// The bridge's end of a node's cable.
fn port(number: u8) -> String {
    format!("node{number}")
}

/// `3: node1@if2: <BROADCAST,MULTICAST,UP> mtu …`
fn has_flag(link: &str, flag: &str) -> bool {
    let flags = link.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    flags.is_some_and(|(flags, _)| flags.split(',').any(|one| one == flag))
}

fn claim(space: &Space, wanted: Option<Subnet>) -> Result<Subnet, DevError> {
    let pid = space.holder.pid;
    let take = |subnet: Subnet| ip(&format!("link add {} type veth peer name uplink netns {pid}\n", subnet.link()));
    if let Some(subnet) = wanted {
        return take(subnet).map(|()| subnet);
    }
    let routes = fs::read_to_string("/proc/net/route").doing(|| "cannot read the machine's routes".into())?;
    let [a, b] = FIRST_OCTETS;
    let free = (0..=u8::MAX).map(|c| Subnet([a, b, c])).filter(|subnet| !is_routed(&routes, *subnet));
    for subnet in free {
        match take(subnet) {
            Ok(()) => return Ok(subnet),
            Err(DevError::Tool { message, .. }) if message.contains("File exists") => {}
            Err(error) => return Err(error),
        }
    }
    Err(DevError::NoSubnet)
}

/// Whether `/proc/net/route` leads some of the network elsewhere; the default route does not count.
fn is_routed(routes: &str, subnet: Subnet) -> bool {
    routes.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|text| u32::from_str_radix(text, 16).ok());
        match (number(1), number(7)) {
            (Some(network), Some(mask)) if mask != 0 => subnet.overlaps(network.swap_bytes(), mask.swap_bytes()),
            _ => false,
        }
    })
}

/// Runs lines of `ip` commands in the machine's own network namespace.
fn ip(lines: &str) -> Result<(), DevError> {
    batch(Command::new("ip"), lines)
}

fn ip_in(space: &Space, lines: &str) -> Result<(), DevError> {
    batch(space.network_command("ip")?, lines)
}

fn batch(command: Command, lines: &str) -> Result<(), DevError> {
    let doing = format!("cannot run 'ip {}'", lines.trim_end().replace('\n', "; ip "));
    feed(command, &["-batch", "-"], &doing, lines)
}

/// Runs a command that reads what it is to do.
fn feed(mut command: Command, args: &[&str], what: &str, lines: &str) -> Result<(), DevError> {
    let doing = || what.to_owned();
    let command = command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().doing(doing)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes()).doing(doing)?;
    }
    let output = child.wait_with_output().doing(doing)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("it failed").to_owned();
    Err(DevError::Tool { doing: doing(), message })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        vpn0\t0007630A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

    #[test]
    fn a_network_that_is_routed_elsewhere_is_not_taken() {
        assert!(is_routed(ROUTES, "10.99.7.0/24".parse().unwrap()));
        assert!(!is_routed(ROUTES, "10.99.8.0/24".parse().unwrap()));
        let broad = ROUTES.replace("0007630A", "0000000A").replace("00FFFFFF", "000000FF");
        assert!(is_routed(&broad, "10.99.8.0/24".parse().unwrap()));
    }

    #[test]
    fn only_a_slash_24_is_a_subnet() {
        assert_eq!("10.99.7.0/24".parse::<Subnet>().unwrap().gateway(), Ipv4Addr::new(10, 99, 7, 254));
        for bad in ["10.99.7.1/24", "10.99.7.0/16", "10.99.7.0", "x/24"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    /// Goes away when the test ends, however it ends.
    struct Held {
        fabric: Fabric,
        nodes: Vec<Space>,
    }

    impl Drop for Held {
        fn drop(&mut self) {
            self.nodes.iter().for_each(|node| node.kill().unwrap());
            self.fabric.remove().unwrap();
        }
    }

    /// Whether somebody at `to` answers within the time, if only to refuse.
    fn reaches(from: &Space, to: Ipv4Addr, within: Duration) -> bool {
        let attempt = || std::net::TcpStream::connect_timeout(&(to, 7).into(), within);
        match from.in_network(attempt).unwrap() {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        }
    }

    #[test]
    fn nodes_reach_each_other_and_the_machine_until_their_cable_is_pulled() {
        const SOON: Duration = Duration::from_millis(300);
        const PATIENTLY: Duration = Duration::from_secs(20);
        let mark = std::path::PathBuf::from(format!("/test/fabric-{}", std::process::id()));
        let mut held = Held { fabric: Fabric::create(&mark, None).unwrap(), nodes: Vec::new() };
        for (name, number) in [("one", 1), ("two", 2)] {
            let node = Space::machine(&mark, name).unwrap();
            held.nodes.push(node);
            held.fabric.plug_in(&node, number, number).unwrap();
        }
        let (fabric, first) = (&held.fabric, &held.nodes[0]);
        let (second, gateway) = (fabric.subnet.node(2), fabric.subnet.gateway());
        assert!(reaches(first, second, PATIENTLY) && reaches(first, gateway, PATIENTLY));
        fabric.set_link(2, false).unwrap();
        assert!(!fabric.is_linked(2) && fabric.is_linked(1));
        assert!(!reaches(first, second, SOON) && reaches(first, gateway, PATIENTLY));
        fabric.set_link(2, true).unwrap();
        assert!(reaches(first, second, PATIENTLY));
        let link = Path::new("/sys/class/net").join(fabric.subnet.link());
        drop(held);
        assert!(!link.exists());
    }
}
