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

mod parse;

/// Longer selectors are refused.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;

/// A selector that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    #[error("{0}")]
    Labels(String),
    #[error("invalid selector: '{0}'; can't understand '{1}'")]
    Field(String, String),
    #[error("invalid field selector: {0}")]
    Value(String),
    #[error("\"{0}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")]
    UnknownField(String),
    /// Of a kind that has fields of its own to select by.
    #[error("field label not supported: {0}")]
    UnsupportedField(String),
    #[error("field label \"{0}\" not supported for Job")]
    UnsupportedByJobs(String),
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
        Ok(Self { requirements: parse::requirements(text)? })
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
        let parts = split_escaped(text).into_iter().filter(|part| !part.is_empty());
        let terms: Result<_, _> = parts.map(|part| parse_term(text, part)).collect();
        Ok(Self { terms: terms? })
    }

    /// Refuses fields that a kind's objects cannot be selected by; `known` lists those beside name and namespace.
    ///
    /// # Errors
    /// Names the first field that is not known.
    pub fn check(&self, known: &[impl AsRef<str>]) -> Result<(), SelectorError> {
        match self.unknown(known) {
            None => Ok(()),
            Some(field) if known.is_empty() => Err(SelectorError::UnknownField(field.to_owned())),
            Some(field) => Err(SelectorError::UnsupportedField(field.to_owned())),
        }
    }

    /// The first field that is neither a name nor one of those.
    pub(crate) fn unknown(&self, known: &[impl AsRef<str>]) -> Option<&str> {
        let is_known = |field: &str| {
            matches!(field, "metadata.name" | "metadata.namespace") || known.iter().any(|k| k.as_ref() == field)
        };
        self.terms.iter().map(|term| term.field.as_str()).find(|field| !is_known(field))
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

fn parse_term(text: &str, part: &str) -> Result<Term, SelectorError> {
    let bad = || SelectorError::Field(text.to_owned(), part.to_owned());
    let mut places = part.char_indices().map(|(index, _)| part.split_at(index));
    let split = |(field, rest): (&str, &str)| {
        let operator = ["!=", "==", "="].into_iter().find(|operator| rest.starts_with(operator))?;
        Some((field.trim().to_owned(), operator, rest[operator.len()..].trim().to_owned()))
    };
    let (field, operator, value) = places.find_map(split).ok_or_else(bad)?;
    Ok(Term { field, equal: operator != "!=", value: unescape(&value)? })
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ (',' | '=' | '\\')) => plain.push(c),
                other => {
                    let sequence: String = [Some('\\'), other].into_iter().flatten().collect();
                    return Err(SelectorError::Value(format!("invalid escape sequence: {sequence}")));
                }
            },
            // Upstream tells the number of the character.
            '=' => return Err(SelectorError::Value(format!("unescaped character in value: {}", u32::from(c)))),
            c => plain.push(c),
        }
    }
    Ok(plain)
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
    fn what_is_no_label_selector_is_refused_in_upstreams_words() {
        let name = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
        let table = [
            ("a=b=c", "found '=', expected: ',' or 'end of string'".to_owned()),
            ("a=b c", "found 'c', expected: ',' or 'end of string'".to_owned()),
            ("!a=b", "found '=', expected: ',' or 'end of string'".to_owned()),
            (",", "found ',', expected: !, identifier, or 'end of string'".to_owned()),
            ("=x", "found '=', expected: !, identifier, or 'end of string'".to_owned()),
            ("a=b,", "found '', expected: identifier after ','".to_owned()),
            ("!", "unable to parse requirement: found '', expected: identifier".to_owned()),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt".to_owned()),
            ("a(b)", "unable to parse requirement: found '(', expected: in, notin, =, ==, !=, gt, lt".to_owned()),
            ("a in b", "unable to parse requirement: found 'b' expected: '('".to_owned()),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'".to_owned()),
            ("a in (b=", "unable to parse requirement: found '=', expected: ',' or ')'".to_owned()),
            ("a==(", "unable to parse requirement: found '(', expected: identifier".to_owned()),
            ("-a=b", format!("unable to parse requirement: <nil>: Invalid value: \"-a\": {name}")),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be \
                 an integer"
                    .to_owned(),
            ),
        ];
        for (text, words) in table {
            assert_eq!(Labels::parse(text).unwrap_err().to_string(), words, "{text}");
        }
        let refused = Labels::parse("a=b_").unwrap_err().to_string();
        assert!(refused.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"b_\": a valid label"));
        assert_eq!(Labels::parse(&"a".repeat(20_000)), Err(SelectorError::TooLong));
    }

    #[test]
    fn words_of_the_language_are_keys_and_values_too() {
        for (text, shown) in [
            ("in in (notin)", "in=notin"),
            ("a in (b,,c)", "a in (,b,c)"),
            ("a notin ()", "a!="),
            ("a in (,)", "a="),
            ("a = b , c", "a=b,c"),
            ("a=,b", "a=,b"),
        ] {
            assert_eq!(Labels::parse(text).unwrap().to_string(), shown, "{text}");
        }
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
        for (text, words) in [
            ("x", "invalid selector: 'x'; can't understand 'x'"),
            ("a=b,x", "invalid selector: 'a=b,x'; can't understand 'x'"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
            ("a!==b", "invalid field selector: unescaped character in value: 61"),
            ("a=\\x", "invalid field selector: invalid escape sequence: \\x"),
        ] {
            assert_eq!(Fields::parse(text).unwrap_err().to_string(), words, "{text}");
        }
        let fields = Fields::parse("metadata.name=x,spec.foo=1").unwrap();
        assert_eq!(fields.exact("metadata.name"), Some("x"));
        let words = |known: &[&str]| fields.check(known).unwrap_err().to_string();
        assert_eq!(words(&["status.phase"]), "field label not supported: spec.foo");
        assert_eq!(
            words(&[]),
            "\"spec.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
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
