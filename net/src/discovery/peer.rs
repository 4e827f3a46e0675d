//! The peer id of a node's key, as libp2p defines it: SHA-256 over the key in its protobuf form ("Peer Ids and Keys").

use aws_lc_rs::digest::{SHA256, digest};
use libp2p_core::multihash::Multihash;
use libp2p_identity::PeerId;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// Of `PublicKey { Type: ECDSA, Data: … }`, up to the length of the data.
const ECDSA_FIELDS: [u8; 3] = [0x08, 0x03, 0x12];
/// The code of SHA-256 among multihashes.
pub(super) const SHA256_CODE: u64 = 0x12;

/// The peer id of a certificate's key; `None` if it cannot be read.
pub fn id_of(certificate: &[u8]) -> Option<PeerId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let key = certificate.tbs_certificate.subject_pki.raw;
    // One byte of length: our keys have 91 bytes.
    let length = u8::try_from(key.len()).ok().filter(|length| *length < 0x80)?;
    let encoded = [&ECDSA_FIELDS[..], &[length], key].concat();
    PeerId::from_multihash(sha256(&encoded)?).ok()
}

pub(super) fn sha256(bytes: &[u8]) -> Option<Multihash<64>> {
    Multihash::wrap(SHA256_CODE, digest(&SHA256, bytes).as_ref()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::authority::Authority;
    use crate::identity::Identity;
    use crate::names::ClusterId;

    #[test]
    fn a_node_keeps_its_peer_id_with_its_key_and_no_other_has_it() {
        let authority = Authority::create(ClusterId::generate(), SystemTime::now()).expect("an authority");
        let issue = |id| {
            let name = format!("n{id}");
            Identity::issue(&authority, id, &name, &[], Duration::from_secs(60), SystemTime::now()).expect("issues")
        };
        let (one, two) = (issue(1), issue(2));
        let id = id_of(one.certificate()).expect("has one");
        assert_eq!(id_of(one.certificate()), Some(id));
        assert_ne!(id_of(two.certificate()), Some(id));
        assert!(id.to_base58().starts_with("Qm"), "SHA-256 of 32 bytes: {id}");
        assert_eq!(id_of(b"nonsense"), None);
    }
}
