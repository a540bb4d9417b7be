//! The fields of one JSON object, looked at one by one.
//!
//! A field that nobody asks for is never decoded: whatever it holds does no harm.

use std::collections::HashSet;

use serde::Deserializer as _;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Probe, Section};
use crate::error::FieldError;

type Outcome<T> = Result<T, FieldError>;

/// A JSON object whose values are still text, in the order of the file.
pub(super) struct Fields<'a> {
    /// What stands before the names in errors: empty, or ends with a dot.
    prefix: String,
    entries: Vec<(String, &'a RawValue)>,
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("the key '{key}' is there twice")));
            }
            entries.push((key, value));
        }
        Ok(entries)
    }
}

/// What a JSON text is, in words.
fn kind(text: &str) -> &'static str {
    match text.bytes().next() {
        Some(b'"') => "a text",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        Some(b'n') => "null",
        Some(b't' | b'f') => "true or false",
        _ => "a number",
    }
}

/// serde's message without its position, which counts from the record's own beginning.
fn cause(error: &serde_json::Error) -> String {
    let whole = error.to_string();
    whole.split(" at line ").next().unwrap_or(&whole).to_owned()
}

fn decode_text(text: &str, field: &str) -> Outcome<String> {
    serde_json::from_str(text)
        .map_err(|error| FieldError::new(field, format!("is no valid text: {}", cause(&error))))
}

/// The elements of a list.
fn decode_list<'a>(text: &'a str, field: &str) -> Outcome<Vec<&'a RawValue>> {
    serde_json::from_str(text)
        .map_err(|error| FieldError::new(field, format!("is no valid list: {}", cause(&error))))
}

/// The elements of a list; of anything else, itself.
fn spread<'a>(json: &'a str, field: &str) -> Outcome<Vec<&'a str>> {
    if kind(json) != "a list" {
        return Ok(vec![json]);
    }
    let elements = decode_list(json, field)?;
    Ok(elements.into_iter().map(RawValue::get).collect())
}

impl<'a> Fields<'a> {
    /// The fields of a record.
    pub(super) fn parse(text: &'a str) -> Outcome<Self> {
        if kind(text) != "an object" {
            return Err(FieldError::of_record(format!(
                "is {}; a record must be an object with fields",
                kind(text)
            )));
        }
        let entries = serde_json::Deserializer::from_str(text)
            .deserialize_map(Entries)
            .map_err(|error| {
                FieldError::of_record(format!("is ambiguous or damaged: {}", cause(&error)))
            })?;
        Ok(Self {
            prefix: String::new(),
            entries,
        })
    }

    /// Whether there is such a field, null or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(key, _)| key == name)
    }

    /// The full name of a field, for errors.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The names of all fields.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
    }

    /// The JSON of a field, unless it is absent or null.
    fn get(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.entries.iter().find(|(key, _)| key == name)?;
        (kind(value.get()) != "null").then_some(value.get())
    }

    /// A text that must be there.
    pub(super) fn text(&self, name: &str) -> Outcome<String> {
        match self.get(name) {
            Some(text) if kind(text) == "a text" => decode_text(text, &self.path(name)),
            Some(text) => Err(FieldError::new(
                self.path(name),
                format!("must be a text, not {}", kind(text)),
            )),
            None if self.has(name) => {
                Err(FieldError::new(self.path(name), "must be a text, not null"))
            }
            None => Err(FieldError::new(
                self.path(name),
                "is missing; add it to the record",
            )),
        }
    }

    /// A text that may be absent or null.
    pub(super) fn optional_text(&self, name: &str) -> Outcome<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some(_) => self.text(name).map(Some),
        }
    }

    /// A text or a list of texts; blank ones and nulls are left out.
    pub(super) fn texts(&self, name: &str) -> Outcome<Vec<String>> {
        let texts = self.nullable_texts(name)?.unwrap_or_default();
        Ok(texts
            .into_iter()
            .flatten()
            .filter(|text| !is_blank(text))
            .collect())
    }

    /// A text, or a list of texts and nulls; `None` where the field is absent or null.
    fn nullable_texts(&self, name: &str) -> Outcome<Option<Vec<Option<String>>>> {
        let path = self.path(name);
        let Some(json) = self.get(name) else {
            return Ok(None);
        };
        let refuse = |what: String| {
            FieldError::new(
                path.clone(),
                format!("must be a text or a list of texts{what}"),
            )
        };
        match kind(json) {
            "a text" => Ok(Some(vec![Some(decode_text(json, &path)?)])),
            "a list" => decode_list(json, &path)?
                .into_iter()
                .map(|element| match kind(element.get()) {
                    "a text" => decode_text(element.get(), &path).map(Some),
                    "null" => Ok(None),
                    other => Err(refuse(format!("; it holds {other}"))),
                })
                .collect::<Outcome<_>>()
                .map(Some),
            other => Err(refuse(format!(", not {other}"))),
        }
    }

    /// An object inside this one; `None` where the field is absent or null.
    pub(super) fn object(&self, name: &str) -> Outcome<Option<Fields<'a>>> {
        self.get(name)
            .map(|json| Self::inside(json, &self.path(name)))
            .transpose()
    }

    /// The fields of an object that is at `path` in the record.
    fn inside(json: &'a str, path: &str) -> Outcome<Fields<'a>> {
        if kind(json) != "an object" {
            return Err(FieldError::new(
                path,
                format!("must be an object, not {}", kind(json)),
            ));
        }
        let inner = Fields::parse(json).map_err(|error| FieldError::new(path, error.reason))?;
        Ok(Fields {
            prefix: format!("{path}."),
            entries: inner.entries,
        })
    }

    /// Every field as a list of objects; empty where it is null.
    pub(super) fn lists(&self) -> impl Iterator<Item = Outcome<(&str, Vec<Fields<'a>>)>> {
        self.entries.iter().map(|(key, value)| {
            let objects = Self::listed(value.get(), &self.path(key))?;
            Ok((key.as_str(), objects))
        })
    }

    fn listed(json: &'a str, path: &str) -> Outcome<Vec<Fields<'a>>> {
        match kind(json) {
            "null" => Ok(Vec::new()),
            "a list" => decode_list(json, path)?
                .into_iter()
                .enumerate()
                .map(|(place, element)| Self::inside(element.get(), &format!("{path}[{place}]")))
                .collect(),
            other => Err(FieldError::new(
                path,
                format!("must be a list of objects that hold 'prompt', not {other}"),
            )),
        }
    }

    /// Whether a field is a list that begins with an object.
    pub(super) fn has_objects(&self) -> bool {
        self.entries.iter().any(|(_, value)| {
            let inside = value.get().strip_prefix('[').unwrap_or_default();
            inside.trim_start().starts_with('{')
        })
    }

    /// Whether every field is null or an empty list.
    pub(super) fn is_hollow(&self) -> bool {
        let mut values = self.entries.iter().map(|(_, value)| value.get());
        values.all(|json| kind(json) == "null" || is_empty_list(json))
    }

    /// The first text of a text, of a list of texts, or of a list of such lists; blank ones and
    /// nulls are passed over.
    pub(super) fn first_text(&self, name: &str) -> Outcome<Option<String>> {
        let path = self.path(name);
        let Some(json) = self.get(name) else {
            return Ok(None);
        };
        let mut texts = Vec::new();
        for inner in spread(json, &path)? {
            for element in spread(inner, &path)? {
                match kind(element) {
                    "a text" => texts.push(decode_text(element, &path)?),
                    "null" => {}
                    other => {
                        let remedy = "give a text, a list of texts or a list of such lists";
                        return Err(FieldError::new(path, format!("holds {other}; {remedy}")));
                    }
                }
            }
        }
        Ok(texts.into_iter().find(|text| !is_blank(text)))
    }

    /// EasyEdit's `{key: {"prompt": …, "ground_truth": …}}`.
    pub(super) fn section(&self, name: &str) -> Outcome<Section> {
        let Some(section) = self.object(name)? else {
            return Ok(Section::new());
        };
        section
            .names()
            .map(|key| {
                let missing = || {
                    FieldError::new(
                        section.path(key),
                        "must hold 'prompt' and may hold 'ground_truth'",
                    )
                };
                if section.get(key).is_some_and(is_empty_list) {
                    return Ok((key.to_owned(), Vec::new()));
                }
                let entry = match section.get(key) {
                    Some(json) if kind(json) == "an object" => section.object(key)?,
                    _ => None,
                };
                let entry = entry
                    .filter(|entry| entry.has("prompt"))
                    .ok_or_else(missing)?;
                Ok((key.to_owned(), entry.probes("prompt", "ground_truth")?))
            })
            .collect()
    }

    /// Prompts from one field, and the answer to each from another; a blank prompt or null is
    /// left out with its answer.
    pub(super) fn probes(&self, prompts: &str, answers: &str) -> Outcome<Vec<Probe>> {
        let texts = self.nullable_texts(prompts)?.unwrap_or_default();
        let expected = match self.nullable_texts(answers)? {
            Some(expected) => expected,
            None => vec![None; texts.len()],
        };
        if texts.len() != expected.len() {
            return Err(FieldError::new(
                self.path(prompts),
                format!(
                    "has {} entries, but '{answers}' has {}; give one answer a prompt",
                    texts.len(),
                    expected.len()
                ),
            ));
        }
        let probe = |(prompt, answer): (Option<String>, Option<String>)| {
            prompt.filter(|text| !is_blank(text)).map(|prompt| Probe {
                prompt,
                ground_truth: answer.filter(|text| !text.is_empty()),
            })
        };
        Ok(texts.into_iter().zip(expected).filter_map(probe).collect())
    }
}

fn is_blank(text: &str) -> bool {
    super::fill::trim(text).is_empty()
}

fn is_empty_list(json: &str) -> bool {
    json.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inside| inside.trim().is_empty())
}
