//! Edit requests, as this package and EasyEdit write them, and EasyEdit's flat `CounterFact`.

use super::fields::Fields;
use super::{Draft, NEIGHBORHOOD};
use crate::error::FieldError;

/// Reads `prompt, subject, target_new[, ground_truth, rephrase_prompt, locality, portability]`
/// and the flat `locality_prompt, locality_ground_truth`.
pub(super) fn draft(fields: &Fields<'_>) -> Result<Draft, FieldError> {
    let mut locality = fields.section("locality")?;
    let flat = fields.probes("locality_prompt", "locality_ground_truth")?;
    if !flat.is_empty() {
        if locality.iter().any(|(key, _)| key == NEIGHBORHOOD) {
            return Err(FieldError::new(
                "locality_prompt",
                format!("is there beside 'locality.{NEIGHBORHOOD}'; keep one of them"),
            ));
        }
        locality.push((NEIGHBORHOOD.to_owned(), flat));
    }
    Ok(Draft {
        template: ("prompt", fields.text("prompt")?),
        subject: ("subject", fields.text("subject")?),
        target_new: ("target_new", fields.text("target_new")?),
        ground_truth: fields.optional_text("ground_truth")?,
        rephrase_prompt: fields.texts("rephrase_prompt")?,
        locality,
        portability: fields.section("portability")?,
    })
}
