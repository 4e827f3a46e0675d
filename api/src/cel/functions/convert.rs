//! Conversions and constructors: one value from another.

use jiff::Timestamp;

use super::super::eval::{Budget, error, no_overload};
use super::super::text;
use super::super::value::Val;
use super::{Evaluated, budget_limit, overflow};
use crate::quantity::Amount;

/// Conversions and constructors from one value.
pub(super) fn convert<'a>(name: &str, values: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
    let [value] = values else { return no_overload() };
    budget.pay(value.weight(budget_limit(budget)))?;
    match name {
        "string" => text::words(value).map(Val::text).map_or_else(no_overload, Ok),
        "int" => to_int(value),
        "uint" => to_uint(value),
        "double" => match value {
            Val::Int(value) => Ok(Val::Double(*value as f64)),
            Val::UInt(value) => Ok(Val::Double(*value as f64)),
            Val::Double(value) => Ok(Val::Double(*value)),
            other => parsed(other, "double", |text| text.parse().ok().map(Val::Double)),
        },
        "bool" => match value {
            Val::Bool(value) => Ok(Val::Bool(*value)),
            other => parsed(other, "bool", |text| match text {
                "1" | "t" | "true" | "TRUE" | "True" | "T" => Some(Val::Bool(true)),
                "0" | "f" | "false" | "FALSE" | "False" | "F" => Some(Val::Bool(false)),
                _ => None,
            }),
        },
        "bytes" => match value {
            Val::Bytes(bytes) => Ok(Val::Bytes(bytes.clone())),
            other => parsed(other, "bytes", |text| Some(Val::Bytes(text.as_bytes().into()))),
        },
        "timestamp" => match value {
            Val::Timestamp(time) => Ok(Val::Timestamp(*time)),
            Val::Int(seconds) => match Timestamp::from_second(*seconds) {
                Ok(time) => Ok(Val::Timestamp(time)),
                Err(_) => error("timestamp overflow"),
            },
            other => parsed(other, "timestamp", |text| text.parse().ok().map(Val::Timestamp)),
        },
        "duration" => match value {
            Val::Duration(duration) => Ok(Val::Duration(*duration)),
            other => parsed(other, "duration", |text| text::duration(text).map(Val::Duration)),
        },
        "quantity" => parsed(value, "quantity", |text| Amount::parse(text).ok().map(Val::Quantity)),
        "url" => parsed(value, "URL", |text| text::url(text).map(|_| Val::Url(text.into()))),
        "ip" => parsed(value, "IP", |text| text::ip(text).map(Val::Ip)),
        "cidr" => parsed(value, "CIDR", |text| text::cidr(text).map(|(address, bits)| Val::Cidr(address, bits))),
        _ => no_overload(),
    }
}

fn parsed<'a>(value: &Val<'_>, what: &str, parse: impl Fn(&str) -> Option<Val<'a>>) -> Evaluated<'a> {
    let Some(text) = value.as_text() else { return no_overload() };
    match parse(text) {
        Some(value) => Ok(value),
        None => error(format!("type conversion error from 'string' to '{what}'")),
    }
}

pub(super) fn is_well_formed<'a>(name: &str, value: &Val<'_>) -> Evaluated<'a> {
    let Some(text) = value.as_text() else { return no_overload() };
    Ok(Val::Bool(match name {
        "isQuantity" => Amount::parse(text).is_ok(),
        "isURL" => text::url(text).is_some(),
        "isIP" => text::ip(text).is_some(),
        _ => text::cidr(text).is_some(),
    }))
}

fn to_int<'a>(value: &Val<'_>) -> Evaluated<'a> {
    match value {
        Val::Int(value) => Ok(Val::Int(*value)),
        Val::UInt(value) => i64::try_from(*value).map(Val::Int).or_else(|_| overflow()),
        // The bounds themselves do not fit a double exactly.
        Val::Double(value) if value.abs() < 9.223_372_036_854_775e18 => Ok(Val::Int(*value as i64)),
        Val::Double(_) => overflow(),
        Val::Timestamp(time) => Ok(Val::Int(time.as_second())),
        Val::Duration(duration) => Ok(Val::Int(duration.as_secs())),
        other => parsed(other, "int", |text| text.parse().ok().map(Val::Int)),
    }
}

fn to_uint<'a>(value: &Val<'_>) -> Evaluated<'a> {
    match value {
        Val::UInt(value) => Ok(Val::UInt(*value)),
        Val::Int(value) => u64::try_from(*value).map(Val::UInt).or_else(|_| overflow()),
        Val::Double(value) if *value >= 0.0 && *value < 1.844_674_407_370_955e19 => Ok(Val::UInt(*value as u64)),
        Val::Double(_) => overflow(),
        other => parsed(other, "uint", |text| text.parse().ok().map(Val::UInt)),
    }
}
