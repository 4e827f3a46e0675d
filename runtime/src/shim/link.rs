//! The pod's side of its network: names, sysctls, loopback, address and route, set from within its namespaces.
//!
//! Invariant: runs in the shim, after it left the daemon's namespaces.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::protocol::Link;

/// Brings up `lo`.
pub fn loopback() -> io::Result<()> {
    let socket = socket()?;
    up(&socket, "lo")
}

/// Gives the link its MTU, address, carrier and default route.
pub fn configure(link: &Link) -> io::Result<()> {
    let socket = socket()?;
    let name = link.interface.as_str();
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = i32::try_from(link.mtu).map_err(io::Error::other)?;
    call(&socket, libc::SIOCSIFMTU, (&raw mut request).cast())?;
    set_address(&socket, name, libc::SIOCSIFADDR, link.address)?;
    set_address(&socket, name, libc::SIOCSIFNETMASK, netmask(link.prefix_len))?;
    up(&socket, name)?;
    default_route(&socket, link.gateway)
}

/// Writes a sysctl of this process's namespaces.
pub fn sysctl(name: &str, value: &str) -> io::Result<()> {
    let clean = !name.is_empty() && name.split('.').all(|p| !p.is_empty() && !p.contains('/'));
    if !clean {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("sysctl {name:?}")));
    }
    fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)
}

pub fn netmask(prefix_len: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0))
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: `socket` takes no pointers, and its result is owned by nobody else.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: checked to be a descriptor above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(socket: &OwnedFd, code: libc::Ioctl, argument: *mut c_void) -> io::Result<()> {
    // SAFETY: every caller passes the structure that its code asks for, alive for the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), code, argument) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("interface name {name:?}")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    call(socket, libc::SIOCGIFFLAGS, (&raw mut request).cast())?;
    // SAFETY: the call above filled in this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short };
    call(socket, libc::SIOCSIFFLAGS, (&raw mut request).cast())
}

fn set_address(socket: &OwnedFd, name: &str, code: libc::Ioctl, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_addr = sockaddr(address);
    call(socket, code, (&raw mut request).cast())
}

fn default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `rtentry`.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = sockaddr(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = sockaddr(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = sockaddr(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    call(socket, libc::SIOCADDRT, (&raw mut route).cast())
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of the same size, by definition of the socket interface.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmasks_at_both_ends() {
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(24), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
    }

    #[test]
    fn sysctls_stay_below_proc_sys() {
        assert!(sysctl("net..x", "1").is_err());
        assert!(sysctl("../../tmp/x", "1").is_err());
    }
}
