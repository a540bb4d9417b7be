//! Texts of a corpus, packed into full blocks of tokens: what statistics are collected over.
//!
//! [`Documents`] reads the texts of files one after the other, [`Packer`] turns texts into blocks,
//! [`Corpus`] is both together, and [`ReadAhead`] runs it beside its user.

mod documents;
mod pack;
mod read_ahead;

use std::path::PathBuf;
use std::sync::Arc;

pub use documents::Documents;
pub use pack::{Blocks, Packer};
pub use read_ahead::ReadAhead;

use crate::error::Result;
use crate::tokenize::RequestTokenizer;

/// Texts that are tokenised at a time, at most, and their bytes.
const TEXTS_AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 1 << 20;

/// The blocks of the files of a corpus.
pub struct Corpus {
    documents: Documents,
    packer: Packer,
    rows: usize,
    finished: bool,
}

impl Corpus {
    /// Opens a corpus; nothing is read yet.
    ///
    /// `rows` is the number of blocks in each item; `field` names the text of a JSON record.
    ///
    /// # Errors
    /// As [`Documents::new`] and [`Packer::new`].
    pub fn new(
        paths: Vec<PathBuf>,
        field: String,
        tokenizer: Arc<RequestTokenizer>,
        block_length: usize,
        rows: usize,
    ) -> Result<Self> {
        Ok(Self {
            documents: Documents::new(paths, field)?,
            packer: Packer::new(tokenizer, block_length)?,
            rows: rows.max(1),
            finished: false,
        })
    }

    /// Reads on until there are blocks enough, or no more texts.
    fn fill(&mut self) -> Result<()> {
        while !self.finished && self.packer.full_blocks() < self.rows {
            let mut texts = Vec::new();
            let mut bytes = 0_usize;
            while texts.len() < TEXTS_AT_ONCE && bytes < BYTES_AT_ONCE {
                let Some(text) = self.documents.next() else {
                    self.finished = true;
                    break;
                };
                let text = text?;
                bytes = bytes.saturating_add(text.len());
                texts.push(text);
            }
            self.packer.push(&texts)?;
        }
        Ok(())
    }
}

impl Iterator for Corpus {
    type Item = Result<Blocks>;

    /// The next blocks: `rows` of them, fewer near the end, and last the tokens that fill no block.
    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.fill() {
            self.finished = true;
            self.packer.clear();
            return Some(Err(error));
        }
        self.packer
            .take(self.rows)
            .or_else(|| self.packer.take_rest())
            .map(Ok)
    }
}
