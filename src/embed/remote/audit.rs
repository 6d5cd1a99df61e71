//! A look at the spend ledger from outside: whether its sums can be true, and which are the least that are.

use super::book::Book;
use crate::error::Result;

/// The ledger's text with its sums made right; `None` where they are. No sum is ever lowered, so that no cap is passed.
///
/// # Errors
/// [`Error::MalformedRow`](crate::Error::MalformedRow) if the text is no ledger.
pub(crate) fn mended_ledger(text: &str) -> Result<Option<String>> {
    let book = Book::parse(Some(text))?;
    let mended = book.clone().with_plausible_sums();
    Ok((mended != book).then(|| mended.render()))
}
