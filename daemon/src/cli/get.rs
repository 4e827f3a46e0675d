//! `get` and `pods`: objects of any kind, as a table or as they are.

use clap::{Args, ValueEnum};
use flotilla_api::Registry;
use serde_json::{Map, Value, json};
use tonic::Status;

use super::DONE;
use super::output::{Cell, Format, Table, json as to_json, plain, yaml};
use super::session::{Session, ask};
use super::watch;
use crate::proto::{Column, GetObjectRequest, ListObjectsRequest, ListObjectsResponse, Row};

/// Objects in one answer; longer lists come in several.
const PAGE: u32 = 500;

/// How objects are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ObjectFormat {
    #[default]
    Table,
    /// The table with all its columns
    Wide,
    Json,
    Yaml,
    /// A line `kind/name` for each
    Name,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla get pods -A -o wide
  flotilla get deployment web -o yaml
  flotilla get pods -l app=web --field-selector spec.nodeName=node-1
  flotilla get events --watch")]
pub struct GetArgs {
    /// The kind: pods, deploy, deployments.apps; also KIND/NAME
    kind: String,
    /// Only these objects
    names: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// Also show which fields who manages
    #[arg(long)]
    show_managed_fields: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla pods
  flotilla pods -l flotilla.dev/job=web --watch")]
pub struct PodsArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
pub struct Which {
    /// The objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels: app=web,tier in (a,b)
    #[arg(short = 'l', long, default_value = "", hide_default_value = true, value_name = "LABELS")]
    selector: String,
    /// Only objects with these fields: spec.nodeName=node-1
    #[arg(long, default_value = "", hide_default_value = true, value_name = "FIELDS")]
    field_selector: String,
    /// Go on showing what changes
    #[arg(short, long)]
    watch: bool,
    /// How to write them
    #[arg(short, long, value_enum)]
    output: Option<ObjectFormat>,
}

/// What to get, how to write it.
#[derive(Clone, Debug)]
pub struct Query {
    pub kind: String,
    pub name: Option<String>,
    pub namespace: String,
    pub labels: String,
    pub fields: String,
    pub format: ObjectFormat,
    pub managed_fields: bool,
}

impl Query {
    fn new(session: &Session, kind: &str, which: &Which, format: ObjectFormat) -> Self {
        Self {
            kind: kind.into(),
            name: None,
            namespace: session.namespace_or_all(which.all_namespaces),
            labels: which.selector.clone(),
            fields: which.field_selector.clone(),
            format,
            managed_fields: false,
        }
    }

    /// The field selector, which also picks the object by its name.
    pub fn field_selector(&self) -> String {
        let name = self.name.as_ref().map(|name| format!("metadata.name={name}"));
        let fields = Some(self.fields.clone()).filter(|fields| !fields.is_empty());
        name.into_iter().chain(fields).collect::<Vec<_>>().join(",")
    }

    pub fn shows_namespaces(&self) -> bool {
        self.namespace == super::session::ALL_NAMESPACES
    }

    pub fn is_table(&self) -> bool {
        matches!(self.format, ObjectFormat::Table | ObjectFormat::Wide)
    }
}

pub async fn pods(session: &Session, args: &PodsArgs) -> anyhow::Result<u8> {
    let format = args.which.output.unwrap_or(ObjectFormat::Wide);
    run(session, Query::new(session, "pods", &args.which, format), args.which.watch).await
}

pub async fn get(session: &Session, args: &GetArgs) -> anyhow::Result<u8> {
    let (kind, names) = kind_and_names(&args.kind, &args.names)?;
    let format = args.which.output.unwrap_or_default();
    let query = Query { managed_fields: args.show_managed_fields, ..Query::new(session, kind, &args.which, format) };
    if let [name] = names.as_slice() {
        return run(session, Query { name: Some(name.clone()), ..query }, args.which.watch).await;
    }
    if args.which.watch && !names.is_empty() {
        anyhow::bail!("--watch follows one object or all of a kind, not a few");
    }
    if names.is_empty() {
        return run(session, query, args.which.watch).await;
    }
    let mut listing = Listing::default();
    for name in names {
        listing.append(list(session, &Query { name: Some(name), ..query.clone() }).await?);
    }
    write(session, &query, &listing)?;
    Ok(DONE)
}

/// `pods web-1` and `pods/web-1` mean the same.
pub fn kind_and_names<'a>(kind: &'a str, names: &[String]) -> anyhow::Result<(&'a str, Vec<String>)> {
    match kind.split_once('/') {
        None => Ok((kind, names.to_vec())),
        Some((kind, name)) if names.is_empty() && !kind.is_empty() && !name.is_empty() => {
            Ok((kind, vec![name.to_owned()]))
        }
        Some(_) => anyhow::bail!("{kind:?}: write KIND NAME, or KIND/NAME alone"),
    }
}

async fn run(session: &Session, query: Query, watching: bool) -> anyhow::Result<u8> {
    let listing = list(session, &query).await?;
    if watching {
        return watch::watch(session, &query, listing).await;
    }
    write(session, &query, &listing)?;
    Ok(DONE)
}

/// A whole list, put together from its pages.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    pub items: Vec<Value>,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
    pub revision: u64,
    pub api_version: String,
    pub kind: String,
}

impl Listing {
    fn append(&mut self, other: Self) {
        self.items.extend(other.items);
        self.rows.extend(other.rows);
        (self.columns, self.api_version, self.kind) = (other.columns, other.api_version, other.kind);
        self.revision = self.revision.max(other.revision);
    }
}

/// Every object that the query means.
///
/// # Errors
/// If the daemon refuses, or a named object does not exist.
async fn list(session: &Session, query: &Query) -> anyhow::Result<Listing> {
    let mut listing = Listing::default();
    let mut continue_token = String::new();
    loop {
        let request = ListObjectsRequest {
            kind: query.kind.clone(),
            namespace: query.namespace.clone(),
            label_selector: query.labels.clone(),
            field_selector: query.field_selector(),
            limit: PAGE,
            continue_token,
        };
        let page = session.objects().list(ask(request)).await?.into_inner();
        continue_token = page.continue_token.clone();
        listing.append(page_of(page)?);
        if continue_token.is_empty() {
            break;
        }
    }
    if let Some(name) = query.name.as_ref().filter(|_| listing.items.is_empty()) {
        missing(session, query, name).await?;
    }
    Ok(listing)
}

/// The daemon's own words about an object that does not exist.
async fn missing(session: &Session, query: &Query, name: &str) -> Result<(), Status> {
    if query.shows_namespaces() {
        return Err(Status::not_found(format!("{} \"{name}\" not found in any namespace", query.kind)));
    }
    let request =
        GetObjectRequest { kind: query.kind.clone(), namespace: query.namespace.clone(), name: name.to_owned() };
    session.objects().get(ask(request)).await.map(drop)
}

fn page_of(page: ListObjectsResponse) -> anyhow::Result<Listing> {
    let mut items = Vec::with_capacity(page.items.len());
    for bytes in &page.items {
        items.push(object(bytes, &page.api_version, &page.kind)?);
    }
    Ok(Listing {
        items,
        columns: page.columns,
        rows: page.rows,
        revision: page.revision,
        api_version: page.api_version,
        kind: page.kind,
    })
}

/// Reads an object of a list, which may leave out what the list says.
///
/// # Errors
/// If it is not JSON.
pub fn object(json: &[u8], api_version: &str, kind: &str) -> serde_json::Result<Value> {
    let mut object: Map<String, Value> = serde_json::from_slice(json)?;
    object.entry("apiVersion").or_insert_with(|| api_version.into());
    object.entry("kind").or_insert_with(|| kind.into());
    Ok(Value::Object(object))
}

fn write(session: &Session, query: &Query, listing: &Listing) -> anyhow::Result<()> {
    let out = &session.out;
    match query.format {
        ObjectFormat::Table | ObjectFormat::Wide if listing.rows.is_empty() => eprintln!("{}", none_words(query)),
        ObjectFormat::Table | ObjectFormat::Wide => out.table(&table(query, listing))?,
        ObjectFormat::Name => {
            for item in &listing.items {
                out.line(name_line(item))?;
            }
        }
        ObjectFormat::Json | ObjectFormat::Yaml => {
            let mut items: Vec<Value> = listing.items.clone();
            if !query.managed_fields {
                items.iter_mut().for_each(hide_managed_fields);
            }
            let value = match (query.name.is_some(), items.len()) {
                (true, 1) => items.remove(0),
                _ => json!({"apiVersion": "v1", "kind": "List", "items": items}),
            };
            let format = if query.format == ObjectFormat::Json { Format::Json } else { Format::Yaml };
            out.show(format, &value, Table::default)?;
        }
    }
    Ok(())
}

fn none_words(query: &Query) -> String {
    let scoped = Registry::builtin().by_name(&query.kind).is_ok_and(|kind| !kind.is_namespaced());
    if query.shows_namespaces() || scoped {
        format!("no {} found", query.kind)
    } else {
        format!("no {} found in namespace {}", query.kind, query.namespace)
    }
}

/// The daemon's table, with or without its wide columns.
pub fn table(query: &Query, listing: &Listing) -> Table {
    let shown: Vec<bool> =
        listing.columns.iter().map(|column| column.priority == 0 || query.format == ObjectFormat::Wide).collect();
    let names: Vec<String> = listing.columns.iter().map(|column| column.name.to_uppercase()).collect();
    let namespaces = query.shows_namespaces() && listing.items.iter().any(|item| namespace_of(item).is_some());
    let header = names.iter().zip(&shown).filter(|(_, shown)| **shown).map(|(name, _)| name.as_str());
    let mut table = Table::new(namespaces.then_some("NAMESPACE").into_iter().chain(header));
    for (row, item) in listing.rows.iter().zip(&listing.items) {
        let cells = row.cells.iter().zip(&names).zip(&shown).filter(|(_, shown)| **shown);
        let cells = cells.map(|((text, name), _)| if name == "STATUS" { Cell::status(text) } else { Cell::from(text) });
        let namespace = namespaces.then(|| Cell::from(namespace_of(item).unwrap_or_default()));
        table.row(namespace.into_iter().chain(cells));
    }
    table
}

fn namespace_of(item: &Value) -> Option<&str> {
    item.pointer("/metadata/namespace")?.as_str()
}

fn text_at<'a>(item: &'a Value, pointer: &str) -> &'a str {
    item.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// `deployment.apps/web`.
pub fn name_line(item: &Value) -> String {
    let kind = text_at(item, "/kind").to_lowercase();
    let name = text_at(item, "/metadata/name");
    plain(&match text_at(item, "/apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    })
}

pub fn hide_managed_fields(item: &mut Value) {
    if let Some(metadata) = item.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

/// One object as data.
///
/// # Errors
/// If it has no YAML form.
pub fn document(query: &Query, mut item: Value) -> anyhow::Result<String> {
    if !query.managed_fields {
        hide_managed_fields(&mut item);
    }
    Ok(match query.format {
        ObjectFormat::Json => to_json(&item)?,
        ObjectFormat::Yaml => format!("---\n{}", yaml(&item)?.trim_end()),
        _ => name_line(&item),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(format: ObjectFormat, namespace: &str) -> Query {
        Query {
            kind: "pods".into(),
            name: None,
            namespace: namespace.into(),
            labels: String::new(),
            fields: String::new(),
            format,
            managed_fields: false,
        }
    }

    fn listing() -> Listing {
        let column = |name: &str, priority| Column { name: name.into(), priority };
        let row = |cells: [&str; 3]| Row { cells: cells.map(String::from).to_vec() };
        Listing {
            items: vec![json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "namespace": "prod"}})],
            columns: vec![column("Name", 0), column("Status", 0), column("Node", 1)],
            rows: vec![row(["web-1", "Running", "node-1"])],
            revision: 7,
            ..Listing::default()
        }
    }

    #[test]
    fn wide_tables_show_every_column() {
        let narrow = table(&query(ObjectFormat::Table, "prod"), &listing()).render(false);
        assert_eq!(narrow, "NAME    STATUS\nweb-1   Running\n");
        let wide = table(&query(ObjectFormat::Wide, "*"), &listing()).render(false);
        assert_eq!(wide, "NAMESPACE   NAME    STATUS    NODE\nprod        web-1   Running   node-1\n");
    }

    #[test]
    fn names_carry_the_group() {
        let item = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}});
        assert_eq!(name_line(&item), "deployment.apps/web");
        assert_eq!(name_line(&listing().items[0]), "pod/web-1");
    }

    #[test]
    fn a_name_joins_the_field_selector() {
        let mut query = query(ObjectFormat::Table, "prod");
        query.name = Some("web-1".into());
        assert_eq!(query.field_selector(), "metadata.name=web-1");
        query.fields = "status.phase=Running".into();
        assert_eq!(query.field_selector(), "metadata.name=web-1,status.phase=Running");
    }

    #[test]
    fn kind_and_name_may_be_one_word() {
        assert_eq!(kind_and_names("pod/a", &[]).unwrap(), ("pod", vec!["a".to_owned()]));
        assert_eq!(kind_and_names("pod", &["a".into()]).unwrap(), ("pod", vec!["a".to_owned()]));
        assert!(kind_and_names("pod/a", &["b".into()]).is_err());
        assert!(kind_and_names("pod/", &[]).is_err());
    }

    #[test]
    fn managed_fields_stay_hidden_unless_asked_for() {
        let item = json!({"metadata": {"name": "a", "managedFields": [1]}});
        let mut query = query(ObjectFormat::Json, "prod");
        assert!(!document(&query, item.clone()).unwrap().contains("managedFields"));
        query.managed_fields = true;
        assert!(document(&query, item).unwrap().contains("managedFields"));
    }
}
