//! Texts to tokens, and spans of characters to the tokens that they meet.

use tokenizers::Tokenizer;

use crate::batch::{Batch, Extras, PaddingSide, Row};
use crate::error::{Error, RecordError, Result};
use crate::parallel::map_ordered;
use crate::words::{Token, Words, tokens};

/// Characters (Unicode code points, as Python counts them) [start, end) of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first character.
    pub start: usize,
    /// The character after the last one.
    pub end: usize,
}

/// What to find in the texts, and how to pad them.
#[derive(Debug, Clone, Copy)]
pub struct EncodeOptions<'a> {
    /// One span a text: its subject.
    pub subject_spans: Option<&'a [Span]>,
    /// One span a text: the target, whose tokens become labels.
    pub target_spans: Option<&'a [Span]>,
    /// Where the pads stand.
    pub padding_side: PaddingSide,
    /// The id of a pad.
    pub pad_id: i64,
    /// Whether the tokenizer's own special tokens (BOS, CLS and the like) are added.
    pub add_special_tokens: bool,
}

/// A model's tokenizer, as its `tokenizer.json` describes it.
pub struct RequestTokenizer {
    inner: Tokenizer,
    /// None where words are not tokenised by themselves.
    words: Option<Words>,
}

impl RequestTokenizer {
    /// Reads the text of a `tokenizer.json`. Truncation and padding that it may hold are switched
    /// off. `split_special_tokens` treats special tokens inside a text as plain text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that describes no tokenizer.
    pub fn from_json(text: &str, split_special_tokens: bool) -> Result<Self> {
        let refuse = |error| Error::Tokenizer(format!("the tokenizer cannot be read: {error}"));
        let mut inner: Tokenizer = text.parse().map_err(refuse)?;
        inner.with_truncation(None).map_err(refuse)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(split_special_tokens);
        let words = Words::of(&inner);
        Ok(Self { inner, words })
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The special tokens that the tokenizer puts before a text, such as BOS.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where it cannot tokenise at all.
    pub fn prefix(&self) -> Result<Vec<i64>> {
        let encoding = self
            .inner
            .encode_fast("a", true)
            .map_err(|error| Error::Tokenizer(format!("the tokenizer cannot be used: {error}")))?;
        let special = encoding.get_special_tokens_mask().iter();
        Ok(encoding
            .get_ids()
            .iter()
            .zip(special)
            .take_while(|&(_, &special)| special == 1)
            .map(|(&id, _)| i64::from(id))
            .collect())
    }

    /// The tokens of a text, without special tokens of the tokenizer's own, or why there are none.
    pub(crate) fn ids(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
        self.inner
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| format!("the text cannot be tokenised: {error}"))
    }

    /// Tokenises the texts and pads them into a batch.
    ///
    /// A token belongs to a span where the characters that it stands for overlap it. The
    /// subject's place is that of the last such token. Where one character is split over several
    /// tokens, each of them stands for that character.
    ///
    /// # Errors
    /// [`Error::Record`], with the row's number, for a span that is not inside its text or meets
    /// no token; [`Error::Argument`] for a wrong number of spans and for too large a batch.
    pub fn encode<S>(&self, texts: &[S], options: &EncodeOptions<'_>) -> Result<Batch>
    where
        S: AsRef<str> + Sync,
    {
        for (name, spans) in [
            ("subject", options.subject_spans),
            ("target", options.target_spans),
        ] {
            if let Some(spans) = spans.filter(|spans| spans.len() != texts.len()) {
                return Err(Error::Argument(format!(
                    "there are {} {name} spans for {} texts; give one a text",
                    spans.len(),
                    texts.len()
                )));
            }
        }
        let span_of = |spans: Option<&[Span]>, row| spans.and_then(|spans| spans.get(row).copied());
        let rows = map_ordered(texts, |row, text| {
            self.encode_row(
                row,
                text.as_ref(),
                span_of(options.subject_spans, row),
                span_of(options.target_spans, row),
                options.add_special_tokens,
            )
        })
        .into_iter()
        .collect::<Result<Vec<Row>>>()?;
        let extras = Extras {
            labels: options.target_spans.is_some(),
            subject_last: options.subject_spans.is_some(),
        };
        Batch::pad(&rows, options.padding_side, options.pad_id, extras)
    }

    fn tokens(&self, text: &str, add_special_tokens: bool) -> tokenizers::Result<Vec<Token>> {
        match &self.words {
            Some(words) => words.encode(&self.inner, text, add_special_tokens),
            None => Ok(tokens(
                &self.inner.encode_char_offsets(text, add_special_tokens)?,
            )),
        }
    }

    /// Tokenises one text; errors name it by `row`.
    pub(crate) fn encode_row(
        &self,
        row: usize,
        text: &str,
        subject: Option<Span>,
        target: Option<Span>,
        add_special_tokens: bool,
    ) -> Result<Row> {
        let tokens = self
            .tokens(text, add_special_tokens)
            .map_err(|error| RecordError {
                record: row,
                field: None,
                reason: format!("the text cannot be tokenised: {error}"),
            })?;
        let meets = |span: Span| -> Vec<bool> {
            tokens
                .iter()
                .map(|token| {
                    !token.special && token.start.max(span.start) < token.end.min(span.end)
                })
                .collect()
        };
        let find = |span: Option<Span>, field| {
            span.map(|span| met_tokens(row, text, span, field, meets(span)))
                .transpose()
        };
        let subject = find(subject, "subject")?;
        Ok(Row {
            ids: tokens.iter().map(|token| i64::from(token.id)).collect(),
            subject_last: subject.and_then(|met| met.iter().rposition(|&meets| meets)),
            in_target: find(target, "target")?.unwrap_or_default(),
        })
    }
}

/// Checks the span and that it meets a token.
fn met_tokens(
    row: usize,
    text: &str,
    span: Span,
    field: &str,
    met: Vec<bool>,
) -> Result<Vec<bool>> {
    let Span { start, end } = span;
    let refuse = |reason: String| Err(RecordError::of_row(row, field, reason).into());
    let length = text.chars().count();
    if start >= end || end > length {
        return refuse(format!(
            "span ({start}, {end}) is not inside the text of {length} characters '{text}'"
        ));
    }
    if !met.contains(&true) {
        return refuse(format!(
            "span ({start}, {end}) meets no token of the text '{text}'; \
             the tokenizer drops these characters"
        ));
    }
    Ok(met)
}
