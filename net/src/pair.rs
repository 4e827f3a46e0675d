//! For tests: the endpoints of nodes 1 and 2, each of which reaches the other directly and as if a third one relayed.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use quinn::{ClientConfig, Connection, Endpoint};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::alpn::Alpn;
use crate::authority::Authority;
use crate::credentials::Credentials;
use crate::identity::Identity;
use crate::names::{ClusterId, NodeId};
use crate::options::Options;
use crate::socket::{Ends, Packet, relayed_address};
use crate::{net, tls, transport};

const LIFETIME: Duration = Duration::from_secs(3600);

pub(crate) struct Pair {
    one: Endpoint,
    two: Endpoint,
    config: ClientConfig,
    _between: JoinSet<()>,
}

impl Pair {
    pub(crate) fn start() -> Pair {
        let authority = Authority::create(ClusterId::generate(), SystemTime::now()).expect("an authority");
        let dir = tempfile::tempdir().expect("a directory");
        let start = |id: NodeId| {
            let identity = Identity::issue(&authority, id, &format!("n{id}"), &[], LIFETIME, SystemTime::now());
            let options =
                Options::new(identity.expect("an identity"), "127.0.0.1:0".parse().expect("an address"), dir.path());
            let credentials = Credentials::new(options.identity.clone()).expect("credentials");
            let (endpoint, ends) = net::endpoint(&options, &credentials, &Handle::current()).expect("an endpoint");
            let tls = tls::quic_client(&credentials, Alpn::Beat, None).expect("a configuration");
            (endpoint, ends, transport::client(tls, options.keeping(), Alpn::Beat).expect("a configuration"))
        };
        let ((one, ends_of_one, config), (two, ends_of_two, _)) = (start(1), start(2));
        let mut between = JoinSet::new();
        between.spawn(relay(ends_of_one, ends_of_two));
        Pair { one, two, config, _between: between }
    }

    pub(crate) fn direct_address(&self) -> SocketAddr {
        self.two.local_addr().expect("bound")
    }

    pub(crate) fn relayed_address(&self) -> SocketAddr {
        relayed_address(2)
    }

    /// A connection from node 1 to node 2, as both see it.
    pub(crate) async fn connect(&self, address: SocketAddr) -> (Connection, Connection) {
        let connecting = self.one.connect_with(self.config.clone(), address, &tls::server_name(2)).expect("a name");
        let accepting = async { self.two.accept().await.expect("open").await };
        let (here, there) = tokio::join!(connecting, accepting);
        (here.expect("connects"), there.expect("connects"))
    }
}

async fn relay(mut one: Ends, mut two: Ends) {
    loop {
        let _ = tokio::select! {
            Some(Packet { bytes, .. }) = one.outward.recv() => two.inward.send(Packet { node: 1, bytes }).await,
            Some(Packet { bytes, .. }) = two.outward.recv() => one.inward.send(Packet { node: 2, bytes }).await,
            else => return,
        };
    }
}
