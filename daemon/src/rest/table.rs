//! Objects as people read them: `Table`, and `PartialObjectMetadata`.

use flotilla_api::columns;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use flotilla_api::kinds::Column;
use flotilla_api::{Kind, Status};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

/// Which part of each object a row carries beside its cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    #[default]
    Metadata,
    Object,
    None,
}

impl Include {
    /// As `includeObject` says.
    ///
    /// # Errors
    /// `BadRequest` in upstream's words for what it does not say.
    pub fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            "None" => Ok(Self::None),
            other => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: \"{other}\": must be 'Metadata', \
                 'Object', 'None', or empty"
            ))),
        }
    }
}

/// A Scale, which is of no kind that is stored.
pub fn of_scale(version: &str, scale: &Value, include: Include) -> Value {
    let columns = [columns::NAME, Column::number("Desired"), Column::number("Available"), columns::AGE];
    let meta = ObjectMeta::deserialize(&scale["metadata"]).unwrap_or_default();
    let cells = json!([
        scale["metadata"]["name"],
        scale["spec"]["replicas"],
        scale["status"]["replicas"],
        columns::age(&meta, Timestamp::now())
    ]);
    let row = json!({"cells": cells, "object": carried(version, scale, include)});
    let metadata = json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
    with_rows(version, &columns, vec![row], metadata, true)
}

/// A table of rows, under the headers of their kind unless those were sent before.
pub fn with_rows(version: &str, columns: &[Column], rows: Vec<Value>, metadata: Value, headed: bool) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "columnDefinitions": if headed { definitions(columns) } else { Value::Null },
        "rows": rows,
    })
}

/// The headers of a table.
pub fn definitions(columns: &[Column]) -> Value {
    columns.iter().map(definition).collect()
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.type_,
        "format": if column.name == "Name" { "name" } else { "" },
        "description": if column.description.is_empty() { &column.name } else { &column.description },
        "priority": i32::from(column.wide),
    })
}

pub fn row(kind: &Kind, version: &str, columns: &[Column], object: &Value, include: Include, now: Timestamp) -> Value {
    let cells: Vec<Value> = kind
        .row(object, now)
        .into_iter()
        .zip(columns)
        .map(|(cell, column)| match column.type_ {
            _ if cell.is_empty() && kind.structure.is_some() => Value::Null,
            _ if column.is_count => cell.parse::<i64>().map_or(Value::String(cell), Value::from),
            "integer" => cell.parse::<i64>().map_or(Value::String(cell), Value::from),
            "number" => cell.parse::<f64>().map_or(Value::String(cell), Value::from),
            "boolean" => cell.parse::<bool>().map_or(Value::String(cell), Value::from),
            _ => Value::String(cell),
        })
        .collect();
    json!({"cells": cells, "object": carried(version, object, include)})
}

fn carried(version: &str, object: &Value, include: Include) -> Value {
    match include {
        Include::Metadata => partial(version, object),
        Include::Object => object.clone(),
        Include::None => Value::Null,
    }
}

/// An object's metadata, and nothing else of it.
pub fn partial(version: &str, object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.get("metadata").cloned().unwrap_or(Value::Null),
    })
}

#[cfg(test)]
mod tests {
    use flotilla_api::{Builtin, Registry};

    use super::*;

    #[test]
    fn counts_are_numbers_in_columns_of_text() {
        let kind = Registry::builtin().built_in(Builtin::ConfigMap).unwrap();
        let columns = kind.columns();
        let object = json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": "2"}});
        let row = row(&kind, "v1", &columns, &object, Include::None, Timestamp::now());
        assert_eq!((columns[1].type_, &row["cells"][1]), ("string", &json!(2)));
    }

    #[test]
    fn a_scale_has_upstreams_columns() {
        let metadata = json!({"name": "web", "resourceVersion": "7"});
        let scale = json!({"metadata": metadata, "spec": {"replicas": 3}, "status": {"replicas": 2}});
        let table = of_scale("v1", &scale, Include::Metadata);
        let names: Vec<&Value> =
            table["columnDefinitions"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
        assert_eq!(table["rows"][0]["cells"], json!(["web", 3, 2, "<unknown>"]));
        assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "web");
        assert_eq!(table["metadata"]["resourceVersion"], "7");
    }
}
