//! What can be wrong with a file, a record, a row or a tokenizer.

use std::fmt;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// A record of a data file, or a row of a batch, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// Place of the record in its file or batch, from 0.
    pub record: usize,
    /// The field at fault, where it is one: a name of the file's own form.
    pub field: Option<String>,
    /// What is wrong, and what to do about it.
    pub reason: String,
}

impl RecordError {
    /// An error of one row of a batch.
    pub(crate) fn of_row(row: usize, field: &str, reason: impl Into<String>) -> Self {
        Self {
            record: row,
            field: Some(field.to_owned()),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "record {}", self.record)?;
        if let Some(field) = &self.field {
            write!(formatter, ", field '{field}'")?;
        }
        write!(formatter, ": {}", self.reason)
    }
}

impl std::error::Error for RecordError {}

/// A field of a record that cannot be used; it becomes a [`RecordError`] once the number of the
/// record is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    pub(crate) field: Option<String>,
    pub(crate) reason: String,
}

impl FieldError {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: Some(field.into()),
            reason: reason.into(),
        }
    }

    pub(crate) fn of_record(reason: impl Into<String>) -> Self {
        Self {
            field: None,
            reason: reason.into(),
        }
    }

    pub(crate) fn at(self, record: usize) -> RecordError {
        RecordError {
            record,
            field: self.field,
            reason: self.reason,
        }
    }
}

/// All that this crate refuses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("{}: there is no such file; check the path", .0.display())]
    Missing(PathBuf),
    /// A file that cannot be read, or is damaged as a whole.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A record or a row that cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A tokenizer that cannot be used.
    #[error("{0}")]
    Tokenizer(String),
    /// Arguments that do not fit each other.
    #[error("{0}")]
    Argument(String),
}
