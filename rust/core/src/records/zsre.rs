//! zsRE in the form of MEND (Mitchell et al., 2022), with EasyEdit's `portability`.

use super::fields::Fields;
use super::{Draft, NEIGHBORHOOD, Section};
use crate::error::FieldError;

/// What the locality questions, which come from Natural Questions, begin with.
const QUESTION_MARK: &str = "nq question: ";

/// Reads `src, subject, alt[, answers, rephrase, loc, loc_ans, portability]`; `pred` and `cond`
/// are passed over.
pub(super) fn draft(fields: &Fields<'_>) -> Result<Draft, FieldError> {
    let mut locality = fields.probes("loc", "loc_ans")?;
    for probe in &mut locality {
        if let Some(question) = probe.prompt.strip_prefix(QUESTION_MARK) {
            probe.prompt = question.to_owned();
        }
    }
    locality.retain(|probe| !super::fill::trim(&probe.prompt).is_empty());
    let named = |key: &str, probes: Vec<_>| -> Section {
        if probes.is_empty() {
            Vec::new()
        } else {
            vec![(key.to_owned(), probes)]
        }
    };
    let portability = match fields.object("portability")? {
        Some(section) => section.probes("New Question", "New Answer")?,
        None => Vec::new(),
    };
    Ok(Draft {
        template: ("src", fields.text("src")?),
        subject: ("subject", fields.text("subject")?),
        target_new: ("alt", fields.text("alt")?),
        ground_truth: fields.texts("answers")?.into_iter().next(),
        rephrase_prompt: fields.texts("rephrase")?,
        locality: named(NEIGHBORHOOD, locality),
        portability: named("one_hop", portability),
    })
}
