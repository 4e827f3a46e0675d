//! Who belongs: the cluster's authority, the tokens that admit machines, and the certificates of nodes and people.

mod admit;
mod ca;
mod rotation;
mod tokens;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use flotilla_api::Builtin;
use flotilla_api::admit::UnknownFields;
use flotilla_api::k8s_openapi::ByteString;
use flotilla_api::k8s_openapi::api::core::v1::Taint;
use flotilla_api::kinds::cluster::{ClusterObject, ClusterSpec};
use flotilla_api::{Change, Key, Reason, Status, object};
use flotilla_net::{
    Authority, CertificateDer, ClusterId, Identity, Net, NodeNames, Refusal, RenewGrant, RenewRequest, Renewal,
    SealKey, ServingNames,
};
use flotilla_raft::EpochId;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::VERSION;
use crate::accounts;
use crate::gate::{self, Gate, User, WriteOptions, Written};
use crate::members::{EPOCH_ANNOTATION, ID_ANNOTATION, KEY_ANNOTATION, Members};

pub use rotation::{CaStatus, lead as lead_rotation};
pub use tokens::TokenWish;

/// A person's certificate that names no other time.
const DEFAULT_CLIENT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

const MANAGER: &str = "flotilla-trust";

pub struct Trust {
    gate: Gate,
    net: Net,
    members: Members,
    cluster: ClusterId,
    seal_key: SealKey,
    /// How long the certificates live that this node signs for nodes.
    lifetime: Duration,
}

impl Trust {
    /// `lifetime` is that of the nodes' certificates.
    pub fn new(gate: Gate, net: Net, members: Members, seal_key: SealKey, lifetime: Duration) -> Self {
        let cluster = net.credentials().identity().cluster();
        Self { gate, net, members, cluster, seal_key, lifetime }
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Stores what a cluster begins with: itself, its namespaces, and its first Node. Doing it again does no harm.
    ///
    /// # Errors
    /// If the store does not take it.
    pub async fn found(
        &self,
        sealed: &[u8],
        identity: &Identity,
        addresses: &[SocketAddr],
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let authority = Authority::unseal(&self.seal_key, sealed).map_err(Status::internal)?;
        let spec = ClusterSpec {
            id: self.cluster.to_string(),
            ca_certificate: flotilla_net::certificate_pem(authority.certificate()),
            sealed_ca: ByteString(sealed.to_vec()),
            rotation: None,
            revoked_users: BTreeMap::new(),
        };
        let mut objects =
            vec![(Builtin::Cluster, serde_json::to_value(ClusterObject::new(spec)).map_err(Status::internal)?)];
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            objects.push((
                Builtin::Namespace,
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            ));
        }
        let account_key = accounts::new_key(self.gate.sealer(), Timestamp::now())?;
        let keyring = self.gate.sealer().found(account_key);
        objects.push((Builtin::Keyring, serde_json::to_value(keyring).map_err(Status::internal)?));
        for (kind, object) in objects {
            let kind = self.gate.built_in(kind)?;
            match self.gate.create(&User::root(), &kind, object, &WriteOptions::by(MANAGER)).await {
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
                Ok(_) => {}
            }
        }
        self.resettle(identity, addresses, labels).await
    }

    fn own_node(&self, identity: &Identity, addresses: &[SocketAddr], labels: &BTreeMap<String, String>) -> Value {
        let epoch = self.gate.store().status().borrow().epoch;
        let key = hex(&identity.key().fingerprint());
        node_object(identity.name(), identity.id(), &key, epoch, addresses, labels, &[])
    }

    /// Makes the machine that founded or restored the cluster its Node, in the place of one that had its name before.
    ///
    /// # Errors
    /// If the store does not take it.
    pub async fn resettle(
        &self,
        identity: &Identity,
        addresses: &[SocketAddr],
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let store = self.gate.store();
        store.barrier().await.map_err(gate::read_status)?;
        if self.is_listed(identity.name(), identity.id(), &hex(&identity.key().fingerprint())) {
            return Ok(());
        }
        let kind = self.gate.built_in(Builtin::Node)?;
        let node = self.own_node(identity, addresses, labels);
        let (key, Written { object: node, .. }) = gate::prepare(&kind, node, UnknownFields::Refuse)?;
        let node = object::encode(&node).map_err(Status::internal)?;
        let change = Change::new(User::root().name, MANAGER);
        let change = match store.get(&key).map_err(gate::read_status)? {
            Some(former) => change.update(key, former.mod_revision, node),
            None => change.create(key, node),
        };
        store.propose(change).await.map(|_| ()).map_err(Status::internal)
    }

    /// Signs a certificate for a person or program.
    ///
    /// # Errors
    /// `BadRequest` if the request or the name cannot be certified.
    pub fn issue(&self, csr_der: &[u8], user: &str, groups: &[String], ttl: Duration) -> Result<Issued, Status> {
        let ttl = if ttl.is_zero() { DEFAULT_CLIENT_LIFETIME } else { ttl };
        let now = SystemTime::now();
        let authorities = self.authorities()?;
        let certificate = authorities
            .lasting()
            .sign_client(csr_der, user, groups, ttl, now)
            .map_err(|error| Status::bad_request(chain(&error)))?;
        Ok(Issued {
            certificate: flotilla_net::certificate_pem(&certificate),
            ca: authorities.trusted.iter().map(|one| flotilla_net::certificate_pem(one)).collect(),
            expires: Timestamp::try_from(now + ttl).map_err(Status::bad_request)?,
        })
    }

    /// A certificate, as PEM, for the servers of a node.
    ///
    /// # Errors
    /// Why it cannot be signed.
    pub fn issue_serving(
        &self,
        csr_der: &[u8],
        node: &str,
        names: &ServingNames<'_>,
        ttl: Duration,
    ) -> Result<String, Status> {
        let authorities = self.authorities()?;
        let certificate = authorities.lasting().sign_serving(csr_der, node, names, ttl, SystemTime::now());
        certificate
            .map(|certificate| flotilla_net::certificate_pem(&certificate))
            .map_err(|error| Status::bad_request(chain(&error)))
    }

    /// Whether the node is a member under this id and with this key.
    fn is_listed(&self, name: &str, id: u64, key: &str) -> bool {
        self.listed(name).is_some_and(|annotations| {
            let value = |annotation: &str| annotations.get(annotation).and_then(Value::as_str);
            value(ID_ANNOTATION) == Some(&*id.to_string()) && value(KEY_ANNOTATION) == Some(key)
        })
    }

    /// The annotations of a Node.
    fn listed(&self, node: &str) -> Option<Value> {
        let key = Key::new(&Builtin::Node.collection(), "", node);
        let stored = self.gate.store().get(&key).ok()??;
        let node: Value = serde_json::from_slice(&stored.value).ok()?;
        node.pointer("/metadata/annotations").cloned()
    }

    fn sign(&self, id: u64, name: &str, csr: &[u8], addresses: &[SocketAddr]) -> Result<RenewGrant, Refusal> {
        let authorities = self.authorities().map_err(|status| Refusal(status.message))?;
        let addresses: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
        let names = NodeNames { id, name, addresses: &addresses };
        let certificate = authorities
            .signer
            .sign_node(csr, &names, self.lifetime, SystemTime::now())
            .map_err(|error| Refusal(chain(&error)))?;
        let der = |all: &[CertificateDer<'_>]| all.iter().map(|one| one.to_vec()).collect();
        Ok(RenewGrant {
            certificate: certificate.to_vec(),
            authorities: der(&authorities.trusted),
            bridges: der(&authorities.bridges),
            revision: authorities.revision,
        })
    }
}

/// A certificate for a person or program, in PEM.
pub struct Issued {
    pub certificate: String,
    pub ca: String,
    pub expires: Timestamp,
}

#[async_trait]
impl Renewal for Trust {
    async fn renew(&self, request: RenewRequest) -> Result<RenewGrant, Refusal> {
        let listed = self.members.id_of(&request.name) == Some(request.id)
            && self.is_listed(&request.name, request.id, &hex(&request.key_fingerprint));
        if !listed {
            return Err(Refusal(format!("node {:?} is not a member with this key", request.name)));
        }
        self.sign(request.id, &request.name, &request.csr, &request.addresses)
    }
}

/// A Node as it is before its agent has said anything: not ready.
fn node_object(
    name: &str,
    id: u64,
    key: &str,
    epoch: EpochId,
    addresses: &[SocketAddr],
    labels: &BTreeMap<String, String>,
    taints: &[Taint],
) -> Value {
    let mut all = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), name.to_owned()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), arch().to_owned()),
    ]);
    all.extend(labels.clone());
    let mut listed: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address.ip().to_string()})).collect();
    listed.dedup();
    listed.push(json!({"type": "Hostname", "address": name}));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": all,
            "annotations": {
                ID_ANNOTATION: id.to_string(),
                KEY_ANNOTATION: key,
                EPOCH_ANNOTATION: u64::from(epoch).to_string(),
            },
        },
        "spec": {"providerID": format!("flotilla://{id}"), "taints": taints},
        "status": {"addresses": listed, "nodeInfo": {"kubeletVersion": format!("v{VERSION}")}},
    })
}

/// The architecture, in Go's words as everywhere in Kubernetes.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
