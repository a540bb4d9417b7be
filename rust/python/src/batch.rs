//! Padded rows as NumPy arrays.

use easyedit_fast_core::batch;
use numpy::ndarray::{Array1, Array2, ShapeError};
use numpy::{IntoPyArray, PyArray1, PyArray2};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Padded rows of tokens; the arrays are the loader's own buffers.
#[pyclass(frozen, module = "easyedit_fast._loader")]
pub(crate) struct Batch {
    input_ids: Py<PyArray2<i64>>,
    attention_mask: Py<PyArray2<i64>>,
    labels: Option<Py<PyArray2<i64>>>,
    subject_last: Option<Py<PyArray1<i64>>>,
    lengths: Py<PyArray1<i64>>,
    addresses: Py<PyDict>,
}

/// Hands buffers over to NumPy, and notes where each of them lay before.
struct Handover<'py> {
    py: Python<'py>,
    addresses: Bound<'py, PyDict>,
}

impl Handover<'_> {
    fn note(&self, name: &str, buffer: &[i64]) -> PyResult<()> {
        self.addresses.set_item(name, buffer.as_ptr().addr())
    }

    fn vector(&self, name: &str, buffer: Vec<i64>) -> PyResult<Py<PyArray1<i64>>> {
        self.note(name, &buffer)?;
        Ok(Array1::from_vec(buffer).into_pyarray(self.py).unbind())
    }

    fn matrix(
        &self,
        name: &str,
        buffer: Vec<i64>,
        shape: (usize, usize),
    ) -> PyResult<Py<PyArray2<i64>>> {
        self.note(name, &buffer)?;
        let matrix = Array2::from_shape_vec(shape, buffer)
            .map_err(|error: ShapeError| PyRuntimeError::new_err(error.to_string()))?;
        Ok(matrix.into_pyarray(self.py).unbind())
    }
}

impl Batch {
    /// Moves the core's buffers into NumPy arrays.
    pub(crate) fn hand_over(py: Python<'_>, core: batch::Batch) -> PyResult<Self> {
        let shape = (core.rows, core.width);
        let to = Handover {
            py,
            addresses: PyDict::new(py),
        };
        Ok(Self {
            input_ids: to.matrix("input_ids", core.input_ids, shape)?,
            attention_mask: to.matrix("attention_mask", core.attention_mask, shape)?,
            labels: core
                .labels
                .map(|cells| to.matrix("labels", cells, shape))
                .transpose()?,
            subject_last: core
                .subject_last
                .map(|cells| to.vector("subject_last", cells))
                .transpose()?,
            lengths: to.vector("lengths", core.lengths)?,
            addresses: to.addresses.unbind(),
        })
    }
}

#[pymethods]
impl Batch {
    /// Token ids [n, t] int64.
    #[getter]
    fn input_ids(&self, py: Python<'_>) -> Py<PyArray2<i64>> {
        self.input_ids.clone_ref(py)
    }

    /// 1 for tokens, 0 for pads [n, t] int64.
    #[getter]
    fn attention_mask(&self, py: Python<'_>) -> Py<PyArray2<i64>> {
        self.attention_mask.clone_ref(py)
    }

    /// Ids of the target's tokens, -100 elsewhere [n, t] int64.
    #[getter]
    fn labels(&self, py: Python<'_>) -> Option<Py<PyArray2<i64>>> {
        self.labels.as_ref().map(|array| array.clone_ref(py))
    }

    /// Place of the subject's last token in the padded row [n] int64.
    #[getter]
    fn subject_last(&self, py: Python<'_>) -> Option<Py<PyArray1<i64>>> {
        self.subject_last.as_ref().map(|array| array.clone_ref(py))
    }

    /// Tokens of each row without its pads [n] int64.
    #[getter]
    fn lengths(&self, py: Python<'_>) -> Py<PyArray1<i64>> {
        self.lengths.clone_ref(py)
    }

    /// Where each buffer lay, in bytes of address, before NumPy got it.
    #[getter]
    fn addresses(&self, py: Python<'_>) -> Py<PyDict> {
        self.addresses.clone_ref(py)
    }
}
