//! How nodes trust and talk to each other: identity, authority, tokens, joining, and mutual TLS 1.3 over one QUIC port on
//! which each protocol has its name; heartbeats, and who is alive.
//!
//! The crate knows nothing of objects. What it must ask of the cluster stands as ports in [`ports`](Handler): who handles
//! a protocol, who may join, who may renew.
//!
//! A first node: [`Authority::create`], [`Identity::issue`], [`Net::start`]. A further one: [`join`], [`Identity::store`],
//! [`Net::start`]. Then both: [`Net::set_members`] with what the store says, whenever that changes.

mod alpn;
mod authority;
mod beat;
mod blobs;
mod book;
mod caller;
mod certificate;
pub mod codec;
mod credentials;
mod discovery;
mod error;
mod files;
mod frame;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod home;
mod identity;
mod join;
mod limit;
mod links;
mod members;
mod names;
mod net;
mod observed;
mod options;
#[cfg(test)]
mod pair;
mod pool;
mod ports;
mod pulse;
mod random;
mod record;
mod relay;
mod renew;
mod router;
mod seal;
mod shared;
mod socket;
mod subject;
mod suspicion;
mod tls;
mod token;
mod transport;

pub use alpn::Alpn;
pub use authority::{
    AUTHORITY_LIFETIME, Authority, AuthorityError, MAX_LIFETIME, MIN_LIFETIME, NODE_LIFETIME, NodeNames, ServingNames,
};
pub use blobs::{BlobDigest, BlobError, Blobs, Lead, Mark, Opened, PeerBlob, Search, Shelf};
pub use caller::Caller;
pub use certificate::{CertificateError, Fingerprint, NODE_GROUP, NODE_USER_PREFIX, NodeSubject, Subject, fingerprint};
pub use credentials::{Credentials, CredentialsError};
pub use discovery::look_for;
pub use error::NetError;
pub use frame::{FrameError, read_frame, read_frame_or_end, write_frame, write_frame_after};
pub use identity::{Identity, IdentityError, NodeKey, certificate_pem};
pub use join::{JoinError, JoinParts, JoinTimeouts, Joined, join};
pub use limit::Rate;
pub use members::Listed;
pub use names::{ClusterId, MAX_NODE_NAME_BYTES, NameError, NodeId, check_node_name};
pub use net::Net;
pub use options::Options;
pub use ports::{
    Admission, Handler, JoinGrant, JoinRequest, Member, PeerInfo, Refusal, RenewGrant, RenewRequest, Renewal,
};
pub use pulse::{MAX_PAYLOAD_BYTES, Peer, Peers};
pub use quinn::{RecvStream, SendStream};
pub use record::{AddressRecord, MAX_ADDRESSES, RecordError};
pub use rustls::pki_types::{CertificateDer, PrivateKeyDer};
pub use seal::{SEAL_OVERHEAD_BYTES, SealError, SealKey, SealKeyId};
pub use suspicion::{Liveness, Silence};
pub use tls::{ClientAuth, client_tls, provider, server_tls, user_tls};
pub use token::{MAX_TOKEN_ADDRESSES, MAX_TOKEN_BYTES, SecretHash, Token, TokenError, TokenId, TokenSecret};
pub use transport::MAX_CALLS;
