//! Roles: what may be done within a namespace.

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1 as rbac;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::{names, validate};

pub struct Role;

impl BuiltIn for Role {
    type Object = rbac::Role;
    const INFO: Info = Info {
        group: "rbac.authorization.k8s.io",
        kind: "Role",
        plural: "roles",
        singular: "role",
        schema: "io.k8s.api.rbac.v1.Role",
        name_rule: names::path_segment,
        create_on_update: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, columns::CREATED_AT];

    fn validate(role: &rbac::Role, errors: &mut Errors) {
        validate::rbac::rules(role.rules.as_deref(), true, &Path::new("rules"), errors);
    }

    fn row(role: &rbac::Role, _now: Timestamp) -> Vec<String> {
        vec![columns::name(&role.metadata), columns::created_at(&role.metadata)]
    }
}
