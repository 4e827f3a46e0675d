//! The Common Expression Language, as Kubernetes uses it for rules over custom resources.
//!
//! `parse` (the crate `cel`'s parser, bounded), `check` (types, before a rule is stored), `eval` and `functions` (values,
//! each step of which costs). Defined by google/cel-spec and by Kubernetes' "Common Expression Language" page.
//!
//! Invariant: an evaluation ends within its [`Budget`], in time and in memory, whatever the rule and the object are.
//! Invariant: nothing here reads a clock, draws randomness or panics on an expression.

mod check;
mod eval;
mod functions;
mod text;
mod value;

use std::sync::Arc;

use cel::IdedExpr;
use cel::common::ast::SourceInfo;
use cel::parser::{ParseErrors, PrattParser};

use check::Complaint;
pub use check::{Type, check};
#[cfg(test)]
use eval::Error;
pub use eval::{Budget, Scope};
pub(crate) use text::duration;
pub use value::Val;

/// The longest expression that is read.
pub const MAX_EXPRESSION_BYTES: usize = 16 * 1024;
/// How deep an expression may be nested.
const MAX_DEPTH: u16 = 64;
/// How many `?` an expression may have.
const MAX_CONDITIONS: usize = 128;
/// How many nodes macros may unfold an expression to.
const MAX_NODES: usize = 20_000;

/// A parsed expression.
#[derive(Clone)]
pub struct Program {
    expr: Arc<IdedExpr>,
    source: Arc<str>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({:?})", self.source)
    }
}

impl Program {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it and where, in the words of upstream's compiler.
    pub fn parse(source: &str) -> Result<Self, String> {
        if source.len() > MAX_EXPRESSION_BYTES {
            return Err(format!(
                "expression code point size exceeds limit: size: {}, limit {MAX_EXPRESSION_BYTES}",
                source.len()
            ));
        }
        // The parser recurses on each `? :` of a chain without counting them.
        let conditions = source.bytes().filter(|byte| *byte == b'?').count();
        if nesting(source) > usize::from(MAX_DEPTH) || conditions > MAX_CONDITIONS {
            return Err(format!("ERROR: <input>:1:1: expression recursion limit exceeded: {MAX_DEPTH}"));
        }
        let expr = parsed(source).map_err(|refused| {
            let number = |part: isize| usize::try_from(part).unwrap_or_default();
            let all = refused.errors.iter();
            let all = all.map(|error| shown(source, (number(error.pos.0), number(error.pos.1)), &error.msg));
            bounded(&all.collect::<Vec<_>>().join("\n"))
        })?;
        let mut count = 0;
        if !is_shallow(&expr, 0, &mut count) {
            return Err(format!("ERROR: <input>:1:1: expression recursion limit exceeded: {MAX_DEPTH}"));
        }
        Ok(Self { expr: Arc::new(expr), source: source.into() })
    }

    pub fn expr(&self) -> &IdedExpr {
        &self.expr
    }

    /// What is wrong with nodes of the expression, and where each stands.
    fn explain(&self, complaints: &[Complaint]) -> String {
        let places = places(&self.source);
        let place = |node| places.as_ref()?.offset_for(node).map(|(start, _)| start as usize);
        let mut all: Vec<(usize, &str)> =
            complaints.iter().map(|one| (place(one.node).unwrap_or_default(), one.words.as_str())).collect();
        all.sort_by_key(|(offset, _)| *offset);
        let all = all.into_iter().map(|(offset, words)| shown(&self.source, position(&self.source, offset), words));
        bounded(&all.collect::<Vec<_>>().join("\n"))
    }

    /// Whether the expression names this variable.
    pub fn uses(&self, name: &str) -> bool {
        self.expr.references().has_variable(name)
    }

    /// What the expression comes to.
    ///
    /// # Errors
    /// Why it comes to nothing, in CEL's words.
    pub fn run<'a>(&'a self, scope: &mut Scope<'a>, budget: &mut Budget) -> Result<Val<'a>, String> {
        eval::eval(&self.expr, scope, budget).map_err(|error| error.to_string())
    }
}

fn parsed(source: &str) -> Result<IdedExpr, ParseErrors> {
    PrattParser::new()
        .max_recursion_depth(MAX_DEPTH)
        .max_expression_node_count(MAX_NODES)
        .error_reporting_limit(8)
        .enable_optional_syntax(true)
        .enable_ident_escape_syntax(true)
        .parse(source)
}

/// Where the nodes of an expression stand. The parser tells that only of what it refuses, so it is given something to
/// refuse after them.
fn places(source: &str) -> Option<Arc<SourceInfo>> {
    let refused = parsed(&format!("{source}\n)")).err()?;
    refused.errors.into_iter().find_map(|error| error.source_info)
}

/// The line and the column at an offset, counted from one, in bytes.
fn position(source: &str, offset: usize) -> (usize, usize) {
    let before = source.get(..offset).unwrap_or_default();
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before.len() - start + 1)
}

/// What is wrong, with the line that it is about and a mark below the place.
fn shown(source: &str, (line, column): (usize, usize), words: &str) -> String {
    let Some(text) = line.checked_sub(1).and_then(|line| source.lines().nth(line)) else {
        return format!("ERROR: <input>:{line}:{column}: {words}");
    };
    let before = text.get(..column.saturating_sub(1)).unwrap_or(text).chars().count();
    let (column, dots) = (before + 1, ".".repeat(before));
    format!("ERROR: <input>:{line}:{column}: {words}\n | {}\n | {dots}^", text.replace('\t', " "))
}

/// How deep brackets are nested at most, whatever stands between them.
fn nesting(source: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Long chains nest too: what is walked by recursion must end before the stack does.
fn is_shallow(expr: &IdedExpr, depth: usize, count: &mut usize) -> bool {
    use cel::common::ast::{EntryExpr, Expr};
    *count += 1;
    if depth > MAX_TREE_DEPTH || *count > MAX_NODES {
        return false;
    }
    let mut deeper = |expr: &IdedExpr| is_shallow(expr, depth + 1, count);
    match &expr.expr {
        Expr::Call(call) => call.target.iter().all(|one| deeper(one)) && call.args.iter().all(deeper),
        Expr::Comprehension(all) => {
            let parts = [&all.iter_range, &all.accu_init, &all.loop_cond, &all.loop_step, &all.result];
            parts.into_iter().all(deeper)
        }
        Expr::List(list) => list.elements.iter().all(deeper),
        Expr::Map(map) => map.entries.iter().all(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => deeper(&entry.key) && deeper(&entry.value),
            EntryExpr::StructField(field) => deeper(&field.value),
        }),
        Expr::Select(select) => deeper(&select.operand),
        Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => true,
    }
}

/// How deep a tree may be: `a && b && …` is a tree as deep as it is long.
const MAX_TREE_DEPTH: usize = 400;
/// Words about an expression are cut after this.
const MAX_WORDS_BYTES: usize = 2048;

fn bounded(words: &str) -> String {
    let end = (0..=words.len().min(MAX_WORDS_BYTES)).rev().find(|at| words.is_char_boundary(*at)).unwrap_or(0);
    words[..end].to_owned()
}

/// How a field's name is written in CEL, undone: upstream's escapes of reserved words and of signs.
pub(crate) fn unescape(name: &str) -> String {
    const RESERVED: &[&str] = &[
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
    ];
    if let Some(inner) = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && RESERVED.contains(&inner)
    {
        return inner.to_owned();
    }
    if !name.contains("__") {
        return name.to_owned();
    }
    let signs = [("__dot__", "."), ("__dash__", "-"), ("__slash__", "/"), ("__underscores__", "__")];
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while !rest.is_empty() {
        if let Some((escape, sign)) = signs.iter().find(|(escape, _)| rest.starts_with(escape)) {
            out.push_str(sign);
            rest = &rest[escape.len()..];
        } else {
            let end = rest.char_indices().nth(1).map_or(rest.len(), |(at, _)| at);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(source: &str, this: &Value) -> Result<String, String> {
        let program = Program::parse(source)?;
        let mut scope = Scope::new();
        scope.bind("self", Val::of(this, None));
        let mut budget = Budget::default();
        program.run(&mut scope, &mut budget).map(|value| value.to_json().to_string())
    }

    #[test]
    fn work_is_paid_for_before_it_is_done() {
        let this = json!({"l": (0..100_000).collect::<Vec<u32>>(), "data": "A".repeat(100_000)});
        let schema: crate::schema::Schema = serde_json::from_value(json!({
            "type": "object",
            "properties": {
                "l": {"type": "array", "items": {"type": "integer"}},
                "data": {"type": "string", "format": "byte"},
            },
        }))
        .unwrap();
        for source in [
            "self.l.all(x, !sets.intersects(self.l, []))",
            "self.l.all(x, !sets.contains([], self.l))",
            "self.l.all(x, x <= size(self.data))",
            "self.l.all(x, string(x).matches('[0-9]' + string(x) + '*|.*'))",
        ] {
            let program = Program::parse(source).unwrap();
            let mut scope = Scope::new();
            scope.bind("self", Val::of(&this, Some(&schema)));
            let refused = program.run(&mut scope, &mut Budget::default()).map(|value| value.to_json());
            assert_eq!(refused.unwrap_err(), Error::Cost.to_string(), "{source}");
        }
        let many = json!({"l": (0..20_000).collect::<Vec<u32>>()});
        assert_eq!(run("self.l.all(x, string(x).matches('^[0-9]+$'))", &many).as_deref(), Ok("true"));
    }

    #[test]
    fn expressions_come_to_what_cel_says() {
        let this = json!({
            "replicas": 3, "min": 1, "max": 5, "ratio": 0.5, "name": "web-1", "on": true, "none": null,
            "list": [1, 2, 3], "words": ["b", "a"], "map": {"a": 1, "b": 2},
            "items": [{"name": "x", "port": 80}, {"name": "y", "port": 90}],
        });
        let table = [
            ("self.replicas <= self.max && self.min <= self.replicas", "true"),
            ("self.replicas + 2 * 3 - 1", "8"),
            ("7 / 2", "3"),
            ("-7 % 3", "-1"),
            ("self.ratio < 1", "true"),
            ("1.0 == 1", "true"),
            ("1 == 1u", "true"),
            ("has(self.name) && !has(self.nothing)", "true"),
            ("self.name.startsWith('web') && self.name.endsWith(\"1\") && self.name.contains('-')", "true"),
            ("self.name.matches('^[a-z]+-[0-9]+$')", "true"),
            ("size(self.list) == 3 && self.list.size() == 3", "true"),
            ("self.list.all(x, x > 0)", "true"),
            ("self.list.exists(x, x == 2)", "true"),
            ("self.list.exists_one(x, x > 2)", "true"),
            ("self.list.map(x, x * 2)", "[2,4,6]"),
            ("self.list.filter(x, x % 2 == 1)", "[1,3]"),
            ("self.list.map(x, x > 1, x)", "[2,3]"),
            ("self.map.all(k, self.map[k] > 0)", "true"),
            ("'a' in self.map && !('z' in self.map)", "true"),
            ("2 in self.list", "true"),
            ("self.items.filter(i, i.port > 80)[0].name", "\"y\""),
            ("self.items.all(i, self.items.exists_one(j, j.name == i.name))", "true"),
            ("self.on ? 'yes' : 'no'", "\"yes\""),
            ("self.none == null", "true"),
            ("[1, 2] + [3] == [1, 2, 3]", "true"),
            ("{'a': 1}['a']", "1"),
            ("type(self.replicas) == int && type('x') == string", "true"),
            ("string(3) + 'x'", "\"3x\""),
            ("int('42') + int(1.9)", "43"),
            ("double('1.5')", "1.5"),
            ("'a,b,c'.split(',')", "[\"a\",\"b\",\"c\"]"),
            ("['a', 'b'].join('-')", "\"a-b\""),
            ("'Hello'.lowerAscii() + 'x'.upperAscii()", "\"helloX\""),
            ("'hello'.substring(1, 3)", "\"el\""),
            ("'hello'.indexOf('l') + 'hello'.lastIndexOf('l')", "5"),
            ("' a '.trim()", "\"a\""),
            ("'abab'.replace('a', 'x')", "\"xbxb\""),
            ("'abc'.charAt(1)", "\"b\""),
            ("'x is %s and %d'.format(['a', 3])", "\"x is a and 3\""),
            ("self.list.isSorted() && !self.words.isSorted()", "true"),
            ("self.list.sum() + self.list.min() + self.list.max()", "10"),
            ("self.list.indexOf(2)", "1"),
            ("'abc 123'.find('[0-9]+')", "\"123\""),
            ("'1a2b'.findAll('[0-9]')", "[\"1\",\"2\"]"),
            (
                "sets.contains([1, 2, 3], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 2], [2, 1])",
                "true",
            ),
            ("quantity('1Gi').isGreaterThan(quantity('500Mi')) && isQuantity('1k') && !isQuantity('x')", "true"),
            ("duration('1h') > duration('30m')", "true"),
            ("timestamp('2026-01-02T00:00:00Z') > timestamp('2026-01-01T00:00:00Z')", "true"),
            ("timestamp('2026-01-02T03:04:05Z').getFullYear()", "2026"),
            ("timestamp('2026-07-02T03:04:05Z').getHours('Europe/Paris')", "5"),
            ("timestamp('2026-01-01T03:04:05Z').getFullYear('-08:30')", "2025"),
            ("timestamp('2026-01-01T03:04:05Z').getMinutes('+05:45')", "49"),
            (
                "isURL('https://example.com:80/a?b=c') && url('https://example.com:80/a').getHost() == 'example.com:80'",
                "true",
            ),
            ("isIP('10.0.0.1') && ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3')", "true"),
            ("self.?nothing.orValue('x')", "\"x\""),
            ("self.?name.hasValue()", "true"),
            ("optional.of(1).value() + optional.none().orValue(2)", "3"),
            ("false && self.nothing == 1", "false"),
            ("self.nothing == 1 || true", "true"),
            ("self.list.exists(x, 1 / (x - 2) > 0 || x == 3)", "true"),
            ("dyn(1) == 1 && b'a' == bytes('a')", "true"),
            ("[1, 2, 3, 1].distinct() == [1, 2, 3]", "true"),
            ("self == self", "true"),
        ];
        for (source, expected) in table {
            assert_eq!(run(source, &this).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_fails_says_why() {
        let this = json!({"list": [1], "text": "x"});
        let table = [
            ("self.nothing", "no such key: nothing"),
            ("self.list[5]", "index out of bounds: 5"),
            ("1 / 0", "division by zero"),
            ("1 % 0", "modulus by zero"),
            ("9223372036854775807 + 1", "integer overflow"),
            ("self.text + 1", "no such overload"),
            ("self.text.nothing()", "no such overload"),
            ("-(-9223372036854775807 - 1)", "integer overflow"),
        ];
        for (source, expected) in table {
            let error = run(source, &this).unwrap_err();
            assert!(error.starts_with(expected), "{source}: {error}");
        }
        for source in ["self.", "1 +", "self..a", "(1", "'a", "self.all(1, true)", "has(1)"] {
            assert!(Program::parse(source).is_err(), "{source}");
        }
        let words = Program::parse("self.a +\n\t) é").unwrap_err();
        assert!(words.starts_with("ERROR: <input>:2:2: "), "{words}");
        assert!(words.contains("\n |  ) é\n | .^"), "{words}");
    }

    #[test]
    fn what_cannot_work_is_told_where_it_stands() {
        let schema: crate::schema::Schema =
            serde_json::from_value(json!({"type": "object", "properties": {"n": {"type": "integer"}}})).unwrap();
        let table = [
            (
                "self.n > 1 ? true : 1",
                vec![(1, 12, "found no matching overload for '_?_:_' applied to '(bool, bool, int)'")],
            ),
            ("self.n in ['a', 1]", vec![(1, 17, "expected type 'string' but found 'int'")]),
            ("self.n in ['a']", vec![(1, 8, "found no matching overload for '@in' applied to '(int, list(string))'")]),
            ("{'a': 1, 'b': 'c'}.size() > 0", vec![(1, 15, "expected type 'int' but found 'string'")]),
            (
                "'é' == 'é' && self.x == 1 &&\n x",
                vec![(1, 19, "undefined field 'x'"), (2, 2, "undeclared reference to 'x' (in container '')")],
            ),
            ("[1].all(i, i > 0 && i.x)", vec![(1, 22, "type 'int' does not support field selection")]),
            (
                "self.n.all(i, true)",
                vec![(
                    1,
                    5,
                    "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
                )],
            ),
        ];
        for (source, expected) in table {
            let program = Program::parse(source).unwrap();
            let words = check(&program, &[("self", Type::of(&schema))]).unwrap_err();
            let expected: Vec<String> = expected
                .into_iter()
                .map(|(line, column, words)| {
                    let text = source.lines().nth(line - 1).unwrap();
                    let dots = ".".repeat(column - 1);
                    format!("ERROR: <input>:{line}:{column}: {words}\n | {text}\n | {dots}^")
                })
                .collect();
            assert_eq!(words, expected.join("\n"), "{source}");
        }
        let works = [
            "self.n in [1, dyn('a')]",
            "(self.n > 1 ? [] : [1]).size() > 0",
            "[1, 2].filter(i, i > 1).map(i, {'a': i}).all(m, m.a > 0)",
            "{1: 'a'}.all(k, k > 0)",
            "[?optional.of(1), 2] == [1, 2]",
        ];
        for source in works {
            let program = Program::parse(source).unwrap();
            assert!(check(&program, &[("self", Type::of(&schema))]).is_ok(), "{source}");
        }
    }

    #[test]
    fn a_hostile_rule_ends() {
        let list: Vec<u32> = (0..1000).collect();
        let this = json!({"list": list, "text": "a".repeat(10_000)});
        for source in [
            "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))",
            "self.list.map(a, self.list.map(b, self.list.map(c, 'x')))",
            "self.list.map(a, self.text + self.text + self.text + self.text).size() == self.list.map(b, self.text + self.text).size()",
            "self.text.matches('(a*)*b') || self.list.exists(x, self.text.matches('(.*)(.*)(.*)(.*)(.*)[^a]'))",
            "self.list.all(x, self.text.replace('a', self.text) != '')",
        ] {
            let error = run(source, &this).unwrap_err();
            assert!(error.contains("actual cost limit exceeded"), "{source}: {error}");
        }
        let deep = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(Program::parse(&deep[..MAX_EXPRESSION_BYTES - 1]).is_err());
        assert!(Program::parse(&"-".repeat(10_000)).is_err());
        assert!(Program::parse(&"!".repeat(10_000)).is_err());
        assert!(Program::parse(&format!("self{}", ".a".repeat(5_000))).is_err());
        assert!(Program::parse(&vec!["1"; 5_000].join("+")).is_err());
        assert!(Program::parse(&"a?b:".repeat(3_000)).is_err());
    }

    #[test]
    fn names_are_unescaped() {
        let table =
            [("__namespace__", "namespace"), ("a__dash__b", "a-b"), ("x__dot__y__slash__z", "x.y/z"), ("a_b", "a_b")];
        for (escaped, name) in table {
            assert_eq!(unescape(escaped), name);
        }
    }
}
