//! ServiceAccounts: who pods are.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::Errors;

pub struct ServiceAccount;

impl BuiltIn for ServiceAccount {
    type Object = core::ServiceAccount;
    const INFO: Info = Info {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &["token"],
        schema: "io.k8s.api.core.v1.ServiceAccount",
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::count("Secrets"), columns::AGE];

    fn validate(_account: &core::ServiceAccount, _errors: &mut Errors) {}

    fn row(account: &core::ServiceAccount, now: Timestamp) -> Vec<String> {
        let secrets = account.secrets.iter().flatten().count();
        vec![columns::name(&account.metadata), secrets.to_string(), columns::age(&account.metadata, now)]
    }
}
