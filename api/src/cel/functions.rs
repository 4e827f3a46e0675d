//! The functions of CEL and of Kubernetes' libraries: strings, lists, sets, regular expressions, quantities, URLs,
//! addresses, optionals.
//!
//! Invariant: each pays for what it looks at and for what it makes, before it does so.

use std::cmp::Ordering;
use std::rc::Rc;

use cel::common::ast::operators;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use regex::{Regex, RegexBuilder};

use super::eval::{Budget, Error, error, no_overload};
use super::text;
use super::value::Val;
use crate::quantity::Amount;

/// What a compiled pattern may take.
const MAX_PATTERN_MEMORY_BYTES: usize = 256 * 1024;

type Evaluated<'a> = Result<Val<'a>, Error>;

/// A function that is called on nothing: operators, conversions, constructors.
pub(super) fn global<'a>(name: &str, values: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
    match (name, values) {
        (operators::EQUALS, [a, b]) => equal(a, b, budget).map(Val::Bool),
        (operators::NOT_EQUALS, [a, b]) => equal(a, b, budget).map(|same| Val::Bool(!same)),
        (operators::LESS, [a, b]) => compare(a, b, Ordering::is_lt, budget),
        (operators::LESS_EQUALS, [a, b]) => compare(a, b, Ordering::is_le, budget),
        (operators::GREATER, [a, b]) => compare(a, b, Ordering::is_gt, budget),
        (operators::GREATER_EQUALS, [a, b]) => compare(a, b, Ordering::is_ge, budget),
        (operators::LOGICAL_NOT, [Val::Bool(value)]) => Ok(Val::Bool(!value)),
        (operators::NEGATE, [Val::Int(value)]) => value.checked_neg().map(Val::Int).map_or_else(overflow, Ok),
        (operators::NEGATE, [Val::Double(value)]) => Ok(Val::Double(-value)),
        (operators::IN, [item, list]) => contained(item, list, budget),
        (operators::INDEX, [list, index]) => index_of(list, index, budget),
        (operators::OPT_INDEX, [list, index]) => optional_index(list, index),
        (
            operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO,
            [a, b],
        ) => arithmetic(name, a, b, budget),
        ("size", [value]) => size(value, budget),
        ("type", [value]) => Ok(Val::Type(value.type_name())),
        ("dyn", [value]) => Ok(value.clone()),
        ("isQuantity" | "isURL" | "isIP" | "isCIDR", [value]) => is_well_formed(name, value),
        _ => convert(name, values, budget),
    }
}

/// Conversions and constructors from one value.
fn convert<'a>(name: &str, values: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
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

fn is_well_formed<'a>(name: &str, value: &Val<'_>) -> Evaluated<'a> {
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

fn overflow<'a>() -> Evaluated<'a> {
    error("integer overflow")
}

fn budget_limit(budget: &Budget) -> u64 {
    budget.left
}

/// Two values are compared as far as the lighter one goes; neither is weighed much further than that.
fn pay_for_both(a: &Val<'_>, b: &Val<'_>, budget: &mut Budget) -> Result<(), Error> {
    let mut limit = 64;
    loop {
        let lighter = a.weight(limit).min(b.weight(limit));
        if lighter <= limit || limit > budget_limit(budget) {
            return budget.pay(lighter);
        }
        limit *= 4;
    }
}

fn equal(a: &Val<'_>, b: &Val<'_>, budget: &mut Budget) -> Result<bool, Error> {
    pay_for_both(a, b, budget)?;
    Ok(a.equals(b))
}

fn compare<'a>(a: &Val<'_>, b: &Val<'_>, holds: fn(Ordering) -> bool, budget: &mut Budget) -> Evaluated<'a> {
    pay_for_both(a, b, budget)?;
    match a.compare(b) {
        Some(ordering) => Ok(Val::Bool(holds(ordering))),
        // Not-a-number is in no order with anything.
        None if matches!((a, b), (Val::Double(_), _) | (_, Val::Double(_))) && is_number(a) && is_number(b) => {
            Ok(Val::Bool(false))
        }
        None => no_overload(),
    }
}

fn is_number(value: &Val<'_>) -> bool {
    matches!(value, Val::Int(_) | Val::UInt(_) | Val::Double(_))
}

fn contained<'a>(item: &Val<'_>, list: &Val<'_>, budget: &mut Budget) -> Evaluated<'a> {
    if list.is_map() {
        return Ok(Val::Bool(list.entry(item).is_some()));
    }
    if !list.is_list() {
        return no_overload();
    }
    position(list, item, budget).map(|found| Val::Bool(found.is_some()))
}

/// Where in a list an item stands first.
fn position(list: &Val<'_>, item: &Val<'_>, budget: &mut Budget) -> Result<Option<usize>, Error> {
    let weight = item.weight(budget_limit(budget)).max(1);
    for index in 0..list.count().unwrap_or_default() {
        budget.pay(weight)?;
        if list.item(index).is_some_and(|other| other.equals(item)) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

fn index_of<'a>(list: &Val<'a>, index: &Val<'_>, budget: &mut Budget) -> Evaluated<'a> {
    if let Val::Optional(inner) = list {
        return match inner {
            Some(inner) => optional_index(inner, index),
            None => Ok(Val::Optional(None)),
        };
    }
    if list.is_map() {
        budget.pay(1)?;
        return list.entry(index).map_or_else(
            || Err(Error::NoSuchKey(text::words(index).unwrap_or_else(|| index.type_name().to_owned()))),
            Ok,
        );
    }
    let Some(number) = whole(index).filter(|_| list.is_list()) else { return no_overload() };
    match usize::try_from(number).ok().and_then(|index| list.item(index)) {
        Some(item) => Ok(item),
        None => error(format!("index out of bounds: {number}")),
    }
}

fn optional_index<'a>(list: &Val<'a>, index: &Val<'_>) -> Evaluated<'a> {
    let list = match list {
        Val::Optional(None) => return Ok(Val::Optional(None)),
        Val::Optional(Some(inner)) => inner,
        list => list,
    };
    let found = match list.is_map() {
        true => list.entry(index),
        false => whole(index).and_then(|index| usize::try_from(index).ok()).and_then(|index| list.item(index)),
    };
    Ok(Val::Optional(found.map(Rc::new)))
}

fn whole(value: &Val<'_>) -> Option<i64> {
    match value {
        Val::Int(value) => Some(*value),
        Val::UInt(value) => i64::try_from(*value).ok(),
        Val::Double(value) if value.fract() == 0.0 && value.abs() < 1e15 => Some(*value as i64),
        _ => None,
    }
}

fn arithmetic<'a>(operator: &str, a: &Val<'a>, b: &Val<'a>, budget: &mut Budget) -> Evaluated<'a> {
    let by_zero = || error(if operator == operators::MODULO { "modulus by zero" } else { "division by zero" });
    match (operator, a, b) {
        (operators::DIVIDE | operators::MODULO, Val::Int(_), Val::Int(0)) => by_zero(),
        (operators::DIVIDE | operators::MODULO, Val::UInt(_), Val::UInt(0)) => by_zero(),
        (_, Val::Int(a), Val::Int(b)) => {
            let result = match operator {
                operators::ADD => a.checked_add(*b),
                operators::SUBSTRACT => a.checked_sub(*b),
                operators::MULTIPLY => a.checked_mul(*b),
                operators::DIVIDE => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            result.map(Val::Int).map_or_else(overflow, Ok)
        }
        (_, Val::UInt(a), Val::UInt(b)) => {
            let result = match operator {
                operators::ADD => a.checked_add(*b),
                operators::SUBSTRACT => a.checked_sub(*b),
                operators::MULTIPLY => a.checked_mul(*b),
                operators::DIVIDE => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            result.map(Val::UInt).map_or_else(|| error("unsigned integer overflow"), Ok)
        }
        (operators::ADD, Val::Double(a), Val::Double(b)) => Ok(Val::Double(a + b)),
        (operators::SUBSTRACT, Val::Double(a), Val::Double(b)) => Ok(Val::Double(a - b)),
        (operators::MULTIPLY, Val::Double(a), Val::Double(b)) => Ok(Val::Double(a * b)),
        (operators::DIVIDE, Val::Double(a), Val::Double(b)) => Ok(Val::Double(a / b)),
        (operators::ADD, Val::Duration(a), Val::Duration(b)) => of_duration(a.checked_add(*b)),
        (operators::SUBSTRACT, Val::Duration(a), Val::Duration(b)) => of_duration(a.checked_sub(*b)),
        (operators::ADD, Val::Timestamp(time), Val::Duration(span)) => of_time(time.checked_add(*span).ok()),
        (operators::ADD, Val::Duration(span), Val::Timestamp(time)) => of_time(time.checked_add(*span).ok()),
        (operators::SUBSTRACT, Val::Timestamp(time), Val::Duration(span)) => of_time(time.checked_sub(*span).ok()),
        (operators::SUBSTRACT, Val::Timestamp(a), Val::Timestamp(b)) => Ok(Val::Duration(a.duration_since(*b))),
        (operators::ADD, Val::Bytes(a), Val::Bytes(b)) => {
            budget.pay((a.len() + b.len()) as u64)?;
            Ok(Val::Bytes([a.as_ref(), b.as_ref()].concat().into()))
        }
        (operators::ADD, a, b) if a.is_list() && b.is_list() => {
            budget.pay((a.count().unwrap_or_default() + b.count().unwrap_or_default()) as u64)?;
            let mut items = a.items();
            items.extend(b.items());
            Ok(Val::list(items))
        }
        (operators::ADD, a, b) => match (a.as_text(), b.as_text()) {
            (Some(a), Some(b)) => {
                budget.pay((a.len() + b.len()) as u64)?;
                Ok(Val::text([a, b].concat()))
            }
            _ => no_overload(),
        },
        _ => no_overload(),
    }
}

fn of_duration<'a>(duration: Option<SignedDuration>) -> Evaluated<'a> {
    duration.map(Val::Duration).map_or_else(|| error("duration overflow"), Ok)
}

fn of_time<'a>(time: Option<Timestamp>) -> Evaluated<'a> {
    time.map(Val::Timestamp).map_or_else(|| error("timestamp overflow"), Ok)
}

fn size<'a>(value: &Val<'_>, budget: &mut Budget) -> Evaluated<'a> {
    if let Some(text) = value.as_text() {
        budget.pay(text.len() as u64 / 10)?;
        return Ok(Val::Int(text.chars().count() as i64));
    }
    match value {
        Val::Bytes(bytes) => Ok(Val::Int(bytes.len() as i64)),
        other => other.count().map(|len| Val::Int(len as i64)).map_or_else(no_overload, Ok),
    }
}

/// A function of a library that is called by its name: `sets.contains(a, b)`.
pub(super) fn library<'a>(library: &str, name: &str, values: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
    match (library, name, values) {
        ("optional", "of", [value]) => Ok(Val::Optional(Some(Rc::new(value.clone())))),
        ("optional", "none", []) => Ok(Val::Optional(None)),
        ("optional", "ofNonZeroValue", [value]) => {
            let is_zero = match value {
                Val::Null | Val::Bool(false) | Val::Int(0) | Val::UInt(0) | Val::Optional(None) => true,
                Val::Double(value) => *value == 0.0,
                other => other.count() == Some(0) || other.as_text() == Some(""),
            };
            Ok(Val::Optional((!is_zero).then(|| Rc::new(value.clone()))))
        }
        ("sets", "contains", [a, b]) => all_in(b, a, budget).map(Val::Bool),
        ("sets", "equivalent", [a, b]) => Ok(Val::Bool(all_in(a, b, budget)? && all_in(b, a, budget)?)),
        ("sets", "intersects", [a, b]) if a.is_list() && b.is_list() => {
            for item in a.items() {
                if position(b, &item, budget)?.is_some() {
                    return Ok(Val::Bool(true));
                }
            }
            Ok(Val::Bool(false))
        }
        ("math", "greatest" | "least", values) => extreme(name == "greatest", values, budget),
        _ => no_overload(),
    }
}

fn all_in(items: &Val<'_>, list: &Val<'_>, budget: &mut Budget) -> Result<bool, Error> {
    if !items.is_list() || !list.is_list() {
        return no_overload();
    }
    for item in items.items() {
        budget.pay(1)?;
        if position(list, &item, budget)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn extreme<'a>(greatest: bool, values: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
    let values = match values {
        [list] if list.is_list() => list.items(),
        values => values.to_vec(),
    };
    budget.pay(values.len() as u64)?;
    let mut best: Option<Val<'a>> = None;
    for value in values {
        let better = match &best {
            None => true,
            Some(best) => match value.compare(best) {
                Some(ordering) if greatest => ordering.is_gt(),
                Some(ordering) => ordering.is_lt(),
                None => return no_overload(),
            },
        };
        if better {
            best = Some(value);
        }
    }
    best.map_or_else(|| error(if greatest { "max called on empty list" } else { "min called on empty list" }), Ok)
}

/// A function that is called on a value.
pub(super) fn member<'a>(name: &str, values: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
    let [target, arguments @ ..] = values else { return no_overload() };
    match target {
        _ if target.as_text().is_some() => {
            of_text(name, target.as_text().unwrap_or_default(), target, arguments, budget)
        }
        Val::Optional(inner) => of_optional(name, inner.as_deref(), arguments),
        Val::Timestamp(time) => of_timestamp(name, *time, arguments),
        Val::Duration(duration) => match (name, arguments) {
            ("getHours", []) => Ok(Val::Int(duration.as_hours())),
            ("getMinutes", []) => Ok(Val::Int(duration.as_mins())),
            ("getSeconds", []) => Ok(Val::Int(duration.as_secs())),
            ("getMilliseconds", []) => Ok(Val::Int(i64::from(duration.subsec_millis()))),
            _ => no_overload(),
        },
        Val::Quantity(amount) => of_quantity(name, *amount, arguments),
        Val::Url(url) => of_url(name, url, budget),
        Val::Ip(address) => of_ip(name, *address),
        Val::Cidr(address, bits) => of_cidr(name, *address, *bits, arguments),
        _ if target.is_list() => of_list(name, target, arguments, budget),
        _ if name == "size" && arguments.is_empty() => size(target, budget),
        _ => no_overload(),
    }
}

fn of_text<'a>(name: &str, this: &str, target: &Val<'a>, arguments: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
    budget.pay(1 + this.len() as u64 / 10)?;
    let texts: Vec<Option<&str>> = arguments.iter().map(Val::as_text).collect();
    let numbers: Vec<Option<i64>> = arguments
        .iter()
        .map(|value| match value {
            Val::Int(number) => Some(*number),
            _ => None,
        })
        .collect();
    match (name, texts.as_slice(), numbers.as_slice()) {
        ("size", [], _) => size(target, budget),
        ("startsWith", [Some(other)], _) => Ok(Val::Bool(this.starts_with(other))),
        ("endsWith", [Some(other)], _) => Ok(Val::Bool(this.ends_with(other))),
        ("contains", [Some(other)], _) => Ok(Val::Bool(this.contains(other))),
        ("matches", [Some(pattern)], _) => Ok(Val::Bool(compiled(pattern, this, budget)?.is_match(this))),
        ("find", [Some(pattern)], _) => {
            Ok(Val::text(compiled(pattern, this, budget)?.find(this).map_or("", |found| found.as_str())))
        }
        ("findAll", [Some(pattern)], _) => find_all(pattern, this, -1, budget),
        ("findAll", [Some(pattern), _], [_, Some(limit)]) => find_all(pattern, this, *limit, budget),
        ("lowerAscii", [], _) => made(this.to_ascii_lowercase(), budget),
        ("upperAscii", [], _) => made(this.to_ascii_uppercase(), budget),
        ("trim", [], _) => made(this.trim().to_owned(), budget),
        ("reverse", [], _) => made(this.chars().rev().collect(), budget),
        ("charAt", [_], [Some(index)]) => match usize::try_from(*index).ok().filter(|at| *at <= this.chars().count()) {
            Some(at) => Ok(Val::text(this.chars().nth(at).map(String::from).unwrap_or_default())),
            None => error(format!("index out of range: {index}")),
        },
        ("indexOf" | "lastIndexOf", [Some(other)], _) => {
            budget.pay(this.len() as u64 / 10)?;
            let found = if name == "indexOf" { this.find(other) } else { this.rfind(other) };
            Ok(Val::Int(found.map_or(-1, |at| this[..at].chars().count() as i64)))
        }
        ("indexOf", [Some(other), _], [_, Some(from)]) => {
            let Some((at, _)) = usize::try_from(*from).ok().and_then(|from| this.char_indices().nth(from)) else {
                return error(format!("index out of range: {from}"));
            };
            Ok(Val::Int(this[at..].find(other).map_or(-1, |found| this[..at + found].chars().count() as i64)))
        }
        ("replace", [Some(old), Some(new)], _) => replace(this, old, new, -1, budget),
        ("replace", [Some(old), Some(new), _], [_, _, Some(limit)]) => replace(this, old, new, *limit, budget),
        ("split", [Some(separator)], _) => split(this, separator, -1, budget),
        ("split", [Some(separator), _], [_, Some(limit)]) => split(this, separator, *limit, budget),
        ("substring", [_], [Some(from)]) => substring(this, *from, this.chars().count() as i64, budget),
        ("substring", [_, _], [Some(from), Some(to)]) => substring(this, *from, *to, budget),
        ("format", [None], _) => format(this, &arguments[0], budget),
        _ => no_overload(),
    }
}

fn made<'a>(text: String, budget: &mut Budget) -> Evaluated<'a> {
    budget.pay(text.len() as u64)?;
    Ok(Val::text(text))
}

fn compiled(pattern: &str, over: &str, budget: &mut Budget) -> Result<Regex, Error> {
    // Compiling a pattern costs more than matching a short text; matching is linear in the text.
    budget.pay(100 + (pattern.len() as u64) * (1 + over.len() as u64 / 16))?;
    let built = RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_MEMORY_BYTES)
        .dfa_size_limit(MAX_PATTERN_MEMORY_BYTES)
        .nest_limit(50)
        .build();
    built.map_err(|_| Error::Other(format!("invalid regular expression: {pattern:?}")))
}

fn find_all<'a>(pattern: &str, this: &str, limit: i64, budget: &mut Budget) -> Evaluated<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let compiled = compiled(pattern, this, budget)?;
    let mut found = Vec::new();
    for one in compiled.find_iter(this).take(limit) {
        budget.pay(1 + one.len() as u64)?;
        found.push(Val::text(one.as_str()));
    }
    Ok(Val::list(found))
}

fn replace<'a>(this: &str, old: &str, new: &str, limit: i64, budget: &mut Budget) -> Evaluated<'a> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let count = this.matches(old).take(limit).count() as u64;
    budget.pay(this.len() as u64 + count.saturating_mul(new.len() as u64))?;
    Ok(Val::text(this.replacen(old, new, limit)))
}

fn split<'a>(this: &str, separator: &str, limit: i64, budget: &mut Budget) -> Evaluated<'a> {
    budget.pay(2 * this.len() as u64)?;
    let parts: Vec<Val<'a>> = match (separator, limit) {
        (_, 0) => Vec::new(),
        ("", limit) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            this.chars().take(limit).map(|c| Val::text(c.to_string())).collect()
        }
        (separator, limit) if limit > 0 => this.splitn(limit as usize, separator).map(Val::text).collect(),
        (separator, _) => this.split(separator).map(Val::text).collect(),
    };
    Ok(Val::list(parts))
}

fn substring<'a>(this: &str, from: i64, to: i64, budget: &mut Budget) -> Evaluated<'a> {
    let length = this.chars().count() as i64;
    if from < 0 || from > length {
        return error(format!("index out of range: {from}"));
    }
    if to < 0 || to > length {
        return error(format!("index out of range: {to}"));
    }
    if from > to {
        return error(format!("invalid substring range. start: {from}, end: {to}"));
    }
    made(this.chars().skip(from as usize).take((to - from) as usize).collect(), budget)
}

/// `'%s is %d'.format([…])`
fn format<'a>(template: &str, arguments: &Val<'a>, budget: &mut Budget) -> Evaluated<'a> {
    if !arguments.is_list() {
        return no_overload();
    }
    let mut values = arguments.items().into_iter();
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let end = rest
            .find(|c: char| c.is_ascii_alphabetic())
            .ok_or_else(|| Error::Other("could not parse formatting clause".into()))?;
        let (precision, verb) = (&rest[..end], rest.as_bytes()[end]);
        rest = &rest[end + 1..];
        let Some(value) = values.next() else { return error("index out of range: not enough arguments to format") };
        let precision: Option<usize> =
            precision.strip_prefix('.').and_then(|digits| digits.parse().ok()).filter(|n| *n <= 100);
        let words = formatted(verb, precision, &value).ok_or_else(|| {
            Error::Other(format!("error during formatting: unrecognized formatting clause \"{}\"", char::from(verb)))
        })?;
        budget.pay(words.len() as u64)?;
        out.push_str(&words);
    }
    out.push_str(rest);
    made(out, budget)
}

fn formatted(verb: u8, precision: Option<usize>, value: &Val<'_>) -> Option<String> {
    Some(match (verb, value) {
        (b's', Val::Null) => "null".to_owned(),
        (b's', value) => match text::words(value) {
            Some(words) => words,
            None => value.to_json().to_string(),
        },
        (b'd', Val::Int(value)) => value.to_string(),
        (b'd', Val::UInt(value)) => value.to_string(),
        (b'd', Val::Double(value)) if value.fract() == 0.0 => value.to_string(),
        (b'f', Val::Double(value)) => format!("{value:.*}", precision.unwrap_or(6)),
        (b'f', Val::Int(value)) => format!("{:.*}", precision.unwrap_or(6), *value as f64),
        (b'e', Val::Double(value)) => format!("{value:.*e}", precision.unwrap_or(6)),
        (b'b', Val::Int(value)) => format!("{}{:b}", if *value < 0 { "-" } else { "" }, value.unsigned_abs()),
        (b'b', Val::Bool(value)) => u8::from(*value).to_string(),
        (b'o', Val::Int(value)) => format!("{}{:o}", if *value < 0 { "-" } else { "" }, value.unsigned_abs()),
        (b'x', Val::Int(value)) => format!("{}{:x}", if *value < 0 { "-" } else { "" }, value.unsigned_abs()),
        (b'X', Val::Int(value)) => format!("{}{:X}", if *value < 0 { "-" } else { "" }, value.unsigned_abs()),
        _ => return None,
    })
}

fn of_list<'a>(name: &str, list: &Val<'a>, arguments: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
    let length = list.count().unwrap_or_default();
    budget.pay(1 + length as u64)?;
    if matches!(name, "isSorted" | "min" | "max") {
        budget.pay(list.weight(budget_limit(budget)))?;
    }
    match (name, arguments) {
        ("size", []) => size(list, budget),
        ("isSorted", []) => {
            for index in 1..length {
                let (Some(a), Some(b)) = (list.item(index - 1), list.item(index)) else { return no_overload() };
                match a.compare(&b) {
                    Some(Ordering::Greater) => return Ok(Val::Bool(false)),
                    Some(_) => {}
                    None => return no_overload(),
                }
            }
            Ok(Val::Bool(true))
        }
        ("sum", []) => {
            let mut items = list.items().into_iter();
            let Some(first) = items.next() else { return Ok(Val::Int(0)) };
            items.try_fold(first, |sum, item| arithmetic(operators::ADD, &sum, &item, budget))
        }
        ("min" | "max", []) => extreme(name == "max", std::slice::from_ref(list), budget),
        ("indexOf", [item]) => Ok(Val::Int(position(list, item, budget)?.map_or(-1, |at| at as i64))),
        ("lastIndexOf", [item]) => {
            let mut found = -1;
            for index in 0..length {
                budget.pay(item.weight(budget_limit(budget)))?;
                if list.item(index).is_some_and(|other| other.equals(item)) {
                    found = index as i64;
                }
            }
            Ok(Val::Int(found))
        }
        ("join", []) => join(list, "", budget),
        ("join", [separator]) => match separator.as_text() {
            Some(separator) => join(list, separator, budget),
            None => no_overload(),
        },
        ("distinct", []) => {
            let mut seen: Vec<Val<'a>> = Vec::new();
            for item in list.items() {
                budget.pay(1 + seen.len() as u64 * item.weight(budget_limit(budget)))?;
                if !seen.iter().any(|known| known.equals(&item)) {
                    seen.push(item);
                }
            }
            Ok(Val::list(seen))
        }
        ("reverse", []) => Ok(Val::list(list.items().into_iter().rev().collect())),
        ("sort", []) => {
            let mut items = list.items();
            budget.pay(list.weight(budget_limit(budget)).saturating_mul(4))?;
            if items.windows(2).any(|pair| pair[0].compare(&pair[1]).is_none()) {
                return no_overload();
            }
            items.sort_by(|a, b| a.compare(b).unwrap_or(Ordering::Equal));
            Ok(Val::list(items))
        }
        ("flatten", []) => {
            let mut flat = Vec::new();
            for item in list.items() {
                match item.is_list() {
                    true => {
                        budget.pay(item.count().unwrap_or_default() as u64)?;
                        flat.extend(item.items());
                    }
                    false => flat.push(item),
                }
            }
            Ok(Val::list(flat))
        }
        ("slice", [Val::Int(from), Val::Int(to)]) => {
            let range = usize::try_from(*from).ok().zip(usize::try_from(*to).ok());
            match range.filter(|(from, to)| from <= to && *to <= length) {
                Some((from, to)) => Ok(Val::list(list.items().drain(from..to).collect())),
                None => error(format!("cannot slice({from}, {to}), list is length {length}")),
            }
        }
        ("first" | "last", []) => {
            let at = if name == "first" { 0 } else { length.wrapping_sub(1) };
            Ok(Val::Optional(list.item(at).map(Rc::new)))
        }
        _ => no_overload(),
    }
}

fn join<'a>(list: &Val<'_>, separator: &str, budget: &mut Budget) -> Evaluated<'a> {
    let mut out = String::new();
    for (index, item) in list.items().iter().enumerate() {
        let Some(text) = item.as_text() else { return no_overload() };
        budget.pay(1 + (text.len() + separator.len()) as u64)?;
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(Val::text(out))
}

fn of_optional<'a>(name: &str, inner: Option<&Val<'a>>, arguments: &[Val<'a>]) -> Evaluated<'a> {
    match (name, arguments) {
        ("hasValue", []) => Ok(Val::Bool(inner.is_some())),
        ("value", []) => inner.cloned().map_or_else(|| error("optional.none() dereference"), Ok),
        ("orValue", [other]) => Ok(inner.cloned().unwrap_or_else(|| other.clone())),
        ("or", [other @ Val::Optional(_)]) => {
            Ok(inner.map_or_else(|| other.clone(), |inner| Val::Optional(Some(Rc::new(inner.clone())))))
        }
        _ => no_overload(),
    }
}

fn of_timestamp<'a>(name: &str, time: Timestamp, arguments: &[Val<'a>]) -> Evaluated<'a> {
    let zone = match arguments {
        [] => TimeZone::UTC,
        [zone] => match zone.as_text() {
            Some("UTC" | "Z") => TimeZone::UTC,
            // Zones by name would make a rule depend on what this machine has installed.
            Some(_) => return error("only UTC is known here"),
            None => return no_overload(),
        },
        _ => return no_overload(),
    };
    let at = time.to_zoned(zone);
    let number = match name {
        "getFullYear" => i64::from(at.year()),
        "getMonth" => i64::from(at.month()) - 1,
        "getDate" => i64::from(at.day()),
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDayOfWeek" => i64::from(at.weekday().to_sunday_zero_offset()),
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getHours" => i64::from(at.hour()),
        "getMinutes" => i64::from(at.minute()),
        "getSeconds" => i64::from(at.second()),
        "getMilliseconds" => i64::from(at.millisecond()),
        _ => return no_overload(),
    };
    Ok(Val::Int(number))
}

fn of_quantity<'a>(name: &str, amount: Amount, arguments: &[Val<'a>]) -> Evaluated<'a> {
    let other = || match arguments {
        [Val::Quantity(other)] => Some(*other),
        [Val::Int(units)] => Some(Amount::units(*units, crate::quantity::Notation::Decimal)),
        _ => None,
    };
    match (name, other()) {
        ("isGreaterThan", Some(other)) => Ok(Val::Bool(amount > other)),
        ("isLessThan", Some(other)) => Ok(Val::Bool(amount < other)),
        ("compareTo", Some(other)) => Ok(Val::Int(amount.cmp(&other) as i64)),
        ("add", Some(other)) => Ok(Val::Quantity(amount.plus(other))),
        ("sub", Some(other)) => Ok(Val::Quantity(amount.plus(other.negated()))),
        ("sign", None) => Ok(Val::Int(amount.cmp(&Amount::ZERO) as i64)),
        ("isInteger", None) => Ok(Val::Bool(amount.is_whole())),
        ("asInteger", None) if amount.is_whole() => Ok(Val::Int(amount.value())),
        ("asInteger", None) => error("cannot convert value to integer"),
        ("asApproximateFloat", None) => Ok(Val::Double(amount.milli_value() as f64 / 1000.0)),
        _ => no_overload(),
    }
}

fn of_url<'a>(name: &str, url: &str, budget: &mut Budget) -> Evaluated<'a> {
    budget.pay(1 + url.len() as u64 / 10)?;
    let Some(parts) = text::url(url) else { return no_overload() };
    let host_name = match parts.host.rsplit_once(':') {
        Some((name, _)) if !parts.host.ends_with(']') => name,
        _ => parts.host,
    };
    Ok(match name {
        "getScheme" => Val::text(parts.scheme),
        "getHost" => Val::text(parts.host),
        "getHostname" => Val::text(host_name.trim_matches(['[', ']'])),
        "getPort" => Val::text(parts.host[host_name.len()..].trim_start_matches(':')),
        "getEscapedPath" => Val::text(parts.path),
        "getQuery" => {
            let mut entries: Vec<(Val<'a>, Val<'a>)> = Vec::new();
            for (key, value) in parts
                .query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            {
                budget.pay(1 + entries.len() as u64)?;
                let key = Val::text(key);
                match entries.iter_mut().find(|(known, _)| known.equals(&key)) {
                    Some((_, Val::List(values))) => Rc::make_mut(values).push(Val::text(value)),
                    _ => entries.push((key, Val::list(vec![Val::text(value)]))),
                }
            }
            Val::Map(Rc::new(entries))
        }
        _ => return no_overload(),
    })
}

fn of_ip<'a>(name: &str, address: std::net::IpAddr) -> Evaluated<'a> {
    use std::net::IpAddr;
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0) == 0xfe80,
    };
    let is_link_local_multicast = match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => (v6.segments()[0] & 0xff0f) == 0xff02,
    };
    Ok(match name {
        "family" => Val::Int(if address.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Val::Bool(address.is_unspecified()),
        "isLoopback" => Val::Bool(address.is_loopback()),
        "isLinkLocalUnicast" => Val::Bool(is_link_local),
        "isLinkLocalMulticast" => Val::Bool(is_link_local_multicast),
        "isGlobalUnicast" => {
            let broadcast = address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
            let global =
                !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_link_local);
            Val::Bool(global && !broadcast)
        }
        _ => return no_overload(),
    })
}

fn of_cidr<'a>(name: &str, address: std::net::IpAddr, bits: u8, arguments: &[Val<'a>]) -> Evaluated<'a> {
    let network = text::masked(address, bits);
    match (name, arguments) {
        ("ip", []) => Ok(Val::Ip(address)),
        ("prefixLength", []) => Ok(Val::Int(i64::from(bits))),
        ("masked", []) => Ok(Val::Cidr(
            match address {
                std::net::IpAddr::V4(_) => std::net::Ipv4Addr::from(u32::try_from(network).unwrap_or_default()).into(),
                std::net::IpAddr::V6(_) => std::net::Ipv6Addr::from(network).into(),
            },
            bits,
        )),
        ("containsIP", [other]) => {
            let other = match other {
                Val::Ip(other) => Some(*other),
                other => other.as_text().and_then(text::ip),
            };
            let Some(other) = other else { return no_overload() };
            Ok(Val::Bool(other.is_ipv4() == address.is_ipv4() && text::masked(other, bits) == network))
        }
        ("containsCIDR", [other]) => {
            let other = match other {
                Val::Cidr(other, length) => Some((*other, *length)),
                other => other.as_text().and_then(text::cidr),
            };
            let Some((other, length)) = other else { return no_overload() };
            let inside = other.is_ipv4() == address.is_ipv4() && length >= bits;
            Ok(Val::Bool(inside && text::masked(other, bits) == network))
        }
        _ => no_overload(),
    }
}
