//! JSONPath as `kubectl` and printer columns have it: `.status.conditions[?(@.type=="Ready")].status`.
//!
//! Defined by Kubernetes' "JSONPath Support", without its templates: fields, `['a.b']`, `[0]`, `[-1]`, `[1:3]`, `[*]`,
//! `..field`, and filters that compare one path with one constant.
//!
//! Invariant: a path yields at most [`MAX_RESULTS`] values, and walks no more than [`MAX_STEPS`].

use serde_json::Value;

/// The longest path.
pub const MAX_PATH_BYTES: usize = 4096;
pub const MAX_RESULTS: usize = 1024;
const MAX_STEPS: usize = 100_000;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// A field at any depth; an empty name is everything at any depth.
    Anywhere(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    Filter(Filter),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: JsonPath,
    /// An operator and a constant; none asks whether there is anything.
    right: Option<(Operator, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Reads a path; `{}` around it and `$` before it mean nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATH_BYTES {
            return Err(format!("a path may not be longer than {MAX_PATH_BYTES} bytes"));
        }
        let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        let rest = inner.trim();
        steps(rest.strip_prefix('$').unwrap_or(rest)).map(|steps| Self { steps })
    }

    /// The fields of a path that has nothing else, as it leads to one place.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.steps
            .iter()
            .map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The values that the path leads to.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut left = MAX_STEPS;
        let mut found = vec![value];
        for step in &self.steps {
            let mut next = Vec::new();
            for value in found {
                step.take(value, &mut next, &mut left);
            }
            next.truncate(MAX_RESULTS);
            found = next;
        }
        found
    }
}

fn steps(mut rest: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (step, after) = if let Some(after) = rest.strip_prefix("..") {
            let (name, after) = field(after)?;
            (Step::Anywhere(if name == "*" { String::new() } else { name }), after)
        } else if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() {
                break;
            }
            if let Some(inside) = after.strip_prefix('[') {
                bracket(inside)?
            } else {
                let (name, after) = field(after)?;
                (if name == "*" { Step::All } else { Step::Field(name) }, after)
            }
        } else if let Some(after) = rest.strip_prefix('[') {
            bracket(after)?
        } else {
            return Err(format!("unrecognized character in path: {:?}", rest.chars().next().unwrap_or_default()));
        };
        steps.push(step);
        rest = after;
    }
    Ok(steps)
}

/// A name up to the next sign; `\\.` is a dot in it.
fn field(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '.' | '[' => return finished(name, &text[at..]),
            '\\' => name.extend(characters.next().map(|(_, c)| c)),
            c if c.is_whitespace() || matches!(c, ']' | '{' | '}' | '(' | ')') => {
                return Err(format!("unrecognized character in path: {c:?}"));
            }
            c => name.push(c),
        }
    }
    finished(name, "")
}

fn finished(name: String, rest: &str) -> Result<(String, &str), String> {
    if name.is_empty() { Err("a field has no name".to_owned()) } else { Ok((name, rest)) }
}

/// What stands between `[` and `]`.
fn bracket(text: &str) -> Result<(Step, &str), String> {
    let unterminated = || "unterminated array".to_owned();
    if let Some(inner) = text.strip_prefix("?(") {
        let end = inner.find(")]").ok_or_else(|| "unterminated filter".to_owned())?;
        return Ok((Step::Filter(filter(&inner[..end])?), &inner[end + 2..]));
    }
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote) {
            let end = inner.find(&format!("{quote}]")).ok_or_else(unterminated)?;
            return Ok((Step::Field(inner[..end].to_owned()), &inner[end + 2..]));
        }
    }
    let end = text.find(']').ok_or_else(unterminated)?;
    let (inside, rest) = (text[..end].trim(), &text[end + 1..]);
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("invalid array index {inside}"));
    let optional = |text: &str| if text.trim().is_empty() { Ok(None) } else { number(text).map(Some) };
    let step = match inside {
        "*" => Step::All,
        _ => match inside.split_once(':') {
            Some((from, to)) => Step::Slice(optional(from)?, optional(to)?),
            None => Step::Index(number(inside)?),
        },
    };
    Ok((step, rest))
}

fn filter(text: &str) -> Result<Filter, String> {
    const OPERATORS: &[(&str, Operator)] = &[
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ];
    let left_of = |text: &str| -> Result<JsonPath, String> {
        let path = text.trim().strip_prefix('@').ok_or("a filter must begin with @")?;
        if path.contains("?(") {
            return Err("filters cannot be nested".to_owned());
        }
        steps(path).map(|steps| JsonPath { steps })
    };
    let place = OPERATORS.iter().filter_map(|(sign, operator)| text.find(sign).map(|at| (at, *sign, *operator)));
    let Some((at, sign, operator)) = place.min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len()))) else {
        return Ok(Filter { left: left_of(text)?, right: None });
    };
    let right = text[at + sign.len()..].trim();
    let quoted = ['\'', '"'].iter().find_map(|quote| right.strip_prefix(*quote).and_then(|r| r.strip_suffix(*quote)));
    let constant = match quoted {
        Some(text) => Value::String(text.to_owned()),
        None => serde_json::from_str(right).map_err(|_| format!("unrecognized constant in filter: {right}"))?,
    };
    Ok(Filter { left: left_of(&text[..at])?, right: Some((operator, constant)) })
}

impl Step {
    fn take<'a>(&self, value: &'a Value, into: &mut Vec<&'a Value>, left: &mut usize) {
        if *left == 0 || into.len() >= MAX_RESULTS {
            return;
        }
        *left -= 1;
        match (self, value) {
            (Step::Field(name), Value::Object(map)) => into.extend(map.get(name)),
            (Step::Index(index), Value::Array(items)) => {
                into.extend(at(*index, items.len()).and_then(|at| items.get(at)))
            }
            (Step::Slice(from, to), Value::Array(items)) => {
                let bound = |bound: Option<i64>, or: usize| {
                    let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                    let of = |bound: i64| if bound < 0 { bound.saturating_add(length) } else { bound };
                    bound.map_or(or, |bound| usize::try_from(of(bound).clamp(0, length)).unwrap_or_default())
                };
                let (from, to) = (bound(*from, 0), bound(*to, items.len()));
                into.extend(items.get(from..to).unwrap_or_default());
            }
            (Step::All, Value::Array(items)) => into.extend(items.iter().take(MAX_RESULTS)),
            (Step::All, Value::Object(map)) => into.extend(map.values().take(MAX_RESULTS)),
            (Step::Filter(filter), Value::Array(items)) => {
                for item in items {
                    if *left == 0 {
                        return;
                    }
                    *left -= 1;
                    if filter.takes(item) {
                        into.push(item);
                    }
                }
            }
            (Step::Anywhere(name), value) => {
                match (name.as_str(), value) {
                    ("", value) => into.push(value),
                    (name, Value::Object(map)) => into.extend(map.get(name)),
                    _ => {}
                }
                let below: Vec<&Value> = match value {
                    Value::Array(items) => items.iter().collect(),
                    Value::Object(map) => map.values().collect(),
                    _ => return,
                };
                below.into_iter().for_each(|value| self.take(value, into, left));
            }
            _ => {}
        }
    }
}

fn at(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(i64::try_from(length).ok()?)? } else { index };
    usize::try_from(index).ok()
}

impl Filter {
    fn takes(&self, item: &Value) -> bool {
        let found = self.left.find(item);
        let Some((operator, constant)) = &self.right else { return !found.is_empty() };
        let Some(found) = found.first() else { return false };
        let ordering = match (found, constant) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => Some(a.as_str().cmp(b)),
            (a, b) => (*a == b).then_some(std::cmp::Ordering::Equal),
        };
        match operator {
            Operator::Equal => ordering.is_some_and(|o| o.is_eq()),
            Operator::NotEqual => !ordering.is_some_and(|o| o.is_eq()),
            Operator::Less => ordering.is_some_and(|o| o.is_lt()),
            Operator::LessOrEqual => ordering.is_some_and(|o| o.is_le()),
            Operator::Greater => ordering.is_some_and(|o| o.is_gt()),
            Operator::GreaterOrEqual => ordering.is_some_and(|o| o.is_ge()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_where_kubectl_goes() {
        let value = json!({
            "spec": {"replicas": 3, "a.b": 1, "names": ["x", "y", "z"]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "n": 1}, {"type": "Old", "status": "False", "n": 2}]},
        });
        let table = [
            (".spec.replicas", json!([3])),
            ("{.spec.replicas}", json!([3])),
            ("$.spec.replicas", json!([3])),
            (".spec['a.b']", json!([1])),
            (".spec.a\\.b", json!([1])),
            (".spec.names[0]", json!(["x"])),
            (".spec.names[-1]", json!(["z"])),
            (".spec.names[0:2]", json!(["x", "y"])),
            (".spec.names[*]", json!(["x", "y", "z"])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.n>1)].type", json!(["Old"])),
            (".status.conditions[?(@.n)].type", json!(["Ready", "Old"])),
            ("..type", json!(["Ready", "Old"])),
            (".spec.nothing", json!([])),
            (".", json!([value])),
        ];
        for (path, expected) in table {
            let path_read = JsonPath::parse(path).unwrap();
            assert_eq!(json!(path_read.find(&value)), expected, "{path}");
        }
        for path in ["spec", ".spec[", ".spec[x]", ".a[?(b)]", ".a..", ".a b", ".a[?(@.b==c)]"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
        assert_eq!(JsonPath::parse(".spec.replicas").unwrap().fields().unwrap(), ["spec", "replicas"]);
    }
}
