//! Where the subject stands in the prompt: the rules of `EditRequest`, on the Rust side.
//!
//! White space and letters are what Python's `str.isspace` and `str.isalnum` say they are, so
//! that both sides settle every request alike.

use unicode_general_category::{GeneralCategory, get_general_category};

use crate::error::FieldError;

const PLACE_HOLDER: &str = "{}";

/// Python's `str.isspace` of one character.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// Python's `str.strip`.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.rstrip`.
pub(super) fn trim_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// Python's `str.isalnum` of one character: a letter (L*) or a number (N*).
fn is_alphanumeric(character: char) -> bool {
    use GeneralCategory as G;
    matches!(
        get_general_category(character),
        G::UppercaseLetter
            | G::LowercaseLetter
            | G::TitlecaseLetter
            | G::ModifierLetter
            | G::OtherLetter
            | G::DecimalNumber
            | G::LetterNumber
            | G::OtherNumber
    )
}

/// Fills `{}` with the subject, or finds the subject in the prompt.
///
/// Gives the prompt with the subject in it, and the offset in characters of the edited
/// occurrence. `names` are the file's names of the two fields. A subject that holds `{}` itself
/// and stands in the prompt has filled it.
pub(super) fn fill_prompt(
    prompt: &str,
    subject: &str,
    names: (&str, &str),
) -> Result<(String, usize), FieldError> {
    let fills = prompt.matches(PLACE_HOLDER).count();
    let is_literal = subject.contains(PLACE_HOLDER) && prompt.contains(subject);
    if fills == 1 && !is_literal {
        let start = prompt
            .split(PLACE_HOLDER)
            .next()
            .map_or(0, |before| before.chars().count());
        return Ok((prompt.replace(PLACE_HOLDER, subject), start));
    }
    if let Some(start) = last_occurrence(prompt, subject) {
        let before = prompt.get(..start).unwrap_or_default();
        return Ok((prompt.to_owned(), before.chars().count()));
    }
    if fills > 1 {
        let reason = format!("has {fills} '{{}}'; the subject can fill only one");
        return Err(FieldError::new(names.0, reason));
    }
    Err(FieldError::new(
        names.1,
        format!(
            "subject '{subject}' is not in the {} '{prompt}'; \
             write the subject there literally, or '{{}}' in its place",
            names.0
        ),
    ))
}

/// Byte offset of the last occurrence of `part` as a word of its own, else of the last.
fn last_occurrence(text: &str, part: &str) -> Option<usize> {
    let last = text.rfind(part)?;
    let (first_char, last_char) = (part.chars().next()?, part.chars().next_back()?);
    let mut start = last;
    loop {
        let end = start.checked_add(part.len())?;
        let (before, after) = (text.get(..start)?, text.get(end..)?);
        let glued = |neighbour: Option<char>, edge: char| {
            neighbour.is_some_and(is_alphanumeric) && is_alphanumeric(edge)
        };
        if !glued(before.chars().next_back(), first_char) && !glued(after.chars().next(), last_char)
        {
            return Some(start);
        }
        let shorter = end.checked_sub(last_char.len_utf8())?;
        match text.get(..shorter)?.rfind(part) {
            Some(earlier) => start = earlier,
            None => return Some(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: (&str, &str) = ("prompt", "subject");

    fn filled(prompt: &str, subject: &str) -> (String, usize) {
        fill_prompt(prompt, subject, NAMES).unwrap()
    }

    #[test]
    fn one_place_holder_is_filled_even_beside_the_subject() {
        assert_eq!(
            filled("É {} is Paris", "Paris"),
            ("É Paris is Paris".to_owned(), 2)
        );
    }

    #[test]
    fn the_last_whole_word_is_the_edited_one() {
        assert_eq!(filled("Ian and Ian know Dorian", "Ian").1, 8);
        assert_eq!(filled("ian Dorian", "ian").1, 0);
        assert_eq!(filled("Dorian", "ian").1, 3);
        assert_eq!(filled("日本語の日本", "日本").1, 4);
        assert_eq!(filled("aaa", "aa").1, 1);
    }

    #[test]
    fn a_subject_may_hold_the_place_holder() {
        let literal = "In Go, interface{} is";
        let expected = (literal.to_owned(), 7);
        assert_eq!(filled(literal, "interface{}"), expected);
        assert_eq!(filled("In Go, {} is", "interface{}"), expected);
        assert_eq!(filled("{} is", "{}"), ("{} is".to_owned(), 0));
    }

    #[test]
    fn two_place_holders_or_no_subject_are_refused() {
        assert_eq!(filled("{} {} Rome", "Rome").1, 6);
        let two = fill_prompt("{} and {}", "Rome", NAMES).unwrap_err();
        assert_eq!(
            (two.field.as_deref(), two.reason.starts_with("has 2")),
            (Some("prompt"), true)
        );
        let none = fill_prompt("Paris is", "Rome", NAMES).unwrap_err();
        assert_eq!(none.field.as_deref(), Some("subject"));
    }

    #[test]
    fn space_and_letters_are_those_of_python() {
        assert_eq!(trim("\u{1c}\u{a0} x \u{3000}\u{85}"), "x");
        assert_eq!(trim_end(" x \u{3000}\u{1f}"), " x");
        assert!(is_alphanumeric('Ⅷ') && is_alphanumeric('½') && is_alphanumeric('語'));
        assert!(!is_alphanumeric('\u{0902}') && !is_alphanumeric('_') && !is_alphanumeric('ⓐ'));
    }
}
