//! Connections to a pod from within its own network, so that they reach what listens on its loopback too.
//!
//! A socket belongs to the network namespace that it was made in, whoever uses it later: a thread that lives for nothing
//! else enters the pod's namespace, makes the sockets and ends. Connecting is then the caller's, like any other connection.
//!
//! Invariant: no thread that does anything else is ever in another namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};

use super::PodsError;
use super::sandbox::Sandbox;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to the port at an address, or on the pod's `127.0.0.1`, and on `::1` where nobody listens there.
pub async fn connect(sandbox: &Sandbox, ip: Option<IpAddr>, port: u16) -> Result<TcpStream, PodsError> {
    let (v4, v6) = sockets(sandbox).await?;
    let connecting = async {
        if let Some(ip) = ip {
            let no_v6 = || io::Error::from(io::ErrorKind::Unsupported);
            let socket = if ip.is_ipv4() { v4 } else { v6.ok_or_else(no_v6)? };
            return socket.connect(SocketAddr::new(ip, port)).await;
        }
        match v4.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
            Ok(stream) => Ok(stream),
            Err(refused) => match v6 {
                Some(v6) => v6.connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await.map_err(|_| refused),
                None => Err(refused),
            },
        }
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| PodsError::Timeout(CONNECT_TIMEOUT))?
        .map_err(PodsError::Stream)?;
    _ = stream.set_nodelay(true);
    Ok(stream)
}

/// A socket of each family, the second where the machine has one.
async fn sockets(sandbox: &Sandbox) -> Result<(TcpSocket, Option<TcpSocket>), PodsError> {
    let pid = {
        let view = sandbox.view.borrow();
        match view.ready {
            true => view.state.pid,
            false => return Err(PodsError::ShimGone),
        }
    };
    if sandbox.record.spec.host_network {
        return make().map_err(PodsError::Stream);
    }
    let (send, made) = tokio::sync::oneshot::channel();
    let enter = move || {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        make()
    };
    let thread = std::thread::Builder::new().name("pod-network".into()).stack_size(128 * 1024);
    // The thread ends right after; nobody who waits for it is left behind.
    thread.spawn(move || drop(send.send(enter()))).map_err(PodsError::Stream)?;
    made.await.map_err(|_| PodsError::ShimGone)?.map_err(PodsError::Stream)
}

fn make() -> io::Result<(TcpSocket, Option<TcpSocket>)> {
    Ok((TcpSocket::new_v4()?, TcpSocket::new_v6().ok()))
}
