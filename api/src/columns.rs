//! The tables that people read: upstream's printer columns and how their cells are worded.
//!
//! Invariant: a row has exactly as many cells as its kind has columns.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::api::rbac::v1::{RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::selector;

/// What stands in a cell that has nothing to say.
pub const NONE: &str = "<none>";
pub const UNKNOWN: &str = "<unknown>";
pub const UNSET: &str = "<unset>";

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `number`, `boolean` or `date`, as upstream's Table says.
    pub type_: &'static str,
    /// Whether cells are whole numbers whatever the type says.
    pub is_count: bool,
    /// Shown only in wide listings.
    pub wide: bool,
    /// For people; empty if the name says it all.
    pub description: Cow<'static, str>,
}

impl Column {
    const fn of(name: &'static str, type_: &'static str, wide: bool) -> Self {
        Self { name: Cow::Borrowed(name), type_, is_count: false, wide, description: Cow::Borrowed("") }
    }

    pub const fn text(name: &'static str) -> Self {
        Self::of(name, "string", false)
    }

    pub const fn number(name: &'static str) -> Self {
        Self::of(name, "integer", false)
    }

    /// Cells are whole numbers, though upstream calls the column one of text.
    pub const fn count(name: &'static str) -> Self {
        let mut column = Self::text(name);
        column.is_count = true;
        column
    }

    pub const fn wide(name: &'static str) -> Self {
        Self::of(name, "string", true)
    }

    /// Cells are RFC 3339 times.
    pub const fn date(name: &'static str) -> Self {
        Self::of(name, "date", false)
    }

    /// Cells are `true` or `false`.
    pub const fn boolean(name: &'static str) -> Self {
        Self::of(name, "boolean", false)
    }
}

/// The first column of every kind.
pub const NAME: Column = Column::text("Name");
pub const AGE: Column = Column::text("Age");
/// Of kinds that upstream has no columns for.
pub const CREATED_AT: Column = Column::date("Created At");

/// The row of an object that does not decode: its name, and nothing else.
pub(crate) fn unreadable(object: &Value, columns: &[Column]) -> Vec<String> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or(UNKNOWN);
    let rest = columns.iter().skip(1).map(|_| UNKNOWN.to_owned());
    std::iter::once(name.to_owned()).chain(rest).collect()
}

pub(crate) fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// When the object was created.
pub(crate) fn created_at(metadata: &ObjectMeta) -> String {
    let time = metadata.creation_timestamp.as_ref();
    time.map_or_else(|| UNKNOWN.to_owned(), |time| time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The names of containers.
pub(crate) fn containers(containers: &[Container]) -> String {
    joined(containers.iter().map(|container| container.name.as_str()))
}

/// The images of containers.
pub(crate) fn images(containers: &[Container]) -> String {
    joined(containers.iter().filter_map(|container| container.image.as_deref()))
}

/// `app=web,tier=front`, or `<none>`.
pub(crate) fn labels(labels: Option<&BTreeMap<String, String>>) -> String {
    let pairs: Vec<String> = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    joined(pairs.iter().map(String::as_str))
}

/// The first three texts, and how many more there are; `empty` if there are none.
pub(crate) fn first_three(texts: impl IntoIterator<Item = String>, empty: &str) -> String {
    const SHOWN: usize = 3;
    let texts: Vec<String> = texts.into_iter().collect();
    match texts.len() {
        0 => empty.to_owned(),
        1..=SHOWN => texts.join(","),
        count => format!("{} + {} more...", texts[..SHOWN].join(","), count - SHOWN),
    }
}

/// The columns of bindings of roles.
pub(crate) const BINDING: &[Column] =
    &[NAME, Column::text("Role"), AGE, Column::wide("Users"), Column::wide("Groups"), Column::wide("ServiceAccounts")];

/// One cell for each of [`BINDING`].
pub(crate) fn binding(
    metadata: &ObjectMeta,
    role: &RoleRef,
    subjects: Option<&[Subject]>,
    now: Timestamp,
) -> Vec<String> {
    let of_kind = |kind: &str| {
        let named = subjects.unwrap_or_default().iter().filter(|subject| subject.kind == kind);
        let names: Vec<String> = named
            .map(|subject| match subject.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
                Some(namespace) => format!("{namespace}/{}", subject.name),
                None => subject.name.clone(),
            })
            .collect();
        names.join(", ")
    };
    let role = format!("{}/{}", role.kind, role.name);
    vec![name(metadata), role, age(metadata, now), of_kind("User"), of_kind("Group"), of_kind("ServiceAccount")]
}

/// `10.0.0.1:80`, `[::1]:80`.
pub(crate) fn host_port(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The distinct addresses of a load balancer, cut at `max_bytes`.
pub(crate) fn ingress_points(points: impl Iterator<Item = String>, max_bytes: usize) -> String {
    let points: BTreeSet<String> = points.collect();
    let joined = points.into_iter().collect::<Vec<_>>().join(",");
    match joined.len() > max_bytes {
        true => format!("{}...", joined.chars().take(max_bytes - 3).collect::<String>()),
        false => joined,
    }
}

/// A number or text as it stands.
pub(crate) fn int_or_string(value: &IntOrString) -> String {
    match value {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    }
}

/// How long ago the object was created.
pub fn age(metadata: &ObjectMeta, now: Timestamp) -> String {
    since(metadata.creation_timestamp.as_ref(), now)
}

/// How long ago `time` was; `<unknown>` without one.
pub(crate) fn since(time: Option<&Time>, now: Timestamp) -> String {
    time.map_or_else(|| UNKNOWN.to_owned(), |time| duration(now.as_second() - time.0.as_second()))
}

/// Seconds as upstream's `HumanDuration` words them: `5s`, `3m7s`, `4h`, `2d3h`, `1y30d`.
pub fn duration(seconds: i64) -> String {
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match seconds {
        ..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

/// `app=web,tier in (a,b)`, or `<none>`.
pub(crate) fn selector(selector: Option<&LabelSelector>) -> String {
    match selector.map(selector::format) {
        Some(text) if !text.is_empty() => text,
        _ => NONE.to_owned(),
    }
}

/// Texts joined by commas, or `<none>`.
pub(crate) fn joined<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let joined = texts.into_iter().collect::<Vec<_>>().join(",");
    if joined.is_empty() { NONE.to_owned() } else { joined }
}

/// The text, or `<none>` if there is none.
pub(crate) fn or_none(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or(NONE).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_worded_as_upstream() {
        let table = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (187, "3m7s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600, "8h"),
            (48 * 3600, "2d"),
            (51 * 3600, "2d3h"),
            (8 * 86_400, "8d"),
            (2 * 365 * 86_400, "2y"),
            (2 * 365 * 86_400 + 86_400, "2y1d"),
            (9 * 365 * 86_400, "9y"),
        ];
        for (seconds, text) in table {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }
}
