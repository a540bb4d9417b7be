//! The loader as the Python module `easyedit_fast._loader`: registration only.

mod batch;
mod corpus;
mod errors;
mod gil;
mod reader;
mod record;
mod request_batches;
mod tokenizer;

use pyo3::prelude::*;

/// Reads edit requests and corpora and tokenises them. Private: use `easyedit_fast.data`.
#[pymodule]
fn _loader(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<batch::Batch>()?;
    module.add_class::<corpus::Corpus>()?;
    module.add_class::<corpus::Packer>()?;
    module.add_class::<reader::ReadResult>()?;
    module.add_class::<record::Record>()?;
    module.add_class::<request_batches::RequestBatch>()?;
    module.add_class::<request_batches::RequestBatches>()?;
    module.add_class::<tokenizer::Tokenizer>()?;
    module.add_function(wrap_pyfunction!(reader::read_records, module)?)?;
    Ok(())
}
