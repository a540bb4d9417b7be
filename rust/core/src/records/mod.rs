//! Files of edit requests: JSON arrays and JSON lines, in the forms that the field's data sets have.
//!
//! | form | its marks | source |
//! | --- | --- | --- |
//! | [`Format::Requests`] | `prompt`, `subject`, `target_new` | this package; EasyEdit's requests |
//! | [`Format::CounterFact`] | `requested_rewrite`, or EasyEdit's flat form | Meng et al., 2022 |
//! | [`Format::Zsre`] | `src`, `alt` | Mitchell et al., 2022 (MEND) |
//! | [`Format::KnowEdit`] | lists of probes, or `text`, `concept`, `labels` | Zhang et al., 2024 |

mod counterfact;
mod fields;
mod fill;
mod knowedit;
mod requests;
mod source;
mod zsre;

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, FieldError, RecordError, Result};
use crate::parallel::map_ordered;
use fields::Fields;
use source::{RawRecord, SourceError};

/// The longest record that is read, in bytes.
pub const MAX_RECORD_BYTES: usize = 1 << 24;

/// The key of locality prompts in data sets that name none.
const NEIGHBORHOOD: &str = "neighborhood";

/// The form of a file's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Told by the keys of the first record that shows one.
    #[default]
    Auto,
    /// Edit requests.
    Requests,
    /// `CounterFact`, nested (original) or flat (EasyEdit).
    CounterFact,
    /// zsRE as MEND has it.
    Zsre,
    /// `KnowEdit`: Wiki recent and counterfact, zsRE and `WikiBio`.
    KnowEdit,
}

impl Format {
    /// The names that [`Format::parse`] knows.
    pub const NAMES: [&'static str; 5] = ["auto", "requests", "counterfact", "zsre", "knowedit"];

    /// Finds a form by its name.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "requests" => Ok(Self::Requests),
            "counterfact" => Ok(Self::CounterFact),
            "zsre" => Ok(Self::Zsre),
            "knowedit" => Ok(Self::KnowEdit),
            _ => Err(Error::Argument(format!(
                "unknown format '{name}'; known are {}",
                Self::NAMES.join(", ")
            ))),
        }
    }
}

/// What to do about a record that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// Refuse the file.
    #[default]
    Raise,
    /// Leave the record out and keep its error.
    Skip,
}

/// Which records of a file to read, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// The form of the records.
    pub format: Format,
    /// Number of the first record to read.
    pub offset: usize,
    /// The most records to read, bad ones counted; all where `None`.
    pub limit: Option<usize>,
    /// What to do about a bad record.
    pub on_error: OnError,
}

/// A prompt beside the edit, and the answer expected to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Text that the model continues.
    pub prompt: String,
    /// Expected continuation, where known.
    pub ground_truth: Option<String>,
}

/// The probes of each key, in the order of the file.
pub type Section = Vec<(String, Vec<Probe>)>;

/// One edit request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the file, from 0.
    pub number: usize,
    /// The prompt as the file has it, perhaps with `{}` in the subject's place.
    pub template: String,
    /// The prompt with the subject filled in.
    pub prompt: String,
    /// What the fact is about.
    pub subject: String,
    /// Offset in characters of the edited occurrence of the subject in `prompt`.
    pub subject_start: usize,
    /// The answer wanted, without space around it.
    pub target_new: String,
    /// The answer before the edit, where known.
    pub ground_truth: Option<String>,
    /// Other wordings of the prompt.
    pub rephrase_prompt: Vec<String>,
    /// Prompts whose answer shall not change.
    pub locality: Section,
    /// Prompts whose answer follows from the edit.
    pub portability: Section,
}

/// What a form has read from a record before the rules that hold for all of them.
struct Draft {
    template: (&'static str, String),
    subject: (&'static str, String),
    target_new: (&'static str, String),
    ground_truth: Option<String>,
    rephrase_prompt: Vec<String>,
    locality: Section,
    portability: Section,
}

impl Draft {
    /// Applies the rules of a request: no blank text, the subject in the prompt, and no white
    /// space at the end of prompts.
    fn settle(self, number: usize) -> std::result::Result<Record, FieldError> {
        for (field, text) in [&self.template, &self.subject, &self.target_new] {
            if fill::trim(text).is_empty() {
                return Err(FieldError::new(*field, "is empty; give a text"));
            }
        }
        let (template, subject) = (self.template.1, self.subject.1);
        let names = (self.template.0, self.subject.0);
        let (filled, subject_start) = fill::fill_prompt(&template, &subject, names)?;
        let prompt = fill::trim_end(&filled).to_owned();
        // Where the prompt ends with the subject, so does the white space that was dropped.
        let length = subject.chars().count();
        let subject = prompt.chars().skip(subject_start).take(length).collect();
        Ok(Record {
            number,
            prompt,
            subject_start,
            template,
            subject,
            target_new: fill::trim(&self.target_new.1).to_owned(),
            ground_truth: self.ground_truth,
            rephrase_prompt: self
                .rephrase_prompt
                .iter()
                .map(|text| trimmed(text))
                .collect(),
            locality: without_space(self.locality),
            portability: without_space(self.portability),
        })
    }
}

fn trimmed(prompt: &str) -> String {
    fill::trim_end(prompt).to_owned()
}

/// The probes with no white space at the end of their prompts.
fn without_space(mut section: Section) -> Section {
    for probe in section.iter_mut().flat_map(|(_, probes)| probes) {
        probe.prompt = trimmed(&probe.prompt);
    }
    section
}

/// The records of a file.
#[derive(Debug, Default)]
pub struct ReadRecords {
    /// The records that can be used, in the order of the file.
    pub records: Vec<Record>,
    /// What was wrong with the others; empty unless they were to be skipped.
    pub skipped: Vec<RecordError>,
}

/// Reads the records of a file.
///
/// The file is mapped into memory; it must not be cut short by another process meanwhile.
///
/// # Errors
/// [`Error::Missing`], [`Error::File`] for a file that is damaged as a whole, and
/// [`Error::Record`] for the first bad record, unless such are skipped.
pub fn read_records(path: &Path, options: &ReadOptions) -> Result<ReadRecords> {
    let refuse = |reason: String| Error::File {
        path: path.to_owned(),
        reason,
    };
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error::Missing(path.to_owned()),
        _ => refuse(format!("cannot be opened: {error}")),
    })?;
    if !metadata.is_file() {
        return Err(refuse(
            "is no regular file; name a .json or .jsonl file".to_owned(),
        ));
    }
    let file = File::open(path).map_err(|error| refuse(format!("cannot be opened: {error}")))?;
    if metadata.len() == 0 {
        return Err(refuse("is empty".to_owned()));
    }
    // SAFETY: the map is read only and lives as long as this call. A process that cuts the file
    // short meanwhile would end this one with SIGBUS; the documentation says so.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(&file) }
        .map_err(|error| refuse(format!("cannot be mapped into memory: {error}")))?;
    parse_records(&map, options).map_err(|error| match error {
        SourceError::Source(reason) => refuse(reason),
        SourceError::Record(error) => Error::Record(error),
    })
}

/// Reads records from the bytes of a file.
///
/// # Errors
/// As [`read_records`], where [`SourceError::Source`] stands for the file as a whole.
pub fn parse_records(
    bytes: &[u8],
    options: &ReadOptions,
) -> std::result::Result<ReadRecords, SourceError> {
    let source = source::split(bytes)?;
    let form = match options.format {
        Format::Auto => detect(&source),
        named => named,
    };
    let wanted: Vec<RawRecord<'_>> = source
        .into_iter()
        .skip(options.offset)
        .take(options.limit.unwrap_or(usize::MAX))
        .collect();
    let parsed = map_ordered(&wanted, |_, raw| parse_record(raw, form));
    let mut read = ReadRecords::default();
    for result in parsed {
        match (result, options.on_error) {
            (Ok(record), _) => read.records.push(record),
            (Err(error), OnError::Skip) => read.skipped.push(error),
            (Err(error), OnError::Raise) => return Err(SourceError::Record(error)),
        }
    }
    Ok(read)
}

/// The form that the first telling record shows; edit requests where none does.
fn detect(source: &[RawRecord<'_>]) -> Format {
    let mut shown = source
        .iter()
        .filter_map(|raw| Fields::parse(raw.text.as_ref().ok()?).ok())
        .filter_map(|fields| shown_by(&fields));
    match shown.next() {
        // A request or KnowEdit's: the first record with probes says which.
        Some(Format::Auto) => shown
            .find(|&form| form != Format::Auto)
            .filter(|&form| form == Format::KnowEdit)
            .unwrap_or(Format::Requests),
        first => first.unwrap_or(Format::Requests),
    }
}

/// The form that a record shows; `Auto` where it can be a request or `KnowEdit`'s.
fn shown_by(fields: &Fields<'_>) -> Option<Format> {
    if fields.has("requested_rewrite") {
        Some(Format::CounterFact)
    } else if fields.has("prompt") {
        Some(knowedit::or_requests(fields))
    } else if fields.has("src") || fields.has("alt") {
        Some(Format::Zsre)
    } else if knowedit::is_passage(fields) {
        Some(Format::KnowEdit)
    } else {
        None
    }
}

fn parse_record(raw: &RawRecord<'_>, form: Format) -> std::result::Result<Record, RecordError> {
    raw.text
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|text| {
            if text.len() > MAX_RECORD_BYTES {
                return Err(FieldError::of_record(format!(
                    "is {} bytes long; {MAX_RECORD_BYTES} are read at most",
                    text.len()
                )));
            }
            let fields = Fields::parse(text)?;
            match form {
                Format::Auto | Format::Requests => requests::draft(&fields),
                Format::CounterFact => counterfact::draft(&fields),
                Format::Zsre => zsre::draft(&fields),
                Format::KnowEdit => knowedit::draft(&fields),
            }
        })
        .and_then(|draft| draft.settle(raw.number))
        .map_err(|error| error.at(raw.number))
}

pub use source::SourceError as ParseError;
