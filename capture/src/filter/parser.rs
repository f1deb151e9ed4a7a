//! Tokens to an expression, by the rules of libpcap's grammar.y: qualifiers carry over to operands behind `and` and
//! `or`, which bind alike; `%` and `^` have no precedence of their own there, so they take all that follows.

use super::FilterError;
use super::lexer::{Spanned, Token, tokens};
use super::operand::{Kind, Qualifier};
use super::syntax::{Arithmetic, Direction, Expr, Join, Operator, Primitive, Relation, Term, abbreviation};
use super::words::{self, Protocol};

/// Longest filter, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 8192;

/// Most parentheses and brackets that are open at once.
const NESTING_MAX: usize = 64;

/// Parses a whole filter; `None` is the empty one, which every frame passes.
pub(super) fn parse(text: &str) -> Result<Option<Expr>, FilterError> {
    if text.len() > TEXT_BYTES_MAX {
        let at = (0..=TEXT_BYTES_MAX).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let what = format_args!("{} bytes are too long, at most {TEXT_BYTES_MAX} are accepted: cut", text.len());
        return Err(FilterError::new(text, at, what, ""));
    }
    let tokens = tokens(text)?;
    let closing = closings(text, &tokens)?;
    let mut parser = Parser { text, tokens, closing, next: 0, nesting: 0 };
    if parser.peek() == Token::End {
        return Ok(None);
    }
    let (expr, _) = parser.expression(None)?;
    match parser.peek() {
        Token::End => Ok(Some(expr)),
        _ => Err(parser.unexpected("'and', 'or' or the end")),
    }
}

/// For each `(` the index of its `)`.
fn closings(text: &str, tokens: &[Spanned<'_>]) -> Result<Vec<usize>, FilterError> {
    let mut closing = vec![0; tokens.len()];
    let mut open = Vec::new();
    for (i, spanned) in tokens.iter().enumerate() {
        match spanned.token {
            Token::Symbol("(") => open.push(i),
            Token::Symbol(")") => match open.pop() {
                Some(start) => closing[start] = i,
                None => return Err(FilterError::new(text, spanned.at, "unmatched ')'", "")),
            },
            _ => {}
        }
        if open.len() > NESTING_MAX {
            let what = format_args!("parentheses are nested too deeply, at most {NESTING_MAX} may be open:");
            return Err(FilterError::new(text, spanned.at, what, ""));
        }
    }
    match open.last() {
        Some(start) => Err(FilterError::new(text, tokens[*start].at, "unmatched '('", "")),
        None => Ok(closing),
    }
}

pub(super) struct Parser<'a> {
    pub(super) text: &'a str,
    tokens: Vec<Spanned<'a>>,
    closing: Vec<usize>,
    next: usize,
    nesting: usize,
}

/// An expression, and the qualifiers that an operand behind it takes over; `None` where it would have none.
type Qualified = (Expr, Option<Qualifier>);

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Token<'a> {
        self.ahead(0)
    }

    fn ahead(&self, n: usize) -> Token<'a> {
        self.tokens.get(self.next + n).map_or(Token::End, |s| s.token)
    }

    /// Byte offset of the next token.
    pub(super) fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.text.len(), |s| s.at)
    }

    pub(super) fn advance(&mut self) {
        self.next += 1;
    }

    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(w) | Token::Symbol(w) if w == word);
        self.next += usize::from(found);
        found
    }

    /// The words of the next token, as written.
    fn written(&self) -> &'a str {
        self.tokens.get(self.next).map_or("", |s| &self.text[s.at..s.end])
    }

    pub(super) fn error(&self, at: usize, what: impl std::fmt::Display, hint: impl std::fmt::Display) -> FilterError {
        FilterError::new(self.text, at, what, hint)
    }

    /// The next token does not fit here.
    pub(super) fn unexpected(&self, expected: &str) -> FilterError {
        let at = self.at();
        let end = FilterError::new(
            self.text,
            self.text.trim_end().len(),
            "the filter ends",
            format_args!(", expected {expected}"),
        );
        match self.peek() {
            Token::End => end,
            Token::Word(word) => match words::refused(word) {
                Some(why) => self.error(at, format_args!("'{word}' is not supported"), format_args!(": {why}")),
                None if words::is_reserved(word) => {
                    self.error(at, format_args!("unexpected '{word}'"), format_args!(", expected {expected}"))
                }
                None => self.unknown(word),
            },
            _ => self.error(at, format_args!("unexpected '{}'", self.written()), format_args!(", expected {expected}")),
        }
    }

    fn unknown(&self, word: &str) -> FilterError {
        let what = format_args!("unknown word '{word}'");
        match words::nearest(word) {
            Some(near) => self.error(self.at(), what, format_args!(", did you mean '{near}'?")),
            None => self.error(self.at(), what, ""),
        }
    }

    fn expect(&mut self, symbol: &str) -> Result<(), FilterError> {
        if self.take(symbol) { Ok(()) } else { Err(self.unexpected(&format!("'{symbol}'"))) }
    }

    /// Opens one more bracket; the caller closes it with `self.nesting -= 1`.
    fn nest(&mut self) -> Result<(), FilterError> {
        self.nesting += 1;
        if self.nesting <= NESTING_MAX {
            return Ok(());
        }
        let what = format_args!("brackets are nested too deeply, at most {NESTING_MAX} may be open:");
        Err(self.error(self.at(), what, ""))
    }

    /// `term (and|or (term|operand))*`. `carried` is what stood before the parenthesis.
    fn expression(&mut self, carried: Option<Qualifier>) -> Result<Qualified, FilterError> {
        let (first, mut carried) = self.negated(carried, false)?;
        let mut rest = Vec::new();
        while let Some(join) = self.join() {
            let (next, now) = self.negated(carried, true)?;
            rest.push((join, next));
            carried = now;
        }
        let expr = if rest.is_empty() { first } else { Expr::Chain(Box::new(first), rest) };
        Ok((expr, carried))
    }

    fn join(&mut self) -> Option<Join> {
        if self.take("and") {
            Some(Join::And)
        } else if self.take("or") {
            Some(Join::Or)
        } else {
            None
        }
    }

    /// A term behind any number of `not`; also an operand, where the qualifiers before it carry over.
    fn negated(&mut self, carried: Option<Qualifier>, carries: bool) -> Result<Qualified, FilterError> {
        let mut negative = false;
        while self.take("not") {
            negative = !negative;
        }
        let (expr, qualifier) = match self.operand_follows() {
            true if carries => self.operand(carried)?,
            true if self.operand_is_lost() => return Err(self.unqualified()),
            _ => self.term(carried)?,
        };
        Ok((if negative { Expr::Not(Box::new(expr)) } else { expr }, qualifier))
    }

    /// Whether the next tokens are an operand (an address, a number, a name) rather than a term of its own.
    fn operand_follows(&self) -> bool {
        let mut i = self.next;
        while self.tokens[i].token == Token::Symbol("(") {
            i += 1;
        }
        match self.tokens[i].token {
            Token::Number(_) => {
                // Out of the parentheses around the number alone: an operator makes it arithmetic.
                let mut open = i - self.next;
                i += 1;
                while open > 0 && self.tokens[i].token == Token::Symbol(")") {
                    (open, i) = (open - 1, i + 1);
                }
                !is_operator(self.tokens[i].token)
            }
            Token::Dotted(..) | Token::Ip6(_) | Token::Mac(_) | Token::Escaped(_) => true,
            Token::Word(word) => !words::is_reserved(word),
            _ => false,
        }
    }

    /// An operand at the start of an expression is an error, but one that deserves more than "unexpected".
    fn operand_is_lost(&self) -> bool {
        !matches!(self.peek(), Token::Symbol(_) | Token::Word(_))
    }

    /// `host a`, or the `b` and `(b or c)` of `host a or b`.
    fn operand(&mut self, carried: Option<Qualifier>) -> Result<Qualified, FilterError> {
        let mut negative = false;
        while self.take("not") {
            negative = !negative;
        }
        let expr = if self.peek() == Token::Symbol("(") {
            self.nest()?;
            self.advance();
            let (first, _) = self.operand(carried)?;
            let mut rest = Vec::new();
            while let Some(join) = self.join() {
                rest.push((join, self.operand(carried)?.0));
            }
            self.expect(")")?;
            self.nesting -= 1;
            if rest.is_empty() { first } else { Expr::Chain(Box::new(first), rest) }
        } else {
            let at = self.at();
            match carried {
                Some(qualifier) => Expr::Primitive(self.qualified(qualifier)?, at),
                None => return Err(self.unqualified()),
            }
        };
        Ok((if negative { Expr::Not(Box::new(expr)) } else { expr }, carried))
    }

    fn unqualified(&self) -> FilterError {
        let written = self.written();
        let kind = match self.peek() {
            Token::Word(word) => return self.unknown(word),
            Token::Number(_) => "port",
            Token::Mac(_) => "ether host",
            Token::Escaped(_) => "proto",
            _ => "host",
        };
        let what = format_args!("nothing says what '{written}' is");
        self.error(self.at(), what, format_args!(": for example '{kind} {written}'"))
    }

    /// A term that brings its own qualifiers.
    fn term(&mut self, carried: Option<Qualifier>) -> Result<Qualified, FilterError> {
        let at = self.at();
        if self.arithmetic_follows() {
            return Ok((Expr::Primitive(self.relation()?, at), None));
        }
        if self.peek() == Token::Symbol("(") {
            self.nest()?;
            self.advance();
            let (expr, _) = self.expression(carried)?;
            self.expect(")")?;
            self.nesting -= 1;
            return Ok((expr, carried));
        }
        let Token::Word(word) = self.peek() else {
            return Err(self.unexpected("a test such as 'tcp' or 'host 10.0.0.1'"));
        };
        if let Some(primitive) = self.plain(word)? {
            return Ok((Expr::Primitive(primitive, at), None));
        }
        let protocol = words::protocol(word);
        if protocol.is_some() {
            self.advance();
        }
        if let Some(qualifier) = self.qualifier(protocol)? {
            return self.operand(Some(qualifier));
        }
        let primitive = match (protocol, self.peek()) {
            (_, Token::Word("broadcast")) => self.broadcast(protocol, at)?,
            (_, Token::Word("multicast")) => self.multicast(protocol)?,
            (Some(protocol), _) => match abbreviation(protocol) {
                Some(primitive) => return Ok((Expr::Primitive(primitive, at), None)),
                None => return Err(self.unexpected("'host', 'src', 'dst', 'proto', 'broadcast', 'multicast' or '['")),
            },
            (None, _) => return Err(self.unexpected("a test such as 'tcp' or 'host 10.0.0.1'")),
        };
        self.advance();
        Ok((Expr::Primitive(primitive, at), None))
    }

    /// Primitives that take no qualifier.
    fn plain(&mut self, word: &str) -> Result<Option<Primitive>, FilterError> {
        let primitive = match word {
            "less" | "greater" => {
                self.advance();
                let Token::Number(bytes) = self.peek() else {
                    return Err(self.unexpected("a length in bytes"));
                };
                self.advance();
                if word == "less" { Primitive::LengthMost(bytes) } else { Primitive::LengthLeast(bytes) }
            }
            "vlan" => Primitive::Vlan(self.tag("VLAN id", 4095)?.map(|n| n as u16)),
            "mpls" => Primitive::Mpls(self.tag("MPLS label", 0xf_ffff)?),
            "pppoes" => Primitive::PppoeSession(self.tag("PPPoE session", 0xffff)?.map(|n| n as u16)),
            "pppoed" => {
                self.advance();
                Primitive::PppoeDiscovery
            }
            _ => return Ok(None),
        };
        Ok(Some(primitive))
    }

    /// The number that may follow `vlan`, `mpls` and `pppoes`.
    fn tag(&mut self, name: &str, max: u32) -> Result<Option<u32>, FilterError> {
        self.advance();
        let open = (0..).take_while(|n| self.ahead(*n) == Token::Symbol("(")).count();
        let Token::Number(value) = self.ahead(open) else {
            return if open == 0 { Ok(None) } else { Err(self.unexpected(&format!("'and', 'or' or a {name}"))) };
        };
        self.next += open;
        if value > max {
            return Err(self.error(
                self.at(),
                format_args!("{name} {value} is out of range"),
                format_args!(": 0 to {max}"),
            ));
        }
        self.advance();
        for _ in 0..open {
            self.expect(")")?;
        }
        Ok(Some(value))
    }

    /// `[src|dst|...] [host|net|port|portrange|proto]`, if any of it is there.
    fn qualifier(&mut self, protocol: Option<Protocol>) -> Result<Option<Qualifier>, FilterError> {
        let at = self.at();
        let direction = self.direction();
        let kind = match self.peek() {
            Token::Word("host") => Kind::Host,
            Token::Word("net") => Kind::Net,
            Token::Word("port") => Kind::Port,
            Token::Word("portrange") => Kind::PortRange,
            Token::Word("proto") if direction.is_none() => Kind::Protocol,
            _ if direction.is_some() => Kind::Default,
            _ => return Ok(None),
        };
        if kind != Kind::Default {
            self.advance();
        }
        Ok(Some(Qualifier { protocol, direction: direction.unwrap_or(Direction::Either), kind, at }))
    }

    fn direction(&mut self) -> Option<Direction> {
        let one = |word| match word {
            Token::Word("src") => Some(Direction::Source),
            Token::Word("dst") => Some(Direction::Destination),
            _ => None,
        };
        let first = one(self.peek())?;
        let joined = match self.ahead(1) {
            Token::Word("or") | Token::Symbol("or") => Some(Direction::Either),
            Token::Word("and") | Token::Symbol("and") => Some(Direction::Both),
            _ => None,
        };
        self.advance();
        match (joined, one(self.ahead(1))) {
            (Some(both), Some(second)) if second != first => {
                self.next += 2;
                Some(both)
            }
            _ => Some(first),
        }
    }

    fn broadcast(&self, protocol: Option<Protocol>, at: usize) -> Result<Primitive, FilterError> {
        match protocol {
            None | Some(Protocol::Link) => Ok(Primitive::LinkBroadcast),
            Some(Protocol::Ip) => {
                let hint = ": the netmask is not known; write 'dst host' with the broadcast address";
                Err(self.error(at, "'ip broadcast' is not supported", hint))
            }
            Some(_) => Err(self.error(self.at(), "unexpected 'broadcast'", ": only 'ether broadcast' is known")),
        }
    }

    fn multicast(&self, protocol: Option<Protocol>) -> Result<Primitive, FilterError> {
        match protocol {
            None | Some(Protocol::Link) => Ok(Primitive::LinkMulticast),
            Some(Protocol::Ip) => Ok(Primitive::IpMulticast),
            Some(Protocol::Ip6) => Ok(Primitive::Ip6Multicast),
            Some(_) => {
                let hint = ": 'ether multicast', 'ip multicast' and 'ip6 multicast' are known";
                Err(self.error(self.at(), "unexpected 'multicast'", hint))
            }
        }
    }

    /// Whether the next term compares numbers: it starts with one, or with a parenthesis that an operator follows.
    fn arithmetic_follows(&self) -> bool {
        match self.peek() {
            Token::Number(_) | Token::Symbol("-") | Token::Word("len" | "length") => true,
            Token::Word(word) => words::protocol(word).is_some() && self.ahead(1) == Token::Symbol("["),
            Token::Symbol("(") => {
                let behind = self.closing.get(self.next).map_or(0, |i| i + 1);
                self.tokens.get(behind).is_some_and(|s| is_operator(s.token))
            }
            _ => false,
        }
    }

    fn relation(&mut self) -> Result<Primitive, FilterError> {
        let mut left = Vec::new();
        self.arithmetic(0, &mut left)?;
        let relation = match self.peek() {
            Token::Symbol(">") => Relation::Greater,
            Token::Symbol(">=") => Relation::GreaterEqual,
            Token::Symbol("=") => Relation::Equal,
            Token::Symbol("<=") => Relation::LessEqual,
            Token::Symbol("<") => Relation::Less,
            Token::Symbol("!=") => Relation::NotEqual,
            _ => return Err(self.unexpected("an operator such as '=' or '&'")),
        };
        self.advance();
        let mut right = Vec::new();
        self.arithmetic(0, &mut right)?;
        Ok(Primitive::Relation { left, relation, right })
    }

    /// Precedence climbing: operators that bind at least as strongly as `least`.
    fn arithmetic(&mut self, least: u8, out: &mut Arithmetic) -> Result<(), FilterError> {
        self.nest()?;
        self.factor(out)?;
        while let Token::Symbol(symbol) = self.peek() {
            let Some((operator, strength)) = operator(symbol) else { break };
            let at = self.at();
            let right = match strength {
                Some(strength) if strength < least => break,
                Some(strength) => strength + 1,
                None => 0,
            };
            self.advance();
            let divisor = out.len();
            self.arithmetic(right, out)?;
            if let (Operator::Divide | Operator::Modulo, [Term::Number(0)]) = (operator, &out[divisor..]) {
                return Err(self.error(at, "division by zero", ""));
            }
            if let (Operator::ShiftLeft | Operator::ShiftRight, [Term::Number(32..)]) = (operator, &out[divisor..]) {
                return Err(self.error(at, "shift by more than 31 bits", ""));
            }
            out.push(Term::Binary(operator));
        }
        self.nesting -= 1;
        Ok(())
    }

    fn factor(&mut self, out: &mut Arithmetic) -> Result<(), FilterError> {
        match self.peek() {
            Token::Number(value) => {
                self.advance();
                out.push(Term::Number(value));
            }
            Token::Word("len" | "length") => {
                self.advance();
                out.push(Term::Length);
            }
            Token::Symbol("-") => {
                self.advance();
                // Stronger than all but `%` and `^`.
                self.arithmetic(u8::MAX, out)?;
                out.push(Term::Negate);
            }
            Token::Symbol("(") => {
                self.advance();
                self.arithmetic(0, out)?;
                self.expect(")")?;
            }
            Token::Word(word) if words::protocol(word).is_some() => self.load(word, out)?,
            _ => return Err(self.unexpected("a number, 'len' or bytes such as 'ip[9]'")),
        }
        Ok(())
    }

    /// `protocol[index]` or `protocol[index:width]`.
    fn load(&mut self, word: &str, out: &mut Arithmetic) -> Result<(), FilterError> {
        let at = self.at();
        let Some(protocol) = words::protocol(word) else { return Err(self.unexpected("a protocol")) };
        use Protocol::*;
        if matches!(protocol, Ah | Esp | Iso | Esis | Isis | Clnp | Stp | Ipx | Netbeui | Aarp) {
            return Err(self.error(at, format_args!("the bytes of '{word}' cannot be indexed"), ""));
        }
        self.advance();
        self.expect("[")?;
        self.arithmetic(0, out)?;
        let mut width = 1;
        if self.take(":") {
            width = match self.peek() {
                Token::Number(n @ (1 | 2 | 4)) => n as u8,
                Token::Number(n) => {
                    return Err(self.error(self.at(), format_args!("{n} bytes cannot be compared"), ": 1, 2 or 4 can"));
                }
                _ => return Err(self.unexpected("1, 2 or 4 bytes")),
            };
            self.advance();
        }
        self.expect("]")?;
        out.push(Term::Load { protocol, width });
        Ok(())
    }
}

/// Operator and strength; none where the grammar gives none.
fn operator(symbol: &str) -> Option<(Operator, Option<u8>)> {
    Some(match symbol {
        "|" => (Operator::Or, Some(1)),
        "&" => (Operator::And, Some(2)),
        "<<" => (Operator::ShiftLeft, Some(3)),
        ">>" => (Operator::ShiftRight, Some(3)),
        "+" => (Operator::Add, Some(4)),
        "-" => (Operator::Subtract, Some(4)),
        "*" => (Operator::Multiply, Some(5)),
        "/" => (Operator::Divide, Some(5)),
        "%" => (Operator::Modulo, None),
        "^" => (Operator::Xor, None),
        _ => return None,
    })
}

/// Arithmetic operators and relations.
fn is_operator(token: Token<'_>) -> bool {
    match token {
        Token::Symbol(symbol) => operator(symbol).is_some() || matches!(symbol, "<" | ">" | "=" | "<=" | ">=" | "!="),
        _ => false,
    }
}
