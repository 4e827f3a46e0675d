//! Whole lists of objects, and the table that the daemon draws of them.
//!
//! Invariant: a list is complete, however many pages it came in, and has a row an item if a table was asked for.

use serde_json::{Map, Value};
use tonic::Status;

use super::get::Query;
use super::output::{Cell, Table, plain};
use super::session::{Session, ask};
use crate::proto::{Column, GetObjectRequest, ListObjectsRequest, ListObjectsResponse, Row};

/// Objects in one answer; longer lists come in several.
const PAGE: u32 = 500;

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
    pub fn append(&mut self, other: Self) {
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
pub async fn list(session: &Session, query: &Query) -> anyhow::Result<Listing> {
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
            json_only: !query.is_table(),
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

/// The daemon's table, with or without its wide columns.
pub fn table(query: &Query, listing: &Listing) -> Table {
    let shown: Vec<bool> = listing.columns.iter().map(|column| query.shows(column)).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::get::ObjectFormat;
    use serde_json::json;

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
        let narrow = table(&Query::of_pods(ObjectFormat::Table, "prod"), &listing()).render(false);
        assert_eq!(narrow, "NAME    STATUS\nweb-1   Running\n");
        let wide = table(&Query::of_pods(ObjectFormat::Wide, "*"), &listing()).render(false);
        assert_eq!(wide, "NAMESPACE   NAME    STATUS    NODE\nprod        web-1   Running   node-1\n");
        let query = Query { extra_columns: &["NODE"], ..Query::of_pods(ObjectFormat::Table, "prod") };
        let some = table(&query, &listing()).render(false);
        assert_eq!(some, "NAME    STATUS    NODE\nweb-1   Running   node-1\n");
    }

    #[test]
    fn names_carry_the_group() {
        let item = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}});
        assert_eq!(name_line(&item), "deployment.apps/web");
        assert_eq!(name_line(&listing().items[0]), "pod/web-1");
    }
}
