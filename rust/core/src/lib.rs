//! Edit requests from data files, and their tokens: the loader of easyedit-fast without Python.
//!
//! [`records`] reads files of edit requests, [`tokenize`] turns texts into tokens and finds spans
//! in them by character offsets, [`batch`] pads the rows into matrices, and [`request_batches`] does all of it. [`corpus`] packs plain texts
//! into blocks of tokens.

pub mod batch;
pub mod corpus;
pub mod error;
mod parallel;
pub mod records;
pub mod request_batches;
pub mod tokenize;
mod words;
