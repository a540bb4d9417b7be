//! The texts of corpus files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde_json::Value;

use crate::error::{Error, RecordError, Result};

/// A piece of a plain text ends with the first line that makes it this long, in bytes.
const PIECE: usize = 1 << 16;
/// The most bytes of a piece without a line's end.
const LONGEST_PIECE: u64 = 1 << 20;
/// The most bytes of a line of JSON.
const LONGEST_LINE: u64 = 1 << 28;

/// The texts of some files, in order.
///
/// A `.txt` file is one text, handed out in pieces that end at the end of a line (a line of more
/// than 1 MiB is cut). Each line of a `.jsonl` file is a text: the field that was named, or a JSON
/// string by itself. Either may be compressed (`.gz`).
pub struct Documents {
    paths: VecDeque<PathBuf>,
    field: String,
    open: Option<OpenFile>,
}

impl Documents {
    /// Checks that the files are there and of a known kind; nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Missing`] for a file that is not there, [`Error::File`] for one of another kind.
    pub fn new(paths: Vec<PathBuf>, field: String) -> Result<Self> {
        for path in &paths {
            if !path.is_file() {
                return Err(Error::Missing(path.clone()));
            }
            Kind::of(path)?;
        }
        Ok(Self {
            paths: paths.into(),
            field,
            open: None,
        })
    }

    /// The next text; an empty one where a file has ended.
    fn read(&mut self) -> Result<Option<String>> {
        if self.open.is_none() {
            let Some(path) = self.paths.pop_front() else {
                return Ok(None);
            };
            self.open = Some(OpenFile::open(path)?);
        }
        let text = match &mut self.open {
            Some(file) => file.read(&self.field)?,
            None => None,
        };
        if text.is_none() {
            self.open = None;
        }
        Ok(Some(text.unwrap_or_default()))
    }
}

impl Iterator for Documents {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read() {
                Ok(Some(text)) if text.is_empty() => {}
                Ok(text) => return text.map(Ok),
                Err(error) => {
                    self.open = None;
                    self.paths.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    JsonLines,
}

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        let plain = if is(path, "gz") {
            path.with_extension("")
        } else {
            path.to_owned()
        };
        if is(&plain, "txt") {
            Ok(Self::Text)
        } else if is(&plain, "jsonl") {
            Ok(Self::JsonLines)
        } else {
            Err(Error::File {
                path: path.to_owned(),
                reason: "is neither .txt nor .jsonl, nor either with .gz; rename it to what it is"
                    .to_owned(),
            })
        }
    }
}

/// Whether a file's name ends so.
fn is(path: &Path, extension: &str) -> bool {
    path.extension()
        .is_some_and(|own| own.eq_ignore_ascii_case(extension))
}

struct OpenFile {
    path: PathBuf,
    kind: Kind,
    reader: Box<dyn BufRead + Send>,
    /// Bytes of the file's text that were handed out.
    taken: usize,
    /// Bytes that were read and not handed out: the begun character of a piece that was cut.
    rest: Vec<u8>,
    /// Number of the next JSON record.
    record: usize,
}

impl OpenFile {
    fn open(path: PathBuf) -> Result<Self> {
        let kind = Kind::of(&path)?;
        let plain = BufReader::with_capacity(
            PIECE,
            File::open(&path).map_err(|error| damage(&path, &error))?,
        );
        let reader: Box<dyn BufRead + Send> = if is(&path, "gz") {
            Box::new(BufReader::with_capacity(PIECE, MultiGzDecoder::new(plain)))
        } else {
            Box::new(plain)
        };
        Ok(Self {
            path,
            kind,
            reader,
            taken: 0,
            rest: Vec::new(),
            record: 0,
        })
    }

    fn read(&mut self, field: &str) -> Result<Option<String>> {
        match self.kind {
            Kind::Text => self.piece(),
            Kind::JsonLines => self.record(field),
        }
    }

    /// Some lines of a plain text.
    fn piece(&mut self) -> Result<Option<String>> {
        let mut bytes = std::mem::take(&mut self.rest);
        while bytes.len() < PIECE {
            if self.line(&mut bytes, LONGEST_PIECE)? == 0 {
                break;
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let cut = !bytes.ends_with(b"\n");
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let begun = error.utf8_error().error_len().is_none();
                if !(cut && begun && valid > 0) {
                    return Err(self.not_utf8(valid));
                }
                let mut bytes = error.into_bytes();
                self.rest = bytes.split_off(valid);
                String::from_utf8(bytes).unwrap_or_default()
            }
        };
        let first = self.taken == 0;
        self.taken = self.taken.saturating_add(text.len());
        Ok(Some(match text.strip_prefix('\u{feff}') {
            Some(after) if first => after.to_owned(),
            _ => text,
        }))
    }

    /// The text of the next line of JSON.
    fn record(&mut self, field: &str) -> Result<Option<String>> {
        loop {
            let mut bytes = Vec::new();
            if self.line(&mut bytes, LONGEST_LINE)? == 0 {
                return Ok(None);
            }
            let line = std::str::from_utf8(&bytes)
                .map_err(|error| self.not_utf8(error.valid_up_to()))?
                .trim_start_matches('\u{feff}')
                .trim();
            self.taken = self.taken.saturating_add(bytes.len());
            if line.is_empty() {
                continue;
            }
            let text = text_of(line, field).map_err(|(field, reason)| RecordError {
                record: self.record,
                field,
                reason: format!("{reason} (in {})", self.path.display()),
            })?;
            self.record = self.record.saturating_add(1);
            return Ok(Some(text));
        }
    }

    /// Appends the next line, or its first `most` bytes; gives the number of bytes.
    fn line(&mut self, bytes: &mut Vec<u8>, most: u64) -> Result<usize> {
        (&mut self.reader)
            .take(most)
            .read_until(b'\n', bytes)
            .map_err(|error| damage(&self.path, &error))
    }

    fn not_utf8(&self, valid: usize) -> Error {
        Error::File {
            path: self.path.clone(),
            reason: format!(
                "is not UTF-8 text (byte {}); save it as UTF-8",
                self.taken.saturating_add(valid)
            ),
        }
    }
}

fn damage(path: &Path, error: &io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        reason: format!("cannot be read ({error}); get it again"),
    }
}

/// The text of one JSON record, or the field at fault and why.
fn text_of(line: &str, field: &str) -> std::result::Result<String, (Option<String>, String)> {
    match serde_json::from_str(line) {
        Ok(Value::String(text)) => Ok(text),
        Ok(Value::Object(mut record)) => match record.remove(field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err((Some(field.to_owned()), "must be a text".to_owned())),
            None => Err((
                Some(field.to_owned()),
                "is missing; name the field that holds the text".to_owned(),
            )),
        },
        Ok(_) => Err((None, "must be an object or a text".to_owned())),
        Err(error) => Err((None, format!("is not valid JSON ({error}); repair it"))),
    }
}
