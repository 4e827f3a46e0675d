//! The node ports of Services: given out when a Service is stored.
//!
//! Which Service took a port last is recorded under the port's number, in the Change that stores the Service: two writers
//! cannot take the same port. It is free when that Service is gone or has it no more, so that nothing has to be given
//! back, whatever removes a Service.
//!
//! Invariant: a Service that comes to have a port is recorded as the last that took it.
//! Invariant: there is one record at most for each port of the range.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;

use bytes::Bytes;
use flotilla_api::k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use flotilla_api::kinds::service::{NODE_PORTS, needs_health_check, opens_node_ports};
use flotilla_api::{Builtin, Cause, Change, GroupResource, Key, Kind, Status};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Gate, object};

/// The first ports of the range, which are for those who ask for one: they are given out when no other is left.
const KEPT_PORTS: i32 = 86;
/// The others.
const GIVEN: RangeInclusive<i32> = *NODE_PORTS.start() + KEPT_PORTS..=*NODE_PORTS.end();
const TAKEN: &str = "provided port is already allocated";

impl Gate {
    /// Gives a Service the node ports that it needs, and takes those that it asks for.
    ///
    /// # Errors
    /// `Invalid` if a port cannot be had, `InternalError` if none is left or one for health checks cannot be had.
    pub(super) fn take_node_ports(
        &self,
        kind: &Kind,
        key: &Key,
        (old, new): (Option<&Value>, &mut Value),
        change: Change,
    ) -> Result<Change, Status> {
        if kind.collection() != Builtin::Service.collection() {
            return Ok(change);
        }
        let before = old.map(|old| ServiceSpec::deserialize(&old["spec"])).transpose().map_err(Status::internal)?;
        let mut after = ServiceSpec::deserialize(&new["spec"]).map_err(Status::internal)?;
        let mut taking = Taking { gate: self, service: key, taken: BTreeSet::new(), held: HashMap::new(), change };
        if opens_node_ports(&after) {
            match &before {
                None => taking.all(&mut after)?,
                Some(before) => taking.others(before, &mut after)?,
            }
        }
        if needs_health_check(&after) && !before.as_ref().is_some_and(needs_health_check) {
            taking.health_check(&mut after)?;
        }
        write_ports(&after, new);
        Ok(taking.change)
    }
}

/// What one Service takes.
struct Taking<'a> {
    gate: &'a Gate,
    service: &'a Key,
    /// What it has or is given here.
    taken: BTreeSet<i32>,
    /// What Services have that took a port which was looked at.
    held: HashMap<Key, BTreeSet<i32>>,
    change: Change,
}

impl Taking<'_> {
    /// The ports of a new Service. Ports of the same number and different protocols share one.
    fn all(&mut self, spec: &mut ServiceSpec) -> Result<(), Status> {
        let gives = gives_ports(spec);
        let ports = spec.ports.as_deref_mut().unwrap_or_default();
        let mut given: Vec<(i32, i32)> = Vec::new();
        // Those that are asked for come first, so that none of them is drawn for another.
        for (index, port) in ports.iter().enumerate() {
            let Some(asked) = wanted(port) else { continue };
            if !given.contains(&(port.port, asked)) {
                self.ask(index, asked)?;
                given.push((port.port, asked));
            }
        }
        for port in ports.iter_mut().filter(|port| gives && wanted(port).is_none()) {
            let shared = given.iter().find(|(number, _)| *number == port.port).map(|(_, node_port)| *node_port);
            let node_port = match shared {
                Some(shared) => shared,
                None => self.any("a nodePort")?,
            };
            port.node_port = Some(node_port);
            given.push((port.port, node_port));
        }
        Ok(())
    }

    /// The ports that a Service did not have before.
    fn others(&mut self, before: &ServiceSpec, spec: &mut ServiceSpec) -> Result<(), Status> {
        let mut own = held_ports(before);
        let asked: Vec<Option<i32>> = spec.ports.iter().flatten().map(wanted).collect();
        // Those that it keeps come first, so that none of them is taken for a free one.
        self.taken.extend(asked.iter().flatten().filter(|port| own.contains(*port)));
        self.taken.extend(before.health_check_node_port.filter(|port| *port != 0));
        for (index, port) in asked.into_iter().enumerate() {
            if let Some(port) = port
                && own.insert(port)
            {
                self.ask(index, port)?;
            }
        }
        if gives_ports(spec) {
            for port in spec.ports.iter_mut().flatten().filter(|port| wanted(port).is_none()) {
                port.node_port = Some(self.any("a nodePort")?);
            }
        }
        Ok(())
    }

    fn health_check(&mut self, spec: &mut ServiceSpec) -> Result<(), Status> {
        match spec.health_check_node_port.filter(|port| *port != 0) {
            None => spec.health_check_node_port = Some(self.any("a HealthCheck NodePort 0")?),
            Some(port) => {
                let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
                let refused = match NODE_PORTS.contains(&port) {
                    true => (!self.take(port)?).then(|| TAKEN.to_owned()),
                    false => {
                        let why = "provided port is not in the valid range. The range of valid ports is";
                        Some(format!("{why} {first}-{last}"))
                    }
                };
                if let Some(why) = refused {
                    return Err(internal(&format!("failed to allocate requested HealthCheck NodePort {port}: {why}")));
                }
            }
        }
        Ok(())
    }

    /// Takes the port that the Service asks for at its port of this index.
    fn ask(&mut self, index: usize, port: i32) -> Result<(), Status> {
        if self.take(port)? {
            return Ok(());
        }
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {port}: {TAKEN}"),
            field: format!("spec.ports[{index}].nodePort"),
        };
        Err(Status::invalid("Service", self.service.name(), vec![cause]))
    }

    /// Takes any port that is free.
    fn any(&mut self, what: &str) -> Result<i32, Status> {
        for port in candidates(rand::rng().random_range(GIVEN)) {
            if self.take(port)? {
                return Ok(port);
            }
        }
        Err(internal(&format!("failed to allocate {what}: range is full")))
    }

    /// Whether the port could be had.
    fn take(&mut self, port: i32) -> Result<bool, Status> {
        if self.taken.contains(&port) {
            return Ok(false);
        }
        // Read before the Service that it names: what takes the port in between writes the record, and the Change fails.
        let key = record_key(port);
        let record = self.gate.load(&key)?;
        if let Some(record) = &record {
            let record: Record = serde_json::from_slice(&record.value).map_err(Status::internal)?;
            let holder = Key::new(&Builtin::Service.collection(), &record.namespace, &record.service);
            if holder != *self.service && self.has(&holder, port)? {
                return Ok(false);
            }
        }
        let bytes = Record::of(port, self.service).encode()?;
        let change = std::mem::take(&mut self.change);
        self.change = match record {
            None => change.create(key, bytes),
            Some(record) => change.update(key, record.mod_revision, bytes),
        };
        self.taken.insert(port);
        Ok(true)
    }

    /// Whether a Service has a port, in one way or the other.
    fn has(&mut self, service: &Key, port: i32) -> Result<bool, Status> {
        if let Some(held) = self.held.get(service) {
            return Ok(held.contains(&port));
        }
        let mut held = BTreeSet::new();
        if let Some(stored) = self.gate.load(service)? {
            let spec = ServiceSpec::deserialize(&object(&stored)?["spec"]).map_err(Status::internal)?;
            held = held_ports(&spec);
            held.extend(spec.health_check_node_port);
        }
        let has = held.contains(&port);
        self.held.insert(service.clone(), held);
        Ok(has)
    }
}

/// Who took a port last.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Like those of objects, for whoever looks at all that is stored.
    metadata: Value,
    namespace: String,
    service: String,
}

impl Record {
    fn of(port: i32, service: &Key) -> Self {
        Self {
            metadata: json!({"name": port.to_string()}),
            namespace: service.namespace().to_owned(),
            service: service.name().to_owned(),
        }
    }

    fn encode(&self) -> Result<Bytes, Status> {
        serde_json::to_vec(self).map(Bytes::from).map_err(Status::internal)
    }
}

/// Among the core group's collections, which no custom kind can join, and of no kind: nobody but the gate gets at it.
fn record_key(port: i32) -> Key {
    Key::new(&GroupResource::new("", "servicenodeports"), "", &port.to_string())
}

/// The node ports of a Service; one that opens none has none, whatever it says.
fn held_ports(spec: &ServiceSpec) -> BTreeSet<i32> {
    let ports = spec.ports.iter().flatten().filter(|_| opens_node_ports(spec));
    ports.filter_map(wanted).collect()
}

/// Whether a Service is given the ports that it does not ask for.
fn gives_ports(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("LoadBalancer") || spec.allocate_load_balancer_node_ports != Some(false)
}

fn wanted(port: &ServicePort) -> Option<i32> {
    port.node_port.filter(|port| *port != 0)
}

/// Every port of the range, from the one that was drawn on, those that are kept last.
fn candidates(drawn: i32) -> impl Iterator<Item = i32> {
    (drawn..=*GIVEN.end()).chain(*GIVEN.start()..drawn).chain(*NODE_PORTS.start()..*GIVEN.start())
}

fn write_ports(spec: &ServiceSpec, object: &mut Value) {
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(port) = wanted(port) {
            object["spec"]["ports"][index]["nodePort"] = json!(port);
        }
    }
    if let Some(port) = spec.health_check_node_port {
        object["spec"]["healthCheckNodePort"] = json!(port);
    }
}

fn internal(why: &str) -> Status {
    Status::internal(format!("Internal error occurred: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::alone::{gate, twin};
    use crate::gate::{DeleteOptions, User, WriteOptions};
    use flotilla_api::admit::Subresource;

    fn service(name: &str, spec: Value) -> Value {
        let metadata = json!({"name": name, "namespace": "a"});
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    }

    fn node_port(port: Value) -> Value {
        json!({"type": "NodePort", "ports": [port]})
    }

    async fn create(gate: &Gate, name: &str, spec: Value) -> Result<Value, Status> {
        let kind = gate.built_in(Builtin::Service).unwrap();
        let options = WriteOptions::by("test");
        let written = gate.create(&User::root(), &kind, service(name, spec), &options).await?;
        Ok(written.object["spec"].clone())
    }

    async fn update(gate: &Gate, name: &str, spec: Value) -> Result<Value, Status> {
        let kind = gate.built_in(Builtin::Service).unwrap();
        let options = WriteOptions::by("test");
        let edit = |object: &mut Value| {
            object["spec"] = spec.clone();
            Ok(())
        };
        let written = gate.update(&User::root(), &kind, ("a", name), Subresource::None, &options, edit).await?;
        Ok(written.object["spec"].clone())
    }

    async fn delete(gate: &Gate, name: &str) {
        let kind = gate.built_in(Builtin::Service).unwrap();
        gate.delete(&User::root(), &kind, ("a", name), &DeleteOptions::default()).await.unwrap();
    }

    async fn with_namespace(dir: &tempfile::TempDir) -> Gate {
        let gate = gate(dir).await;
        let kind = gate.built_in(Builtin::Namespace).unwrap();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
        gate.create(&User::root(), &kind, namespace, &WriteOptions::by("test")).await.unwrap();
        gate
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_port_belongs_to_one_service_until_that_lets_it_go() {
        let dir = tempfile::tempdir().unwrap();
        let gate = with_namespace(&dir).await;
        let given = create(&gate, "web", node_port(json!({"port": 80}))).await.unwrap();
        let port = given["ports"][0]["nodePort"].as_i64().unwrap();
        assert!((30_086..=32_767).contains(&port), "{port}");
        let asked = || node_port(json!({"port": 80, "nodePort": port}));
        let refused = create(&gate, "other", asked()).await.unwrap_err();
        assert_eq!(
            refused.message,
            format!(
                "Service \"other\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already \
                 allocated"
            )
        );
        // Under another name it is kept for the port of the same name, with another number.
        let moved = update(&gate, "web", node_port(json!({"port": 81}))).await.unwrap();
        assert_eq!(moved["ports"][0]["nodePort"], port);
        let closed = update(&gate, "web", json!({"type": "ClusterIP", "ports": [{"port": 80}]})).await.unwrap();
        assert_eq!(closed["ports"][0].get("nodePort"), None);
        assert_eq!(create(&gate, "other", asked()).await.unwrap()["ports"][0]["nodePort"], port);
        delete(&gate, "other").await;
        assert_eq!(update(&gate, "web", asked()).await.unwrap()["ports"][0]["nodePort"], port);
        gate.store().clone().shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn protocols_share_a_port_and_balancers_may_do_without() {
        let dir = tempfile::tempdir().unwrap();
        let gate = with_namespace(&dir).await;
        let ports = json!([{"name": "u", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53}]);
        let dns = create(&gate, "dns", json!({"type": "NodePort", "ports": ports})).await.unwrap();
        assert_eq!(dns["ports"][0]["nodePort"], dns["ports"][1]["nodePort"]);
        let balancer = |allocate: bool, policy: &str| {
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": allocate, "externalTrafficPolicy": policy,
                "ports": [{"port": 80}]})
        };
        let without = create(&gate, "lb", balancer(false, "Local")).await.unwrap();
        assert_eq!(without["ports"][0].get("nodePort"), None);
        let health = without["healthCheckNodePort"].clone();
        assert!(NODE_PORTS.contains(&i32::try_from(health.as_i64().unwrap()).unwrap()));
        let with = update(&gate, "lb", balancer(true, "Local")).await.unwrap();
        assert!(with["ports"][0]["nodePort"].is_i64() && with["healthCheckNodePort"] == health);
        let refused = create(&gate, "other", node_port(json!({"port": 80, "nodePort": health}))).await.unwrap_err();
        assert!(refused.message.ends_with(TAKEN), "{refused}");
        let mut asking = balancer(true, "Local");
        asking["healthCheckNodePort"] = json!(80);
        let refused = create(&gate, "low", asking).await.unwrap_err();
        let words =
            "Internal error occurred: failed to allocate requested HealthCheck NodePort 80: provided port is not in";
        assert!(refused.message.starts_with(words), "{refused}");
        let cluster = update(&gate, "lb", balancer(true, "Cluster")).await.unwrap();
        assert_eq!(cluster.get("healthCheckNodePort"), None);
        gate.store().clone().shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_service_is_given_a_port_that_it_has_and_one_that_opens_none_has_none() {
        const PORTS: usize = 300;
        let dir = tempfile::tempdir().unwrap();
        let gate = with_namespace(&dir).await;
        let named = |count: usize| -> Vec<Value> {
            (0..count).map(|n| json!({"name": format!("p{n}"), "port": 1000 + n})).collect()
        };
        create(&gate, "many", json!({"type": "NodePort", "ports": named(PORTS)})).await.unwrap();
        let more = update(&gate, "many", json!({"type": "NodePort", "ports": named(2 * PORTS)})).await.unwrap();
        let ports: BTreeSet<i64> =
            more["ports"].as_array().unwrap().iter().map(|port| port["nodePort"].as_i64().unwrap()).collect();
        assert_eq!(ports.len(), 2 * PORTS);
        let external =
            json!({"type": "ExternalName", "externalName": "a.b", "ports": [{"port": 80, "nodePort": 30_001}]});
        create(&gate, "outside", external).await.unwrap();
        let asked = || node_port(json!({"port": 80, "nodePort": 30_001}));
        create(&gate, "inside", asked()).await.unwrap();
        let refused = update(&gate, "outside", asked()).await.unwrap_err();
        assert!(refused.message.ends_with(TAKEN), "{refused}");
        gate.store().clone().shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_gates_at_once_give_no_port_twice() {
        const WRITERS: usize = 24;
        let dir = tempfile::tempdir().unwrap();
        let one = std::sync::Arc::new(with_namespace(&dir).await);
        let other = std::sync::Arc::new(twin(&one));
        let mut writers = tokio::task::JoinSet::new();
        for index in 0..WRITERS {
            let gate = if index % 2 == 0 { one.clone() } else { other.clone() };
            writers.spawn(async move {
                // Pairs want the same port; one of each gets it.
                let asked = json!({"port": 80, "nodePort": 30_000 + index / 2});
                let given = create(&gate, &format!("any-{index}"), node_port(json!({"port": 80}))).await;
                (given.unwrap(), create(&gate, &format!("asked-{index}"), node_port(asked)).await.is_ok())
            });
        }
        let ended = writers.join_all().await;
        let given: BTreeSet<i64> =
            ended.iter().map(|(spec, _)| spec["ports"][0]["nodePort"].as_i64().unwrap()).collect();
        assert_eq!(given.len(), WRITERS);
        assert_eq!(ended.iter().filter(|(_, had)| *had).count(), WRITERS / 2);
        one.store().clone().shutdown().await;
    }

    #[test]
    fn every_port_is_tried_once() {
        let all: Vec<i32> = candidates(31_000).collect();
        assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), NODE_PORTS.collect());
        assert_eq!(all.len(), NODE_PORTS.count());
        assert_eq!((all[0], &all[all.len() - 86..]), (31_000, (30_000..30_086).collect::<Vec<_>>().as_slice()));
    }
}
