//! From the bytes of a file to the text of each record.

use std::borrow::Cow;

use serde::Deserializer as _;
use serde::de::{SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{FieldError, RecordError};

/// White space between the values of JSON (RFC 8259, section 2).
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Why the bytes of a file were refused.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file as a whole.
    #[error("{0}")]
    Source(String),
    /// One of its records.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A record before its fields are looked at.
pub(super) struct RawRecord<'a> {
    pub(super) number: usize,
    /// Its JSON, or what is wrong with its line.
    pub(super) text: Result<&'a str, FieldError>,
}

/// Splits a file into its records: a JSON array, one JSON object, or JSON lines.
pub(super) fn split(bytes: &[u8]) -> Result<Vec<RawRecord<'_>>, SourceError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let byte = error.valid_up_to();
        SourceError::Source(format!(
            "is not UTF-8 text (line {}, byte {byte}); save it as UTF-8",
            line_of(bytes, byte)
        ))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.trim_start_matches(SPACE).chars().next() {
        Some('[') => array(text),
        Some('{') => Ok(single(text).unwrap_or_else(|| lines(text))),
        Some(_) => Err(SourceError::Source(
            "is neither a JSON array of records nor JSON lines; it must begin with '[' or '{'"
                .to_owned(),
        )),
        None => Err(SourceError::Source("is empty".to_owned())),
    }
}

/// Line number, from 1, of a byte.
fn line_of(bytes: &[u8], byte: usize) -> usize {
    bytes
        .iter()
        .take(byte)
        .filter(|&&b| b == b'\n')
        .count()
        .saturating_add(1)
}

struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element()? {
            elements.push(element);
        }
        Ok(elements)
    }
}

fn array(text: &str) -> Result<Vec<RawRecord<'_>>, SourceError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let elements = deserializer
        .deserialize_seq(Elements)
        .and_then(|elements| deserializer.end().map(|()| elements))
        .map_err(|error| SourceError::Source(syntax_reason(&error, text, 0, 0)))?;
    Ok(elements
        .into_iter()
        .enumerate()
        .map(|(number, element)| RawRecord {
            number,
            text: Ok(element.get()),
        })
        .collect())
}

/// A file that holds one object, over one line or several.
fn single(text: &str) -> Option<Vec<RawRecord<'_>>> {
    let object: &RawValue = serde_json::from_str(text).ok()?;
    Some(vec![RawRecord {
        number: 0,
        text: Ok(object.get()),
    }])
}

fn lines(text: &str) -> Vec<RawRecord<'_>> {
    let mut records = Vec::new();
    let mut begin = 0_usize;
    for (place, line) in text.split_inclusive('\n').enumerate() {
        if !line.trim_matches(SPACE).is_empty() {
            let checked: Result<&RawValue, _> = serde_json::from_str(line.trim_end_matches(SPACE));
            records.push(RawRecord {
                number: records.len(),
                text: checked.map(RawValue::get).map_err(|error| {
                    FieldError::of_record(syntax_reason(&error, line, place, begin))
                }),
            });
        }
        begin = begin.saturating_add(line.len());
    }
    records
}

/// Says what is wrong with the JSON of `text`, which begins after `lines` lines and `bytes` bytes.
fn syntax_reason(error: &serde_json::Error, text: &str, lines: usize, bytes: usize) -> String {
    let whole = error.to_string();
    let cause = whole.split(" at line ").next().unwrap_or(&whole);
    let before: usize = text
        .split_inclusive('\n')
        .take(error.line().saturating_sub(1))
        .map(str::len)
        .sum();
    let byte = bytes.saturating_add(before).saturating_add(error.column());
    let remedy = if error.is_eof() {
        Cow::Borrowed("it seems to be cut short; get it again")
    } else {
        Cow::Borrowed("repair it there")
    };
    format!(
        "is not valid JSON at line {}, column {}, byte {byte}: {cause}; {remedy}",
        lines.saturating_add(error.line()),
        error.column()
    )
}
