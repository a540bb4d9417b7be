//! `CounterFact` (Meng et al., 2022), nested as it was published or flat as EasyEdit has it.

use super::fields::Fields;
use super::{Draft, NEIGHBORHOOD, Probe, requests};
use crate::error::FieldError;

const REWRITE: &str = "requested_rewrite";

/// Reads a record of either form. Of the nested one, `attribute_prompts` and
/// `generation_prompts` are passed over.
pub(super) fn draft(fields: &Fields<'_>) -> Result<Draft, FieldError> {
    let Some(rewrite) = fields.object(REWRITE)? else {
        return requests::draft(fields);
    };
    let target = |name: &str| match rewrite.object(name)? {
        Some(target) => target.text("str").map(Some),
        None => Ok(None),
    };
    let target_new = target("target_new")?.ok_or_else(|| {
        FieldError::new(
            rewrite.path("target_new"),
            "is missing; add it to the record",
        )
    })?;
    let ground_truth = target("target_true")?;
    let answer = ground_truth.clone().filter(|text| !text.is_empty());
    let probes: Vec<Probe> = fields
        .texts("neighborhood_prompts")?
        .into_iter()
        .map(|prompt| Probe {
            prompt,
            ground_truth: answer.clone(),
        })
        .collect();
    let locality = if probes.is_empty() {
        Vec::new()
    } else {
        vec![(NEIGHBORHOOD.to_owned(), probes)]
    };
    Ok(Draft {
        template: ("requested_rewrite.prompt", rewrite.text("prompt")?),
        subject: ("requested_rewrite.subject", rewrite.text("subject")?),
        target_new: ("requested_rewrite.target_new.str", target_new),
        ground_truth,
        rephrase_prompt: fields.texts("paraphrase_prompts")?,
        locality,
        portability: Vec::new(),
    })
}
