//! Records to padded batches of tokens: all prompts of some records at a time.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::vec::IntoIter;

use crate::batch::{Batch, Extras, PaddingSide, Row};
use crate::error::{Error, Result};
use crate::parallel::map_ordered;
use crate::records::{Probe, ReadOptions, Record, Section, read_records};
use crate::tokenize::{RequestTokenizer, Span};

/// Batches that are made at a time, in parallel.
const AT_ONCE: usize = 32;

/// How records become batches.
#[derive(Debug, Clone, Copy)]
pub struct BatchOptions {
    /// Records in a batch.
    pub size: usize,
    /// Where the pads stand.
    pub padding_side: PaddingSide,
    /// The id of a pad.
    pub pad_id: i64,
    /// Whether the tokenizer's own special tokens (BOS and the like) are added.
    pub add_special_tokens: bool,
}

/// The rows of one section of some records. A row is a prompt, one space and its answer; the
/// labels are the answer's tokens and those of the space.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// The rows; the label of every token is ignored where no answer is known.
    pub tokens: Batch,
    /// Place of each row's record in its batch.
    pub record: Vec<i64>,
}

/// All prompts of some records.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RequestBatch {
    /// Place of each record in its file.
    pub numbers: Vec<i64>,
    /// One row a record, with the place of the subject's last token.
    pub rewrite: Rows,
    /// The other wordings; the answer is the record's target.
    pub rephrase: Rows,
    /// The locality prompts of all keys.
    pub locality: Rows,
    /// The portability prompts of all keys.
    pub portability: Rows,
}

/// The batches of a file's records, in the order of the file.
pub struct RequestBatches {
    records: IntoIter<Record>,
    tokenizer: Arc<RequestTokenizer>,
    options: BatchOptions,
    ready: VecDeque<Result<RequestBatch>>,
}

impl RequestBatches {
    /// Reads a file of records; nothing is tokenised yet.
    ///
    /// # Errors
    /// As [`read_records`], and [`Error::Argument`] for batches of no record.
    pub fn open(
        path: &Path,
        read: &ReadOptions,
        tokenizer: Arc<RequestTokenizer>,
        options: BatchOptions,
    ) -> Result<Self> {
        if options.size == 0 {
            return Err(Error::Argument(
                "a batch needs at least one record".to_owned(),
            ));
        }
        Ok(Self {
            records: read_records(path, read)?.records.into_iter(),
            tokenizer,
            options,
            ready: VecDeque::new(),
        })
    }

    fn fill(&mut self) {
        let wanted = self.options.size.saturating_mul(AT_ONCE);
        let records: Vec<Record> = self.records.by_ref().take(wanted).collect();
        let batches: Vec<&[Record]> = records.chunks(self.options.size).collect();
        self.ready.extend(map_ordered(&batches, |_, batch| {
            make(&self.tokenizer, batch, &self.options)
        }));
    }
}

impl Iterator for RequestBatches {
    type Item = Result<RequestBatch>;

    /// The next batch. After an error there is none.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() {
            self.fill();
        }
        let next = self.ready.pop_front();
        if matches!(next, Some(Err(_))) {
            self.ready.clear();
            self.records = Vec::new().into_iter();
        }
        next
    }
}

/// A prompt with its answer.
struct Text<'a> {
    place: usize,
    record: &'a Record,
    prompt: &'a str,
    answer: Option<&'a str>,
    subject: Option<Span>,
}

fn make(
    tokenizer: &RequestTokenizer,
    records: &[Record],
    options: &BatchOptions,
) -> Result<RequestBatch> {
    let rows = |texts: Vec<Text<'_>>, subjects| encode(tokenizer, &texts, subjects, options);
    let placed = || records.iter().enumerate();
    let rewrite = placed().map(|(place, record)| {
        let length = record.subject.chars().count();
        Text {
            place,
            record,
            prompt: &record.prompt,
            answer: Some(&record.target_new),
            subject: Some(Span {
                start: record.subject_start,
                end: record.subject_start.saturating_add(length),
            }),
        }
    });
    let rephrase = placed().flat_map(|(place, record)| {
        record.rephrase_prompt.iter().map(move |prompt| Text {
            place,
            record,
            prompt,
            answer: Some(&record.target_new),
            subject: None,
        })
    });
    let probes = |section: fn(&Record) -> &Section| {
        placed().flat_map(move |(place, record)| probes(place, record, section(record)))
    };
    Ok(RequestBatch {
        numbers: records
            .iter()
            .map(|record| signed(record.number))
            .collect::<Result<_>>()?,
        rewrite: rows(rewrite.collect(), true)?,
        rephrase: rows(rephrase.collect(), false)?,
        locality: rows(probes(|record| &record.locality).collect(), false)?,
        portability: rows(probes(|record| &record.portability).collect(), false)?,
    })
}

fn probes<'a>(
    place: usize,
    record: &'a Record,
    section: &'a Section,
) -> impl Iterator<Item = Text<'a>> {
    let all = section.iter().flat_map(|(_, probes)| probes);
    all.map(
        move |Probe {
                  prompt,
                  ground_truth,
              }| Text {
            place,
            record,
            prompt,
            answer: ground_truth.as_deref(),
            subject: None,
        },
    )
}

fn encode(
    tokenizer: &RequestTokenizer,
    texts: &[Text<'_>],
    subjects: bool,
    options: &BatchOptions,
) -> Result<Rows> {
    let rows = texts
        .iter()
        .map(|text| encode_text(tokenizer, text, options.add_special_tokens))
        .collect::<Result<Vec<Row>>>()?;
    let extras = Extras {
        labels: true,
        subject_last: subjects,
    };
    Ok(Rows {
        tokens: Batch::pad(&rows, options.padding_side, options.pad_id, extras)?,
        record: texts
            .iter()
            .map(|text| signed(text.place))
            .collect::<Result<_>>()?,
    })
}

fn encode_text(tokenizer: &RequestTokenizer, text: &Text<'_>, special: bool) -> Result<Row> {
    let number = text.record.number;
    let Some(answer) = text.answer else {
        let mut row = tokenizer.encode_row(number, text.prompt, text.subject, None, special)?;
        row.in_target = vec![false; row.ids.len()];
        return Ok(row);
    };
    let whole = format!("{} {answer}", text.prompt);
    let target = Span {
        start: text.prompt.chars().count(),
        end: whole.chars().count(),
    };
    tokenizer.encode_row(number, &whole, text.subject, Some(target), special)
}

fn signed(place: usize) -> Result<i64> {
    i64::try_from(place).map_err(|_| Error::Argument(format!("{place} does not fit into int64")))
}
