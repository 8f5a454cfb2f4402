//! From tables and files to rules. What is not understood is an error, never passed over: a rule that is left out could
//! let somebody in.

use super::{
    Addresses, Certificate, ClientName, DatabaseName, Kind, Mapping, Method, Rule, Rules, UserName,
    tokens::{self, Field, Line, Quoting, Token},
};
use crate::config::{
    error::{Problem, Text, most_like},
    options::Section,
    reader::{Node, Place, Reader},
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

const KINDS: [&str; 4] = ["local", "host", "hostssl", "hostnossl"];
const METHODS: [&str; 6] = [
    "trust",
    "reject",
    "password",
    "md5",
    "scram-sha-256",
    "cert",
];
const OPTIONS: [&str; 3] = ["map", "clientcert", "clientname"];

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleProblem {
    #[error("this quote is not closed")]
    Unclosed,
    #[error("the rule has no {0}")]
    Short(&'static str),
    #[error("one {0} is expected here")]
    Several(&'static str),
    #[error("`{0}` is no kind of connection")]
    Kind(String, Option<String>),
    #[error("`{0}` is no method of authentication that is known here")]
    Method(String, Option<String>),
    #[error("`{0}` is no option that is known here")]
    Option(String, Option<String>),
    #[error("`{name}` cannot be `{value}`")]
    Value { name: String, value: String },
    #[error("option `{0}` is given twice")]
    Twice(String),
    #[error("`{0}` is no network: hosts are not looked up by name")]
    Address(String),
    #[error("`{0}` is no mask for such an address")]
    Mask(String),
    #[error("`{0}` needs what is not known here: roles, files and patterns stand for no names")]
    Name(String),
    #[error("{0} only with `hostssl`")]
    TlsOnly(&'static str),
    #[error("a map only with names in certificates: method `cert`, or `clientcert=verify-full`")]
    MapWithoutName,
    #[error("method `cert` checks the name already")]
    CertChecks,
    #[error("there is no map `{0}`")]
    NoMap(String, Option<String>),
    #[error("there is no rule: nobody could enter")]
    Empty,
    #[error("a line has a map's name, a name in certificates and a user")]
    Ident,
    #[error(
        "rules ask for client certificates, and no `client_ca` in `server.tls` says who signs them"
    )]
    NoAuthority,
}

impl RuleProblem {
    /// What to do about it.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "most problems say themselves what to do"
    )]
    pub(in crate::config) fn help(&self) -> Option<String> {
        let choices = |given: &[&str]| format!("write `{}`", given.join("`, `"));
        match self {
            Self::Kind(_, Some(like))
            | Self::Method(_, Some(like))
            | Self::Option(_, Some(like))
            | Self::NoMap(_, Some(like)) => Some(format!("did you mean `{like}`?")),
            Self::Kind(..) => Some(choices(&KINDS)),
            Self::Method(..) => Some(choices(&METHODS)),
            Self::Option(..) => Some(choices(&OPTIONS)),
            Self::Address(_) => {
                Some("write `all`, `10.0.0.0/8`, `10.0.0.0 255.0.0.0` or `fd00::/8`".to_owned())
            }
            _ => None,
        }
    }
}

/// Names in certificates and users, by the map's name.
type Maps = BTreeMap<String, Arc<Vec<Mapping>>>;

/// The rules of the file, if it has any; `server` names files of rules and maps.
pub(in crate::config) fn read(
    reader: &mut Reader,
    file: &Node<'_>,
    server: &Node<'_>,
) -> Option<Arc<Rules>> {
    let maps = match server.has("ident_file") {
        true => read_maps(reader, server),
        false => Maps::new(),
    };
    let mut rules = Vec::new();
    if file.has("rules") && server.has("rules_file") {
        let problem = Problem::Exclusive {
            first: "rules",
            second: "rules_file",
        };
        reader.fail(&server.place("rules_file"), problem);
        return None;
    }
    if file.has("rules") {
        for node in reader.array_of_tables(file, "rules", Section::Rule) {
            rules.extend(of_table(reader, &node, &maps));
        }
        if rules.is_empty() {
            fail(reader, &file.place("rules"), RuleProblem::Empty);
        }
    } else if server.has("rules_file") {
        rules = read_file(reader, server, &maps)?;
    } else {
        return None;
    }
    Some(Arc::new(Rules(rules)))
}

/// Refuses rules that ask for certificates where no authority is known.
pub(in crate::config) fn need_authority(reader: &mut Reader, rules: &Rules, place: &Place) {
    if rules
        .0
        .iter()
        .any(|rule| rule.certificate != Certificate::Unasked)
    {
        fail(reader, place, RuleProblem::NoAuthority);
    }
}

fn fail(reader: &mut Reader, place: &Place, problem: RuleProblem) {
    reader.fail(place, Problem::Rule(problem));
}

/// A file that an option names, whose faults are shown with its own lines from now on.
fn enter(reader: &mut Reader, server: &Node<'_>, key: &'static str) -> Option<String> {
    let path = reader.text(server, key)?;
    let contents = reader.read_file(&path, &server.place(key))?;
    let Ok(text) = String::from_utf8(contents) else {
        let reason = "it is not UTF-8".to_owned();
        reader.fail(&server.place(key), Problem::Unreadable { path, reason });
        return None;
    };
    reader.source = Some(Arc::new(Text {
        file: path,
        text: text.clone(),
    }));
    Some(text)
}

fn read_file(reader: &mut Reader, server: &Node<'_>, maps: &Maps) -> Option<Vec<Rule>> {
    let text = enter(reader, server, "rules_file")?;
    let mut rules = Vec::new();
    let lines = tokens::lines(&text);
    if lines.is_empty() {
        fail(reader, &(0..0), RuleProblem::Empty);
    }
    for line in lines {
        match line {
            Ok(line) => match of_line(line, maps) {
                Ok(rule) => rules.push(rule),
                Err((problem, place)) => fail(reader, &place, problem),
            },
            Err(unclosed) => fail(reader, &unclosed.0, RuleProblem::Unclosed),
        }
    }
    reader.source = None;
    Some(rules)
}

fn read_maps(reader: &mut Reader, server: &Node<'_>) -> Maps {
    let mut maps: BTreeMap<String, Vec<Mapping>> = BTreeMap::new();
    let text = enter(reader, server, "ident_file").unwrap_or_default();
    for line in tokens::lines(&text) {
        let line = match line {
            Ok(line) => line,
            Err(unclosed) => {
                fail(reader, &unclosed.0, RuleProblem::Unclosed);
                continue;
            }
        };
        let words: Vec<&Token> = line.fields.iter().flatten().collect();
        let ([map, system, user], 3) = (&words[..], line.fields.len()) else {
            fail(reader, &line.place, RuleProblem::Ident);
            continue;
        };
        // Patterns, roles' members and every user: more than is written here, and not understood.
        let wide = |token: &Token| {
            token.quoting == Quoting::Bare
                && (token.text.starts_with('/')
                    || token.text.starts_with('+')
                    || token.text == "all")
        };
        if let Some(token) = [*system, *user].into_iter().find(|token| wide(token)) {
            fail(reader, &token.place, RuleProblem::Name(token.text.clone()));
            continue;
        }
        maps.entry(map.text.clone()).or_default().push(Mapping {
            system: system.text.clone(),
            user: user.text.clone(),
        });
    }
    reader.source = None;
    maps.into_iter()
        .map(|(name, lines)| (name, Arc::new(lines)))
        .collect()
}

/// A problem and its place.
type Fault = (RuleProblem, Place);

/// The parts of a rule as they are written.
struct Written {
    kind: Token,
    databases: Field,
    users: Field,
    address: Option<Token>,
    mask: Option<Token>,
    method: Token,
    options: Vec<Token>,
}

fn of_line(line: Line, maps: &Maps) -> Result<Rule, Fault> {
    let end = line.place.end.saturating_sub(1)..line.place.end;
    let mut fields = line.fields.into_iter().peekable();
    let mut next = |what| {
        fields
            .next()
            .ok_or_else(|| (RuleProblem::Short(what), end.clone()))
    };
    let kind = one(next("kind of connection")?, "kind of connection")?;
    let databases = next("databases")?;
    let users = next("users")?;
    let (mut address, mut mask) = (None, None);
    let mut method = one(next("address or method")?, "word")?;
    if kind.text != "local" {
        let bare = method.text.parse::<IpAddr>().is_ok();
        address = Some(method);
        if bare {
            mask = Some(one(next("mask")?, "mask")?);
        }
        method = one(next("method")?, "method")?;
    }
    let written = Written {
        kind,
        databases,
        users,
        address,
        mask,
        method,
        options: fields.flatten().collect(),
    };
    written.rule(maps)
}

fn one(field: Field, what: &'static str) -> Result<Token, Fault> {
    let place = field.first().map_or(0..0, |token| token.place.clone());
    let mut tokens = field.into_iter();
    match (tokens.next(), tokens.next()) {
        (Some(token), None) => Ok(token),
        _ => Err((RuleProblem::Several(what), place)),
    }
}

fn of_table(reader: &mut Reader, node: &Node<'_>, maps: &Maps) -> Option<Rule> {
    let mut word = |key: &'static str| {
        let text = reader.text(node, key)?;
        Some(token(text, node.place(key)))
    };
    let (address, map) = (word("address"), word("map"));
    let (clientcert, clientname) = (word("clientcert"), word("clientname"));
    let mut names = |key: &'static str| -> Field {
        let given = reader.texts(node, key).into_iter();
        given.map(|(text, place)| token(text, place)).collect()
    };
    let (databases, users) = (names("databases"), names("users"));
    for key in ["databases", "users"] {
        if node.has(key) && [&databases, &users][usize::from(key == "users")].is_empty() {
            fail(reader, &node.place(key), RuleProblem::Short(key));
        }
    }
    let needed = [reader.needed(node, "type"), reader.needed(node, "method")];
    let [Some(kind), Some(method)] = needed else {
        return None;
    };
    let option = |name: &str, value: Option<Token>| {
        value.map(|value| Token {
            text: format!("{name}={}", value.text),
            ..value
        })
    };
    let written = Written {
        kind: token(kind, node.place("type")),
        databases,
        users,
        address,
        mask: None,
        method: token(method, node.place("method")),
        options: [
            option("map", map),
            option("clientcert", clientcert),
            option("clientname", clientname),
        ]
        .into_iter()
        .flatten()
        .collect(),
    };
    match written.rule(maps) {
        Ok(rule) => Some(rule),
        Err((problem, place)) => {
            fail(reader, &place, problem);
            None
        }
    }
}

/// A string of a table: in double quotes of its own it is never a keyword.
fn token(text: String, place: Place) -> Token {
    match text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    {
        Some(inner) => Token {
            text: inner.to_owned(),
            quoting: Quoting::Quoted,
            place,
        },
        None => Token {
            text,
            quoting: Quoting::Bare,
            place,
        },
    }
}

impl Written {
    fn rule(self, maps: &Maps) -> Result<Rule, Fault> {
        let kind = match self.kind.text.as_str() {
            "local" => Kind::Local,
            "host" => Kind::Host,
            "hostssl" => Kind::HostTls,
            "hostnossl" => Kind::HostPlain,
            other => {
                let problem = RuleProblem::Kind(other.to_owned(), most_like(other, KINDS));
                return Err((problem, self.kind.place));
            }
        };
        let method = match self.method.text.as_str() {
            "trust" => Method::Trust,
            "reject" => Method::Reject,
            "password" => Method::Password,
            "md5" => Method::Md5,
            "scram-sha-256" => Method::Scram,
            "cert" => Method::Cert,
            other => {
                let problem = RuleProblem::Method(other.to_owned(), most_like(other, METHODS));
                return Err((problem, self.method.place));
            }
        };
        if method == Method::Cert && kind != Kind::HostTls {
            let problem = RuleProblem::TlsOnly("method `cert`");
            return Err((problem, self.method.place));
        }
        let addresses = match (self.address, kind) {
            (None, Kind::Local) => Addresses::All,
            (None, _) => return Err((RuleProblem::Short("address"), self.kind.place)),
            (Some(address), Kind::Local) => {
                return Err((RuleProblem::Several("method"), address.place));
            }
            (Some(address), _) => addresses(address, self.mask)?,
        };
        let databases = self
            .databases
            .into_iter()
            .map(database)
            .collect::<Result<_, _>>()?;
        let users = self.users.into_iter().map(user).collect::<Result<_, _>>()?;
        let rule = Rule {
            kind,
            databases,
            users,
            addresses,
            method,
            certificate: match method {
                Method::Cert => Certificate::Named,
                Method::Trust | Method::Reject | Method::Password | Method::Md5 | Method::Scram => {
                    Certificate::Unasked
                }
            },
            client_name: ClientName::Common,
            map: None,
        };
        with_options(rule, self.options, maps)
    }
}

fn with_options(mut rule: Rule, options: Vec<Token>, maps: &Maps) -> Result<Rule, Fault> {
    let (mut seen, mut map_place) = (Vec::new(), None);
    for option in options {
        let Token { text, place, .. } = option;
        let (name, value) = text.split_once('=').unwrap_or((&text, ""));
        if seen.iter().any(|known| known == name) {
            return Err((RuleProblem::Twice(name.to_owned()), place));
        }
        seen.push(name.to_owned());
        let wrong = || RuleProblem::Value {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        match (name, value) {
            ("clientcert" | "clientname", _) if rule.kind != Kind::HostTls => {
                let what = if name == "clientcert" {
                    "`clientcert`"
                } else {
                    "`clientname`"
                };
                return Err((RuleProblem::TlsOnly(what), place));
            }
            ("clientcert", "verify-full") => rule.certificate = Certificate::Named,
            ("clientcert", "verify-ca") if rule.method == Method::Cert => {
                return Err((RuleProblem::CertChecks, place));
            }
            ("clientcert", "verify-ca") => rule.certificate = Certificate::Signed,
            ("clientname", "CN") => rule.client_name = ClientName::Common,
            ("clientname", "DN") => rule.client_name = ClientName::Distinguished,
            ("clientcert" | "clientname", _) => return Err((wrong(), place)),
            ("map", name) => match maps.get(name) {
                Some(map) => {
                    rule.map = Some(Arc::clone(map));
                    map_place = Some(place);
                }
                None => {
                    let like = most_like(name, maps.keys().map(String::as_str));
                    return Err((RuleProblem::NoMap(name.to_owned(), like), place));
                }
            },
            (name, _) => {
                let like = most_like(name, OPTIONS);
                return Err((RuleProblem::Option(name.to_owned(), like), place));
            }
        }
    }
    match map_place {
        Some(place) if rule.certificate != Certificate::Named => {
            Err((RuleProblem::MapWithoutName, place))
        }
        _ => Ok(rule),
    }
}

fn database(token: Token) -> Result<DatabaseName, Fault> {
    match (token.quoting, token.text.as_str()) {
        (Quoting::Bare, "all") => Ok(DatabaseName::All),
        (Quoting::Bare, "sameuser") => Ok(DatabaseName::SameUser),
        (Quoting::Bare, "replication") => Ok(DatabaseName::Replication),
        (Quoting::Bare, "samerole" | "samegroup") => {
            Err((RuleProblem::Name(token.text), token.place))
        }
        _ => named(token).map(DatabaseName::Named),
    }
}

fn user(token: Token) -> Result<UserName, Fault> {
    match (token.quoting, token.text.as_str()) {
        (Quoting::Bare, "all") => Ok(UserName::All),
        _ => named(token).map(UserName::Named),
    }
}

fn named(token: Token) -> Result<String, Fault> {
    let special = token.quoting == Quoting::Bare && token.text.starts_with(['+', '@', '/']);
    if special || token.text.is_empty() {
        return Err((RuleProblem::Name(token.text), token.place));
    }
    Ok(token.text)
}

fn addresses(address: Token, mask: Option<Token>) -> Result<Addresses, Fault> {
    if address.quoting == Quoting::Bare && address.text == "all" {
        return Ok(Addresses::All);
    }
    let unknown = || {
        (
            RuleProblem::Address(address.text.clone()),
            address.place.clone(),
        )
    };
    let (written, bits) = match address.text.split_once('/') {
        Some((written, bits)) => (written, Some(bits)),
        None => (address.text.as_str(), None),
    };
    let network: IpAddr = written.parse().map_err(|_no_address| unknown())?;
    let mask = match (bits, mask) {
        (Some(bits), None) => mask_of(network, bits).ok_or_else(unknown)?,
        (None, Some(mask)) => {
            let given = mask.text.parse::<IpAddr>().ok();
            let same = given.filter(|given| given.is_ipv4() == network.is_ipv4());
            same.filter(|given| is_mask(*given))
                .ok_or((RuleProblem::Mask(mask.text), mask.place))?
        }
        (None, None) | (Some(_), Some(_)) => return Err(unknown()),
    };
    Ok(Addresses::Network {
        address: network,
        mask,
    })
}

fn mask_of(network: IpAddr, bits: &str) -> Option<IpAddr> {
    // Neither a sign nor a blank.
    let bits: u32 = bits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| bits.parse().ok())??;
    match network {
        IpAddr::V4(_) => {
            let rest = 32_u32.checked_sub(bits)?;
            Some(IpAddr::V4((u32::MAX.checked_shl(rest).unwrap_or(0)).into()))
        }
        IpAddr::V6(_) => {
            let rest = 128_u32.checked_sub(bits)?;
            Some(IpAddr::V6(
                (u128::MAX.checked_shl(rest).unwrap_or(0)).into(),
            ))
        }
    }
}

/// Ones, then zeroes.
fn is_mask(mask: IpAddr) -> bool {
    match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() >= 32,
        IpAddr::V6(mask) => mask.to_bits().leading_ones() + mask.to_bits().trailing_zeros() >= 128,
    }
}
