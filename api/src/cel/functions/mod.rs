//! The functions of CEL and of Kubernetes' libraries: strings, lists, sets, regular expressions, quantities, URLs,
//! addresses, optionals.
//!
//! Invariant: each pays for what it looks at and for what it makes, before it does so.

mod convert;
mod kubernetes;
mod lists;
mod texts;

use std::cmp::Ordering;
use std::rc::Rc;

use cel::common::ast::operators;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::eval::{Budget, Error, error, no_overload};
use super::text;
use super::value::Val;
use crate::zones;
use convert::{convert, is_well_formed};
use kubernetes::{of_cidr, of_ip, of_quantity, of_url};
use lists::of_list;
use texts::of_text;

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
            for item in paid_items(a, budget)? {
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
    for item in paid_items(items, budget)? {
        if position(list, &item, budget)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The items of a list that is walked through, which is paid for beforehand.
fn paid_items<'a>(list: &Val<'a>, budget: &mut Budget) -> Result<Vec<Val<'a>>, Error> {
    budget.pay(list.weight(budget_limit(budget)).max(list.count().unwrap_or_default() as u64))?;
    Ok(list.items())
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

/// By its name, or as hours and minutes east of Greenwich: `-08:00`.
fn named_zone(text: &str) -> Result<TimeZone, String> {
    let Some((hours, minutes)) = text.split_once(':') else { return zones::zone(text) };
    let number = |digits: &str| digits.parse::<i32>().map_err(|_| format!("{text:?} is not an offset from UTC"));
    let (hours, minutes) = (number(hours)?.saturating_mul(60), number(minutes)?);
    let east = if text.starts_with('-') { hours.saturating_sub(minutes) } else { hours.saturating_add(minutes) };
    let offset = Offset::from_seconds(east.saturating_mul(60)).map_err(|error| error.to_string())?;
    Ok(TimeZone::fixed(offset))
}

fn of_timestamp<'a>(name: &str, time: Timestamp, arguments: &[Val<'a>]) -> Evaluated<'a> {
    let zone = match arguments {
        [] => TimeZone::UTC,
        [zone] => match zone.as_text().map(named_zone) {
            Some(Ok(zone)) => zone,
            Some(Err(words)) => return error(words),
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
