//! Who belongs: the cluster's authority, the tokens that admit machines, and the certificates of nodes and people.
//!
//! Invariant: a machine is admitted in one Change that spends the token and creates its Node; if that Change is
//! refused, nothing is left behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use flotilla_api::Builtin;
use flotilla_api::k8s_openapi::ByteString;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::kinds::cluster::{self, ClusterObject, ClusterSpec};
use flotilla_api::kinds::jointoken::{JoinTokenObject, JoinTokenSpec};
use flotilla_api::{Change, Key, Reason, Status, object};
use flotilla_net::{
    Admission, Authority, ClusterId, Identity, JoinGrant, JoinRequest, Member, NODE_LIFETIME, Net, NodeNames, Refusal,
    RenewGrant, RenewRequest, Renewal, SealKey, SecretHash, Token, TokenId, fingerprint,
};
use flotilla_raft::{ProposeError, Range, ReadError};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::VERSION;
use crate::gate::{self, Gate, User, WriteOptions};
use crate::members::{ID_ANNOTATION, KEY_ANNOTATION, Members};

/// Replicas that a cluster has at most.
const MAX_REPLICAS: usize = 15;
/// A token that names no other time.
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// A person's certificate that names no other time.
const DEFAULT_CLIENT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often an admission that somebody else overtook is begun anew.
const MAX_ATTEMPTS: usize = 16;
/// How long an admission waits for the cluster to have a leader. The machine that asks waits longer.
const LEADER_WAIT: Duration = Duration::from_secs(8);
const LEADER_RETRY: Duration = Duration::from_millis(100);

const MANAGER: &str = "flotilla-trust";

pub struct Trust {
    gate: Gate,
    net: Net,
    members: Members,
    cluster: ClusterId,
    seal_key: SealKey,
}

/// A token as `flotilla token list` shows it.
pub struct TokenInfo {
    pub token: JoinTokenObject,
    /// Why it admits nobody any more.
    pub refusal: Option<&'static str>,
}

impl Trust {
    pub fn new(gate: Gate, net: Net, members: Members, identity: &Identity, seal_key: SealKey) -> Self {
        Self { gate, net, members, cluster: identity.cluster(), seal_key }
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
        };
        let mut objects =
            vec![(Builtin::Cluster, serde_json::to_value(ClusterObject::new(spec)).map_err(Status::internal)?)];
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            objects.push((
                Builtin::Namespace,
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            ));
        }
        let key = hex(&identity.key().fingerprint());
        objects.push((Builtin::Node, node_object(identity.name(), identity.id(), &key, addresses, labels)));
        for (kind, object) in objects {
            let kind = self.gate.built_in(kind)?;
            match self.gate.create(&User::root(), &kind, object, &WriteOptions::by(MANAGER)).await {
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Err(status) => return Err(status),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Makes a token that admits `uses` machines (0: any number) for `ttl` (zero: one day).
    ///
    /// # Errors
    /// If the store does not take it.
    pub async fn create_token(&self, user: &User, ttl: Duration, uses: u32) -> Result<(Token, Timestamp), Status> {
        let ttl = if ttl.is_zero() { DEFAULT_TOKEN_LIFETIME } else { ttl };
        if ttl > MAX_TOKEN_LIFETIME {
            return Err(Status::bad_request("ttl: a token lives a year at most"));
        }
        let lifetime = SignedDuration::try_from(ttl).map_err(Status::bad_request)?;
        let expires = Timestamp::now().saturating_add(lifetime).map_err(Status::bad_request)?;
        let authority = self.authority()?;
        let addresses = self.addresses();
        let token = Token::generate(self.cluster, authority.fingerprint(), Some(SystemTime::now() + ttl), addresses)
            .map_err(Status::internal)?;
        let spec = JoinTokenSpec {
            secret_hash: ByteString(token.secret_hash().as_bytes().to_vec()),
            expires_at: Some(Time(expires)),
            max_uses: (uses > 0).then_some(i32::try_from(uses).unwrap_or(i32::MAX)),
        };
        let object = JoinTokenObject::new(&token.id().to_string(), spec);
        let kind = self.gate.built_in(Builtin::JoinToken)?;
        let object = serde_json::to_value(object).map_err(Status::internal)?;
        self.gate.create(user, &kind, object, &WriteOptions::by(MANAGER)).await?;
        Ok((token, expires))
    }

    /// # Errors
    /// If the store cannot be read.
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, Status> {
        self.gate.store().barrier().await.map_err(gate::read_status)?;
        let prefix = Builtin::JoinToken.collection().prefix();
        let listing = self.gate.store().range(Range::prefix(prefix)).map_err(gate::read_status)?;
        let now = Timestamp::now();
        let tokens = listing.items.iter().filter_map(|kv| object::decode(&kv.value, kv.mod_revision).ok());
        Ok(tokens.map(|token: JoinTokenObject| TokenInfo { refusal: token.refusal(now), token }).collect())
    }

    /// Signs a certificate for a person or program.
    ///
    /// # Errors
    /// `BadRequest` if the request or the name cannot be certified.
    pub fn issue(&self, csr_der: &[u8], user: &str, groups: &[String], ttl: Duration) -> Result<Issued, Status> {
        let ttl = if ttl.is_zero() { DEFAULT_CLIENT_LIFETIME } else { ttl };
        let now = SystemTime::now();
        let authority = self.authority()?;
        let certificate = authority
            .sign_client(csr_der, user, groups, ttl, now)
            .map_err(|error| Status::bad_request(chain(&error)))?;
        Ok(Issued {
            certificate: flotilla_net::certificate_pem(&certificate),
            ca: flotilla_net::certificate_pem(authority.certificate()),
            expires: Timestamp::try_from(now + ttl).map_err(Status::bad_request)?,
        })
    }

    /// Where machines that join find this cluster: every member's first address, this node's first.
    fn addresses(&self) -> Vec<SocketAddr> {
        let own = self.net.own_record();
        let others = self.net.peers();
        let mut addresses: Vec<SocketAddr> = own.iter().flat_map(|record| record.addresses()).copied().collect();
        for address in others.iter().filter_map(|record| record.addresses().first()) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        addresses.truncate(flotilla_net::MAX_TOKEN_ADDRESSES);
        addresses
    }

    /// The authority, from this replica's state.
    fn authority(&self) -> Result<Authority, Status> {
        let key = Key::new(&Builtin::Cluster.collection(), "", cluster::NAME);
        let stored = self.gate.store().get(&key).map_err(gate::read_status)?;
        let stored = stored.ok_or_else(|| {
            Status::new(Reason::ServiceUnavailable, "this node has not caught up with its cluster yet; try again")
        })?;
        let cluster: ClusterObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
        Authority::unseal(&self.seal_key, &cluster.spec.sealed_ca.0).map_err(Status::internal)
    }

    async fn admit_once(&self, request: &JoinRequest, key: &str) -> Result<Admitted, Denial> {
        let store = self.gate.store();
        let unavailable = |error: ReadError| Denial::Later(format!("the cluster cannot answer now: {error}"));
        let never = |reason: String| Denial::Never(Refusal(reason));
        store.barrier().await.map_err(unavailable)?;
        let token_key = Key::new(&Builtin::JoinToken.collection(), "", &request.token_id.to_string());
        let stored = store.get(&token_key).map_err(unavailable)?;
        let stored =
            stored.ok_or_else(|| never("the cluster has no such token: it was revoked, or never made".into()))?;
        let mut token: JoinTokenObject =
            object::decode(&stored.value, stored.mod_revision).map_err(|error| never(error.to_string()))?;
        let now = Timestamp::now();
        if !secret_matches(&token, request.token_id, request) {
            return Err(never("the token's secret is wrong".into()));
        }
        // The same machine with the same key asks again because it did not hear the answer.
        if self.is_listed(&request.name, request.id, key) {
            return Ok(Admitted::Yes);
        }
        if let Some(why) = token.refusal(now) {
            return Err(never(format!("{why}; make a new one with 'flotilla token create'")));
        }
        if self.members.all().len() >= MAX_REPLICAS {
            return Err(never(format!("the cluster has {MAX_REPLICAS} nodes already, the most it can replicate to")));
        }
        let status = token.status.get_or_insert_default();
        status.uses += 1;
        status.last_node = Some(request.name.clone());
        status.last_used_at = Some(Time(now));

        let node = node_object(&request.name, request.id, key, &request.addresses, &BTreeMap::new());
        let kind = self.gate.built_in(Builtin::Node).map_err(|status| never(status.message))?;
        let (node_key, node) = gate::prepare(&kind, node).map_err(|status| never(status.message))?;
        let encode = |error: serde_json::Error| never(error.to_string());
        let change = Change::new(User::node(&request.name).name, MANAGER)
            .create(node_key.clone(), object::encode(&node).map_err(encode)?)
            .update(token_key, stored.mod_revision, object::encode(&token).map_err(encode)?);
        match store.propose(change).await {
            Ok(_) => Ok(Admitted::Yes),
            Err(ProposeError::Conflict(conflict)) if conflict.key == node_key => Err(never(format!(
                "a node named {:?} is a member already; choose another --name, or remove it with 'flotilla delete node {}'",
                request.name, request.name
            ))),
            Err(ProposeError::Conflict(_)) => Ok(Admitted::Overtaken),
            Err(error @ (ProposeError::Invalid(_) | ProposeError::NoSpace)) => {
                Err(never(format!("the cluster cannot admit anybody: {error}")))
            }
            // Whether it was taken or not, asking again finds out.
            Err(error) => Err(Denial::Later(format!("the cluster cannot admit anybody now: {error}"))),
        }
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
        let authority = self.authority().map_err(|status| Refusal(status.message))?;
        let addresses: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
        let names = NodeNames { id, name, addresses: &addresses };
        let certificate = authority
            .sign_node(csr, &names, NODE_LIFETIME, SystemTime::now())
            .map_err(|error| Refusal(chain(&error)))?;
        Ok(RenewGrant { certificate: certificate.to_vec(), authorities: vec![authority.certificate().to_vec()] })
    }

    fn grant(&self, request: &JoinRequest) -> Result<JoinGrant, Refusal> {
        let RenewGrant { certificate, authorities } =
            self.sign(request.id, &request.name, &request.csr, &request.addresses)?;
        let records = self.net.peers();
        let member = |(name, id): (&String, &u64)| Member {
            id: *id,
            name: name.clone(),
            record: records.iter().find(|record| record.id() == *id).map(|record| (**record).clone()),
        };
        let members = self.members.all().iter().map(member).collect();
        Ok(JoinGrant {
            cluster: self.cluster,
            certificate,
            authorities,
            seal_key: Some(self.seal_key.clone()),
            members,
        })
    }
}

enum Admitted {
    Yes,
    /// Another machine spent the token at the same time.
    Overtaken,
}

enum Denial {
    Never(Refusal),
    /// Nobody leads at the moment: asking again may help.
    Later(String),
}

/// A certificate for a person or program, in PEM.
pub struct Issued {
    pub certificate: String,
    pub ca: String,
    pub expires: Timestamp,
}

#[async_trait]
impl Admission for Trust {
    async fn admit(&self, request: JoinRequest) -> Result<JoinGrant, Refusal> {
        // Whatever could be wrong with the request is found before the token is spent.
        let grant = self.grant(&request)?;
        let key = certified_key(&grant.certificate)?;
        let until = Instant::now() + LEADER_WAIT;
        let mut overtaken = 0;
        loop {
            match self.admit_once(&request, &key).await {
                Ok(Admitted::Yes) => {
                    info!(node = request.name, remote = %request.remote, version = request.version, "a node joined");
                    return Ok(grant);
                }
                Ok(Admitted::Overtaken) if overtaken < MAX_ATTEMPTS => overtaken += 1,
                Ok(Admitted::Overtaken) => {
                    return Err(Refusal("too many machines join at the same time; try again".into()));
                }
                Err(Denial::Later(reason)) if Instant::now() < until => {
                    debug!(node = request.name, reason, "an admission waits for a leader");
                    tokio::time::sleep(LEADER_RETRY).await;
                }
                Err(Denial::Later(reason)) => return Err(Refusal(reason)),
                Err(Denial::Never(refusal)) => return Err(refusal),
            }
        }
    }
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

/// SHA-256 of the public key in a certificate that was just made, in hexadecimal.
fn certified_key(certificate: &[u8]) -> Result<String, Refusal> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| Refusal(format!("the certificate cannot be read back: {error}")))?;
    Ok(hex(&fingerprint(certificate.public_key().raw)))
}

fn secret_matches(token: &JoinTokenObject, id: TokenId, request: &JoinRequest) -> bool {
    <[u8; 32]>::try_from(token.spec.secret_hash.0.as_slice())
        .is_ok_and(|hash| SecretHash::from_bytes(hash).matches(id, &request.secret))
}

/// A Node as it is before its agent has said anything: not ready.
fn node_object(name: &str, id: u64, key: &str, addresses: &[SocketAddr], labels: &BTreeMap<String, String>) -> Value {
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
            "annotations": {ID_ANNOTATION: id.to_string(), KEY_ANNOTATION: key},
        },
        "spec": {"providerID": format!("flotilla://{id}")},
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
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
