//! What an expression comes to, step by step; each step is paid for.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};
use regex::Regex;

use super::value::Val;
use super::{functions, unescape};

/// What all rules of one object may cost together: upstream's bound.
pub const MAX_OBJECT_COST: u64 = 10_000_000;
/// What one evaluation may cost: upstream's bound.
pub const MAX_CALL_COST: u64 = 1_000_000;

/// Patterns that are kept compiled; further ones are compiled, and paid for, each time.
const MAX_PATTERNS: usize = 64;

/// What is left to be spent on rules, and what was spent for all of them.
#[derive(Clone, Debug)]
pub struct Budget {
    /// By all rules of the object.
    pub(super) left: u64,
    /// By this one evaluation.
    call: u64,
    patterns: HashMap<String, Regex>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: MAX_OBJECT_COST, call: MAX_CALL_COST, patterns: HashMap::new() }
    }
}

impl Budget {
    /// Begins the next evaluation.
    pub fn begin(&mut self) {
        self.call = MAX_CALL_COST;
    }

    /// A pattern that was compiled before, or is now with `compile`, for `cost`.
    pub(super) fn pattern(
        &mut self,
        pattern: &str,
        cost: u64,
        compile: impl FnOnce() -> Result<Regex, Error>,
    ) -> Result<Regex, Error> {
        if let Some(known) = self.patterns.get(pattern) {
            return Ok(known.clone());
        }
        self.pay(cost)?;
        let compiled = compile()?;
        if self.patterns.len() < MAX_PATTERNS {
            self.patterns.insert(pattern.to_owned(), compiled.clone());
        }
        Ok(compiled)
    }

    pub(super) fn pay(&mut self, cost: u64) -> Result<(), Error> {
        if cost > self.call || cost > self.left {
            (self.call, self.left) = (0, self.left.saturating_sub(cost));
            return Err(Error::Cost);
        }
        self.call -= cost;
        self.left -= cost;
        Ok(())
    }
}

/// Why an expression comes to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The budget is spent. Nothing makes up for it.
    Cost,
    NoSuchKey(String),
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Cost => f.write_str("operation cancelled: actual cost limit exceeded"),
            Error::NoSuchKey(key) => write!(f, "no such key: {key}"),
            Error::Other(words) => f.write_str(words),
        }
    }
}

pub(super) fn error<T>(words: impl Into<String>) -> Result<T, Error> {
    Err(Error::Other(words.into()))
}

pub(super) fn no_overload<T>() -> Result<T, Error> {
    error("no such overload")
}

/// The variables that an expression sees, inner ones last.
#[derive(Default)]
pub struct Scope<'a> {
    variables: Vec<(&'a str, Val<'a>)>,
}

impl<'a> Scope<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bind(&mut self, name: &'a str, value: Val<'a>) {
        self.variables.push((name, value));
    }

    fn get(&self, name: &str) -> Option<&Val<'a>> {
        self.variables.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Takes a variable's value out, so that whoever has it may change it in place.
    fn take(&mut self, name: &str) -> Option<Val<'a>> {
        let found = self.variables.iter_mut().rev().find(|(known, _)| *known == name);
        found.map(|(_, value)| std::mem::replace(value, Val::Null))
    }
}

type Evaluated<'a> = Result<Val<'a>, Error>;

pub(super) fn eval<'a>(expr: &'a IdedExpr, scope: &mut Scope<'a>, budget: &mut Budget) -> Evaluated<'a> {
    budget.pay(1)?;
    let value = evaluated(expr, scope, budget)?;
    if let Val::Bytes(bytes) = &value {
        // They may have been decoded for this.
        budget.pay(bytes.len() as u64 / 10)?;
    }
    Ok(value)
}

fn evaluated<'a>(expr: &'a IdedExpr, scope: &mut Scope<'a>, budget: &mut Budget) -> Evaluated<'a> {
    match &expr.expr {
        Expr::Literal(literal) => Ok(of_literal(literal)),
        Expr::Ident(name) => ident(name, scope),
        Expr::Select(select) => {
            if let Some(type_) = qualified_type(expr) {
                return Ok(Val::Type(type_));
            }
            let operand = eval(&select.operand, scope, budget)?;
            self::select(operand, &select.field, select.test)
        }
        Expr::Call(call) => self::call(call, scope, budget),
        Expr::List(list) => {
            let mut items = Vec::with_capacity(list.elements.len());
            for (index, element) in list.elements.iter().enumerate() {
                let value = eval(element, scope, budget)?;
                match (list.optional_indices.contains(&index), value) {
                    (true, Val::Optional(value)) => items.extend(value.map(|value| value.as_ref().clone())),
                    (true, _) => return no_overload(),
                    (false, value) => items.push(value),
                }
            }
            Ok(Val::list(items))
        }
        Expr::Map(map) => {
            let mut entries: Vec<(Val<'a>, Val<'a>)> = Vec::new();
            for entry in &map.entries {
                let EntryExpr::MapEntry(entry) = &entry.expr else { return no_overload() };
                let key = eval(&entry.key, scope, budget)?;
                let value = eval(&entry.value, scope, budget)?;
                budget.pay(entries.len() as u64)?;
                if entries.iter().any(|(known, _)| known.equals(&key)) {
                    return error("repeated key");
                }
                match (entry.optional, value) {
                    (true, Val::Optional(None)) => {}
                    (true, Val::Optional(Some(value))) => entries.push((key, value.as_ref().clone())),
                    (_, value) => entries.push((key, value)),
                }
            }
            Ok(Val::Map(Rc::new(entries)))
        }
        Expr::Comprehension(comprehension) => self::comprehension(comprehension, scope, budget),
        Expr::Struct(_) | Expr::Unspecified => error("messages cannot be made here"),
    }
}

fn of_literal<'a>(literal: &'a LiteralValue) -> Val<'a> {
    match literal {
        LiteralValue::Boolean(value) => Val::Bool(*value.inner()),
        LiteralValue::Bytes(value) => Val::Bytes(value.inner().into()),
        LiteralValue::Double(value) => Val::Double(*value.inner()),
        LiteralValue::Int(value) => Val::Int(*value.inner()),
        LiteralValue::Null => Val::Null,
        LiteralValue::String(value) => Val::Borrowed(value.inner()),
        LiteralValue::UInt(value) => Val::UInt(*value.inner()),
    }
}

/// The names of types, which are values too.
pub(super) const TYPES: &[&str] =
    &["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type", "dyn", "optional_type"];

fn ident<'a>(name: &str, scope: &Scope<'a>) -> Evaluated<'a> {
    if let Some(value) = scope.get(name) {
        return Ok(value.clone());
    }
    match TYPES.iter().find(|type_| **type_ == name) {
        Some(type_) => Ok(Val::Type(type_)),
        None => error(format!("undeclared reference to '{name}' (in container '')")),
    }
}

/// `google.protobuf.Timestamp` and `google.protobuf.Duration`.
pub(super) fn qualified_type(expr: &IdedExpr) -> Option<&'static str> {
    let Expr::Select(last) = &expr.expr else { return None };
    let Expr::Select(middle) = &last.operand.expr else { return None };
    let Expr::Ident(first) = &middle.operand.expr else { return None };
    match (first.as_str(), middle.field.as_str(), last.field.as_str()) {
        ("google", "protobuf", "Timestamp") => Some("google.protobuf.Timestamp"),
        ("google", "protobuf", "Duration") => Some("google.protobuf.Duration"),
        _ => None,
    }
}

fn select<'a>(operand: Val<'a>, field: &str, test: bool) -> Evaluated<'a> {
    if let Val::Optional(inner) = &operand {
        let Some(inner) = inner else {
            return Ok(if test { Val::Bool(false) } else { Val::Optional(None) });
        };
        let found = field_of(inner, field);
        return Ok(match test {
            true => Val::Bool(found.is_some()),
            false => Val::Optional(found.map(Rc::new)),
        });
    }
    if !operand.is_map() {
        return no_overload();
    }
    match (test, field_of(&operand, field)) {
        (true, found) => Ok(Val::Bool(found.is_some())),
        (false, Some(value)) => Ok(value),
        (false, None) => Err(Error::NoSuchKey(unescape(field))),
    }
}

fn field_of<'a>(operand: &Val<'a>, field: &str) -> Option<Val<'a>> {
    operand.entry(&Val::Text(unescape(field).into())).or_else(|| operand.entry(&Val::Text(field.into())))
}

fn call<'a>(call: &'a CallExpr, scope: &mut Scope<'a>, budget: &mut Budget) -> Evaluated<'a> {
    match (call.func_name.as_str(), call.args.as_slice()) {
        (operators::LOGICAL_AND, [left, right]) => logical(left, right, false, scope, budget),
        (operators::LOGICAL_OR, [left, right]) => logical(left, right, true, scope, budget),
        (operators::CONDITIONAL, [condition, yes, no]) => match eval(condition, scope, budget)? {
            Val::Bool(true) => eval(yes, scope, budget),
            Val::Bool(false) => eval(no, scope, budget),
            _ => no_overload(),
        },
        (operators::NOT_STRICTLY_FALSE, [inner]) => match eval(inner, scope, budget) {
            Err(Error::Cost) => Err(Error::Cost),
            Ok(Val::Bool(value)) => Ok(Val::Bool(value)),
            _ => Ok(Val::Bool(true)),
        },
        (operators::ADD, [left, right]) => add(left, right, scope, budget),
        (operators::OPT_SELECT, [operand, field]) => {
            let operand = eval(operand, scope, budget)?;
            let Expr::Literal(LiteralValue::String(field)) = &field.expr else { return no_overload() };
            match operand {
                Val::Optional(None) => Ok(Val::Optional(None)),
                Val::Optional(Some(inner)) => Ok(Val::Optional(field_of(&inner, field.inner()).map(Rc::new))),
                operand if operand.is_map() => Ok(Val::Optional(field_of(&operand, field.inner()).map(Rc::new))),
                _ => no_overload(),
            }
        }
        ("optMap" | "optFlatMap", [variable, body]) if call.target.is_some() => {
            let Some(target) = &call.target else { return no_overload() };
            let Expr::Ident(name) = &variable.expr else { return no_overload() };
            match eval(target, scope, budget)? {
                Val::Optional(None) => Ok(Val::Optional(None)),
                Val::Optional(Some(inner)) => {
                    scope.bind(name, inner.as_ref().clone());
                    let value = eval(body, scope, budget);
                    scope.variables.pop();
                    match (call.func_name.as_str(), value?) {
                        ("optMap", value) => Ok(Val::Optional(Some(Rc::new(value)))),
                        (_, Val::Optional(value)) => Ok(Val::Optional(value)),
                        _ => no_overload(),
                    }
                }
                _ => no_overload(),
            }
        }
        (name, arguments) => {
            let library = call.target.as_ref().and_then(|target| namespace(target, scope));
            let mut values = Vec::with_capacity(arguments.len() + 1);
            if let (Some(target), None) = (&call.target, library) {
                values.push(eval(target, scope, budget)?);
            }
            for argument in arguments {
                values.push(eval(argument, scope, budget)?);
            }
            match (library, &call.target) {
                (Some(library), _) => functions::library(library, name, &values, budget),
                (None, Some(_)) => functions::member(name, &values, budget),
                (None, None) => functions::global(name, &values, budget),
            }
        }
    }
}

/// `sets.contains(…)`: the target is the name of a library, unless a variable is called so.
fn namespace(target: &IdedExpr, scope: &Scope<'_>) -> Option<&'static str> {
    let Expr::Ident(name) = &target.expr else { return None };
    let known = ["sets", "optional", "math", "cel", "format"].into_iter().find(|known| known == name)?;
    scope.get(known).is_none().then_some(known)
}

/// `&&` and `||`: one side that decides makes up for an error of the other.
fn logical<'a>(
    left: &'a IdedExpr,
    right: &'a IdedExpr,
    decisive: bool,
    scope: &mut Scope<'a>,
    budget: &mut Budget,
) -> Evaluated<'a> {
    let as_bool = |value: Evaluated<'a>| match value {
        Ok(Val::Bool(value)) => Ok(value),
        Ok(_) => no_overload(),
        Err(error) => Err(error),
    };
    let left = as_bool(eval(left, scope, budget));
    match left {
        Ok(value) if value == decisive => return Ok(Val::Bool(decisive)),
        Err(Error::Cost) => return Err(Error::Cost),
        _ => {}
    }
    match (left, as_bool(eval(right, scope, budget))) {
        (_, Err(Error::Cost)) => Err(Error::Cost),
        (_, Ok(value)) if value == decisive => Ok(Val::Bool(decisive)),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(_), Ok(value)) => Ok(Val::Bool(value)),
    }
}

/// `accumulator + [item]` grows the list in place, so that a list of n costs n.
fn add<'a>(left: &'a IdedExpr, right: &'a IdedExpr, scope: &mut Scope<'a>, budget: &mut Budget) -> Evaluated<'a> {
    if let (Expr::Ident(name), Expr::List(_)) = (&left.expr, &right.expr)
        && name.starts_with('@')
    {
        let more = eval(right, scope, budget)?;
        if let (Some(Val::List(mut list)), Val::List(more)) = (scope.take(name), more) {
            budget.pay(1 + more.len() as u64)?;
            Rc::make_mut(&mut list).extend(more.iter().cloned());
            return Ok(Val::List(list));
        }
        return no_overload();
    }
    let values = [eval(left, scope, budget)?, eval(right, scope, budget)?];
    functions::global(operators::ADD, &values, budget)
}

fn comprehension<'a>(all: &'a ComprehensionExpr, scope: &mut Scope<'a>, budget: &mut Budget) -> Evaluated<'a> {
    let range = eval(&all.iter_range, scope, budget)?;
    let Some(length) = range.count() else { return no_overload() };
    budget.pay(length as u64)?;
    let (firsts, seconds): (Vec<Val<'a>>, Option<Vec<Val<'a>>>) = match (&all.iter_var2, range.is_list()) {
        (None, true) => (range.items(), None),
        (None, false) => (range.keys(), None),
        (Some(_), true) => ((0..length).map(|index| Val::Int(index as i64)).collect(), Some(range.items())),
        (Some(_), false) => {
            let keys = range.keys();
            let values = keys.iter().map(|key| range.entry(key).unwrap_or(Val::Null)).collect();
            (keys, Some(values))
        }
    };
    for value in firsts.iter().chain(seconds.iter().flatten()) {
        if let Val::Bytes(bytes) = value {
            budget.pay(bytes.len() as u64 / 10)?;
        }
    }
    let initial = eval(&all.accu_init, scope, budget)?;
    let base = scope.variables.len();
    scope.bind(&all.accu_var, initial);
    let looped = self::turns(all, firsts, seconds, scope, budget);
    let result = looped.and_then(|()| eval(&all.result, scope, budget));
    scope.variables.truncate(base);
    result
}

fn turns<'a>(
    all: &'a ComprehensionExpr,
    firsts: Vec<Val<'a>>,
    seconds: Option<Vec<Val<'a>>>,
    scope: &mut Scope<'a>,
    budget: &mut Budget,
) -> Result<(), Error> {
    let mut seconds = seconds.map(Vec::into_iter);
    let accumulator = scope.variables.len() - 1;
    // An error of one turn counts only if no later turn decides.
    let mut pending: Option<Error> = None;
    let decides = matches!(&all.loop_step.expr, Expr::Call(call) if matches!(call.func_name.as_str(), operators::LOGICAL_AND | operators::LOGICAL_OR));
    for first in firsts {
        match eval(&all.loop_cond, scope, budget)? {
            Val::Bool(true) => {}
            _ => break,
        }
        let base = scope.variables.len();
        scope.bind(&all.iter_var, first);
        if let (Some(name), Some(values)) = (&all.iter_var2, &mut seconds) {
            scope.bind(name, values.next().unwrap_or(Val::Null));
        }
        let stepped = eval(&all.loop_step, scope, budget);
        scope.variables.truncate(base);
        match stepped {
            Ok(value) => scope.variables[accumulator].1 = value,
            Err(error) if decides && error != Error::Cost => pending = Some(error),
            Err(error) => return Err(error),
        }
    }
    let decided = |value: &Val<'_>| match &all.loop_step.expr {
        Expr::Call(call) => matches!(
            (call.func_name.as_str(), value),
            (operators::LOGICAL_AND, Val::Bool(false)) | (operators::LOGICAL_OR, Val::Bool(true))
        ),
        _ => false,
    };
    match pending {
        Some(error) if !decided(&scope.variables[accumulator].1) => Err(error),
        _ => Ok(()),
    }
}
