//! A model's tokenizer.

use std::sync::Arc;

use easyedit_fast_core::batch::PaddingSide;
use easyedit_fast_core::error::{Error, RecordError};
use easyedit_fast_core::tokenize::{EncodeOptions, RequestTokenizer, Span};
use pyo3::exceptions::PyUnicodeEncodeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

use crate::batch::Batch;
use crate::errors::python_error;
use crate::gil::without_gil;

/// The tokenizer that a `tokenizer.json` describes.
#[pyclass(frozen, module = "easyedit_fast._loader")]
pub(crate) struct Tokenizer {
    inner: Arc<RequestTokenizer>,
}

impl Tokenizer {
    pub(crate) fn share(&self) -> Arc<RequestTokenizer> {
        Arc::clone(&self.inner)
    }
}

fn row_error(py: Python<'_>, record: usize, field: Option<&str>, reason: String) -> PyErr {
    let error = RecordError {
        record,
        field: field.map(str::to_owned),
        reason,
    };
    python_error(py, &Error::Record(error), None)
}

/// The texts as UTF-8, without copying those that are UTF-8 already.
pub(crate) fn utf8(texts: Vec<Bound<'_, PyAny>>) -> PyResult<Vec<PyBackedStr>> {
    let text_of = |(row, text): (usize, Bound<'_, PyAny>)| {
        text.extract::<PyBackedStr>().map_err(|error| {
            let py = text.py();
            let reason = if error.is_instance_of::<PyUnicodeEncodeError>(py) {
                "the text is no valid Unicode: it holds a lone surrogate".to_owned()
            } else {
                format!("must be a text: {error}")
            };
            row_error(py, row, None, reason)
        })
    };
    texts.into_iter().enumerate().map(text_of).collect()
}

fn spans(
    py: Python<'_>,
    field: &str,
    pairs: Option<Vec<(i64, i64)>>,
) -> PyResult<Option<Vec<Span>>> {
    let span = |(row, (start, end)): (usize, (i64, i64))| match (
        usize::try_from(start),
        usize::try_from(end),
    ) {
        (Ok(start), Ok(end)) => Ok(Span { start, end }),
        _ => Err(row_error(
            py,
            row,
            Some(field),
            format!("span ({start}, {end}) is negative"),
        )),
    };
    pairs
        .map(|pairs| pairs.into_iter().enumerate().map(span).collect())
        .transpose()
}

#[pymethods]
impl Tokenizer {
    /// Reads the text of a `tokenizer.json`.
    #[new]
    #[pyo3(signature = (json, *, split_special_tokens=false))]
    fn new(py: Python<'_>, json: &str, split_special_tokens: bool) -> PyResult<Self> {
        without_gil(py, || {
            RequestTokenizer::from_json(json, split_special_tokens)
        })
        .map(|inner| Self {
            inner: Arc::new(inner),
        })
        .map_err(|error| python_error(py, &error, None))
    }

    /// Number of tokens, added ones included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// Tokenises texts and pads them into one batch.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are keyword arguments in Python"
    )]
    #[pyo3(signature = (texts, *, subject_spans=None, target_spans=None, padding_side="right",
                        pad_id=0, add_special_tokens=true))]
    fn encode(
        &self,
        py: Python<'_>,
        texts: Vec<Bound<'_, PyAny>>,
        subject_spans: Option<Vec<(i64, i64)>>,
        target_spans: Option<Vec<(i64, i64)>>,
        padding_side: &str,
        pad_id: i64,
        add_special_tokens: bool,
    ) -> PyResult<Batch> {
        let raise = |error| python_error(py, &error, None);
        let texts = utf8(texts)?;
        let subject_spans = spans(py, "subject", subject_spans)?;
        let target_spans = spans(py, "target", target_spans)?;
        let options = EncodeOptions {
            subject_spans: subject_spans.as_deref(),
            target_spans: target_spans.as_deref(),
            padding_side: PaddingSide::parse(padding_side).map_err(raise)?,
            pad_id,
            add_special_tokens,
        };
        let batch = without_gil(py, || self.inner.encode(&texts, &options)).map_err(raise)?;
        Batch::hand_over(py, batch)
    }
}
