//! Corpora as blocks of tokens.

use std::path::PathBuf;
use std::sync::Mutex;

use easyedit_fast_core::corpus::{self, Blocks, ReadAhead};
use easyedit_fast_core::error::Result;
use numpy::ndarray::{Array2, ShapeError};
use numpy::{IntoPyArray, PyArray2};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::errors::python_error;
use crate::gil::without_gil;
use crate::tokenizer::{Tokenizer, utf8};

/// Items that are made before they are asked for.
const AHEAD: usize = 4;

fn array(py: Python<'_>, blocks: Blocks) -> PyResult<Py<PyArray2<i64>>> {
    let matrix = Array2::from_shape_vec((blocks.rows, blocks.width), blocks.input_ids)
        .map_err(|error: ShapeError| PyRuntimeError::new_err(error.to_string()))?;
    Ok(matrix.into_pyarray(py).unbind())
}

fn dead<T>(_: T) -> PyErr {
    PyRuntimeError::new_err("an earlier call has died")
}

/// The blocks of the files of a corpus, read ahead in a thread.
#[pyclass(frozen, module = "easyedit_fast._loader")]
pub(crate) struct Corpus {
    blocks: Mutex<ReadAhead<Result<Blocks>>>,
}

#[pymethods]
impl Corpus {
    /// Opens the files and begins to read.
    #[new]
    #[pyo3(signature = (paths, tokenizer, *, block_length, rows, field="text"))]
    fn new(
        py: Python<'_>,
        paths: Vec<PathBuf>,
        tokenizer: &Tokenizer,
        block_length: usize,
        rows: usize,
        field: &str,
    ) -> PyResult<Self> {
        let tokenizer = tokenizer.share();
        corpus::Corpus::new(paths, field.to_owned(), tokenizer, block_length, rows)
            .and_then(|blocks| ReadAhead::start(blocks, AHEAD))
            .map(|blocks| Self {
                blocks: Mutex::new(blocks),
            })
            .map_err(|error| python_error(py, &error, None))
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    /// The next blocks [rows, t] int64.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyArray2<i64>>>> {
        let next = without_gil(py, || {
            let mut blocks = self.blocks.lock().map_err(dead)?;
            Ok::<_, PyErr>(blocks.next_item())
        })?;
        match next.and_then(Option::transpose) {
            Ok(blocks) => blocks.map(|blocks| array(py, blocks)).transpose(),
            Err(error) => Err(python_error(py, &error, None)),
        }
    }
}

/// Packs texts that Python hands over.
#[pyclass(frozen, module = "easyedit_fast._loader")]
pub(crate) struct Packer {
    inner: Mutex<corpus::Packer>,
}

#[pymethods]
impl Packer {
    /// A packer without texts.
    #[new]
    #[pyo3(signature = (tokenizer, *, block_length))]
    fn new(py: Python<'_>, tokenizer: &Tokenizer, block_length: usize) -> PyResult<Self> {
        corpus::Packer::new(tokenizer.share(), block_length)
            .map(|inner| Self {
                inner: Mutex::new(inner),
            })
            .map_err(|error| python_error(py, &error, None))
    }

    /// Tokenises texts and takes them in.
    fn push(&self, py: Python<'_>, texts: Vec<Bound<'_, PyAny>>) -> PyResult<()> {
        let texts = utf8(texts)?;
        without_gil(py, || {
            let mut packer = self.inner.lock().map_err(dead)?;
            Ok::<_, PyErr>(packer.push(&texts))
        })?
        .map_err(|error| python_error(py, &error, None))
    }

    /// Number of full blocks.
    #[getter]
    fn full_blocks(&self) -> PyResult<usize> {
        Ok(self.inner.lock().map_err(dead)?.full_blocks())
    }

    /// Takes out up to that many full blocks [rows, t] int64; None where no block is full.
    fn take(&self, py: Python<'_>, rows: usize) -> PyResult<Option<Py<PyArray2<i64>>>> {
        let blocks = self.inner.lock().map_err(dead)?.take(rows);
        blocks.map(|blocks| array(py, blocks)).transpose()
    }

    /// Takes out the tokens that fill no block, [1, t] int64.
    fn take_rest(&self, py: Python<'_>) -> PyResult<Option<Py<PyArray2<i64>>>> {
        let blocks = self.inner.lock().map_err(dead)?.take_rest();
        blocks.map(|blocks| array(py, blocks)).transpose()
    }
}
