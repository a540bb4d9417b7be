//! The one door that releases the GIL.

use pyo3::prelude::*;

/// Runs `work` without the GIL, so that other Python threads go on meanwhile.
pub(crate) fn without_gil<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    py.detach(work)
}
