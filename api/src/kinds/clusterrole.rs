//! ClusterRoles: what may be done anywhere, some of them put together from others.

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1 as rbac;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::{names, selector, validate};

pub struct ClusterRole;

impl BuiltIn for ClusterRole {
    type Object = rbac::ClusterRole;
    const INFO: Info = Info {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        scope: Scope::Cluster,
        schema: "io.k8s.api.rbac.v1.ClusterRole",
        name_rule: names::path_segment,
        create_on_update: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, columns::CREATED_AT];

    fn validate(role: &rbac::ClusterRole, errors: &mut Errors) {
        validate::rbac::rules(role.rules.as_deref(), false, &Path::new("rules"), errors);
        let Some(aggregation) = &role.aggregation_rule else { return };
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        let selectors = aggregation.cluster_role_selectors.as_deref().unwrap_or_default();
        if selectors.is_empty() {
            errors.required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for (index, labels) in selectors.iter().enumerate() {
            selector::validate(labels, &path.index(index), errors);
        }
    }

    fn row(role: &rbac::ClusterRole, _now: Timestamp) -> Vec<String> {
        vec![columns::name(&role.metadata), columns::created_at(&role.metadata)]
    }
}
