//! Label selectors, as the Kubernetes API reference defines `LabelSelector`.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Whether nothing is asked for. Such a selector matches everything, which no workload means.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether the labels satisfy every demand of the selector.
pub(crate) fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|demand| {
            let values = demand.values.as_deref().unwrap_or_default();
            expression(&demand.operator, values, get(&demand.key))
        })
}

/// One demand of a label selector or of a node selector. An unknown operator is never satisfied.
pub(crate) fn expression(operator: &str, values: &[String], found: Option<&String>) -> bool {
    match operator {
        "In" => found.is_some_and(|value| values.contains(value)),
        "NotIn" => found.is_none_or(|value| !values.contains(value)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(values, found).is_some_and(|(found, wanted)| found > wanted),
        "Lt" => compare(values, found).is_some_and(|(found, wanted)| found < wanted),
        _ => false,
    }
}

fn compare(values: &[String], found: Option<&String>) -> Option<(i64, i64)> {
    let [wanted] = values else { return None };
    Some((found?.parse().ok()?, wanted.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_operator() {
        let values = |v: &[&str]| v.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
        let five = "5".to_owned();
        let table = [
            ("In", values(&["5", "6"]), Some(&five), true),
            ("In", values(&["6"]), Some(&five), false),
            ("In", values(&["6"]), None, false),
            ("NotIn", values(&["6"]), None, true),
            ("NotIn", values(&["5"]), Some(&five), false),
            ("Exists", vec![], Some(&five), true),
            ("Exists", vec![], None, false),
            ("DoesNotExist", vec![], None, true),
            ("Gt", values(&["4"]), Some(&five), true),
            ("Lt", values(&["4"]), Some(&five), false),
            ("Gt", values(&["x"]), Some(&five), false),
            ("Like", values(&["5"]), Some(&five), false),
        ];
        for (operator, values, found, expected) in table {
            assert_eq!(expression(operator, &values, found), expected, "{operator} {values:?} {found:?}");
        }
    }

    #[test]
    fn labels_and_expressions_must_all_hold() {
        let selector = LabelSelector {
            match_labels: Some(labels(&[("app", "web")])),
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "tier".into(),
                operator: "Exists".into(),
                values: None,
            }]),
        };
        assert!(matches(&selector, Some(&labels(&[("app", "web"), ("tier", "x")]))));
        assert!(!matches(&selector, Some(&labels(&[("app", "web")]))));
        assert!(!matches(&selector, None));
        assert!(!is_empty(&selector) && is_empty(&LabelSelector::default()));
    }
}
