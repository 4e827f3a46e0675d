//! PodDisruptionBudgets of `policy/v1beta1`: an empty selector meant no pods, where it now means all.

use serde_json::{Value, json};

use super::{Conversion, child};

/// A label that no pod has.
const NOBODY: &str = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match";

pub(super) const V1BETA1: Conversion = Conversion {
    to_stored: |object| exchange(object, &none(), &all()),
    from_stored: |object| exchange(object, &all(), &none()),
    ..Conversion::NONE
};

/// The empty selector of one version is a selector by [`NOBODY`] in the other; `emptied` is what becomes empty itself.
fn exchange(object: &mut Value, empty_is: &Value, emptied: &Value) {
    let Some(spec) = child(object, "spec") else { return };
    let Some(selector) = spec.get_mut("selector").filter(|selector| selector.is_object()) else { return };
    if *selector == json!({}) {
        *selector = empty_is.clone();
    } else if selector == emptied {
        *selector = json!({});
    }
}

fn none() -> Value {
    json!({"matchExpressions": [{"key": NOBODY, "operator": "Exists"}]})
}

fn all() -> Value {
    json!({"matchExpressions": [{"key": NOBODY, "operator": "DoesNotExist"}]})
}
