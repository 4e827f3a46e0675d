//! `delete`: objects by name or as manifests list them.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use flotilla_api::Registry;
use serde_json::Value;
use tonic::Code;

use super::get::kind_and_names;
use super::output::{age, duration_seconds, plain};
use super::session::{Session, ask};
use super::{DONE, failure, manifest};
use crate::proto::{DeleteObjectRequest, GetObjectRequest, WatchObjectsRequest};

/// How long an object may take to go, unless the user says.
const TIMEOUT_SECONDS: u32 = 5 * 60;
/// How often the daemon is asked again whether an object is gone, after it did not say.
const RETRIES: u32 = 10;
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// What happens to the objects that belong to a deleted one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Cascade {
    /// They go after it
    #[default]
    Background,
    /// They go before it
    Foreground,
    /// They stay
    Orphan,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla delete pod web-5d8f7c-x2b9q
  flotilla delete deployment web --cascade foreground
  flotilla delete -f web.yaml --ignore-not-found")]
pub struct DeleteArgs {
    /// The kind: pods, deploy, deployments.apps; also KIND/NAME
    #[arg(required_unless_present = "files", conflicts_with = "files")]
    kind: Option<String>,
    /// The objects' names
    names: Vec<String>,
    /// Delete what a manifest, a folder of manifests, or standard input (-) lists; may be given again
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<String>,
    /// How long containers get to end; 0 deletes a pod without waiting for its node
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration_seconds)]
    grace_period: Option<u32>,
    /// What happens to objects that belong to it
    #[arg(long, value_enum, default_value_t)]
    cascade: Cascade,
    /// An object that does not exist is no error
    #[arg(long)]
    ignore_not_found: bool,
    /// Do not wait until the objects are gone
    #[arg(long)]
    detach: bool,
    /// Wait no longer than this [default: 5m]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration_seconds)]
    timeout: Option<u32>,
}

/// One object to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    kind: String,
    namespace: String,
    name: String,
}

impl Target {
    /// `deployment.apps/web`, however the kind was named.
    fn words(&self) -> String {
        let kind = Registry::builtin().by_name(&self.kind).map_or(self.kind.clone(), |kind| kind.qualified_singular());
        plain(&format!("{kind}/{}", self.name))
    }
}

pub async fn delete(session: &Session, args: &DeleteArgs) -> anyhow::Result<u8> {
    let mut code = DONE;
    for target in targets(session, args)? {
        match delete_one(session, args, &target).await {
            Ok(()) => {}
            Err(error) if args.ignore_not_found && is_missing(&error) => {}
            Err(error) => code = failure::report(&error),
        }
    }
    Ok(code)
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<tonic::Status>().is_some_and(|status| status.code() == Code::NotFound)
}

fn targets(session: &Session, args: &DeleteArgs) -> anyhow::Result<Vec<Target>> {
    if let Some(kind) = &args.kind {
        let (kind, names) = kind_and_names(kind, &args.names)?;
        if names.is_empty() {
            bail!("say which {kind} to delete");
        }
        let target = |name| Target { kind: kind.into(), namespace: session.namespace.clone(), name };
        return Ok(names.into_iter().map(target).collect());
    }
    let mut targets = Vec::new();
    for file in manifest::expand(&args.files)? {
        let objects = manifest::objects(&manifest::read(&file)?).with_context(|| file.clone())?;
        for object in &objects {
            targets.push(target_of(object, &session.namespace).with_context(|| file.clone())?);
        }
    }
    // What was created last goes first: a namespace after what is in it.
    targets.reverse();
    Ok(targets)
}

fn target_of(object: &Value, namespace: &str) -> anyhow::Result<Target> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (Some(api_version), Some(kind)) = (text("/apiVersion"), text("/kind")) else {
        bail!("an object without apiVersion and kind");
    };
    let name = text("/metadata/name").with_context(|| format!("a {kind} without metadata.name"))?;
    let kind = kind.to_lowercase();
    let kind = match api_version.split_once('/') {
        Some((group, version)) => format!("{kind}.{version}.{group}"),
        None => kind,
    };
    Ok(Target { kind, namespace: text("/metadata/namespace").unwrap_or(namespace).into(), name: name.into() })
}

async fn delete_one(session: &Session, args: &DeleteArgs, target: &Target) -> anyhow::Result<()> {
    let request = DeleteObjectRequest {
        kind: target.kind.clone(),
        namespace: target.namespace.clone(),
        name: target.name.clone(),
        grace_period_seconds: args.grace_period.map(|seconds| seconds.try_into().unwrap_or(i32::MAX)),
        propagation: format!("{:?}", args.cascade),
    };
    let gone = session.objects().delete(ask(request)).await?.into_inner().gone;
    if !gone && args.detach {
        session.say(format!("{} is being deleted", target.words()))?;
        return Ok(());
    }
    if !gone {
        let seconds = args.timeout.unwrap_or(TIMEOUT_SECONDS);
        tokio::time::timeout(Duration::from_secs(seconds.into()), until_gone(session, target))
            .await
            .with_context(|| format!("{} is not gone after {}", target.words(), age(seconds.into())))??;
    }
    session.say(format!("{} deleted", target.words()))?;
    Ok(())
}

/// Returns when the object that is being deleted is gone, even if another one has its name by then. What is deleted may be
/// the very node that the answers come from, so that the daemon is asked more than once.
async fn until_gone(session: &Session, target: &Target) -> anyhow::Result<()> {
    let mut wanted = None;
    let mut failures = 0;
    loop {
        let looked = async {
            let Some((uid, revision)) = dying(session, target).await? else { return Ok(true) };
            if *wanted.get_or_insert_with(|| uid.clone()) != uid {
                return Ok(true);
            }
            sees_the_end(session, target, &uid, revision).await
        };
        match looked.await {
            Ok(true) => return Ok(()),
            Err(error) if failures >= RETRIES => return Err(error),
            Ok(false) | Err(_) => failures += 1,
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Whether a watch came to the end of the object.
async fn sees_the_end(session: &Session, target: &Target, uid: &str, revision: u64) -> anyhow::Result<bool> {
    let request = WatchObjectsRequest {
        kind: target.kind.clone(),
        namespace: target.namespace.clone(),
        field_selector: format!("metadata.name={}", target.name),
        revision,
        ..WatchObjectsRequest::default()
    };
    let mut stream = session.objects().watch(request).await?.into_inner();
    while let Some(event) = stream.message().await? {
        let object: Value = serde_json::from_slice(&event.json).unwrap_or_default();
        let same = object.pointer("/metadata/uid").and_then(Value::as_str) == Some(uid);
        if event.r#type == "DELETED" && same {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Uid and revision of the object, if it is still there and being deleted.
async fn dying(session: &Session, target: &Target) -> anyhow::Result<Option<(String, u64)>> {
    let request =
        GetObjectRequest { kind: target.kind.clone(), namespace: target.namespace.clone(), name: target.name.clone() };
    let object: Value = match session.objects().get(ask(request)).await {
        Ok(answer) => serde_json::from_slice(&answer.into_inner().json)?,
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(status.into()),
    };
    let text = |name: &str| object.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
    let revision = text("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(text("deletionTimestamp").and(text("uid")).map(|uid| (uid.to_owned(), revision)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn manifests_name_what_to_delete() {
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}});
        let target = target_of(&object, "prod").unwrap();
        assert_eq!(target, Target { kind: "deployment.v1.apps".into(), namespace: "prod".into(), name: "web".into() });
        assert_eq!(target.words(), "deployment.apps/web");
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "b"}});
        let target = target_of(&object, "prod").unwrap();
        assert_eq!(target, Target { kind: "pod".into(), namespace: "b".into(), name: "a".into() });
        let nameless = target_of(&json!({"apiVersion": "v1", "kind": "Pod"}), "prod").unwrap_err();
        assert_eq!(nameless.to_string(), "a Pod without metadata.name");
    }
}
