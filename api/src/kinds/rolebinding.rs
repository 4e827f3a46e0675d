//! RoleBindings: who may do what a role says, within a namespace.

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1 as rbac;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::Errors;
use crate::{defaults, names, validate};

pub struct RoleBinding;

impl BuiltIn for RoleBinding {
    type Object = rbac::RoleBinding;
    const INFO: Info = Info {
        group: "rbac.authorization.k8s.io",
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        schema: "io.k8s.api.rbac.v1.RoleBinding",
        name_rule: names::path_segment,
        create_on_update: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = columns::BINDING;

    fn default(binding: &mut rbac::RoleBinding) {
        defaults::binding(&mut binding.role_ref, binding.subjects.as_deref_mut());
    }

    fn validate(binding: &rbac::RoleBinding, errors: &mut Errors) {
        validate::rbac::role_ref(&binding.role_ref, &["Role", "ClusterRole"], errors);
        validate::rbac::subjects(binding.subjects.as_deref(), true, errors);
    }

    fn validate_update(old: &rbac::RoleBinding, new: &rbac::RoleBinding, errors: &mut Errors) {
        validate::rbac::same_role(&old.role_ref, &new.role_ref, errors);
    }

    fn row(binding: &rbac::RoleBinding, now: Timestamp) -> Vec<String> {
        columns::binding(&binding.metadata, &binding.role_ref, binding.subjects.as_deref(), now)
    }
}
