//! Which objects a caller means: label selectors and field selectors, parsed and matched.
//!
//! Defined by the Kubernetes API concepts page, "Label selectors" and "Field selectors".
//!
//! Invariant: a selector's text is bounded, and formatting a parsed selector gives one that parses to the same.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::field::{Errors, Path};
use crate::names;

/// Longer selectors are refused.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;

/// A selector that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    #[error("invalid selector: \"{0}\"; can't understand it")]
    Field(String),
    #[error("\"{0}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"{1}")]
    UnknownField(String, String),
    #[error("a selector may not be longer than {MAX_TEXT_BYTES} bytes")]
    TooLong,
}

/// What a label's value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    condition: Condition,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.condition {
            Condition::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Condition::NotIn(values) => value.is_none_or(|v| !values.iter().any(|x| x == v)),
            Condition::Exists => value.is_some(),
            Condition::Absent => value.is_none(),
            Condition::Greater(than) => number().is_some_and(|v| v > *than),
            Condition::Less(than) => number().is_some_and(|v| v < *than),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.condition {
            Condition::In(values) => match values.as_slice() {
                [one] => write!(f, "{key}={one}"),
                many => write!(f, "{key} in ({})", many.join(",")),
            },
            Condition::NotIn(values) => match values.as_slice() {
                [one] => write!(f, "{key}!={one}"),
                many => write!(f, "{key} notin ({})", many.join(",")),
            },
            Condition::Exists => write!(f, "{key}"),
            Condition::Absent => write!(f, "!{key}"),
            Condition::Greater(than) => write!(f, "{key}>{than}"),
            Condition::Less(than) => write!(f, "{key}<{than}"),
        }
    }
}

/// A label selector: all of its requirements must hold. The default one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    requirements: Vec<Requirement>,
}

impl Labels {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>5`.
    ///
    /// # Errors
    /// If the text is not a selector, or a key or value in it cannot be one.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(SelectorError::TooLong);
        }
        let requirements: Result<_, _> = split_outside_parentheses(text).map(parse_requirement).collect();
        if text.trim().is_empty() { Ok(Self::default()) } else { Ok(Self { requirements: requirements? }) }
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these labels is meant.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_by(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
    }

    /// Whether an object is meant, by its JSON.
    pub fn matches_value(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.matches_by(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str))
    }

    fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.requirements.iter().map(Requirement::to_string).collect();
        f.write_str(&all.join(","))
    }
}

impl From<&LabelSelector> for Labels {
    /// Expressions whose operator is unknown match nothing; validation refuses them.
    fn from(selector: &LabelSelector) -> Self {
        let labels = selector.match_labels.iter().flatten();
        let equal = labels.map(|(key, value)| (key.clone(), Condition::In(vec![value.clone()])));
        let expressions = selector.match_expressions.iter().flatten().map(|expression| {
            let values = expression.values.clone().unwrap_or_default();
            let condition = match expression.operator.as_str() {
                "In" => Condition::In(values),
                "NotIn" => Condition::NotIn(values),
                "Exists" => Condition::Exists,
                "DoesNotExist" => Condition::Absent,
                _ => Condition::In(Vec::new()),
            };
            (expression.key.clone(), condition)
        });
        let requirements = equal.chain(expressions).map(|(key, condition)| Requirement { key, condition });
        Self { requirements: requirements.collect() }
    }
}

/// Whether `selector` matches `labels`. Without requirements it matches everything.
pub fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    Labels::from(selector).matches(labels)
}

/// The text form of a selector.
pub fn format(selector: &LabelSelector) -> String {
    Labels::from(selector).to_string()
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    text.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
}

fn parse_requirement(text: &str) -> Result<Requirement, SelectorError> {
    let text = text.trim();
    let requirement = match text.strip_prefix('!') {
        Some(key) => Requirement { key: key.trim().to_owned(), condition: Condition::Absent },
        None => parse_comparison(text)
            .or_else(|| parse_set(text))
            .unwrap_or_else(|| Requirement { key: text.to_owned(), condition: Condition::Exists }),
    };
    check_requirement(&requirement)?;
    Ok(requirement)
}

fn parse_comparison(text: &str) -> Option<Requirement> {
    let position = text.find(['=', '!', '<', '>', '('])?;
    let (key, rest) = text.split_at(position);
    let (operator, value) = ["==", "!=", "=", "<", ">"].iter().find_map(|op| Some((*op, rest.strip_prefix(op)?)))?;
    let value = value.trim();
    let condition = match operator {
        "!=" => Condition::NotIn(vec![value.to_owned()]),
        "<" => Condition::Less(value.parse().ok()?),
        ">" => Condition::Greater(value.parse().ok()?),
        _ => Condition::In(vec![value.to_owned()]),
    };
    Some(Requirement { key: key.trim().to_owned(), condition })
}

fn parse_set(text: &str) -> Option<Requirement> {
    let (key, rest) = text.split_once(char::is_whitespace)?;
    let (operator, values) = rest.trim().strip_suffix(')')?.split_once('(')?;
    let values: Vec<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
    let condition = match operator.trim() {
        "in" => Condition::In(values),
        "notin" => Condition::NotIn(values),
        _ => return None,
    };
    Some(Requirement { key: key.to_owned(), condition })
}

fn check_requirement(requirement: &Requirement) -> Result<(), SelectorError> {
    if let Some(complaint) = names::qualified_name(&requirement.key).into_iter().next() {
        return Err(SelectorError::Requirement(format!("key {:?}: {complaint}", requirement.key)));
    }
    let (Condition::In(values) | Condition::NotIn(values)) = &requirement.condition else { return Ok(()) };
    for value in values {
        if let Some(complaint) = names::label_value(value).into_iter().next() {
            return Err(SelectorError::Requirement(format!("value {value:?}: {complaint}")));
        }
    }
    Ok(())
}

/// Complaints about a LabelSelector inside an object.
pub(crate) fn validate(selector: &LabelSelector, path: &Path, errors: &mut Errors) {
    for (key, value) in selector.match_labels.iter().flatten() {
        let path = path.child("matchLabels");
        names::qualified_name(key).iter().for_each(|c| errors.invalid(&path, key.as_str(), c));
        names::label_value(value).iter().for_each(|c| errors.invalid(&path, value.as_str(), c));
    }
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = expression.values.as_deref().unwrap_or_default();
        match expression.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        let complaints = names::qualified_name(&expression.key);
        complaints.iter().for_each(|c| errors.invalid(&path.child("key"), expression.key.as_str(), c));
        for (index, value) in values.iter().enumerate() {
            let path = path.child("values").index(index);
            names::label_value(value).iter().for_each(|c| errors.invalid(&path, value.as_str(), c));
        }
    }
}

/// A field selector: all of its terms must hold. The default one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

impl Fields {
    /// Parses `metadata.name=x,status.phase!=y`; values may escape `,`, `=` and `\` with `\`.
    ///
    /// # Errors
    /// If the text is not a selector.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(SelectorError::TooLong);
        }
        let terms: Result<_, _> = split_escaped(text).into_iter().filter(|t| !t.is_empty()).map(parse_term).collect();
        Ok(Self { terms: terms? })
    }

    /// Refuses fields that the kind's objects cannot be selected by; `known` lists those beside name and namespace.
    ///
    /// # Errors
    /// Names the first field that is not known.
    pub fn check(&self, known: &[impl AsRef<str>]) -> Result<(), SelectorError> {
        let is_known = |field: &str| {
            matches!(field, "metadata.name" | "metadata.namespace") || known.iter().any(|k| k.as_ref() == field)
        };
        match self.terms.iter().find(|term| !is_known(&term.field)) {
            None => Ok(()),
            Some(term) => {
                let more = known.iter().map(|k| format!(", \"{}\"", k.as_ref())).collect();
                Err(SelectorError::UnknownField(term.field.clone(), more))
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The same selector with other names for some fields.
    pub(crate) fn renamed(&self, names: &[(&str, &str)]) -> Self {
        let mut renamed = self.clone();
        for term in &mut renamed.terms {
            if let Some((_, name)) = names.iter().find(|(own, _)| *own == term.field) {
                (*name).clone_into(&mut term.field);
            }
        }
        renamed
    }

    /// The value that a field must equal, if the selector says so: lets a list by name be a get.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    /// Whether an object is meant. A field that is not there counts as empty.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| (field_text(object, &term.field) == term.value) == term.equal)
    }
}

fn field_text(object: &Value, field: &str) -> String {
    // Upstream selects by these names what the objects call otherwise.
    let (field, absent) = match field {
        "source" => ("source.component", ""),
        "status.successful" => ("status.succeeded", "0"),
        "spec.unschedulable" | "spec.hostNetwork" => (field, "false"),
        field => (field, ""),
    };
    match field.split('.').try_fold(object, |value, part| value.get(part)) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => absent.to_owned(),
        Some(other) => other.to_string(),
    }
}

fn split_escaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        match c {
            ',' if !escaped => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => escaped = c == '\\' && !escaped,
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_term(text: &str) -> Result<Term, SelectorError> {
    let bad = || SelectorError::Field(text.to_owned());
    let position = text.find('=').ok_or_else(bad)?;
    let (field, rest) = text.split_at(position);
    let (field, equal) = field.strip_suffix('!').map_or((field, true), |field| (field, false));
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')).ok_or_else(bad)?;
    if field.trim().is_empty() || (!equal && rest.starts_with("==")) {
        return Err(bad());
    }
    Ok(Term { field: field.trim().to_owned(), equal, value: unescape(value.trim()).ok_or_else(bad)? })
}

fn unescape(text: &str) -> Option<String> {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.push(chars.next().filter(|c| ",=\\".contains(*c))?),
            '=' => return None,
            c => plain.push(c),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn label_selectors_match_as_upstream() {
        let object = labels(&[("app", "web"), ("tier", "a"), ("n", "7"), ("empty", "")]);
        let table = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier = a", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("tier in (a,b)", true),
            ("tier notin (a, b)", false),
            ("missing notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>6", true),
            ("n<7", false),
            ("app>1", false),
            ("empty=", true),
            ("tier in (a,b),app=db", false),
            ("example.com/x=y", false),
        ];
        for (text, expected) in table {
            assert_eq!(Labels::parse(text).unwrap().matches(Some(&object)), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_label_selector_is_refused() {
        for text in ["a=b=c", "a in b", "a in (b", ",", "a=b,", "=x", "a b", "a(b)", "!", "a>x", "-a=b", "a=b c"] {
            assert!(Labels::parse(text).is_err(), "{text}");
        }
        assert_eq!(Labels::parse(&"a".repeat(20_000)), Err(SelectorError::TooLong));
    }

    #[test]
    fn field_selectors_match_paths() {
        let pod = json!({"metadata": {"name": "x"}, "spec": {"nodeName": "a=b"}, "status": {"phase": "Running"}});
        let table = [
            ("", true),
            ("metadata.name=x", true),
            ("metadata.name==x,status.phase=Running", true),
            ("status.phase!=Running", false),
            ("spec.missing=", true),
            ("spec.nodeName=a\\=b", true),
        ];
        for (text, expected) in table {
            assert_eq!(Fields::parse(text).unwrap().matches(&pod), expected, "{text}");
        }
        for text in ["x", "=y", "a=b=c", "a!==b", "a=\\x"] {
            assert!(Fields::parse(text).is_err(), "{text}");
        }
        let fields = Fields::parse("metadata.name=x,spec.foo=1").unwrap();
        assert_eq!(fields.exact("metadata.name"), Some("x"));
        assert_eq!(
            fields.check(&["status.phase"]).unwrap_err().to_string(),
            "\"spec.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\", \"status.phase\""
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,100}") {
            let _ = (Labels::parse(&text), Fields::parse(&text));
        }

        #[test]
        fn formatting_and_parsing_agree(
            terms in proptest::collection::vec(("[a-z]{1,5}", "[a-z]{1,3}", 0..6), 0..6)
        ) {
            let text: Vec<String> = terms.iter().map(|(k, v, form)| match form {
                0 => format!("{k}={v}"),
                1 => format!("{k}!={v}"),
                2 => format!("{k} in ({v},x)"),
                3 => format!("{k} notin ({v},x)"),
                4 => k.clone(),
                _ => format!("!{k}"),
            }).collect();
            let selector = Labels::parse(&text.join(",")).unwrap();
            prop_assert_eq!(Labels::parse(&selector.to_string()).unwrap(), selector);
        }
    }
}
