//! Which requests are recorded, and how much of them: upstream's audit policy.

use flotilla_control::rbac::Action;
use serde::Deserialize;

use crate::gate::User;

/// `audit.k8s.io/v1 Policy`. The first rule that matches counts; what no rule matches is not recorded.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[allow(dead_code, reason = "part of the file's form")]
    api_version: Option<String>,
    #[allow(dead_code, reason = "part of the file's form")]
    kind: Option<String>,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
    rules: Vec<Rule>,
}

/// How much is recorded, each more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    None,
    /// Who asked for what and how it ended.
    Metadata,
    /// And what was sent.
    Request,
    /// And what came back.
    RequestResponse,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// What is recorded of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    pub level: Level,
    /// Stages at which nothing is.
    pub omitted: Vec<Stage>,
    /// Whether `metadata.managedFields` is left out of what is sent and comes back.
    pub omit_managed_fields: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    /// Upstream's fourth; nothing here comes to it.
    Panic,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

/// Empty lists match everything.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    /// What the policy says, if the rule says nothing.
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

impl Policy {
    /// Of everything it is recorded who asked for what and how it ended.
    pub fn everything() -> Self {
        let rule = Rule {
            level: Level::Metadata,
            users: Vec::new(),
            user_groups: Vec::new(),
            verbs: Vec::new(),
            resources: Vec::new(),
            namespaces: Vec::new(),
            non_resource_urls: Vec::new(),
            omit_stages: Vec::new(),
            omit_managed_fields: None,
        };
        Self {
            api_version: None,
            kind: None,
            _metadata: serde_json::Value::Null,
            omit_stages: Vec::new(),
            omit_managed_fields: false,
            rules: vec![rule],
        }
    }

    /// # Errors
    /// What is wrong with the file, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    /// What is recorded of this request; `None` if nothing is.
    pub fn recording(&self, user: &User, action: &Action) -> Option<Recording> {
        let rule = self.rules.iter().find(|rule| rule.matches(user, action))?;
        (rule.level != Level::None).then(|| Recording {
            level: rule.level,
            omitted: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        })
    }
}

impl Rule {
    fn matches(&self, user: &User, action: &Action) -> bool {
        let any = |list: &[String], wanted: &str| list.is_empty() || list.iter().any(|entry| entry == wanted);
        let (Action::Path { verb, .. } | Action::Resource { verb, .. }) = *action;
        let groups = self.user_groups.is_empty() || user.groups.iter().any(|group| self.user_groups.contains(group));
        if !(any(&self.users, &user.name) && groups && any(&self.verbs, verb)) {
            return false;
        }
        match *action {
            Action::Path { path, .. } => {
                let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
                let urls = &self.non_resource_urls;
                !of_resources && (urls.is_empty() || urls.iter().any(|url| covers(url, path)))
            }
            Action::Resource { group, resource, subresource, namespace, name, .. } => {
                let whole = match subresource {
                    "" => resource.to_owned(),
                    subresource => format!("{resource}/{subresource}"),
                };
                self.non_resource_urls.is_empty()
                    && any(&self.namespaces, namespace)
                    && (self.resources.is_empty()
                        || self.resources.iter().any(|of| of.matches(group, &whole, subresource, name)))
            }
        }
    }
}

impl Resources {
    fn matches(&self, group: &str, whole: &str, subresource: &str, name: &str) -> bool {
        let one = |entry: &String| {
            entry == "*"
                || entry == whole
                || entry.strip_prefix("*/").is_some_and(|sub| sub == subresource)
                || entry.strip_suffix("/*").is_some_and(|of| whole == of || whole.starts_with(&format!("{of}/")))
        };
        let names = self.resource_names.is_empty() || self.resource_names.iter().any(|entry| entry == name);
        self.group == group && names && (self.resources.is_empty() || self.resources.iter().any(one))
    }
}

fn covers(url: &str, path: &str) -> bool {
    url == "*" || url == path || url.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: ["RequestReceived"]
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: ["watch"]
  resources:
  - group: ""
    resources: ["endpoints", "services"]
- level: None
  nonResourceURLs: ["/healthz*", "/version"]
- level: Metadata
  resources:
  - group: ""
    resources: ["pods/log", "secrets"]
  omitStages: ["ResponseStarted"]
- level: None
  userGroups: ["system:nodes"]
- level: RequestResponse
  omitManagedFields: true
  namespaces: ["red"]
"#;

    fn on<'a>(verb: &'a str, resource: &'a str, namespace: &'a str) -> Action<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Action::Resource { verb, group: "", resource, subresource, namespace, name: "" }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let policy = Policy::parse(FILE).unwrap();
        let (ann, proxy) = (User::new("ann", vec![]), User::new("system:kube-proxy", vec![]));
        let received = vec![Stage::RequestReceived];
        let both = vec![Stage::RequestReceived, Stage::ResponseStarted];
        let table = [
            (&proxy, on("watch", "services", "red"), None),
            (&ann, on("watch", "services", "red"), Some(received.clone())),
            (&ann, on("watch", "services", "blue"), None),
            (&ann, Action::Path { verb: "get", path: "/healthz/ping" }, None),
            (&ann, Action::Path { verb: "get", path: "/metrics" }, None),
            (&ann, on("get", "pods/log", "blue"), Some(both.clone())),
            (&ann, on("get", "pods", "blue"), None),
            (&User::node("n"), on("get", "secrets", "blue"), Some(both)),
            (&User::node("n"), on("get", "pods", "red"), None),
        ];
        for (user, action, omitted) in table {
            let recording = policy.recording(user, &action);
            assert_eq!(recording.map(|recording| recording.omitted), omitted, "{} {action:?}", user.name);
        }
        let everything = Policy::everything().recording(&ann, &on("get", "pods", "")).unwrap();
        assert_eq!((everything.level, everything.omitted), (Level::Metadata, vec![]));
    }

    #[test]
    fn rules_say_how_much_is_recorded() {
        let policy = Policy::parse(FILE).unwrap();
        let ann = User::new("ann", vec![]);
        let of = |resource: &str, namespace: &str| policy.recording(&ann, &on("get", resource, namespace)).unwrap();
        let red = of("pods", "red");
        assert_eq!((red.level, red.omit_managed_fields), (Level::RequestResponse, true));
        let log = of("pods/log", "red");
        assert_eq!((log.level, log.omit_managed_fields), (Level::Metadata, false));
        assert!(Level::Request < Level::RequestResponse && Level::Metadata < Level::Request);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        assert!(Policy::parse("rules:\n- level: Everything\n").is_err());
        assert!(Policy::parse("rules:\n- level: Metadata\n  user: [a]\n").is_err());
    }
}
