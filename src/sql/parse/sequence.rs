//! What statements say of sequences that every shard may have: which one `setval` names, and which table owns one.

use super::{Lower, Node, expression::sole_target, nodes};
use crate::sql::tree::Name;

impl Lower {
    /// The sequence of `SELECT setval('…', …)` of literals and nothing else.
    pub(super) fn set_sequence(&self, select: &nodes::SelectStmt) -> Option<Name> {
        if self.depth != 1 || !select.from_clause().is_empty() {
            return None;
        }
        if !matches!(select.where_clause(), Node::None) {
            return None;
        }
        let Node::FuncCall(call) = sole_target(select)? else {
            return None;
        };
        let path: Vec<&str> = call
            .funcname()
            .into_iter()
            .filter_map(Node::as_str)
            .collect();
        if !matches!(path.as_slice(), ["setval"] | ["pg_catalog", "setval"]) {
            return None;
        }
        let mut arguments = call.args().iter();
        let named = arguments.next()?;
        let literals = arguments.all(|node| matches!(node, Node::A_Const(_)));
        let text = match named {
            Node::TypeCast(cast) => {
                let to = super::expression::cast_type(cast.type_name()?);
                (to.name.as_deref() == Some("regclass") && !to.array)
                    .then(|| super::expression::text_of(cast.arg()))?
            }
            other => super::expression::text_of(other),
        };
        relation_name(&text?).filter(|_| literals)
    }
}

/// The table that ALTER SEQUENCE makes the owner, if it does.
pub(super) fn owner(alter: &nodes::AlterSeqStmt) -> Option<Name> {
    let mut options = alter.options().into_iter();
    let owner = options.find_map(|option| match option {
        Node::DefElem(option) if option.defname() == Some("owned_by") => Some(option.arg()),
        _ => None,
    });
    let Node::NodeList(path) = owner? else {
        return None;
    };
    let path = path.iter().map(|node| node.as_str().map(str::to_owned));
    let mut path = path.collect::<Option<Vec<String>>>()?;
    // Behind the table: its column. NONE stands alone.
    path.pop()?;
    let name = path.pop()?;
    let schema = path.pop();
    path.is_empty().then_some(Name { schema, name })
}

/// A relation as `regclass` reads its name.
#[must_use]
pub fn relation_name(text: &str) -> Option<Name> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let (part, behind) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut part = String::new();
                let mut quoted = quoted;
                loop {
                    let at = quoted.find('"')?;
                    part.push_str(&quoted[..at]);
                    quoted = &quoted[at + 1..];
                    match quoted.strip_prefix('"') {
                        Some(more) => {
                            part.push('"');
                            quoted = more;
                        }
                        None => break (part, quoted),
                    }
                }
            }
            None => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
                let end = rest.find(|c: char| !plain(c)).unwrap_or(rest.len());
                (rest[..end].to_ascii_lowercase(), &rest[end..])
            }
        };
        if part.is_empty() || part.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        parts.push(part);
        match behind.strip_prefix('.') {
            Some(more) => rest = more,
            None if behind.is_empty() => break,
            None => return None,
        }
    }
    let name = parts.pop()?;
    let schema = parts.pop();
    parts.is_empty().then_some(Name { schema, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_is_named_as_postgresql_reads_it() {
        let name = |schema: Option<&str>, name: &str| {
            Some(Name {
                schema: schema.map(str::to_owned),
                name: name.to_owned(),
            })
        };
        assert_eq!(relation_name("Tickets"), name(None, "tickets"));
        assert_eq!(
            relation_name("public.log_id_seq"),
            name(Some("public"), "log_id_seq")
        );
        assert_eq!(
            relation_name("\"My \"\"S\".\"a.b\""),
            name(Some("My \"S"), "a.b")
        );
        for odd in ["", "a.b.c", "a b", "\"a", "a.", "1a", "16384"] {
            assert_eq!(relation_name(odd), None, "{odd}");
        }
    }
}
