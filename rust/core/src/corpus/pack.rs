//! Texts to full blocks of tokens.

use std::sync::Arc;

use crate::batch::MAX_CELLS;
use crate::error::{Error, RecordError, Result};
use crate::parallel::map_ordered;
use crate::tokenize::RequestTokenizer;

/// Blocks of one length, row-major; none of their cells is a pad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// Number of blocks.
    pub rows: usize,
    /// Tokens of each.
    pub width: usize,
    /// Token ids `[rows, width]`.
    pub input_ids: Vec<i64>,
}

/// Packs texts into blocks: one text goes on where the one before it has ended, and a text that
/// is longer than a block goes on in the next.
///
/// Special tokens that the tokenizer puts before a text (BOS) stand at the beginning of every
/// block instead, for that is where the model expects them. Those that it puts behind are left out.
pub struct Packer {
    tokenizer: Arc<RequestTokenizer>,
    block_length: usize,
    prefix: Vec<i64>,
    /// Tokens of the texts that are in no block yet.
    pending: Vec<i64>,
    /// Of `pending`, those that were handed out.
    taken: usize,
    texts: usize,
}

impl Packer {
    /// A packer without texts.
    ///
    /// # Errors
    /// [`Error::Argument`] for blocks without room for a token, or beyond all bounds.
    pub fn new(tokenizer: Arc<RequestTokenizer>, block_length: usize) -> Result<Self> {
        let prefix = tokenizer.prefix()?;
        if block_length <= prefix.len() || block_length > MAX_CELLS {
            return Err(Error::Argument(format!(
                "a block of {block_length} tokens is too short or too long; it must have from {} \
                 to {MAX_CELLS}",
                prefix.len().saturating_add(1)
            )));
        }
        Ok(Self {
            tokenizer,
            block_length,
            prefix,
            pending: Vec::new(),
            taken: 0,
            texts: 0,
        })
    }

    /// Takes in texts, which are tokenised in parallel.
    ///
    /// # Errors
    /// [`Error::Record`] for a text that cannot be tokenised; its number counts all texts so far.
    pub fn push<S: AsRef<str> + Sync>(&mut self, texts: &[S]) -> Result<()> {
        let before = self.texts;
        let rows = map_ordered(texts, |place, text| {
            self.tokenizer
                .ids(text.as_ref())
                .map_err(|reason| RecordError {
                    record: before.saturating_add(place),
                    field: None,
                    reason,
                })
        });
        self.pending.drain(..std::mem::take(&mut self.taken));
        for ids in rows {
            self.pending.extend(ids?.into_iter().map(i64::from));
        }
        self.texts = before.saturating_add(texts.len());
        Ok(())
    }

    fn tokens_per_block(&self) -> usize {
        self.block_length.saturating_sub(self.prefix.len()).max(1)
    }

    fn left(&self) -> &[i64] {
        self.pending.get(self.taken..).unwrap_or_default()
    }

    /// How many blocks are full.
    #[must_use]
    pub fn full_blocks(&self) -> usize {
        self.left()
            .len()
            .checked_div(self.tokens_per_block())
            .unwrap_or(0)
    }

    /// Takes out up to `rows` full blocks; none where no block is full.
    pub fn take(&mut self, rows: usize) -> Option<Blocks> {
        let most = MAX_CELLS.checked_div(self.block_length).unwrap_or(1);
        let rows = rows.min(self.full_blocks()).min(most);
        let tokens = rows.saturating_mul(self.tokens_per_block());
        self.take_rows(rows, tokens)
    }

    /// Takes out the tokens that fill no block, as one shorter block.
    pub fn take_rest(&mut self) -> Option<Blocks> {
        let tokens = self.left().len();
        self.take_rows(usize::from(tokens > 0), tokens)
    }

    /// Forgets the texts that are in no block yet.
    pub fn clear(&mut self) {
        self.pending.clear();
        self.taken = 0;
    }

    fn take_rows(&mut self, rows: usize, tokens: usize) -> Option<Blocks> {
        if rows == 0 {
            return None;
        }
        let mut input_ids = Vec::with_capacity(rows.saturating_mul(self.block_length));
        for block in self.left().get(..tokens)?.chunks(self.tokens_per_block()) {
            input_ids.extend_from_slice(&self.prefix);
            input_ids.extend_from_slice(block);
        }
        self.taken = self.taken.saturating_add(tokens);
        Some(Blocks {
            rows,
            width: input_ids.len().checked_div(rows)?,
            input_ids,
        })
    }
}
