//! `KnowEdit` (Zhang et al., 2024): its Wiki and zsRE records, and the passages of `WikiBio`.

use super::fields::Fields;
use super::{Draft, Format, Probe, Section};
use crate::error::FieldError;

/// The fields that hold lists of probes by key.
const SECTIONS: [&str; 2] = ["locality", "portability"];

/// The prompt, the subject and the target.
const WIKI: [&str; 3] = ["prompt", "subject", "target_new"];
const WIKI_BIO: [&str; 3] = ["text", "concept", "labels"];

/// Reads `prompt, subject, target_new` or `text, concept, labels`, then `[ground_truth,
/// rephrase_prompt or rephrase, locality, portability]`; `cond` is passed over.
pub(super) fn draft(fields: &Fields<'_>) -> Result<Draft, FieldError> {
    let passage = !fields.has("prompt") && WIKI_BIO.iter().any(|name| fields.has(name));
    let [prompt, subject, target_new] = if passage { WIKI_BIO } else { WIKI };
    let mut rephrase_prompt = fields.texts("rephrase_prompt")?;
    if rephrase_prompt.is_empty() {
        rephrase_prompt = fields.texts("rephrase")?;
    }
    let [locality, portability] = SECTIONS.map(|name| section(fields, name));
    Ok(Draft {
        template: (prompt, fields.text(prompt)?),
        subject: (subject, fields.text(subject)?),
        target_new: (target_new, fields.text(target_new)?),
        ground_truth: fields.first_text("ground_truth")?,
        rephrase_prompt,
        locality: locality?,
        portability: portability?,
    })
}

/// `{key: [{"prompt": …, "ground_truth": …}, …]}`.
fn section(fields: &Fields<'_>, name: &str) -> Result<Section, FieldError> {
    let Some(section) = fields.object(name)? else {
        return Ok(Section::new());
    };
    section
        .lists()
        .map(|list| {
            let (key, entries) = list?;
            let probes = entries.iter().filter_map(|entry| probe(entry).transpose());
            Ok((key.to_owned(), probes.collect::<Result<_, FieldError>>()?))
        })
        .collect()
}

/// One probe; a blank prompt or null is left out with its answer.
fn probe(entry: &Fields<'_>) -> Result<Option<Probe>, FieldError> {
    if !entry.has("prompt") {
        return Err(FieldError::new(
            entry.path("prompt"),
            "is missing; add it to the probe",
        ));
    }
    let ground_truth = entry.first_text("ground_truth")?;
    Ok(entry.first_text("prompt")?.map(|prompt| Probe {
        prompt,
        ground_truth,
    }))
}

/// Whether a record with all of these fields is a passage of `WikiBio`.
pub(super) fn is_passage(fields: &Fields<'_>) -> bool {
    WIKI_BIO.iter().all(|name| fields.has(name))
}

/// The form of a record with a `prompt`: `KnowEdit`'s where a key of a section holds a list of
/// objects. `Auto` where all its sections are empty, for those are alike in both forms.
pub(super) fn or_requests(fields: &Fields<'_>) -> Format {
    let mut shown = Format::Requests;
    for section in SECTIONS.iter().filter_map(|name| fields.object(name).ok()?) {
        if section.has_objects() {
            return Format::KnowEdit;
        }
        if !section.is_hollow() {
            return Format::Requests;
        }
        shown = Format::Auto;
    }
    shown
}
