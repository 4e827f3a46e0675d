//! ClusterRoleBindings: who may do what a ClusterRole says, everywhere.

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1 as rbac;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::Errors;
use crate::{defaults, names, validate};

pub struct ClusterRoleBinding;

impl BuiltIn for ClusterRoleBinding {
    type Object = rbac::ClusterRoleBinding;
    const INFO: Info = Info {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        scope: Scope::Cluster,
        schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
        name_rule: names::path_segment,
        create_on_update: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = columns::BINDING;

    fn default(binding: &mut rbac::ClusterRoleBinding) {
        defaults::binding(&mut binding.role_ref, binding.subjects.as_deref_mut());
    }

    fn validate(binding: &rbac::ClusterRoleBinding, errors: &mut Errors) {
        validate::rbac::role_ref(&binding.role_ref, &["ClusterRole"], errors);
        validate::rbac::subjects(binding.subjects.as_deref(), false, errors);
    }

    fn validate_update(old: &rbac::ClusterRoleBinding, new: &rbac::ClusterRoleBinding, errors: &mut Errors) {
        validate::rbac::same_role(&old.role_ref, &new.role_ref, errors);
    }

    fn row(binding: &rbac::ClusterRoleBinding, now: Timestamp) -> Vec<String> {
        columns::binding(&binding.metadata, &binding.role_ref, binding.subjects.as_deref(), now)
    }
}
