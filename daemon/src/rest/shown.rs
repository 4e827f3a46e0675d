//! How a client is shown objects: whole, as their metadata, or as rows of a table.

use std::borrow::Cow;
use std::sync::Arc;

use flotilla_api::kinds::Column;
use flotilla_api::{Kind, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Call;
use super::negotiate::View;
use super::table::{self, Include};

/// What ends every list.
pub const END: &[u8] = b"]}";

pub struct Shown {
    pub kind: Arc<Kind>,
    view: View,
    /// Of tables.
    include: Include,
    columns: Vec<Column>,
}

impl Shown {
    /// # Errors
    /// `BadRequest` for what a row cannot carry.
    pub fn of(call: &Call, kind: &Arc<Kind>) -> Result<Self, Status> {
        let include = match call.accepts.view {
            View::Table(_) => Include::parse(call.query.get("includeObject"))?,
            _ => Include::default(),
        };
        Ok(Self::new(kind, call.accepts.view, include))
    }

    pub fn new(kind: &Arc<Kind>, view: View, include: Include) -> Self {
        let columns = match view {
            View::Table(_) => kind.columns(),
            _ => Vec::new(),
        };
        Self { kind: kind.clone(), view, include, columns }
    }

    /// Whether objects are shown as they are stored.
    pub fn is_whole(&self) -> bool {
        self.view.is_whole()
    }

    /// An object by itself.
    pub fn one<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        self.told(object, true)
    }

    /// An object that a watch tells of. Rows have headers only if these are due.
    pub fn told<'a>(&self, object: &'a Value, headed: bool) -> Cow<'a, Value> {
        Cow::Owned(match self.view {
            View::Table(version) => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                table::with_rows(version, &self.columns, vec![self.row(version, object)], metadata, headed)
            }
            View::Metadata(version) | View::MetadataList(version) => table::partial(version, object),
            View::Whole | View::AllGroups(_) => return Cow::Borrowed(object),
        })
    }

    fn row(&self, version: &str, object: &Value) -> Value {
        table::row(&self.kind, version, &self.columns, object, self.include, Timestamp::now())
    }

    /// Where a watch is, without an object.
    pub fn bookmark<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        Cow::Owned(match self.view {
            View::Table(version) => {
                let row = json!({"cells": [], "object": table::partial(version, object)});
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                table::with_rows(version, &[], vec![row], metadata, false)
            }
            View::Metadata(version) | View::MetadataList(version) => table::partial(version, object),
            View::Whole | View::AllGroups(_) => return Cow::Borrowed(object),
        })
    }

    /// How a list begins: everything before its first item.
    pub fn head(&self, metadata: &Value) -> Vec<u8> {
        let text = |value: &str| Value::from(value);
        let (kind, version, columns, items) = match self.view {
            View::Table(version) => {
                let columns = format!(r#","columnDefinitions":{}"#, table::definitions(&self.columns));
                (text("Table"), text(&format!("meta.k8s.io/{version}")), columns, "rows")
            }
            View::Metadata(version) | View::MetadataList(version) => {
                (text("PartialObjectMetadataList"), text(&format!("meta.k8s.io/{version}")), String::new(), "items")
            }
            View::Whole | View::AllGroups(_) => {
                (text(&format!("{}List", self.kind.kind)), text(&self.kind.api_version()), String::new(), "items")
            }
        };
        format!(r#"{{"kind":{kind},"apiVersion":{version},"metadata":{metadata}{columns},"{items}":["#).into_bytes()
    }

    /// Puts an object behind what is in `out`, as an item of a list.
    ///
    /// # Errors
    /// If it is no JSON.
    pub fn item(&self, json: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
        let item = match self.view {
            View::Whole | View::AllGroups(_) => {
                out.extend_from_slice(json);
                return Ok(());
            }
            View::Table(version) => self.row(version, &parse(json)?),
            View::Metadata(version) | View::MetadataList(version) => table::partial(version, &parse(json)?),
        };
        serde_json::to_writer(out, &item).map_err(Status::internal)
    }

    /// A whole list.
    ///
    /// # Errors
    /// If an item is no JSON.
    pub fn list(&self, items: &[Vec<u8>], metadata: &Value) -> Result<Vec<u8>, Status> {
        let mut list = self.head(metadata);
        list.reserve(items.iter().map(|item| item.len() + 1).sum::<usize>() + END.len());
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                list.push(b',');
            }
            self.item(item, &mut list)?;
        }
        list.extend_from_slice(END);
        Ok(list)
    }
}

fn parse(json: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(json).map_err(Status::internal)
}
