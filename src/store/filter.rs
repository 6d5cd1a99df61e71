//! The only place where SQL text is made. Values are always quoted here; callers never concatenate.

use std::fmt::Write as _;

use crate::clock::Timestamp;

/// A row condition, as values; [`Filter::to_sql`] is what Lance is given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Filter {
    /// The column equals the text.
    Eq(&'static str, String),
    /// The column is one of the texts; no text matches nothing.
    In(&'static str, Vec<String>),
    /// The column begins with the text.
    StartsWith(&'static str, String),
    /// The moment is not after the given one; null never matches.
    NotAfter(&'static str, Timestamp),
    /// All of them.
    All(Vec<Filter>),
    /// Any of them.
    Any(Vec<Filter>),
}

impl Filter {
    /// The condition as SQL for a table's own columns.
    pub(crate) fn to_sql(&self) -> String {
        self.render("")
    }

    /// The condition as SQL for the rows that a merge would replace.
    pub(crate) fn to_merge_sql(&self) -> String {
        self.render("target.")
    }

    fn render(&self, qualifier: &str) -> String {
        let mut sql = String::new();
        self.write(qualifier, &mut sql);
        sql
    }

    fn write(&self, qualifier: &str, sql: &mut String) {
        // Writing to a String cannot fail.
        let _ = match self {
            Self::Eq(column, value) => write!(sql, "{qualifier}{column} = {}", quote(value)),
            Self::In(_, values) if values.is_empty() => write!(sql, "false"),
            Self::In(column, values) => {
                let _ = write!(sql, "{qualifier}{column} IN (");
                for (position, value) in values.iter().enumerate() {
                    let comma = if position == 0 { "" } else { "," };
                    let _ = write!(sql, "{comma}{}", quote(value));
                }
                write!(sql, ")")
            }
            Self::StartsWith(column, prefix) => write!(sql, "starts_with({qualifier}{column}, {})", quote(prefix)),
            Self::NotAfter(column, moment) => write!(sql, "{qualifier}{column} <= {}", timestamp(*moment)),
            Self::All(parts) => {
                join(parts, " AND ", "true", qualifier, sql);
                Ok(())
            }
            Self::Any(parts) => {
                join(parts, " OR ", "false", qualifier, sql);
                Ok(())
            }
        };
    }
}

fn join(parts: &[Filter], operator: &str, empty: &str, qualifier: &str, sql: &mut String) {
    if parts.is_empty() {
        sql.push_str(empty);
    }
    for (position, part) in parts.iter().enumerate() {
        sql.push_str(if position == 0 { "(" } else { operator });
        part.write(qualifier, sql);
    }
    if !parts.is_empty() {
        sql.push(')');
    }
}

/// A text as the value that an update sets.
pub(crate) fn literal(value: &str) -> String {
    quote(value)
}

/// A SQL string literal: standard quoting, in which a quote is doubled and nothing else is special.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A plain cast: conditions of a merge are evaluated without the rewriting that functions such as `arrow_cast` rely on.
fn timestamp(moment: Timestamp) -> String {
    format!("CAST({} AS TIMESTAMP(6))", moment.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_in_values_stay_inside_the_literal() {
        let filter = Filter::Eq("category", "x' OR 'a'='a".into());
        assert_eq!(filter.to_sql(), "category = 'x'' OR ''a''=''a'");
    }

    #[test]
    fn nesting_keeps_its_parentheses() {
        let or = Filter::Any(vec![Filter::Eq("a", "1".into()), Filter::NotAfter("b", Timestamp(5))]);
        let and = Filter::All(vec![or, Filter::In("c", vec!["x".into(), "y".into()])]);
        assert_eq!(and.to_sql(), "((a = '1' OR b <= CAST(5 AS TIMESTAMP(6))) AND c IN ('x','y'))");
        assert_eq!(Filter::Eq("a", "1".into()).to_merge_sql(), "target.a = '1'");
    }

    #[test]
    fn empty_lists_match_nothing_and_everything() {
        assert_eq!(Filter::In("c", vec![]).to_sql(), "false");
        assert_eq!(Filter::All(vec![]).to_sql(), "true");
        assert_eq!(Filter::Any(vec![]).to_sql(), "false");
    }
}
