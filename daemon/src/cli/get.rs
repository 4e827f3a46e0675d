//! `get` and `pods`: objects of any kind, as a table or as they are.

use clap::{Args, ValueEnum};
use flotilla_api::Registry;
use serde_json::{Value, json};

use super::DONE;
use super::listing::{Listing, list, name_line, table};
use super::output::{Format, Table, json as to_json, yaml};
use super::session::Session;
use super::watch;
use crate::proto::Column;

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
  flotilla get deployments,pods
  flotilla get deployment web -o yaml
  flotilla get pods -l app=web --field-selector spec.nodeName=node-1
  flotilla get events --watch")]
pub struct GetArgs {
    /// The kind: pods, deploy, deployments.apps; also KIND/NAME, or several: deploy,pods
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
    /// Wide columns that the plain table shows too.
    pub extra_columns: &'static [&'static str],
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
            extra_columns: &[],
        }
    }

    /// Whether the table shows a column.
    pub fn shows(&self, column: &Column) -> bool {
        let extra = || self.extra_columns.iter().any(|extra| extra.eq_ignore_ascii_case(&column.name));
        column.priority == 0 || self.format == ObjectFormat::Wide || extra()
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
    let query = Query::new(session, "pods", &args.which, args.which.output.unwrap_or_default());
    run(session, Query { extra_columns: &["IP", "NODE"], ..query }, args.which.watch).await
}

pub async fn get(session: &Session, args: &GetArgs) -> anyhow::Result<u8> {
    let (kind, names) = kind_and_names(&args.kind, &args.names)?;
    let format = args.which.output.unwrap_or_default();
    let query = Query { managed_fields: args.show_managed_fields, ..Query::new(session, kind, &args.which, format) };
    if kind.contains(',') {
        return several(session, &query, &names, args.which.watch).await;
    }
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

/// `get pods,deployments`: a table for each kind that has something, or one list of all.
async fn several(session: &Session, query: &Query, names: &[String], watching: bool) -> anyhow::Result<u8> {
    anyhow::ensure!(!watching, "--watch follows one kind at a time");
    let kinds: Vec<&str> = query.kind.split(',').filter(|kind| !kind.is_empty()).collect();
    let wanted: Vec<Option<String>> = match names {
        [] => vec![None],
        names => names.iter().cloned().map(Some).collect(),
    };
    let mut all = Vec::new();
    for kind in kinds {
        let query = Query { kind: kind.to_owned(), ..query.clone() };
        let mut listing = Listing::default();
        for name in &wanted {
            listing.append(list(session, &Query { name: name.clone(), ..query.clone() }).await?);
        }
        all.push((query, listing));
    }
    if !query.is_table() {
        let mut joined = Listing::default();
        all.into_iter().for_each(|(_, listing)| joined.append(listing));
        write(session, query, &joined)?;
        return Ok(DONE);
    }
    all.retain(|(_, listing)| !listing.rows.is_empty());
    if all.is_empty() {
        write(session, query, &Listing::default())?;
    }
    for (number, (query, listing)) in all.iter().enumerate() {
        if number > 0 {
            session.out.line("")?;
        }
        let names_kind = |row: &mut crate::proto::Row, item: &Value| {
            if let Some(cell) = row.cells.first_mut() {
                *cell = name_line(item);
            }
        };
        let mut listing = listing.clone();
        listing.rows.iter_mut().zip(&listing.items).for_each(|(row, item)| names_kind(row, item));
        write(session, query, &listing)?;
    }
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

fn hide_managed_fields(item: &mut Value) {
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

    impl Query {
        pub fn of_pods(format: ObjectFormat, namespace: &str) -> Self {
            Self {
                kind: "pods".into(),
                name: None,
                namespace: namespace.into(),
                labels: String::new(),
                fields: String::new(),
                format,
                managed_fields: false,
                extra_columns: &[],
            }
        }
    }

    #[test]
    fn a_name_joins_the_field_selector() {
        let mut query = Query::of_pods(ObjectFormat::Table, "prod");
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
        let mut query = Query::of_pods(ObjectFormat::Json, "prod");
        assert!(!document(&query, item.clone()).unwrap().contains("managedFields"));
        query.managed_fields = true;
        assert!(document(&query, item).unwrap().contains("managedFields"));
    }
}
