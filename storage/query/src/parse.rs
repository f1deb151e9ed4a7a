//! From text to syntax tree: bounded, read-only, exactly one statement or expression, with `host`, `net` and `port`
//! spelled out. They are rewritten here and not evaluated as functions, so that the scan sees plain comparisons which
//! it can prune by.

use crate::QueryError;
use crate::error::{Complaint, Culprit};
use crate::locate::Located;
use crate::parameters::{self, Parameters};
use datafusion::common::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Query, Spanned,
    Statement as SqlStatement, UnaryOperator, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use std::ops::ControlFlow;

/// Longest text of a query or filter.
pub const TEXT_BYTES_MAX: usize = 256 * 1024;

/// Most operators and names in a text. Parser and planner recurse once or more for each of a chain such as
/// `a = 1 OR a = 2 OR ...`; the engine's threads have the stack for this many, and literals in an `IN` list are free.
pub const TEXT_WORDS_MAX: usize = 1024;

/// Which kind of error a mistake in the text becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextKind {
    Sql,
    Filter,
}

impl TextKind {
    pub(crate) fn error(self, located: Box<Located>) -> QueryError {
        match self {
            TextKind::Sql => QueryError::Sql(located),
            TextKind::Filter => QueryError::Filter(located),
        }
    }
}

/// Parses one statement that only reads, with values for its parameters.
pub(crate) fn statement(text: &str, parameters: &Parameters) -> Result<Statement, QueryError> {
    let tokens = bounded(text, TextKind::Sql)?;
    let first = first_word(&tokens);
    parsed(text, &first, parameters::bind(tokens, parameters)?)
}

/// Parses one statement that only reads, its parameters left open and numbered `$1`, `$2`, ...; and tells how many
/// there are.
pub(crate) fn open_statement(text: &str) -> Result<(Statement, usize), QueryError> {
    let mut tokens = bounded(text, TextKind::Sql)?;
    let first = first_word(&tokens);
    let count = parameters::number(&mut tokens)?;
    Ok((parsed(text, &first, tokens)?, count))
}

fn parsed(text: &str, first: &str, tokens: Vec<TokenWithSpan>) -> Result<Statement, QueryError> {
    let kind = TextKind::Sql;
    let parser = DFParserBuilder::new(tokens).with_dialect(&GenericDialect {}).build();
    let mut statements = parser
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|e| kind.error(Located::syntax(text, &syntax_message(&e))))?;
    let Some(mut statement) = statements.pop_front() else {
        return Err(kind.error(Located::at(text, 0, 0, "the query is empty: write a SELECT".to_owned(), None)));
    };
    if !statements.is_empty() {
        let message = "there is more than one statement: send them one at a time".to_owned();
        return Err(kind.error(Located::at(text, 0, 0, message, None)));
    }
    let Some(sql) = reading(&mut statement) else {
        return Err(QueryError::ReadOnly { statement: first.to_owned() });
    };
    either_side(sql, text, kind)?;
    Ok(statement)
}

/// Parses exactly one expression; what would end it and begin something else is an error.
pub(crate) fn filter(text: &str) -> Result<Expr, QueryError> {
    let kind = TextKind::Filter;
    bounded(text, kind)?;
    let parse = || {
        let mut parser = Parser::new(&GenericDialect {}).try_with_sql(text)?;
        let expr = parser.parse_expr()?;
        Ok((expr, parser.peek_token()))
    };
    let (mut expr, next) = parse().map_err(|e: ParserError| kind.error(Located::syntax(text, &parser_message(&e))))?;
    if next.token != Token::EOF {
        let message = format!("the filter ends before `{}`: write one expression", next.token);
        let start = next.span.start;
        return Err(kind.error(Located::at(text, start.line, start.column, message, None)));
    }
    if contains_query(&mut expr) {
        let message = "a filter is one expression over the columns of flows: use SQL for subqueries".to_owned();
        let complaint = Complaint { message, culprit: Culprit::Word("select".to_owned()), hint: None };
        return Err(kind.error(Located::complaint(text, complaint)));
    }
    either_side(&mut expr, text, kind)?;
    Ok(expr)
}

/// The words of a text. Refuses what would overflow the stack further on.
fn bounded(text: &str, kind: TextKind) -> Result<Vec<TokenWithSpan>, QueryError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(QueryError::TooLong { value: text.len(), unit: "bytes", max: TEXT_BYTES_MAX });
    }
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location().map_err(|e| {
        kind.error(Located::at(text, e.location.line, e.location.column, crate::error::plain(&e.message), None))
    })?;
    let free = |t: &Token| {
        matches!(t, Token::Whitespace(_) | Token::Comma | Token::Number(..) | Token::SingleQuotedString(_) | Token::EOF)
    };
    let words = tokens.iter().filter(|t| !free(&t.token)).count();
    if words > TEXT_WORDS_MAX {
        return Err(QueryError::TooLong { value: words, unit: "operators and names", max: TEXT_WORDS_MAX });
    }
    Ok(tokens)
}

fn first_word(tokens: &[TokenWithSpan]) -> String {
    let first = tokens.iter().find_map(|t| match &t.token {
        Token::Word(w) => Some(w.value.to_uppercase()),
        _ => None,
    });
    first.unwrap_or_default()
}

fn syntax_message(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::SQL(e, _) => parser_message(e),
        other => crate::error::message_of(other),
    }
}

fn parser_message(error: &ParserError) -> String {
    match error {
        ParserError::TokenizerError(m) | ParserError::ParserError(m) => m.clone(),
        ParserError::RecursionLimitExceeded => "the expression is nested too deeply: use fewer parentheses".to_owned(),
    }
}

/// The syntax tree of a statement that only reads; `None` for any other.
fn reading(statement: &mut Statement) -> Option<&mut SqlStatement> {
    match statement {
        Statement::Statement(sql) => match sql.as_ref() {
            SqlStatement::Query(_)
            | SqlStatement::ExplainTable { .. }
            | SqlStatement::ShowTables { .. }
            | SqlStatement::ShowColumns { .. }
            | SqlStatement::ShowFunctions { .. } => Some(sql),
            _ => None,
        },
        Statement::Explain(explain) => reading(&mut explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => None,
    }
}

fn contains_query(expr: &mut Expr) -> bool {
    struct Find;
    impl VisitorMut for Find {
        type Break = ();
        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    expr.visit(&mut Find).is_break()
}

/// Replaces `host(x, ...)`, `net(x, ...)` and `port(x, ...)` by a comparison of both sides. An alias may stand before
/// them as before a column: `f.host('10.0.0.1')`.
fn either_side(node: &mut impl VisitMut, text: &str, kind: TextKind) -> Result<(), QueryError> {
    match node.visit(&mut EitherSide) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(complaint) => Err(kind.error(Located::complaint(text, complaint))),
    }
}

struct EitherSide;

impl VisitorMut for EitherSide {
    type Break = Complaint;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Complaint> {
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        let Some((prefix, name)) = split_name(function) else { return ControlFlow::Continue(()) };
        let (columns, example) = match name.value.to_ascii_lowercase().as_str() {
            "host" => (["src_ip", "dst_ip"], "host('10.0.0.1')"),
            "net" => (["src_ip", "dst_ip"], "net('10.0.0.0/8')"),
            "port" => (["src_port", "dst_port"], "port(443)"),
            _ => return ControlFlow::Continue(()),
        };
        let Some(args) = plain_args(function) else {
            return ControlFlow::Break(Complaint {
                message: format!("`{}` takes one or more values", name.value),
                culprit: Culprit::At(name.span.start.line, name.span.start.column),
                hint: Some(format!("write it as {example}")),
            });
        };
        if columns[0] == "src_port"
            && let Some(culprit) = args.iter().find(|arg| is_no_port(arg))
        {
            let start = culprit.span().start;
            return ControlFlow::Break(Complaint {
                message: format!("{culprit} is no port: they are numbers from 0 to 65535"),
                culprit: Culprit::At(start.line, start.column),
                hint: Some(format!("write it as {example}")),
            });
        }
        let [src, dst] = columns.map(|column| {
            let mut path = prefix.clone();
            path.push(Ident::with_span(name.span, column));
            if path.len() == 1 { Expr::Identifier(path.remove(0)) } else { Expr::CompoundIdentifier(path) }
        });
        let (src, dst) = if name.value.eq_ignore_ascii_case("net") {
            (within(&src, &args, function), within(&dst, &args, function))
        } else {
            (equals(src, &args), equals(dst, &args))
        };
        *expr = Expr::Nested(Box::new(or(src, dst)));
        ControlFlow::Continue(())
    }
}

/// Whether it is a literal, and not of a port.
fn is_no_port(arg: &Expr) -> bool {
    match arg {
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => number.parse::<u16>().is_err(),
            Value::SingleQuotedString(text) => text.trim().parse::<u16>().is_err(),
            _ => false,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => matches!(expr.as_ref(), Expr::Value(_)),
        _ => false,
    }
}

/// The identifiers before the function's name, and the name; `None` if it is quoted.
fn split_name(function: &Function) -> Option<(Vec<Ident>, Ident)> {
    let mut path: Vec<Ident> = function.name.0.iter().map(|p| p.as_ident().cloned()).collect::<Option<_>>()?;
    let name = path.pop()?;
    name.quote_style.is_none().then_some((path, name))
}

/// The arguments, if they are one or more plain expressions.
fn plain_args(function: &Function) -> Option<Vec<Expr>> {
    let plain = function.filter.is_none() && function.over.is_none() && function.within_group.is_empty();
    let FunctionArguments::List(list) = &function.args else { return None };
    if !plain || list.args.is_empty() || list.duplicate_treatment.is_some() || !list.clauses.is_empty() {
        return None;
    }
    let expr = |arg: &FunctionArg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    };
    list.args.iter().map(expr).collect()
}

fn equals(column: Expr, values: &[Expr]) -> Expr {
    match values {
        [value] => binary(column, BinaryOperator::Eq, value.clone()),
        _ => Expr::InList { expr: Box::new(column), list: values.to_vec(), negated: false },
    }
}

/// `in_cidr(column, a) OR in_cidr(column, b) ...`
fn within(column: &Expr, blocks: &[Expr], net: &Function) -> Expr {
    let call = |block: &Expr| {
        let mut call = net.clone();
        call.name = vec![Ident::new("in_cidr")].into();
        if let FunctionArguments::List(list) = &mut call.args {
            list.args = [column, block].map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e.clone()))).to_vec();
        }
        Expr::Function(call)
    };
    let mut calls = blocks.iter().map(call);
    let first = calls.next().unwrap_or_else(|| call(column));
    calls.fold(first, or)
}

fn or(left: Expr, right: Expr) -> Expr {
    binary(left, BinaryOperator::Or, right)
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(text: &str) -> Result<Statement, QueryError> {
        super::statement(text, &Parameters::default())
    }

    fn rewritten(text: &str) -> String {
        filter(text).unwrap().to_string()
    }

    #[test]
    fn either_side_is_spelled_out() {
        assert_eq!(rewritten("host('10.0.0.1')"), "(src_ip = '10.0.0.1' OR dst_ip = '10.0.0.1')");
        assert_eq!(rewritten("NOT Port(80, 443)"), "NOT (src_port IN (80, 443) OR dst_port IN (80, 443))");
        assert_eq!(
            rewritten("f.net('10.0.0.0/8')"),
            "(in_cidr(f.src_ip, '10.0.0.0/8') OR in_cidr(f.dst_ip, '10.0.0.0/8'))"
        );
        assert_eq!(rewritten("a IN (port(1))"), "a IN ((src_port = 1 OR dst_port = 1))");
    }

    #[test]
    fn a_filter_is_one_expression() {
        let error = |text: &str| filter(text).unwrap_err().to_string();
        assert_eq!(
            error("proto = 6; DROP TABLE flows"),
            "the filter ends before `;`: write one expression (line 1, column 10)\n  proto = 6; DROP TABLE flows\n           ^"
        );
        assert!(error("proto = 6 ORDER BY 1").starts_with("the filter ends before `ORDER`"));
        assert!(error("src_ip IN (SELECT dst_ip FROM flows)").contains("use SQL for subqueries"));
        assert!(error("host()").starts_with("`host` takes one or more values (line 1, column 1)"));
        assert!(
            error("port(80, 70000)")
                .starts_with("70000 is no port: they are numbers from 0 to 65535 (line 1, column 10)")
        );
        assert!(error("port(-1)").starts_with("-1 is no port: "));
        assert!(error("port('http')").starts_with("'http' is no port: "));
        assert_eq!(rewritten("port('443', $1)"), "(src_port IN ('443', $1) OR dst_port IN ('443', $1))");
        assert!(error("").starts_with("expected an expression, found the end of the text"));
        assert!(error("proto = 'x").contains("unterminated string literal (line 1, column 9)"));
    }

    #[test]
    fn only_reading_is_parsed() {
        for text in [
            "DROP TABLE flows",
            "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/etc'",
            "CREATE TABLE t AS SELECT 1",
            "COPY flows TO '/tmp/x.parquet'",
            "INSERT INTO flows SELECT * FROM flows",
            "DELETE FROM flows",
            "UPDATE flows SET proto = 1",
            "SET datafusion.execution.batch_size = 1",
            "RESET datafusion.execution.batch_size",
            "EXPLAIN DROP TABLE flows",
            "PREPARE p AS SELECT 1",
            "BEGIN",
        ] {
            assert!(matches!(statement(text), Err(QueryError::ReadOnly { .. })), "{text}");
        }
        for text in ["SELECT 1", "EXPLAIN SELECT 1", "SHOW TABLES", "DESCRIBE flows", "WITH a AS (SELECT 1) TABLE a"] {
            assert!(statement(text).is_ok(), "{text}: {:?}", statement(text));
        }
        assert!(statement("").unwrap_err().to_string().contains("empty"));
        assert!(statement("SELECT 1; SELECT 2").unwrap_err().to_string().contains("one at a time"));
    }

    #[test]
    fn text_is_bounded() {
        let chain = vec!["a"; TEXT_WORDS_MAX].join("|");
        assert!(matches!(filter(&chain), Err(QueryError::TooLong { unit: "operators and names", .. })));
        let list = vec!["'10.0.0.1'"; 10_000].join(",");
        assert!(filter(&format!("src_ip IN ({list})")).is_ok());
        assert!(matches!(filter(&" ".repeat(TEXT_BYTES_MAX + 1)), Err(QueryError::TooLong { unit: "bytes", .. })));
        assert!(filter(&format!("{}1{}", "(".repeat(1000), ")".repeat(1000))).is_err());
    }
}
