//! What form of an answer a client accepts.
//!
//! Objects are JSON or YAML; they may be asked for as a `Table` or as their metadata only (`as=`, `g=`, `v=`).

use flotilla_api::{Reason, Status};
use http::{HeaderMap, header};

use super::query::Query;

/// The first form that the client names and that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepts {
    pub form: Form,
    pub view: View,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Yaml,
}

/// What of an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Whole,
    /// As people read it; the version of `meta.k8s.io` that was asked for.
    Table(&'static str),
    /// `PartialObjectMetadata`.
    Metadata(&'static str),
    /// A list of them.
    MetadataList(&'static str),
    /// The groups with their versions and resources, at once: the version of `apidiscovery.k8s.io`.
    AllGroups(&'static str),
}

impl View {
    /// Whether objects are shown as they are stored.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Whole | Self::AllGroups(_))
    }

    /// # Errors
    /// `NotAcceptable` if metadata was asked for of a list and the answer is none, or the other way round.
    pub fn check(self, is_list: bool) -> Result<(), Status> {
        let words = match (self, is_list) {
            (Self::Metadata(_), true) => "PartialObjectMetadata, but the requested object is a list",
            (Self::MetadataList(_), false) => "PartialObjectMetadataList, but the requested object is not a list",
            _ => return Ok(()),
        };
        Err(Status::new(Reason::NotAcceptable, format!("you requested {words}")))
    }
}

impl Accepts {
    /// # Errors
    /// `NotAcceptable`, with what is served instead.
    pub fn parse(headers: &HeaderMap) -> Result<Self, Status> {
        let mut ranges = Vec::new();
        for value in headers.get_all(header::ACCEPT) {
            ranges.extend(value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|one| !one.is_empty()));
        }
        if ranges.is_empty() {
            return Ok(Self { form: Form::Json, view: View::Whole });
        }
        ranges.iter().find_map(|range| one(range)).ok_or_else(|| {
            Status::new(
                Reason::NotAcceptable,
                "only the following media types are accepted: application/json, application/yaml",
            )
        })
    }
}

fn one(range: &str) -> Option<Accepts> {
    let mut parts = range.split(';').map(str::trim);
    let form = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Form::Json,
        "application/yaml" | "application/x-yaml" | "text/yaml" => Form::Yaml,
        _ => return None,
    };
    let (mut wanted, mut group, mut version) = ("", "", "");
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match name {
            "as" => wanted = value,
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    let known = |versions: &[&'static str]| versions.iter().copied().find(|known| *known == version);
    let view = match (wanted, group) {
        ("", _) => View::Whole,
        ("Table", "meta.k8s.io") => View::Table(known(&["v1", "v1beta1"])?),
        ("PartialObjectMetadata", "meta.k8s.io") => View::Metadata(known(&["v1", "v1beta1"])?),
        ("PartialObjectMetadataList", "meta.k8s.io") => View::MetadataList(known(&["v1", "v1beta1"])?),
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io") => View::AllGroups(known(&["v2", "v2beta1"])?),
        _ => return None,
    };
    Some(Accepts { form, view })
}

/// Whether a person is to read the answer: the query says so or not, or the client is one that people look at.
pub fn is_for_people(query: &Query, headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let asked = text(header::ACCEPT).split([',', ';']).any(|part| part.trim() == "pretty=1");
    asked
        || match query.get("pretty") {
            "" => ["curl", "Wget", "Mozilla/5.0"].iter().any(|agent| text(header::USER_AGENT).starts_with(agent)),
            said => matches!(said, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(value: &str) -> Result<Accepts, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, value.parse().unwrap());
        Accepts::parse(&headers)
    }

    #[test]
    fn the_first_form_that_is_served_is_taken() {
        let json = |view| Accepts { form: Form::Json, view };
        let table = [
            ("application/json", json(View::Whole)),
            ("application/vnd.kubernetes.protobuf,application/json", json(View::Whole)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", json(View::Table("v1"))),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json", json(View::Table("v1beta1"))),
            ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", json(View::Whole)),
            ("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", json(View::Metadata("v1"))),
            ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", json(View::MetadataList("v1"))),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                json(View::AllGroups("v2")),
            ),
            ("application/yaml", Accepts { form: Form::Yaml, view: View::Whole }),
            ("*/*", json(View::Whole)),
        ];
        for (value, wanted) in table {
            assert_eq!(accepts(value).unwrap(), wanted, "{value}");
        }
        assert_eq!(accepts("application/vnd.kubernetes.protobuf").unwrap_err().reason, Reason::NotAcceptable);
    }

    #[test]
    fn a_list_is_no_object_and_an_object_no_list() {
        let fits = |view: View, is_list| view.check(is_list).map_err(|status| (status.reason.code(), status.message));
        for (view, is_list) in [
            (View::Metadata("v1"), false),
            (View::MetadataList("v1"), true),
            (View::Table("v1"), false),
            (View::Whole, true),
        ] {
            assert_eq!(fits(view, is_list), Ok(()));
        }
        let words = "you requested PartialObjectMetadata, but the requested object is a list";
        assert_eq!(fits(View::Metadata("v1"), true), Err((406, words.into())));
        let words = "you requested PartialObjectMetadataList, but the requested object is not a list";
        assert_eq!(fits(View::MetadataList("v1"), false), Err((406, words.into())));
    }

    #[test]
    fn people_are_known_by_their_clients_unless_they_say_otherwise() {
        let table = [
            ("curl/8.5.0", "", "", true),
            ("Mozilla/5.0 (X11)", "", "", true),
            ("kubectl/v1.37.0", "", "", false),
            ("kubectl/v1.37.0", "pretty=true", "", true),
            ("curl/8.5.0", "pretty=false", "", false),
            ("curl/8.5.0", "pretty=yes", "", false),
            ("kubectl/v1.37.0", "", "application/json;pretty=1", true),
        ];
        for (agent, query, accept, wanted) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::USER_AGENT, agent.parse().unwrap());
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(is_for_people(&Query::parse(query), &headers), wanted, "{agent} {query} {accept}");
        }
    }
}
