//! Reading typed columns out of a `RecordBatch`. A column of the wrong name or type is [`Error::MalformedRow`], never a panic.

use arrow_array::types::{Float32Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt64Type};
use arrow_array::{Array, FixedSizeListArray, PrimitiveArray, RecordBatch, StringArray};

use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// The columns of one batch of one table.
pub(crate) struct Rows<'a> {
    table: &'a str,
    batch: &'a RecordBatch,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(table: &'a str, batch: &'a RecordBatch) -> Self {
        Self { table, batch }
    }

    pub(crate) fn texts(&self, column: &str) -> Result<&'a StringArray> {
        self.column(column)
    }

    pub(crate) fn ints(&self, column: &str) -> Result<&'a PrimitiveArray<Int32Type>> {
        self.column(column)
    }

    pub(crate) fn longs(&self, column: &str) -> Result<&'a PrimitiveArray<Int64Type>> {
        self.column(column)
    }

    pub(crate) fn row_ids(&self) -> Result<&'a PrimitiveArray<UInt64Type>> {
        self.column("_rowid")
    }

    pub(crate) fn addresses(&self) -> Result<&'a PrimitiveArray<UInt64Type>> {
        self.column("_rowaddr")
    }

    pub(crate) fn floats(&self, column: &str) -> Result<&'a PrimitiveArray<Float32Type>> {
        self.column(column)
    }

    pub(crate) fn moments(&self, column: &str) -> Result<&'a PrimitiveArray<TimestampMicrosecondType>> {
        self.column(column)
    }

    /// The vectors as one row-major slice of rows × dimension.
    pub(crate) fn vectors(&self, column: &str) -> Result<&'a [f32]> {
        let list: &FixedSizeListArray = self.column(column)?;
        let width = usize::try_from(list.value_length()).unwrap_or(0);
        let values = list.values().as_any().downcast_ref::<PrimitiveArray<Float32Type>>();
        let values = values.ok_or_else(|| self.malformed(column, "it does not hold 32-bit floats"))?.values();
        // A sliced list keeps its whole child; cut out what belongs to these rows.
        let start = list.offset() * width;
        values
            .get(start..start + list.len() * width)
            .ok_or_else(|| self.malformed(column, "it is shorter than its rows"))
    }

    pub(crate) fn malformed(&self, column: &str, reason: &str) -> Error {
        Error::MalformedRow { table: self.table.to_owned(), column: column.to_owned(), reason: reason.to_owned() }
    }

    fn column<T: Array + 'static>(&self, column: &str) -> Result<&'a T> {
        let array = self.batch.column_by_name(column).ok_or_else(|| self.malformed(column, "it is missing"))?;
        array.as_any().downcast_ref().ok_or_else(|| {
            let reason = format!("it has the type {}", array.data_type());
            self.malformed(column, &reason)
        })
    }
}

/// The text at `row`, `None` where it is null.
pub(crate) fn text_at(array: &StringArray, row: usize) -> Option<String> {
    (!array.is_null(row)).then(|| array.value(row).to_owned())
}

/// The moment at `row`, `None` where it is null.
pub(crate) fn moment_at(array: &PrimitiveArray<TimestampMicrosecondType>, row: usize) -> Option<Timestamp> {
    (!array.is_null(row)).then(|| Timestamp(array.value(row)))
}

/// A count as the 32-bit integer that is stored, saturating.
pub(crate) fn stored_int(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A stored integer as a count; negative ones cannot have been written by us and read as 0.
pub(crate) fn count_at(array: &PrimitiveArray<Int32Type>, row: usize) -> usize {
    usize::try_from(array.value(row)).unwrap_or(0)
}
