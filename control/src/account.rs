//! What each namespace is given: the account of pods that name none, and the cluster's certificate.
//!
//! Defined by upstream's controllers of service accounts and of root certificates.

use flotilla_api::account::{DEFAULT, ROOT_CA, ROOT_CA_KEY};
use flotilla_api::k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use flotilla_api::{Change, Expect};
use std::collections::BTreeMap;

use crate::plan::{Context, Plan, change};
use crate::view::Stored;
use crate::{keys, meta};

const ACCOUNTS: &str = "service-account-controller";
const CERTIFICATES: &str = "root-ca-certificate-publisher";
const DESCRIPTION: &str = "kubernetes.io/description";
const ABOUT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
                     such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
                     distributions of Kubernetes clusters.";

/// Gives a namespace that is to stay what it lacks.
pub(crate) fn provide(namespace: &Stored<Namespace>, cx: &mut Context<'_>, plan: &mut Plan) {
    let name = meta::name(&namespace.metadata).to_owned();
    let stays = |change: Change| change.require(namespace.key.clone(), Expect::ModRevision(namespace.revision));
    let key = keys::service_account(&name, DEFAULT);
    if cx.view.meta(&key).is_none() {
        let metadata = meta::mint(&name, DEFAULT.to_owned(), cx.now, cx.rng);
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        plan.add(stays(change(ACCOUNTS)).create(key, meta::encode(&account)));
    }
    let Some(bundle) = cx.view.authorities() else { return };
    let data = BTreeMap::from([(ROOT_CA_KEY.to_owned(), bundle)]);
    let key = keys::config_map(&name, ROOT_CA);
    match cx.view.root_ca(&name) {
        Some(found) if found.data.as_ref() == Some(&data) || meta::is_deleting(&found.metadata) => {}
        Some(found) => {
            let next = ConfigMap { data: Some(data), binary_data: None, ..found.object.clone() };
            plan.add(change(CERTIFICATES).update(key, found.revision, meta::encode(&next)));
        }
        // One that cannot be read is somebody's to look at.
        None if cx.view.meta(&key).is_some() => {}
        None => {
            let annotations = Some(BTreeMap::from([(DESCRIPTION.to_owned(), ABOUT.to_owned())]));
            let minted = meta::mint(&name, ROOT_CA.to_owned(), cx.now, cx.rng);
            let metadata = ObjectMeta { annotations, ..minted };
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            plan.add(stays(change(CERTIFICATES)).create(key, meta::encode(&map)));
        }
    }
}

/// Makes a new pod one of its account.
///
/// # Errors
/// That there is no such account, in words.
pub(crate) fn admit(pod: &mut Pod, cx: &mut Context<'_>) -> Result<(), String> {
    let Pod { metadata, spec: Some(spec), .. } = pod else { return Ok(()) };
    let (namespace, name) = (meta::namespace(metadata), flotilla_api::account::name(spec));
    let account = cx.view.service_account(&keys::service_account(namespace, name));
    let known = metadata.generate_name.as_deref().unwrap_or_default();
    let (account, suffix) = (account.map(|stored| &stored.object), flotilla_api::names::suffix(cx.rng));
    flotilla_api::account::admit(spec, account, &suffix, (namespace, known))
}

#[cfg(test)]
mod tests {
    use flotilla_api::kinds::cluster;
    use flotilla_api::{Builtin, Key, Write};
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{Settings, plan};
    use crate::view::View;
    use crate::work::Work;

    fn observe(view: &mut View, key: &Key, object: &Value, revision: u64) {
        view.observe(key, Some((object.to_string().as_bytes(), revision)));
    }

    fn cluster(certificate: &str, other: Option<&str>) -> (Key, Value) {
        let mut spec = json!({"id": "c", "caCertificate": certificate, "sealedCa": ""});
        if let Some(other) = other {
            spec["rotation"] = json!({
                "phase": "Spread", "startedAt": "2026-01-01T00:00:00Z", "phaseSince": "2026-01-01T00:00:00Z",
                "overlapSeconds": 1, "caCertificate": other, "bridge": "",
            });
        }
        let object = json!({
            "apiVersion": "flotilla.dev/v1", "kind": "Cluster", "metadata": {"name": cluster::NAME}, "spec": spec,
        });
        (Key::new(&Builtin::Cluster.collection(), "", cluster::NAME), object)
    }

    fn planned(view: &View) -> Vec<Change> {
        let (mut rng, settings, liveness) = (rand::rng(), Settings::default(), BTreeMap::new());
        let now = Timestamp::from_second(1_000_000).unwrap();
        let mut cx = Context { view, now, liveness: &liveness, rng: &mut rng, settings: &settings };
        plan(&Work::Namespace("red".into()), &mut cx).changes
    }

    /// Takes over what was planned, as the store would tell it.
    fn land(view: &mut View, changes: &[Change], revision: u64) {
        for write in changes.iter().flat_map(|change| &change.writes) {
            let Write::Put { key, value, .. } = write else { panic!("{write:?}") };
            view.observe(key, Some((value, revision)));
        }
    }

    #[test]
    fn a_namespace_gets_an_account_and_the_certificate_and_keeps_both() {
        let mut view = View::new();
        let namespace = json!({"metadata": {"name": "red", "uid": "1"}});
        observe(&mut view, &keys::namespace("red"), &namespace, 1);
        let (key, object) = cluster("one\n", None);
        observe(&mut view, &key, &object, 2);
        let changes = planned(&view);
        assert_eq!(changes.len(), 2);
        land(&mut view, &changes, 3);
        assert!(planned(&view).is_empty());
        view.take_dirty();

        view.observe(&keys::service_account("red", DEFAULT), None);
        assert!(view.take_dirty().contains(&Work::Namespace("red".into())));
        assert_eq!(planned(&view).len(), 1);

        let (key, object) = cluster("one\n", Some("two\n"));
        observe(&mut view, &key, &object, 4);
        assert!(view.take_dirty().contains(&Work::Namespace("red".into())));
        let changes = planned(&view);
        land(&mut view, &changes, 5);
        assert_eq!(view.root_ca("red").unwrap().data.as_ref().unwrap()[ROOT_CA_KEY], "one\ntwo\n");
        assert!(planned(&view).is_empty());
    }

    #[test]
    fn a_namespace_that_ends_is_given_nothing() {
        let mut view = View::new();
        let namespace = json!({"metadata": {"name": "red", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        observe(&mut view, &keys::namespace("red"), &namespace, 1);
        let (key, object) = cluster("one\n", None);
        observe(&mut view, &key, &object, 2);
        let writes: Vec<Write> = planned(&view).into_iter().flat_map(|change| change.writes).collect();
        let about = |resource: &str| writes.iter().any(|write| write.key().resource() == resource);
        assert!(!about("serviceaccounts") && !about("configmaps"), "{writes:?}");
    }
}
