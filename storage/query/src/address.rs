//! Text literals next to address columns: `src_ip = '10.0.0.1'` compares sixteen bytes with sixteen bytes.
//!
//! Two places in the planner see to it. While a binary operator is planned ([`TextAsAddress`]), since its operands'
//! types must agree at once; and over the finished plan ([`AddressRule`], before types are coerced) for `IN`,
//! `BETWEEN`, `CASE` and functions. What is compared with a text that is no literal goes through `ip(...)` row by row.

use crate::error::{BadLiteral, BadUse};
use crate::functions::{self, Name};
use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DataFusionError, ExprSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{Between, BinaryExpr, Case, InList, Like, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::optimizer::AnalyzerRule;
use datafusion::sql::sqlparser::ast::BinaryOperator;
use wire::{Addr, Mac, Prefix};

/// The two kinds of address among the columns, told apart by their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 16 bytes, network order, IPv4 mapped.
    Ip,
    /// 6 bytes, as in the Ethernet header.
    Mac,
}

impl Kind {
    pub(crate) fn of(data_type: &DataType) -> Option<Kind> {
        match data_type {
            DataType::FixedSizeBinary(16) => Some(Kind::Ip),
            DataType::FixedSizeBinary(6) => Some(Kind::Mac),
            _ => None,
        }
    }

    pub(crate) const fn width(self) -> i32 {
        match self {
            Kind::Ip => 16,
            Kind::Mac => 6,
        }
    }

    pub(crate) const fn data_type(self) -> DataType {
        DataType::FixedSizeBinary(self.width())
    }

    /// As people write it; `None` if the width is another.
    pub(crate) fn to_text(self, bytes: &[u8]) -> Option<String> {
        match self {
            Kind::Ip => bytes.try_into().ok().map(|b| Addr(b).to_string()),
            Kind::Mac => bytes.try_into().ok().map(|b| Mac(b).to_string()),
        }
    }

    const fn parser(self) -> Name {
        match self {
            Kind::Ip => Name::Ip,
            Kind::Mac => Name::Mac,
        }
    }

    const fn writer(self) -> Name {
        match self {
            Kind::Ip => Name::IpText,
            Kind::Mac => Name::MacText,
        }
    }
}

/// The bytes of the address a text denotes.
pub(crate) fn parse(kind: Kind, text: &str) -> Result<Vec<u8>> {
    match kind {
        Kind::Ip => match text.trim().parse::<Addr>() {
            Ok(addr) => Ok(addr.0.to_vec()),
            Err(_) => Err(bad_ip(text)),
        },
        Kind::Mac => parse_mac(text.trim())
            .map(|m| m.to_vec())
            .ok_or_else(|| bad(text, "a MAC address such as 00:1b:21:3c:4d:5e", None)),
    }
}

/// The block of addresses a text denotes.
pub(crate) fn parse_block(text: &str) -> Result<Prefix> {
    text.trim().parse().map_err(|_| bad(text, "an address block such as 10.0.0.0/8 or 2001:db8::/32", None))
}

fn bad_ip(text: &str) -> DataFusionError {
    let block = text.contains('/') && text.trim().parse::<Prefix>().is_ok();
    let hint = block.then(|| format!("for a block write in_cidr(src_ip, '{text}'), or net('{text}') for either side"));
    bad(text, "an IPv4 or IPv6 address such as 10.0.0.1 or 2001:db8::1", hint)
}

fn bad(text: &str, expected: &'static str, hint: Option<String>) -> DataFusionError {
    DataFusionError::External(Box::new(BadLiteral { text: text.to_owned(), expected, hint }))
}

/// Six bytes in hexadecimal: `00:1b:21:3c:4d:5e`, with dashes, or `001b.213c.4d5e`.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let separator = text.chars().find(|c| !c.is_ascii_hexdigit())?;
    let digits_per_group = match separator {
        ':' | '-' => 2,
        '.' => 4,
        _ => return None,
    };
    let groups: Vec<&str> = text.split(separator).collect();
    let hex = |g: &&str| g.len() == digits_per_group && g.bytes().all(|b| b.is_ascii_hexdigit());
    if groups.len() * digits_per_group != 12 || !groups.iter().all(hex) {
        return None;
    }
    let bits = u64::from_str_radix(&groups.concat(), 16).ok()?;
    let [_, _, bytes @ ..] = bits.to_be_bytes();
    Some(bytes)
}

/// Hook of the SQL planner for binary operators.
#[derive(Debug)]
pub(crate) struct TextAsAddress;

impl ExprPlanner for TextAsAddress {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq, Spaceship, StringConcat};
        if expr.op == StringConcat {
            let RawBinaryExpr { op, left, right } = expr;
            let (left, right) = (as_text(left, schema), as_text(right, schema));
            return Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }));
        }
        if !matches!(expr.op, Eq | NotEq | Lt | LtEq | Gt | GtEq | Spaceship) {
            return Ok(PlannerResult::Original(expr));
        }
        let RawBinaryExpr { op, left, right } = expr;
        let (left, right) = pair(left, right, schema)?.unwrap_or_else(|both| both);
        Ok(PlannerResult::Original(RawBinaryExpr { op, left, right }))
    }
}

/// Both sides of a comparison, the text side read as what the other side is. `Err` inside: nothing to do.
type Pair = std::result::Result<(Expr, Expr), (Expr, Expr)>;

fn pair(left: Expr, right: Expr, schema: &dyn ExprSchema) -> Result<Pair> {
    if let Some(new) = read_as(&right, &left, schema)? {
        return Ok(Ok((left, new)));
    }
    if let Some(new) = read_as(&left, &right, schema)? {
        return Ok(Ok((new, right)));
    }
    Ok(Err((left, right)))
}

/// `text` as what `model` is, if that is an address (or a protocol number) and `text` is text.
fn read_as(text: &Expr, model: &Expr, schema: &dyn ExprSchema) -> Result<Option<Expr>> {
    if let (Some(name), Expr::Column(Column { name: column, .. })) = (literal_text(text), model)
        && column == "proto"
        && matches!(model.get_type(schema), Ok(DataType::UInt8))
        && name.parse::<u8>().is_err()
    {
        return protocol(name).map(Some);
    }
    // A type that cannot be told yet is the planner's to complain about.
    let Some(kind) = model.get_type(schema).ok().as_ref().and_then(Kind::of) else { return Ok(None) };
    as_kind(text, kind, schema)
}

fn protocol(name: &str) -> Result<Expr> {
    match functions::proto_number(name) {
        Some(number) => Ok(Expr::Literal(ScalarValue::UInt8(Some(number)), None)),
        None => Err(bad(name, "a protocol number from 0 to 255 or a name such as tcp, udp, icmp", None)),
    }
}

fn as_kind(text: &Expr, kind: Kind, schema: &dyn ExprSchema) -> Result<Option<Expr>> {
    if let Some(text) = literal_text(text) {
        let value = ScalarValue::FixedSizeBinary(kind.width(), Some(parse(kind, text)?));
        return Ok(Some(Expr::Literal(value, None)));
    }
    Ok(match text.get_type(schema) {
        Ok(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => Some(call(kind.parser(), vec![text.clone()])),
        Ok(DataType::Dictionary(_, value)) if value.is_string() => Some(call(kind.parser(), vec![text.clone()])),
        _ => None,
    })
}

/// An address as people write it; anything else as it is.
fn as_text(value: Expr, schema: &dyn ExprSchema) -> Expr {
    match value.get_type(schema).ok().as_ref().and_then(Kind::of) {
        Some(kind) => call(kind.writer(), vec![value]),
        None => value,
    }
}

fn literal_text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(ScalarValue::Utf8(Some(s)), _)
        | Expr::Literal(ScalarValue::LargeUtf8(Some(s)), _)
        | Expr::Literal(ScalarValue::Utf8View(Some(s)), _) => Some(s),
        _ => None,
    }
}

fn call(name: Name, args: Vec<Expr>) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(functions::function(name), args))
}

/// Rule of the analyzer, placed before type coercion.
#[derive(Debug)]
pub(crate) struct AddressRule;

impl AnalyzerRule for AddressRule {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(rewrite_node).map(|t| t.data)
    }

    fn name(&self) -> &str {
        "text_as_address"
    }
}

fn rewrite_node(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let mut schema = merge_schema(&plan.inputs());
    if let LogicalPlan::TableScan(scan) = &plan {
        schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
    }
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        Ok(expr.transform_up(|e| rewrite_expr(e, &schema))?.update_data(|e| name.restore(e)))
    })?
    // Types below may have changed with the literals.
    .map_data(|plan| plan.recompute_schema())
}

fn rewrite_expr(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(op) => {
            Ok(match pair(*left, *right, schema)? {
                Ok((l, r)) => Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(Box::new(l), op, Box::new(r)))),
                Err((l, r)) => Transformed::no(Expr::BinaryExpr(BinaryExpr::new(Box::new(l), op, Box::new(r)))),
            })
        }
        Expr::InList(list) => in_list(list, schema),
        Expr::Between(between) => between_rewrite(between, schema),
        Expr::Case(case) => case_rewrite(case, schema),
        Expr::Cast(mut cast) if is_text(cast.field.data_type()) && has_kind(&cast.expr, schema) => {
            *cast.expr = as_text(std::mem::take(cast.expr.as_mut()), schema);
            Ok(Transformed::yes(Expr::Cast(cast)))
        }
        Expr::TryCast(mut cast) if is_text(cast.field.data_type()) && has_kind(&cast.expr, schema) => {
            *cast.expr = as_text(std::mem::take(cast.expr.as_mut()), schema);
            Ok(Transformed::yes(Expr::TryCast(cast)))
        }
        Expr::Like(like) => like_check(&like, schema).map(|()| Transformed::no(Expr::Like(like))),
        Expr::SimilarTo(like) => like_check(&like, schema).map(|()| Transformed::no(Expr::SimilarTo(like))),
        Expr::ScalarFunction(function) => function_rewrite(function, schema),
        other => Ok(Transformed::no(other)),
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether it is an address.
fn has_kind(expr: &Expr, schema: &DFSchema) -> bool {
    expr.get_type(schema).ok().as_ref().and_then(Kind::of).is_some()
}

fn is_comparison(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// Reads each of `texts` as `model` is.
fn read_all(texts: &mut [&mut Expr], model: &Expr, schema: &DFSchema) -> Result<bool> {
    let mut changed = false;
    for text in texts {
        if let Some(new) = read_as(text, model, schema)? {
            **text = new;
            changed = true;
        }
    }
    Ok(changed)
}

fn transformed(expr: Expr, changed: bool) -> Transformed<Expr> {
    if changed { Transformed::yes(expr) } else { Transformed::no(expr) }
}

fn in_list(mut list: InList, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let mut changed = read_all(&mut list.list.iter_mut().collect::<Vec<_>>(), &list.expr, schema)?;
    if let Some(first) = list.list.first() {
        changed |= read_all(&mut [list.expr.as_mut()], first, schema)?;
    }
    Ok(transformed(Expr::InList(list), changed))
}

fn between_rewrite(mut b: Between, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let mut changed = read_all(&mut [b.low.as_mut(), b.high.as_mut()], &b.expr, schema)?;
    changed |= read_all(&mut [b.expr.as_mut()], &b.low, schema)?;
    Ok(transformed(Expr::Between(b), changed))
}

/// `CASE src_ip WHEN '10.0.0.1' THEN ...`, and texts among results that are addresses.
fn case_rewrite(mut case: Case, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let mut changed = false;
    if let Some(model) = &case.expr {
        let mut whens: Vec<&mut Expr> = case.when_then_expr.iter_mut().map(|(when, _)| when.as_mut()).collect();
        changed = read_all(&mut whens, model, schema)?;
    }
    let results = case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr);
    if let Some(model) = results.into_iter().find(|result| has_kind(result, schema)).cloned() {
        let thens = case.when_then_expr.iter_mut().map(|(_, then)| then.as_mut());
        let mut results: Vec<&mut Expr> = thens.chain(case.else_expr.as_deref_mut()).collect();
        changed |= read_all(&mut results, &model, schema)?;
    }
    Ok(transformed(Expr::Case(case), changed))
}

fn like_check(like: &Like, schema: &DFSchema) -> Result<()> {
    let Some(kind) = like.expr.get_type(schema).ok().as_ref().and_then(Kind::of) else { return Ok(()) };
    let name = match like.expr.as_ref() {
        Expr::Column(column) => column.name.clone(),
        other => other.to_string(),
    };
    let hint = match kind {
        Kind::Ip => format!("write in_cidr({name}, '10.0.0.0/8'), or ip_text({name}) LIKE ..."),
        Kind::Mac => format!("write mac_text({name}) LIKE ..."),
    };
    let message = format!("`{name}` is an address, not text that LIKE can match");
    Err(DataFusionError::External(Box::new(BadUse { message, word: name, hint: Some(hint) })))
}

/// `ip('...')` and `mac('...')` become literals, `in_cidr(x, '...')` a range, so that scans can prune by them; and
/// functions that give back one of their arguments read texts as the addresses beside them.
fn function_rewrite(mut f: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match (f.func.name(), f.args.as_mut_slice()) {
        ("ip", [text]) if literal_text(text).is_some() => literal_or(f, Kind::Ip, schema),
        ("mac", [text]) if literal_text(text).is_some() => literal_or(f, Kind::Mac, schema),
        ("ip_text" | "in_cidr", [address, ..]) if literal_text(address).is_some() => {
            if let Some(new) = as_kind(address, Kind::Ip, schema)? {
                *address = new;
            }
            range_or(f).map(|t| transformed(t.data, true))
        }
        ("in_cidr", _) => range_or(f),
        ("coalesce" | "nullif" | "greatest" | "least", args) => {
            let kind = args.iter().find_map(|a| a.get_type(schema).ok().as_ref().and_then(Kind::of));
            let mut changed = false;
            if let Some(kind) = kind {
                for arg in args {
                    if let Some(new) = as_kind(arg, kind, schema)? {
                        *arg = new;
                        changed = true;
                    }
                }
            }
            Ok(transformed(Expr::ScalarFunction(f), changed))
        }
        _ => Ok(Transformed::no(Expr::ScalarFunction(f))),
    }
}

fn literal_or(f: ScalarFunction, kind: Kind, schema: &DFSchema) -> Result<Transformed<Expr>> {
    Ok(match as_kind(&f.args[0], kind, schema)? {
        Some(literal) => Transformed::yes(literal),
        None => Transformed::no(Expr::ScalarFunction(f)),
    })
}

fn range_or(f: ScalarFunction) -> Result<Transformed<Expr>> {
    let [address, block] = f.args.as_slice() else { return Ok(Transformed::no(Expr::ScalarFunction(f))) };
    let Some(block) = literal_text(block) else { return Ok(Transformed::no(Expr::ScalarFunction(f))) };
    let Prefix { first, last } = parse_block(block)?;
    let bound = |a: Addr| Box::new(Expr::Literal(ScalarValue::FixedSizeBinary(16, Some(a.0.to_vec())), None));
    if first == last {
        // Bloom filters know of single addresses.
        return Ok(Transformed::yes(address.clone().eq(*bound(first))));
    }
    let range = Between::new(Box::new(address.clone()), false, bound(first), bound(last));
    Ok(Transformed::yes(Expr::Between(range)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_parse_in_the_usual_notations() {
        let mac = Some([0x00, 0x1b, 0x21, 0x3c, 0x4d, 0x5e]);
        for text in ["00:1b:21:3c:4d:5e", "00-1B-21-3C-4D-5E", "001b.213c.4d5e"] {
            assert_eq!(parse_mac(text), mac, "{text}");
        }
        for text in
            ["", "00:1b:21:3c:4d", "00:1b:21:3c:4d:5e:6f", "001b213c4d5e", "0:01b:21:3c:4d:5e", "00:1b-21:3c:4d:5e"]
        {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }

    #[test]
    fn a_block_where_an_address_is_due_says_what_to_write() {
        let error = parse(Kind::Ip, "10.0.0.0/8").unwrap_err();
        let DataFusionError::External(inner) = error else { panic!("{error}") };
        let bad = inner.downcast_ref::<BadLiteral>().unwrap();
        assert!(bad.hint.as_deref().unwrap().contains("net('10.0.0.0/8')"));
    }
}
