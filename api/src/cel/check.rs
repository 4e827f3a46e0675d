//! Types: an expression that cannot work on any object of its schema is refused when the rule is stored.
//!
//! The words are those of upstream's checker. What is not known to be wrong is let through: it fails when it runs.

use std::fmt;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};

use super::eval::{TYPES, qualified_type};
use super::{Program, unescape};
use crate::schema::Schema;

/// What an expression comes to.
#[derive(Clone, Debug)]
pub enum Type<'a> {
    /// Anything.
    Dyn,
    Null,
    /// `bool`, `int`, `uint`, `double`, `string`, `bytes`, `timestamp`, …
    Plain(&'static str),
    List(Box<Type<'a>>),
    Map(Box<Type<'a>>),
    /// An object of known fields; its metadata shows names only if it is a resource of its own.
    Object(&'a Schema),
    Metadata,
    Optional(Box<Type<'a>>),
}

impl<'a> Type<'a> {
    /// The type of what a schema describes.
    pub fn of(schema: &'a Schema) -> Self {
        if schema.reference.as_deref() == Some(crate::schema::OBJECT_META) {
            return Type::Metadata;
        }
        let (preserves, is_either) =
            schema.constraints.as_ref().map_or((false, false), |c| (c.preserve_unknown_fields, c.int_or_string));
        if is_either {
            return Type::Dyn;
        }
        match schema.type_.as_deref() {
            Some("boolean") => Type::Plain("bool"),
            Some("integer") => Type::Plain("int"),
            Some("number") => Type::Plain("double"),
            Some("string") => match schema.format.as_deref() {
                Some("date-time" | "date") => Type::Plain("timestamp"),
                Some("duration") => Type::Plain("duration"),
                Some("byte") => Type::Plain("bytes"),
                _ => Type::Plain("string"),
            },
            Some("array") => Type::List(Box::new(schema.items.as_deref().map_or(Type::Dyn, Type::of))),
            Some("object") => match &schema.values {
                Some(values) => Type::Map(Box::new(Type::of(values))),
                None if preserves && schema.properties.is_empty() => Type::Dyn,
                None => Type::Object(schema),
            },
            _ => Type::Dyn,
        }
    }

    fn is(&self, name: &str) -> bool {
        matches!(self, Type::Dyn) || matches!(self, Type::Plain(plain) if *plain == name)
    }

    fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn)
    }
}

impl fmt::Display for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Plain("timestamp") => f.write_str("timestamp"),
            Type::Plain(name) => f.write_str(name),
            Type::List(item) => write!(f, "list({item})"),
            Type::Map(value) => write!(f, "map(string, {value})"),
            Type::Object(_) | Type::Metadata => f.write_str("object"),
            Type::Optional(inner) => write!(f, "optional_type({inner})"),
        }
    }
}

/// What a program comes to where these variables are known.
///
/// # Errors
/// All that cannot work, in upstream's words.
pub fn check<'a>(program: &'a Program, variables: &[(&'a str, Type<'a>)]) -> Result<Type<'a>, String> {
    let mut checker = Checker { variables: variables.to_vec(), complaints: Vec::new() };
    let type_ = checker.visit(program.expr());
    match checker.complaints.is_empty() {
        true => Ok(type_),
        false => Err(program.explain(&checker.complaints)),
    }
}

/// What is wrong with a node.
pub(super) struct Complaint {
    pub node: u64,
    pub words: String,
}

struct Checker<'a> {
    variables: Vec<(&'a str, Type<'a>)>,
    complaints: Vec<Complaint>,
}

type Checked<'a> = Result<Type<'a>, String>;

impl<'a> Checker<'a> {
    /// What cannot work may be anything, so that nothing is complained about twice.
    fn visit(&mut self, expr: &'a IdedExpr) -> Type<'a> {
        let checked = self.checked(expr);
        self.accept(expr.id, checked)
    }

    fn accept(&mut self, node: u64, checked: Checked<'a>) -> Type<'a> {
        checked.unwrap_or_else(|words| {
            self.complaints.push(Complaint { node, words });
            Type::Dyn
        })
    }

    fn checked(&mut self, expr: &'a IdedExpr) -> Checked<'a> {
        match &expr.expr {
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(_) => Type::Plain("bool"),
                LiteralValue::Bytes(_) => Type::Plain("bytes"),
                LiteralValue::Double(_) => Type::Plain("double"),
                LiteralValue::Int(_) => Type::Plain("int"),
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::Plain("string"),
                LiteralValue::UInt(_) => Type::Plain("uint"),
            }),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => {
                if qualified_type(expr).is_some() {
                    return Ok(Type::Plain("type"));
                }
                let operand = self.visit(&select.operand);
                let field = self.select(operand, &select.field)?;
                Ok(if select.test { Type::Plain("bool") } else { field })
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                let mut item = None;
                for (index, element) in list.elements.iter().enumerate() {
                    item = Some(self.member(item, element, list.optional_indices.contains(&index)));
                }
                Ok(Type::List(Box::new(item.unwrap_or(Type::Dyn))))
            }
            Expr::Map(map) => {
                let (mut key, mut value) = (None, None);
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        key = Some(self.member(key, &entry.key, false));
                        value = Some(self.member(value, &entry.value, entry.optional));
                    }
                }
                let is_plain = key.is_none_or(|key| key.is("string"));
                Ok(if is_plain { Type::Map(Box::new(value.unwrap_or(Type::Dyn))) } else { Type::Dyn })
            }
            Expr::Comprehension(all) => self.comprehension(all),
            Expr::Struct(_) | Expr::Unspecified => Err("messages cannot be made here".into()),
        }
    }

    /// One more value of a literal, whose values are of one type.
    fn member(&mut self, known: Option<Type<'a>>, value: &'a IdedExpr, is_optional: bool) -> Type<'a> {
        let type_ = match self.visit(value) {
            Type::Optional(inner) if is_optional => *inner,
            other => other,
        };
        let joined = match known {
            Some(known) if !may_equal(&known, &type_) => Err(format!("expected type '{known}' but found '{type_}'")),
            Some(known) => Ok(either(&known, &type_)),
            None => Ok(type_),
        };
        self.accept(value.id, joined)
    }

    fn ident(&self, name: &str) -> Checked<'a> {
        if let Some((_, type_)) = self.variables.iter().rev().find(|(known, _)| *known == name) {
            return Ok(type_.clone());
        }
        match TYPES.contains(&name) {
            true => Ok(Type::Plain("type")),
            false => Err(format!("undeclared reference to '{name}' (in container '')")),
        }
    }

    fn select(&self, operand: Type<'a>, field: &str) -> Checked<'a> {
        match operand {
            Type::Dyn => Ok(Type::Dyn),
            Type::Map(value) => Ok(*value),
            Type::Optional(inner) => Ok(Type::Optional(Box::new(self.select(*inner, field)?))),
            Type::Metadata if matches!(field, "name" | "generateName") => Ok(Type::Plain("string")),
            Type::Object(schema) => {
                let known = schema.properties.get(&unescape(field)).or_else(|| schema.properties.get(field));
                match (known, field) {
                    (Some(field), _) => Ok(Type::of(field)),
                    (None, _) => Err(format!("undefined field '{field}'")),
                }
            }
            Type::Metadata => Err(format!("undefined field '{field}'")),
            other => Err(format!("type '{other}' does not support field selection")),
        }
    }

    fn comprehension(&mut self, all: &'a ComprehensionExpr) -> Checked<'a> {
        let range = self.visit(&all.iter_range);
        let (first, second) = match (range, &all.iter_var2) {
            (Type::List(item), None) => (*item, Type::Dyn),
            (Type::List(item), Some(_)) => (Type::Plain("int"), *item),
            (Type::Map(value), _) => (Type::Plain("string"), *value),
            (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
            (other, _) => {
                let words = "cannot be range of a comprehension (must be list, map, or dynamic)";
                let words = format!("expression of type '{other}' {words}");
                (self.accept(all.iter_range.id, Err(words)), Type::Dyn)
            }
        };
        let initial = self.visit(&all.accu_init);
        let base = self.variables.len();
        self.variables.push((&all.accu_var, initial));
        self.variables.push((&all.iter_var, first));
        if let Some(name) = &all.iter_var2 {
            self.variables.push((name, second));
        }
        self.visit(&all.loop_cond);
        let step = self.visit(&all.loop_step);
        self.variables.truncate(base);
        self.variables.push((&all.accu_var, step));
        let result = self.visit(&all.result);
        self.variables.truncate(base);
        Ok(result)
    }

    fn call(&mut self, call: &'a CallExpr) -> Checked<'a> {
        let name = call.func_name.as_str();
        if matches!(name, "optMap" | "optFlatMap") && call.target.is_some() {
            return Ok(Type::Dyn);
        }
        if name == operators::OPT_SELECT
            && let [operand, field] = call.args.as_slice()
            && let Expr::Literal(LiteralValue::String(field)) = &field.expr
        {
            let operand = match self.visit(operand) {
                Type::Optional(inner) => *inner,
                other => other,
            };
            return Ok(Type::Optional(Box::new(self.select(operand, field.inner())?)));
        }
        let library = match &call.target {
            Some(target) => {
                matches!(&target.expr, Expr::Ident(name) if ["sets", "optional", "math", "cel", "format"].contains(&name.as_str()) && self.ident(name).is_err())
            }
            None => false,
        };
        let mut types = Vec::new();
        if let (Some(target), false) = (&call.target, library) {
            types.push(self.visit(target));
        }
        for argument in &call.args {
            types.push(self.visit(argument));
        }
        if library {
            return Ok(of_library(name, &types));
        }
        self::overload(name, call.target.is_some(), &types)
            .ok_or_else(|| no_overload(name, call.target.is_some(), &types))
    }
}

fn of_library<'a>(name: &str, types: &[Type<'a>]) -> Type<'a> {
    match (name, types) {
        ("contains" | "equivalent" | "intersects", _) => Type::Plain("bool"),
        ("of" | "ofNonZeroValue", [inner]) => Type::Optional(Box::new(inner.clone())),
        ("none", []) => Type::Optional(Box::new(Type::Dyn)),
        _ => Type::Dyn,
    }
}

fn no_overload(name: &str, is_member: bool, types: &[Type<'_>]) -> String {
    let words: Vec<String> = types.iter().map(Type::to_string).collect();
    let shown = match (is_member, words.split_first()) {
        (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
        _ => format!("({})", words.join(", ")),
    };
    match KNOWN.contains(&name) || name.contains(['_', '@', '!']) {
        true => format!("found no matching overload for '{name}' applied to '{shown}'"),
        false => format!("undeclared reference to '{name}' (in container '')"),
    }
}

/// Functions that there are.
const KNOWN: &[&str] = &[
    "size",
    "type",
    "dyn",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "bytes",
    "timestamp",
    "duration",
    "quantity",
    "url",
    "ip",
    "cidr",
    "isQuantity",
    "isURL",
    "isIP",
    "isCIDR",
    "startsWith",
    "endsWith",
    "contains",
    "matches",
    "find",
    "findAll",
    "lowerAscii",
    "upperAscii",
    "trim",
    "reverse",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "replace",
    "split",
    "substring",
    "format",
    "join",
    "isSorted",
    "sum",
    "min",
    "max",
    "distinct",
    "sort",
    "flatten",
    "slice",
    "first",
    "last",
    "hasValue",
    "value",
    "orValue",
    "or",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "isGreaterThan",
    "isLessThan",
    "compareTo",
    "add",
    "sub",
    "sign",
    "isInteger",
    "asInteger",
    "asApproximateFloat",
    "getScheme",
    "getHost",
    "getHostname",
    "getPort",
    "getEscapedPath",
    "getQuery",
    "family",
    "isUnspecified",
    "isLoopback",
    "isLinkLocalUnicast",
    "isLinkLocalMulticast",
    "isGlobalUnicast",
    "prefixLength",
    "masked",
    "containsIP",
    "containsCIDR",
];

/// What a call comes to; `None` if it cannot work.
fn overload<'a>(name: &str, is_member: bool, types: &[Type<'a>]) -> Option<Type<'a>> {
    let bool = || Some(Type::Plain("bool"));
    match (name, types) {
        (operators::LOGICAL_AND | operators::LOGICAL_OR, [a, b]) => bool().filter(|_| a.is("bool") && b.is("bool")),
        (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, [a]) => bool().filter(|_| a.is("bool")),
        (operators::CONDITIONAL, [condition, yes, no]) => {
            Some(either(yes, no)).filter(|_| condition.is("bool") && may_equal(yes, no))
        }
        (operators::EQUALS | operators::NOT_EQUALS, [a, b]) => bool().filter(|_| may_equal(a, b)),
        (operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS, [a, b]) => {
            bool().filter(|_| may_compare(a, b))
        }
        (operators::IN, [item, list]) => bool().filter(|_| match list {
            Type::List(of) => may_equal(item, of),
            Type::Map(_) => item.is("string"),
            other => other.is_dyn(),
        }),
        (operators::INDEX, [list, _]) => match list {
            Type::Dyn => Some(Type::Dyn),
            Type::List(item) => Some(item.as_ref().clone()),
            Type::Map(value) => Some(value.as_ref().clone()),
            Type::Optional(_) => Some(Type::Dyn),
            _ => None,
        },
        (operators::OPT_INDEX, [_, _]) => Some(Type::Optional(Box::new(Type::Dyn))),
        (operators::NEGATE, [a]) => Some(a.clone()).filter(|_| a.is("int") || a.is("double")),
        (
            operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO,
            [a, b],
        ) => arithmetic(name, a, b),
        ("size", [of]) => {
            let sized = matches!(of, Type::List(_) | Type::Map(_)) || of.is("string") || of.is("bytes");
            Some(Type::Plain("int")).filter(|_| sized)
        }
        ("type", [_]) => Some(Type::Plain("type")),
        ("dyn", [_]) => Some(Type::Dyn),
        ("string" | "int" | "uint" | "double" | "bool" | "bytes" | "timestamp" | "duration", [of]) if !is_member => {
            let plain = KNOWN.iter().find(|known| **known == name)?;
            let scalar = matches!(of, Type::Plain(_) | Type::Dyn);
            Some(Type::Plain(plain)).filter(|_| scalar)
        }
        ("isQuantity" | "isURL" | "isIP" | "isCIDR", [of]) => bool().filter(|_| of.is("string")),
        ("quantity" | "url" | "ip" | "cidr", [of]) if !is_member => Some(Type::Dyn).filter(|_| of.is("string")),
        ("startsWith" | "endsWith" | "contains" | "matches", [this, other]) if is_member => {
            bool().filter(|_| this.is("string") && other.is("string"))
        }
        ("isSorted", [list]) => bool().filter(|_| matches!(list, Type::List(_) | Type::Dyn)),
        ("hasValue", [of]) => bool().filter(|_| matches!(of, Type::Optional(_) | Type::Dyn)),
        ("orValue", [Type::Optional(inner), other]) => Some(either(inner, other)),
        ("value", [Type::Optional(inner)]) => Some(inner.as_ref().clone()),
        ("lowerAscii" | "upperAscii" | "trim" | "replace" | "substring" | "charAt" | "format" | "find", [this, ..]) => {
            Some(Type::Plain("string")).filter(|_| is_member && this.is("string"))
        }
        ("split" | "findAll", [this, ..]) => {
            Some(Type::List(Box::new(Type::Plain("string")))).filter(|_| is_member && this.is("string"))
        }
        ("join", [list, ..]) => {
            Some(Type::Plain("string")).filter(|_| is_member && matches!(list, Type::List(_) | Type::Dyn))
        }
        (_, [_, ..]) if is_member && KNOWN.contains(&name) => Some(Type::Dyn),
        _ => None,
    }
}

/// One of two types that may be the same.
fn either<'a>(a: &Type<'a>, b: &Type<'a>) -> Type<'a> {
    if a.to_string() == b.to_string() { a.clone() } else { Type::Dyn }
}

/// Upstream compares what is of one type; numbers among each other; null with what may be null.
fn may_equal(a: &Type<'_>, b: &Type<'_>) -> bool {
    match (a, b) {
        (Type::Dyn, _) | (_, Type::Dyn) => true,
        (Type::Null, _) | (_, Type::Null) => true,
        (Type::Plain(a), Type::Plain(b)) => a == b,
        (Type::List(a), Type::List(b)) | (Type::Map(a), Type::Map(b)) | (Type::Optional(a), Type::Optional(b)) => {
            may_equal(a, b)
        }
        (Type::Object(_) | Type::Metadata, Type::Object(_) | Type::Metadata) => true,
        (Type::Object(_), Type::Map(_)) | (Type::Map(_), Type::Object(_)) => true,
        _ => false,
    }
}

fn may_compare(a: &Type<'_>, b: &Type<'_>) -> bool {
    const ORDERED: &[&str] = &["bool", "int", "uint", "double", "string", "bytes", "timestamp", "duration"];
    const NUMBERS: &[&str] = &["int", "uint", "double"];
    match (a, b) {
        (Type::Dyn, Type::Dyn) => true,
        (Type::Dyn, Type::Plain(name)) | (Type::Plain(name), Type::Dyn) => ORDERED.contains(name),
        (Type::Plain(a), Type::Plain(b)) => {
            (a == b && ORDERED.contains(a)) || (NUMBERS.contains(a) && NUMBERS.contains(b))
        }
        _ => false,
    }
}

fn arithmetic<'a>(operator: &str, a: &Type<'a>, b: &Type<'a>) -> Option<Type<'a>> {
    if a.is_dyn() && b.is_dyn() {
        return Some(Type::Dyn);
    }
    let adds = operator == operators::ADD;
    let subtracts = operator == operators::SUBSTRACT;
    match (a, b) {
        (Type::Dyn, Type::Plain(_)) | (Type::Plain(_), Type::Dyn) => Some(Type::Dyn),
        (Type::List(_), Type::List(_) | Type::Dyn) | (Type::Dyn, Type::List(_)) if adds => Some(match (a, b) {
            (Type::List(item), Type::List(other)) if item.to_string() == other.to_string() => a.clone(),
            (Type::List(item), Type::List(_)) if item.is_dyn() => b.clone(),
            _ => Type::List(Box::new(Type::Dyn)),
        }),
        (Type::Plain("timestamp"), Type::Plain("duration")) if adds || subtracts => Some(Type::Plain("timestamp")),
        (Type::Plain("duration"), Type::Plain("timestamp")) if adds => Some(Type::Plain("timestamp")),
        (Type::Plain("timestamp"), Type::Plain("timestamp")) if subtracts => Some(Type::Plain("duration")),
        (Type::Plain("duration"), Type::Plain("duration")) if adds || subtracts => Some(Type::Plain("duration")),
        (Type::Plain(x), Type::Plain(y)) if x == y => {
            let works = match *x {
                "int" | "uint" => true,
                "double" => operator != operators::MODULO,
                "string" | "bytes" => adds,
                _ => false,
            };
            works.then(|| a.clone())
        }
        _ => None,
    }
}
