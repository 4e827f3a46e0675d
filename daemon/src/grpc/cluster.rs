//! The cluster: status, nodes, tokens, and moving work off nodes.

use std::time::Duration;

use flotilla_api::Status;
use flotilla_api::k8s_openapi::api::core::v1::Taint;
use flotilla_api::kinds::cluster::CaPhase;
use flotilla_api::kinds::cluster::NAME as CLUSTER_NAME;
use flotilla_api::kinds::{Builtin, FLOTILLA_GROUP};
use flotilla_api::{object, quantity};
use flotilla_raft::Range;
use jiff::Timestamp;
use serde_json::Value;
use tonic::{Request, Response};

use super::watch::{Answer, finished, stream};
use super::{allowed, master, refuse, text, user};
use crate::VERSION;
use crate::drain::{self, Drain};
use crate::gate::{self, DeleteOptions, ListQuery, User};
use crate::members::ID_ANNOTATION;
use crate::node::Node;
use crate::proto::{self, cluster_server::Cluster};
use crate::trust::{CaStatus, TokenWish, chain};
use crate::usage::Usage;

const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

pub struct Service {
    node: Node,
}

impl Service {
    pub fn new(node: &Node) -> Self {
        Self { node: node.clone() }
    }

    async fn nodes(&self, user: &User) -> Result<Vec<proto::NodeSummary>, Status> {
        let gate = &self.node.gate;
        let nodes = gate.list(user, &*gate.built_in(Builtin::Node)?, &ListQuery::default()).await?;
        let pods = gate.list(user, &*gate.built_in(Builtin::Pod)?, &ListQuery::default()).await?;
        let raft = gate.store().status().borrow().clone();
        let heard = self.node.net.liveness().borrow().clone();
        let summaries = nodes.items.iter().map(|node| {
            let name = text(node, "/metadata/name");
            let id = node_id(node);
            let usage = if id == raft.id {
                self.node.local.usage()
            } else {
                heard.get(&id).and_then(|peer| Usage::decode(&peer.payload)).unwrap_or_default()
            };
            let role = match id {
                id if raft.leader == Some(id) => "leader",
                id if raft.voters.contains(&id) => "voter",
                id if raft.learners.contains(&id) => "learner",
                _ => "node",
            };
            let bound = pods.items.iter().filter(|pod| {
                text(pod, "/spec/nodeName") == name
                    && !matches!(text(pod, "/status/phase").as_str(), "Succeeded" | "Failed")
            });
            proto::NodeSummary {
                role: role.into(),
                status: node_status(node),
                address: address(node),
                version: text(node, "/status/nodeInfo/kubeletVersion"),
                cpu_used_millis: usage.cpu_millis as i64,
                cpu_capacity_millis: amount(node, "cpu", quantity::cpu_millis),
                memory_used_bytes: usage.memory_bytes as i64,
                memory_capacity_bytes: amount(node, "memory", quantity::bytes),
                pods: bound.count() as i32,
                created: text(node, "/metadata/creationTimestamp"),
                message: ready(node)
                    .filter(|ready| ready["status"] != "True")
                    .map(|r| text(r, "/message"))
                    .unwrap_or_default(),
                id,
                name,
            }
        });
        Ok(summaries.collect())
    }

    fn addresses(&self) -> Vec<String> {
        let record = self.node.net.own_record();
        record.map(|record| record.addresses().iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    fn status(&self) -> proto::ClusterStatus {
        let raft = self.node.gate.store().status().borrow().clone();
        let name = |id: &u64| self.node.members.name_of(*id).unwrap_or_else(|| format!("id {id}"));
        proto::ClusterStatus {
            cluster_id: self.node.trust.cluster().to_string(),
            node: self.node.members.own_name().to_owned(),
            leader: self.node.members.acting_leader(&raft).as_ref().map(name).unwrap_or_default(),
            term: raft.term,
            revision: self.node.gate.store().revision(),
            voters: raft.voters.iter().map(name).collect(),
            voters_change: raft.voters_change,
            learners: raft.learners.iter().map(name).collect(),
            epoch: raft.epoch.into(),
            addresses: self.addresses(),
            version: VERSION.into(),
            problems: self.problems(&raft),
        }
    }

    fn problems(&self, raft: &flotilla_raft::Status) -> Vec<String> {
        let mut problems = Vec::new();
        if self.node.members.acting_leader(raft).is_none() {
            problems.push(
                "no leader: more than half of the voters must run and reach each other; if they are gone for good, go on \
                 with `flotilla recover`"
                    .to_owned(),
            );
        }
        if let Some(epoch) = raft.superseded_by {
            problems.push(format!(
                "a part of the cluster has gone on as epoch {epoch} without this node, which has to join it anew"
            ));
        }
        if let Some(epoch) = raft.beside {
            problems.push(format!(
                "another node was restored or recovered apart from this one, as epoch {epoch}: there are two clusters with \
                 one name; keep one of them, and wipe the nodes of the other and let them join it"
            ));
        }
        if let Some(error) = &raft.fatal {
            problems.push(format!("the store of this node has stopped: {error}; free its disk and restart the daemon"));
        }
        let votes = |name: &str| self.node.members.all().get(name).is_some_and(|id| raft.voters.contains(id));
        for name in self.nodes_short_of_disk() {
            problems.push(match votes(&name) {
                true => format!(
                    "the disk of node {name} is nearly full: the cluster takes only changes that free space until there \
                     is room on it again"
                ),
                false => format!("the disk of node {name} is nearly full"),
            });
        }
        let elsewhere = self.node.members.in_other_epochs(raft);
        for (name, epoch) in &elsewhere {
            problems.push(format!(
                "node {name} is still of epoch {epoch} and takes no part in this one: empty its data directory and let it \
                 join anew, or delete it"
            ));
        }
        for (name, one) in
            self.node.members.liveness().borrow().iter().filter(|(name, _)| !elsewhere.contains_key(*name))
        {
            match (one.state, one.silent_ms) {
                (flotilla_control::Liveness::Dead, 0) => {
                    problems.push(format!("node {name} was not heard since this daemon started"));
                }
                (flotilla_control::Liveness::Dead, ms) => {
                    problems.push(format!("node {name} has been silent for {} s", ms / 1_000));
                }
                _ => {}
            }
        }
        problems
    }

    fn nodes_short_of_disk(&self) -> Vec<String> {
        let nodes = self.node.gate.store().range(Range::prefix(Builtin::Node.collection().prefix()));
        let nodes = nodes.map(|page| page.items).unwrap_or_default();
        let objects = nodes.iter().filter_map(|kv| object::decode_value(&kv.value, kv.mod_revision).ok());
        let is_short = |node: &Value| {
            let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
            let pressed = |one: &Value| one["type"] == "DiskPressure" && one["status"] == "True";
            conditions.is_some_and(|all| all.iter().any(pressed))
        };
        objects.filter(is_short).map(|node| text(&node, "/metadata/name")).collect()
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn status(
        &self,
        request: Request<proto::ClusterStatusRequest>,
    ) -> Result<Response<proto::ClusterStatus>, tonic::Status> {
        user(&request)?;
        Ok(Response::new(Service::status(self)))
    }

    async fn nodes(
        &self,
        request: Request<proto::NodesRequest>,
    ) -> Result<Response<proto::NodesResponse>, tonic::Status> {
        let user = user(&request)?;
        let nodes = Service::nodes(self, &user).await.map_err(refuse)?;
        Ok(Response::new(proto::NodesResponse { nodes }))
    }

    type BackupStream = Answer<proto::BackupChunk>;

    async fn backup(
        &self,
        request: Request<proto::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, tonic::Status> {
        master(&request, "back the store up")?;
        let store = self.node.gate.store();
        let backup = store.backup(request.into_inner().stale).await;
        let mut backup = backup.map_err(|error| refuse(gate::read_status(error)))?;
        Ok(Response::new(stream(|send| async move {
            while let Some(piece) = backup.next().await {
                let data = piece.map_err(|error| refuse(Status::internal(chain(&error))))?.to_vec();
                _ = send.send(Ok(proto::BackupChunk { data })).await;
            }
            Ok(())
        })))
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreateTokenResponse>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let wanted = TokenWish {
            ttl: Duration::from_secs(request.ttl_seconds),
            uses: request.uses,
            labels: request.labels.into_iter().collect(),
            taints: request.taints,
        };
        let (token, expires) = self.node.trust.create_token(&user, &wanted).await.map_err(refuse)?;
        Ok(Response::new(proto::CreateTokenResponse {
            id: token.id().to_string(),
            token: token.to_string(),
            expires: expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<proto::ListTokensRequest>,
    ) -> Result<Response<proto::ListTokensResponse>, tonic::Status> {
        allowed(&self.node, &request, "list", (FLOTILLA_GROUP, "jointokens"), "").await?;
        let tokens = self.node.trust.tokens().await.map_err(refuse)?;
        let time = |time: Option<&flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.map(|time| time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default()
        };
        let tokens = tokens.into_iter().map(|info| proto::TokenSummary {
            id: info.token.metadata.name.clone().unwrap_or_default(),
            created: time(info.token.metadata.creation_timestamp.as_ref()),
            expires: time(info.token.spec.expires_at.as_ref()),
            uses: info.token.status.as_ref().map_or(0, |status| status.uses.max(0) as u32),
            max_uses: info.token.spec.max_uses.map_or(0, |max| max.max(0) as u32),
            state: match info.refusal {
                None => "valid",
                Some(why) if why.contains("expired") => "expired",
                Some(why) if why.contains("CA") => "replaced CA",
                Some(_) => "used up",
            }
            .into(),
            labels: info.token.spec.labels.clone().into_iter().collect(),
            taints: info.token.spec.taints.iter().map(taint_text).collect(),
        });
        Ok(Response::new(proto::ListTokensResponse { tokens: tokens.collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<proto::RevokeTokenRequest>,
    ) -> Result<Response<proto::RevokeTokenResponse>, tonic::Status> {
        let user = user(&request)?;
        let id = request.into_inner().id;
        let gate = &self.node.gate;
        let kind = gate.built_in(Builtin::JoinToken).map_err(refuse)?;
        gate.delete(&user, &kind, ("", &id), &DeleteOptions::default()).await.map_err(refuse)?;
        Ok(Response::new(proto::RevokeTokenResponse {}))
    }

    async fn cordon(
        &self,
        request: Request<proto::CordonRequest>,
    ) -> Result<Response<proto::CordonResponse>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let changed = drain::cordon(&self.node.gate, &user, &request.node, request.cordon).await.map_err(refuse)?;
        Ok(Response::new(proto::CordonResponse { changed }))
    }

    type DrainStream = Answer<proto::Progress>;

    async fn drain(&self, request: Request<proto::DrainRequest>) -> Result<Response<Self::DrainStream>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let drain = Drain {
            gate: self.node.gate.clone(),
            user,
            node: request.node,
            timeout: timeout(request.timeout_seconds),
            grace_period_seconds: request.grace_period_seconds.map(i64::from),
            force: request.force,
            own: None,
        };
        Ok(Response::new(stream(|send| async move { drain.run(&send).await.map_err(refuse) })))
    }

    type LeaveStream = Answer<proto::Progress>;

    async fn leave(&self, request: Request<proto::LeaveRequest>) -> Result<Response<Self::LeaveStream>, tonic::Status> {
        let own = self.node.members.own_name();
        let user = allowed(&self.node, &request, "delete", ("", "nodes"), own).await?;
        let request = request.into_inner();
        let node = self.node.clone();
        // Half left would be a daemon that runs and does not belong: once begun, it is finished.
        Ok(Response::new(finished(&self.node.tasks, |send| async move {
            let drain = Drain {
                gate: node.gate.clone(),
                user,
                node: node.members.own_name().to_owned(),
                timeout: timeout(request.timeout_seconds),
                grace_period_seconds: None,
                force: request.force,
                own: Some(node.clone()),
            };
            drain::leave(&node, drain, &send).await.map_err(refuse)
        })))
    }

    async fn issue_certificate(
        &self,
        request: Request<proto::IssueCertificateRequest>,
    ) -> Result<Response<proto::IssueCertificateResponse>, tonic::Status> {
        master(&request, "have certificates signed")?;
        let request = request.into_inner();
        let csr = pem_body(&request.csr).map_err(refuse)?;
        let ttl = Duration::from_secs(request.ttl_seconds);
        let issued = self.node.trust.issue(&csr, &request.user, &request.groups, ttl).map_err(refuse)?;
        Ok(Response::new(proto::IssueCertificateResponse {
            certificate: issued.certificate,
            ca: issued.ca,
            expires: issued.expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }))
    }

    async fn revoke_user(
        &self,
        request: Request<proto::RevokeUserRequest>,
    ) -> Result<Response<proto::RevokeUserResponse>, tonic::Status> {
        let user = master(&request, "revoke users' certificates")?;
        self.node.trust.revoke_user(&user, &request.into_inner().user).await.map_err(refuse)?;
        Ok(Response::new(proto::RevokeUserResponse {}))
    }

    async fn rotate_ca(
        &self,
        request: Request<proto::RotateCaRequest>,
    ) -> Result<Response<proto::CaStatus>, tonic::Status> {
        let user = master(&request, "replace the certificate authority")?;
        let overlap = request.into_inner().overlap_seconds.map(Duration::from_secs);
        self.node.trust.rotate_ca(&user, overlap).await.map_err(refuse)?;
        let status = self.node.trust.ca_status().await.map_err(refuse)?;
        Ok(Response::new(ca_status(status)))
    }

    async fn get_ca_status(
        &self,
        request: Request<proto::CaStatusRequest>,
    ) -> Result<Response<proto::CaStatus>, tonic::Status> {
        let cluster = Builtin::Cluster.info();
        allowed(&self.node, &request, "get", (cluster.group, cluster.plural), CLUSTER_NAME).await?;
        let status = self.node.trust.ca_status().await.map_err(refuse)?;
        Ok(Response::new(ca_status(status)))
    }
}

fn taint_text(taint: &Taint) -> String {
    let value = taint.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
    format!("{}{value}:{}", taint.key, taint.effect)
}

fn ca_status(status: CaStatus) -> proto::CaStatus {
    let time = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let phase = status.rotation.as_ref().map(|rotation| rotation.phase);
    let nodes = status.nodes.into_iter().map(|node| proto::CaNode {
        name: node.name,
        certified_by: node.certified_by,
        waited_for: node.waited_for,
    });
    proto::CaStatus {
        phase: match phase {
            None => "steady",
            Some(CaPhase::Spread) => "spreading",
            Some(CaPhase::Renew) => "renewing",
        }
        .into(),
        fingerprint: status.signer,
        expires: Timestamp::try_from(status.expires).map(time).unwrap_or_default(),
        other_fingerprint: status.other.unwrap_or_default(),
        started: status.rotation.map(|rotation| time(rotation.started_at.0)).unwrap_or_default(),
        until: status.until.map(time).unwrap_or_default(),
        nodes: nodes.collect(),
    }
}

fn timeout(seconds: u32) -> Duration {
    if seconds == 0 { DEFAULT_DRAIN_TIMEOUT } else { Duration::from_secs(seconds.into()) }
}

fn pem_body(text: &str) -> Result<Vec<u8>, Status> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes())
        .map_err(|error| Status::bad_request(format!("csr: must be a PKCS #10 request in PEM: {error}")))?;
    Ok(pem.contents)
}

fn node_id(node: &Value) -> u64 {
    let annotation = node.pointer("/metadata/annotations").and_then(|annotations| annotations.get(ID_ANNOTATION));
    annotation.and_then(Value::as_str).and_then(|id| id.parse().ok()).unwrap_or_default()
}

fn ready(node: &Value) -> Option<&Value> {
    let conditions = node.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Ready")
}

fn node_status(node: &Value) -> String {
    let status = match ready(node).and_then(|ready| ready["status"].as_str()) {
        Some("True") => "Ready",
        Some("Unknown") => "Unknown",
        _ => "NotReady",
    };
    let cordoned = node.pointer("/spec/unschedulable").and_then(Value::as_bool).unwrap_or(false);
    if cordoned { format!("{status},SchedulingDisabled") } else { status.to_owned() }
}

fn address(node: &Value) -> String {
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let internal = addresses.and_then(|list| list.iter().find(|address| address["type"] == "InternalIP"));
    internal.map(|address| text(address, "/address")).unwrap_or_default()
}

fn amount<E>(
    node: &Value,
    resource: &str,
    read: impl Fn(&flotilla_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Result<i64, E>,
) -> i64 {
    let text = node.pointer("/status/capacity").and_then(|capacity| capacity.get(resource)).and_then(Value::as_str);
    let quantity = text.map(|text| flotilla_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.into()));
    quantity.and_then(|quantity| read(&quantity).ok()).unwrap_or_default()
}
