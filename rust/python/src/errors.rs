//! The core's errors as the classes of `easyedit_fast.errors`.

use std::path::Path;

use easyedit_fast_core::error::{Error, RecordError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("easyedit_fast.errors")?.getattr(name)
}

fn plain(py: Python<'_>, name: &str, message: &str) -> PyErr {
    match class(py, name).and_then(|class| class.call1((message,))) {
        Ok(value) => PyErr::from_value(value),
        Err(error) => error,
    }
}

/// A `RequestError` as an object, which names the file where there is one.
pub(crate) fn request_error<'py>(
    py: Python<'py>,
    error: &RecordError,
    file: Option<&Path>,
) -> PyResult<Bound<'py, PyAny>> {
    let reason = match file {
        Some(path) => format!("{} (in {})", error.reason, path.display()),
        None => error.reason.clone(),
    };
    let place = PyDict::new(py);
    place.set_item("record", error.record)?;
    place.set_item("field", error.field.as_deref())?;
    class(py, "RequestError")?.call((reason,), Some(&place))
}

/// The Python exception of an error of the core.
pub(crate) fn python_error(py: Python<'_>, error: &Error, file: Option<&Path>) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Missing(_) => plain(py, "MissingFileError", &message),
        Error::File { .. } => plain(py, "DataFileError", &message),
        Error::Tokenizer(_) => plain(py, "ModelError", &message),
        Error::Argument(_) => PyValueError::new_err(message),
        Error::Record(record) => match request_error(py, record, file) {
            Ok(value) => PyErr::from_value(value),
            Err(error) => error,
        },
    }
}
