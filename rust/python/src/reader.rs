//! Files of records.

use std::path::PathBuf;

use easyedit_fast_core::records::{self, Format, OnError, ReadOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::errors::{python_error, request_error};
use crate::gil::without_gil;
use crate::record::Record;

/// The records of a file, and what was wrong with those that were skipped.
#[pyclass(frozen, module = "easyedit_fast._loader")]
pub(crate) struct ReadResult {
    records: Py<PyList>,
    skipped: Py<PyList>,
}

#[pymethods]
impl ReadResult {
    /// The records that can be used, in the order of the file.
    #[getter]
    fn records(&self, py: Python<'_>) -> Py<PyList> {
        self.records.clone_ref(py)
    }

    /// One `RequestError` for every record that was skipped.
    #[getter]
    fn skipped(&self, py: Python<'_>) -> Py<PyList> {
        self.skipped.clone_ref(py)
    }
}

fn on_error_named(name: &str) -> PyResult<OnError> {
    match name {
        "raise" => Ok(OnError::Raise),
        "skip" => Ok(OnError::Skip),
        _ => Err(PyValueError::new_err(format!(
            "unknown on_error '{name}'; it must be 'raise' or 'skip'"
        ))),
    }
}

/// Reads the records of a JSON or JSONL file.
#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "PyO3 makes paths that are owned"
)]
#[pyo3(signature = (path, *, format="auto", limit=None, offset=0, on_error="raise"))]
pub(crate) fn read_records(
    py: Python<'_>,
    path: PathBuf,
    format: &str,
    limit: Option<usize>,
    offset: usize,
    on_error: &str,
) -> PyResult<ReadResult> {
    let raise = |error| python_error(py, &error, Some(&path));
    let options = ReadOptions {
        format: Format::parse(format).map_err(raise)?,
        offset,
        limit,
        on_error: on_error_named(on_error)?,
    };
    let read = without_gil(py, || records::read_records(&path, &options)).map_err(raise)?;
    let made: Vec<Bound<'_, Record>> = read
        .records
        .into_iter()
        .map(|record| Bound::new(py, Record::from(record)))
        .collect::<PyResult<_>>()?;
    let errors: Vec<Bound<'_, PyAny>> = read
        .skipped
        .iter()
        .map(|error| request_error(py, error, Some(&path)))
        .collect::<PyResult<_>>()?;
    Ok(ReadResult {
        records: PyList::new(py, made)?.unbind(),
        skipped: PyList::new(py, errors)?.unbind(),
    })
}
