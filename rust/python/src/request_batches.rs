//! Files of records as padded batches of tokens.

use std::path::PathBuf;
use std::sync::Mutex;

use easyedit_fast_core::batch::PaddingSide;
use easyedit_fast_core::corpus::ReadAhead;
use easyedit_fast_core::error::Result;
use easyedit_fast_core::records::{Format, ReadOptions};
use easyedit_fast_core::request_batches::{self as core, BatchOptions, Rows};
use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::batch::Batch;
use crate::errors::python_error;
use crate::gil::without_gil;
use crate::tokenizer::Tokenizer;

/// Batches that are made before they are asked for.
const AHEAD: usize = 64;

/// A section's rows, and the place of each row's record in its batch.
type Section = (Py<Batch>, Py<PyArray1<i64>>);

/// All prompts of some records.
#[pyclass(frozen, get_all, module = "easyedit_fast._loader")]
pub(crate) struct RequestBatch {
    /// Place of each record in its file [n] int64.
    numbers: Py<PyArray1<i64>>,
    /// The prompts with their targets.
    rewrite: Section,
    /// The other wordings with the targets.
    rephrase: Section,
    /// The locality prompts with their answers.
    locality: Section,
    /// The portability prompts with their answers.
    portability: Section,
}

fn section(py: Python<'_>, rows: Rows) -> PyResult<Section> {
    Ok((
        Py::new(py, Batch::hand_over(py, rows.tokens)?)?,
        rows.record.into_pyarray(py).unbind(),
    ))
}

impl RequestBatch {
    fn hand_over(py: Python<'_>, batch: core::RequestBatch) -> PyResult<Self> {
        Ok(Self {
            numbers: batch.numbers.into_pyarray(py).unbind(),
            rewrite: section(py, batch.rewrite)?,
            rephrase: section(py, batch.rephrase)?,
            locality: section(py, batch.locality)?,
            portability: section(py, batch.portability)?,
        })
    }
}

/// The batches of a file's records, made ahead in a thread.
#[pyclass(frozen, module = "easyedit_fast._loader")]
pub(crate) struct RequestBatches {
    path: PathBuf,
    batches: Mutex<ReadAhead<Result<core::RequestBatch>>>,
}

#[pymethods]
impl RequestBatches {
    /// Reads a file and begins to tokenise.
    #[new]
    #[expect(
        clippy::too_many_arguments,
        reason = "they are keyword arguments in Python"
    )]
    #[pyo3(signature = (path, tokenizer, *, batch_size, padding_side="right", pad_id=0,
                        add_special_tokens=true, format="auto", limit=None, offset=0))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        tokenizer: &Tokenizer,
        batch_size: usize,
        padding_side: &str,
        pad_id: i64,
        add_special_tokens: bool,
        format: &str,
        limit: Option<usize>,
        offset: usize,
    ) -> PyResult<Self> {
        let raise = |error| python_error(py, &error, Some(&path));
        let read = ReadOptions {
            format: Format::parse(format).map_err(raise)?,
            offset,
            limit,
            ..ReadOptions::default()
        };
        let options = BatchOptions {
            size: batch_size,
            padding_side: PaddingSide::parse(padding_side).map_err(raise)?,
            pad_id,
            add_special_tokens,
        };
        let tokenizer = tokenizer.share();
        let batches = without_gil(py, || {
            core::RequestBatches::open(&path, &read, tokenizer, options)
                .and_then(|batches| ReadAhead::start(batches, AHEAD))
        })
        .map_err(raise)?;
        Ok(Self {
            batches: Mutex::new(batches),
            path,
        })
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    /// The next batch.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<RequestBatch>> {
        let next = without_gil(py, || {
            let mut batches = self
                .batches
                .lock()
                .map_err(|_| PyRuntimeError::new_err("an earlier call has died"))?;
            Ok::<_, PyErr>(batches.next_item())
        })?;
        match next.and_then(Option::transpose) {
            Ok(batch) => batch
                .map(|batch| RequestBatch::hand_over(py, batch))
                .transpose(),
            Err(error) => Err(python_error(py, &error, Some(&self.path))),
        }
    }
}
