//! The paths of every kind and what may be done there.

use serde_json::{Map, Value, json};

use super::Form;
use super::parameters::{
    ATTACH, DELETE, DELETE_COLLECTION, EXEC, LIST, LOG, PATCH, PORT_FORWARD, PRETTY, PROXY, Parameter, READ, WRITE,
    text,
};
use super::types::{Types, list_name_of, meta, name_of};
use crate::kinds::Kind;
use crate::questions;

const EVICTION: &str = "io.k8s.api.policy.v1.Eviction";
const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const BINDING: &str = "io.k8s.api.core.v1.Binding";
const TOKEN_REQUEST: &str = "io.k8s.api.authentication.v1.TokenRequest";

const BODIES: &[&str] = &["application/json", "application/yaml"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Kinds without Go types have no strategic merge.
const CUSTOM_PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// The types that operations refer to beside those of their kinds.
pub(super) fn types(kinds: &[&Kind]) -> Vec<String> {
    let mut names: Vec<String> = ["Status", "DeleteOptions", "Patch", "APIResourceList", "WatchEvent"].map(meta).into();
    for name in kinds.iter().flat_map(|kind| &kind.subresources) {
        names.extend(of_other_kind(name).map(str::to_owned));
    }
    names
}

/// The type of what a subresource takes and gives, if it is not its kind's own.
fn of_other_kind(subresource: &str) -> Option<&'static str> {
    match subresource {
        "scale" => Some(SCALE),
        "eviction" => Some(EVICTION),
        "binding" => Some(BINDING),
        "token" => Some(TOKEN_REQUEST),
        _ => None,
    }
}

/// Every path of these kinds, with its operations.
pub(super) fn each(types: &Types, kinds: &[&Kind], mut emit: impl FnMut(&str, Value)) {
    for kind in kinds {
        Paths { types, kind }.each(&mut emit);
    }
}

struct Paths<'a> {
    types: &'a Types,
    kind: &'a Kind,
}

/// One operation at a path.
struct Operation<'a> {
    method: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    id: String,
    description: String,
    query: &'a [Parameter<'a>],
    /// The types of what is sent and what comes back; text if there is none.
    takes: Option<String>,
    gives: Option<String>,
    /// `group`, `version`, `kind` of what is dealt with.
    gvk: [&'a str; 3],
}

impl Paths<'_> {
    fn each(&self, emit: &mut impl FnMut(&str, Value)) {
        let kind = self.kind;
        let root = match kind.group.as_str() {
            "" => format!("/api/{}", kind.version),
            group => format!("/apis/{group}/{}", kind.version),
        };
        let collection = match kind.is_namespaced() {
            true => format!("{root}/namespaces/{{namespace}}/{}", kind.plural),
            false => format!("{root}/{}", kind.plural),
        };
        if questions::is_component(kind) {
            emit(&collection, self.item(&[], false, &[self.list()]));
            let read = self.edit("", "", || Some(name_of(kind)), self.gvk()).into_iter().take(1).collect::<Vec<_>>();
            return emit(&format!("{collection}/{{name}}"), self.item(&[], true, &read));
        }
        if questions::is_one(kind) {
            let create =
                self.of_collection().into_iter().filter(|operation| operation.action == "post").collect::<Vec<_>>();
            return emit(&collection, self.item(&[], false, &create));
        }
        let object = format!("{collection}/{{name}}");
        emit(&collection, self.item(&[], false, &self.of_collection()));
        emit(&object, self.item(&[], true, &self.of_object()));
        for subresource in &kind.subresources {
            let operations = self.of_subresource(subresource);
            emit(&format!("{object}/{subresource}"), self.item(&[], true, &operations));
            if subresource == "proxy" {
                let below: Vec<Operation<'_>> =
                    operations.into_iter().map(|one| Operation { id: format!("{}WithPath", one.id), ..one }).collect();
                let path = Parameter { place: "path", ..text("path", "path to the resource") };
                emit(&format!("{object}/proxy/{{path}}"), self.item(&[path], true, &below));
            }
        }
        if kind.is_namespaced() {
            let id = format!("list{}{}ForAllNamespaces", self.version(), kind.kind);
            let all = Operation { id, ..self.list() };
            let mut item = self.render(&all);
            let mut item_parameters = Vec::new();
            self.parameters(LIST, &mut item_parameters);
            if let Some(operation) = item.as_object_mut() {
                operation.remove("parameters");
            }
            emit(&format!("{root}/{}", kind.plural), json!({"get": item, "parameters": item_parameters}));
        }
    }

    /// `CoreV1`, `RbacAuthorizationV1`.
    fn version(&self) -> String {
        format!("{}{}", group_name(&self.kind.group), capitalized(&self.kind.version))
    }

    /// `CoreV1NamespacedPod`
    fn subject(&self, middle: &str) -> String {
        let scope = if self.kind.is_namespaced() { "Namespaced" } else { "" };
        format!("{}{middle}{scope}{}", self.version(), self.kind.kind)
    }

    fn gvk(&self) -> [&str; 3] {
        [&self.kind.group, &self.kind.version, &self.kind.kind]
    }

    fn list(&self) -> Operation<'_> {
        Operation {
            method: "get",
            action: "list",
            id: format!("list{}", self.subject("")),
            description: format!("list or watch objects of kind {}", self.kind.kind),
            query: LIST,
            takes: None,
            gives: Some(list_name_of(self.kind)),
            gvk: self.gvk(),
        }
    }

    fn of_collection(&self) -> Vec<Operation<'_>> {
        let (kind, own) = (&self.kind.kind, name_of(self.kind));
        vec![
            self.list(),
            Operation {
                method: "post",
                action: "post",
                id: format!("create{}", self.subject("")),
                description: format!("create {} {kind}", article(kind)),
                query: WRITE,
                takes: Some(own.clone()),
                gives: Some(own),
                gvk: self.gvk(),
            },
            Operation {
                method: "delete",
                action: "deletecollection",
                id: format!("delete{}", self.subject("Collection")),
                description: format!("delete collection of {kind}"),
                query: DELETE_COLLECTION,
                takes: Some(meta("DeleteOptions")),
                gives: Some(meta("Status")),
                gvk: self.gvk(),
            },
        ]
    }

    fn of_object(&self) -> Vec<Operation<'_>> {
        let own = || Some(name_of(self.kind));
        let mut operations = self.edit("", "", own, self.gvk());
        operations.push(Operation {
            method: "delete",
            action: "delete",
            id: format!("delete{}", self.subject("")),
            description: format!("delete {} {}", article(&self.kind.kind), self.kind.kind),
            query: DELETE,
            takes: Some(meta("DeleteOptions")),
            gives: if self.kind.shows_deleted { own() } else { Some(meta("Status")) },
            gvk: self.gvk(),
        });
        operations
    }

    /// Get, put and patch, of an object or of one side of it.
    fn edit<'a>(
        &'a self,
        suffix: &str,
        side: &str,
        of: impl Fn() -> Option<String>,
        gvk: [&'a str; 3],
    ) -> Vec<Operation<'a>> {
        let what = format!("{side}the specified {}", self.kind.kind);
        let id = |verb: &str| format!("{verb}{}{suffix}", self.subject(""));
        let one = |method, action, verb: &str, words: &str, query, takes| Operation {
            method,
            action,
            id: id(verb),
            description: format!("{words} {what}"),
            query,
            takes,
            gives: of(),
            gvk,
        };
        vec![
            one("get", "get", "read", "read", READ, None),
            one("put", "put", "replace", "replace", WRITE, of()),
            one("patch", "patch", "patch", "partially update", PATCH, Some(meta("Patch"))),
        ]
    }

    fn of_subresource(&self, name: &str) -> Vec<Operation<'_>> {
        let suffix = capitalized(name);
        let own = || Some(of_other_kind(name).map_or_else(|| name_of(self.kind), str::to_owned));
        let create = |gvk| {
            vec![Operation {
                method: "post",
                action: "post",
                id: format!("create{}{suffix}", self.subject("")),
                description: format!("create {name} of {} {}", article(&self.kind.kind), self.kind.kind),
                query: WRITE,
                takes: own(),
                gives: own(),
                gvk,
            }]
        };
        match name {
            "scale" => self.edit("Scale", "scale of ", own, ["autoscaling", "v1", "Scale"]),
            "eviction" => create(["policy", "v1", "Eviction"]),
            "binding" => create(["", "v1", "Binding"]),
            "token" => create(["authentication.k8s.io", "v1", "TokenRequest"]),
            "finalize" => {
                let edit = self.edit("Finalize", "finalize of ", own, self.gvk());
                edit.into_iter().filter(|operation| operation.method == "put").collect()
            }
            "log" => {
                let read = self.edit("Log", "log of ", || None, self.gvk()).into_iter().take(1);
                read.map(|operation| Operation { query: LOG, ..operation }).collect()
            }
            "exec" | "attach" | "portforward" => self.connect(&["get", "post"], name),
            "proxy" => self.connect(&["get", "put", "post", "delete", "patch"], name),
            _ => self.edit(&suffix, &format!("{name} of "), own, self.gvk()),
        }
    }

    fn connect(&self, methods: &[&'static str], name: &str) -> Vec<Operation<'_>> {
        // What is asked for is no object: a client that looks for what a kind's requests may carry must not find these.
        let (query, options) = match (name, self.kind.kind.as_str()) {
            ("exec", _) => (EXEC, "PodExecOptions"),
            ("attach", _) => (ATTACH, "PodAttachOptions"),
            ("portforward", _) => (PORT_FORWARD, "PodPortForwardOptions"),
            (_, "Node") => (PROXY, "NodeProxyOptions"),
            (_, "Service") => (PROXY, "ServiceProxyOptions"),
            _ => (PROXY, "PodProxyOptions"),
        };
        let [group, version, _] = self.gvk();
        let operation = |method: &&'static str| Operation {
            method,
            action: "connect",
            id: format!("connect{}{}", self.subject(&capitalized(method)), capitalized(name)),
            description: format!("connect {} requests to {name} of {}", method.to_uppercase(), self.kind.kind),
            query,
            takes: None,
            gives: None,
            gvk: [group, version, options],
        };
        methods.iter().map(operation).collect()
    }

    fn item(&self, more: &[Parameter<'_>], is_named: bool, operations: &[Operation<'_>]) -> Value {
        let mut item = Map::new();
        for operation in operations {
            item.insert(operation.method.into(), self.render(operation));
        }
        let mut parameters = Vec::new();
        if is_named {
            let name = format!("name of the {}", self.kind.kind);
            parameters.push(self.parameter(&Parameter { place: "path", ..text("name", &name) }));
        }
        if self.kind.is_namespaced() {
            let words = "object name and auth scope, such as for teams and projects";
            parameters.push(self.parameter(&Parameter { place: "path", ..text("namespace", words) }));
        }
        self.parameters(more, &mut parameters);
        self.parameters(&[PRETTY], &mut parameters);
        item.insert("parameters".into(), parameters.into());
        Value::Object(item)
    }

    fn render(&self, operation: &Operation<'_>) -> Value {
        let [group, version, kind] = operation.gvk;
        let mut parameters = Vec::new();
        self.parameters(operation.query, &mut parameters);
        let tag = lowercased(&group_name(&self.kind.group));
        let mut out = json!({
            "description": operation.description,
            "operationId": operation.id,
            "tags": [format!("{tag}_{}", self.kind.version)],
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": version},
        });
        let media: &[&str] = match operation.action {
            "patch" if self.kind.builtin.is_none() => CUSTOM_PATCHES,
            "patch" => PATCHES,
            _ => &["*/*"],
        };
        let gives: &[&str] = match (operation.action, &operation.gives) {
            (_, None) => &["*/*"],
            ("list", _) => &["application/json", "application/yaml", "application/json;stream=watch"],
            _ => BODIES,
        };
        match self.types.form {
            Form::V3 => {
                if let Some(name) = &operation.takes {
                    let content = self.content(media, Some(name));
                    let required = operation.method != "delete";
                    out["requestBody"] = json!({"content": content, "required": required});
                    if !required && let Some(body) = out["requestBody"].as_object_mut() {
                        body.remove("required");
                    }
                }
                out["responses"] =
                    self.responses(operation, |_| json!({"content": self.content(gives, operation.gives.as_deref())}));
            }
            Form::V2 => {
                if let Some(name) = &operation.takes {
                    let mut body = json!({"name": "body", "in": "body", "schema": self.types.reference(name)});
                    if operation.method != "delete" {
                        body["required"] = true.into();
                    }
                    parameters.push(body);
                }
                out["consumes"] = json!(media);
                out["produces"] = json!(gives);
                out["schemes"] = json!(["https"]);
                let schema = match &operation.gives {
                    Some(name) => self.types.reference(name),
                    None => json!({"type": "string"}),
                };
                out["responses"] = self.responses(operation, |_| json!({"schema": schema}));
            }
        }
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        out
    }

    fn responses(&self, operation: &Operation<'_>, body: impl Fn(&str) -> Value) -> Value {
        let codes: &[(&str, &str)] = match operation.action {
            "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            "put" | "patch" => &[("200", "OK"), ("201", "Created")],
            "delete" => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        let mut responses = Map::new();
        for (code, words) in codes {
            let mut response = body(code);
            response["description"] = (*words).into();
            responses.insert((*code).into(), response);
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        Value::Object(responses)
    }

    /// What the third version says of bodies.
    fn content(&self, media: &[&str], name: Option<&str>) -> Value {
        let schema = match name {
            // A reference that stands alone needs nothing around it.
            Some(name) => json!({"$ref": format!("#/components/schemas/{name}")}),
            None => json!({"type": "string"}),
        };
        let entries = media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema})));
        Value::Object(entries.collect())
    }

    fn parameters(&self, list: &[Parameter<'_>], into: &mut Vec<Value>) {
        into.extend(list.iter().map(|one| self.parameter(one)));
    }

    fn parameter(&self, parameter: &Parameter<'_>) -> Value {
        let mut value = json!({"name": parameter.name, "in": parameter.place, "description": parameter.words});
        match self.types.form {
            Form::V3 => value["schema"] = json!({"type": parameter.type_, "uniqueItems": true}),
            Form::V2 => {
                value["type"] = parameter.type_.into();
                value["uniqueItems"] = true.into();
            }
        }
        if parameter.place == "path" {
            value["required"] = true.into();
        }
        value
    }
}

/// Upstream's part of an operation's name: `core`, `apps`, `rbacAuthorization` with a capital.
fn group_name(group: &str) -> String {
    match group.strip_suffix(".k8s.io").unwrap_or(group) {
        "" => "Core".to_owned(),
        group => group.split(['.', '-']).map(capitalized).collect(),
    }
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn lowercased(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

fn article(kind: &str) -> &'static str {
    if kind.starts_with(['A', 'E', 'I', 'O']) { "an" } else { "a" }
}
