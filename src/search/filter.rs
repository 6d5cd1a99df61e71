//! Conditions that a user puts on hits: `category=water`, `doc_path^=water/`. Values only ever travel as values.

use crate::error::{Error, Result};
use crate::store::Filter;

/// Columns that can be filtered on, as users and the store name them.
const COLUMNS: [&str; 3] = ["category", "doc_id", "doc_path"];

/// Conditions that must all hold. The default has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchFilter {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Equals(&'static str, String),
    StartsWith(&'static str, String),
}

impl SearchFilter {
    /// Reads conditions as users write them, one each: `column=value` or `column^=prefix`.
    ///
    /// # Errors
    /// [`Error::InvalidFilter`] naming the known columns.
    pub fn parse<S: AsRef<str>>(conditions: &[S]) -> Result<Self> {
        let conditions = conditions.iter().map(|text| parse(text.as_ref())).collect::<Result<_>>()?;
        Ok(Self { conditions })
    }

    /// Adds the condition that the category is `category`.
    pub fn category(mut self, category: impl Into<String>) -> Self {
        self.conditions.push(Condition::Equals("category", category.into()));
        self
    }

    pub(super) fn to_store_filter(&self) -> Option<Filter> {
        let parts = self.conditions.iter().map(|condition| match condition {
            Condition::Equals(column, value) => Filter::Eq(column, value.clone()),
            Condition::StartsWith(column, prefix) => Filter::StartsWith(column, prefix.clone()),
        });
        (!self.conditions.is_empty()).then(|| Filter::All(parts.collect()))
    }
}

fn parse(text: &str) -> Result<Condition> {
    let refuse = |reason: String| Error::InvalidFilter { filter: text.to_owned(), reason };
    let usage = "write column=value or column^=prefix";
    let (name, value) = text.split_once('=').ok_or_else(|| refuse(usage.to_owned()))?;
    let (name, is_prefix) = match name.strip_suffix('^') {
        Some(name) => (name.trim(), true),
        None => (name.trim(), false),
    };
    let Some(column) = COLUMNS.into_iter().find(|column| *column == name) else {
        return Err(refuse(format!("there is no column `{name}`; there are {}", COLUMNS.join(", "))));
    };
    let value = value.trim().to_owned();
    Ok(if is_prefix { Condition::StartsWith(column, value) } else { Condition::Equals(column, value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_quotes_and_sql_stay_values() {
        let filter = SearchFilter::parse(&["category=' OR 1=1 --"]).unwrap();
        assert_eq!(filter, SearchFilter::default().category("' OR 1=1 --"));
        let sql = filter.to_store_filter().unwrap().to_sql();
        assert_eq!(sql, "(category = ''' OR 1=1 --')");
    }

    #[test]
    fn unknown_columns_are_refused_with_the_known_ones() {
        for wrong in ["colour=red", "category", "=x", "content^=x", "1=1; drop table x"] {
            let error = SearchFilter::parse(&[wrong]).unwrap_err().to_string();
            assert!(error.contains("category") || error.contains("column=value"), "{error}");
        }
    }

    #[test]
    fn a_prefix_is_not_an_equality() {
        let filter = SearchFilter::parse(&["doc_path^=water/"]).unwrap();
        assert_eq!(filter.to_store_filter().unwrap().to_sql(), "(starts_with(doc_path, 'water/'))");
    }
}
