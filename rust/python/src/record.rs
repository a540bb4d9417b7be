//! One record of a file.

use easyedit_fast_core::records;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// One edit request of a file, validated.
#[pyclass(frozen, module = "easyedit_fast._loader")]
pub(crate) struct Record {
    inner: records::Record,
}

impl From<records::Record> for Record {
    fn from(inner: records::Record) -> Self {
        Self { inner }
    }
}

/// `{key: ((prompt, ground_truth), …)}`.
fn section<'py>(py: Python<'py>, section: &records::Section) -> PyResult<Bound<'py, PyDict>> {
    let keys = PyDict::new(py);
    for (key, probes) in section {
        let pairs = probes
            .iter()
            .map(|probe| (&probe.prompt, probe.ground_truth.as_deref()));
        keys.set_item(key, PyTuple::new(py, pairs)?)?;
    }
    Ok(keys)
}

#[pymethods]
impl Record {
    /// Place in the file, from 0.
    #[getter]
    fn number(&self) -> usize {
        self.inner.number
    }

    /// The prompt as the file has it, perhaps with `{}` in the subject's place.
    #[getter]
    fn template(&self) -> &str {
        &self.inner.template
    }

    /// The prompt with the subject filled in.
    #[getter]
    fn prompt(&self) -> &str {
        &self.inner.prompt
    }

    /// What the fact is about.
    #[getter]
    fn subject(&self) -> &str {
        &self.inner.subject
    }

    /// Character offset of the edited occurrence of the subject in the prompt.
    #[getter]
    fn subject_start(&self) -> usize {
        self.inner.subject_start
    }

    /// The answer wanted.
    #[getter]
    fn target_new(&self) -> &str {
        &self.inner.target_new
    }

    /// The answer before the edit, where known.
    #[getter]
    fn ground_truth(&self) -> Option<&str> {
        self.inner.ground_truth.as_deref()
    }

    /// Other wordings of the prompt.
    #[getter]
    fn rephrase_prompt<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.inner.rephrase_prompt)
    }

    /// Per key, pairs of a prompt whose answer shall not change and that answer.
    #[getter]
    fn locality<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        section(py, &self.inner.locality)
    }

    /// Per key, pairs of a prompt whose answer follows from the edit and that answer.
    #[getter]
    fn portability<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        section(py, &self.inner.portability)
    }
}
