//! Functions of lists.

use std::cmp::Ordering;
use std::rc::Rc;

use cel::common::ast::operators;

use super::super::eval::{Budget, error, no_overload};
use super::super::value::Val;
use super::{Evaluated, arithmetic, budget_limit, extreme, position, size};

pub(super) fn of_list<'a>(name: &str, list: &Val<'a>, arguments: &[Val<'a>], budget: &mut Budget) -> Evaluated<'a> {
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
