//! Spans of characters and the tokens that they meet, on small tokenizers.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use easyedit_fast_core::batch::PaddingSide;
use easyedit_fast_core::error::Error;
use easyedit_fast_core::tokenize::{EncodeOptions, RequestTokenizer, Span};
use proptest::prelude::*;
use serde_json::json;
use support::byte_level;

const OPTIONS: EncodeOptions<'static> = EncodeOptions {
    subject_spans: None,
    target_spans: None,
    padding_side: PaddingSide::Right,
    pad_id: 999,
    add_special_tokens: true,
};

fn span(start: usize, end: usize) -> Span {
    Span { start, end }
}

#[test]
fn a_character_of_several_tokens_counts_with_all_of_them() {
    // Bytes: <s> · a · 🗼 (4) · e · combining acute (2) · 語 (3) · z
    let text = "a🗼e\u{301}語z";
    let tokenizer = byte_level();
    for (subject, last) in [
        (span(0, 1), 1),
        (span(1, 2), 5),
        (span(2, 3), 6),
        (span(2, 4), 8),
        (span(4, 5), 11),
        (span(0, 6), 12),
    ] {
        let options = EncodeOptions {
            subject_spans: Some(&[subject]),
            ..OPTIONS
        };
        let batch = tokenizer.encode(&[text], &options).unwrap();
        assert_eq!(batch.subject_last.unwrap(), [last], "{subject:?}");
        assert_eq!(batch.lengths, [13]);
    }
    let options = EncodeOptions {
        target_spans: Some(&[span(3, 5)]),
        ..OPTIONS
    };
    let batch = tokenizer.encode(&[text], &options).unwrap();
    let labels = batch.labels.unwrap();
    assert!(labels[..7].iter().all(|&label| label == -100));
    assert_eq!(labels[7..12], batch.input_ids[7..12]);
    assert_eq!(labels[12], -100);
}

#[test]
fn truncation_and_padding_of_the_file_are_switched_off() {
    let batch = byte_level().encode(&["abcdef", "a"], &OPTIONS).unwrap();
    assert_eq!((batch.rows, batch.width), (2, 7));
    assert_eq!(batch.lengths, [7, 2]);
    assert_eq!(batch.input_ids[7], 256);
    assert_eq!(batch.input_ids[9..], [999; 5]);
    assert_eq!(batch.attention_mask[7..], [1, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn special_tokens_belong_to_no_span() {
    let options = EncodeOptions {
        target_spans: Some(&[span(0, 2)]),
        ..OPTIONS
    };
    let batch = byte_level().encode(&["ab"], &options).unwrap();
    assert_eq!(batch.labels.unwrap()[0], -100);
    let bare = EncodeOptions {
        add_special_tokens: false,
        ..OPTIONS
    };
    assert_eq!(byte_level().encode(&["ab"], &bare).unwrap().lengths, [2]);
}

#[test]
fn a_bad_span_names_its_row() {
    let tokenizer = byte_level();
    for bad in [span(1, 1), span(2, 1), span(0, 4), span(9, usize::MAX)] {
        let spans = [span(0, 1), bad];
        let options = EncodeOptions {
            subject_spans: Some(&spans),
            ..OPTIONS
        };
        match tokenizer.encode(&["x", "añb"], &options) {
            Err(Error::Record(error)) => {
                assert_eq!((error.record, error.field.as_deref()), (1, Some("subject")));
                assert!(error.reason.contains("not inside the text of 3 characters"));
            }
            other => panic!("{other:?}"),
        }
    }
    let options = EncodeOptions {
        target_spans: Some(&[]),
        ..OPTIONS
    };
    let error = tokenizer.encode(&["x"], &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there are 0 target spans for 1 texts; give one a text"
    );
}

#[test]
fn characters_that_the_tokenizer_drops_meet_no_token() {
    let text = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"},
    });
    let tokenizer = RequestTokenizer::from_json(&text.to_string(), false).unwrap();
    let options = EncodeOptions {
        subject_spans: Some(&[span(1, 2)]),
        ..OPTIONS
    };
    let error = tokenizer
        .encode(&["a b"], &options)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("record 0, field 'subject': span (1, 2) meets no token"),
        "{error}"
    );
}

#[test]
fn a_text_that_is_no_tokenizer_is_refused() {
    for text in [
        "",
        "{}",
        "[]",
        "{\"version\": \"1.0\", \"model\": {\"type\": \"Oracle\"}}",
    ] {
        assert!(matches!(
            RequestTokenizer::from_json(text, false),
            Err(Error::Tokenizer(_))
        ));
    }
}

proptest! {
    /// With one token a byte, the tokens of a span are exactly its bytes.
    #[test]
    fn spans_meet_their_bytes_whatever_the_side(
        before in "\\PC{0,6}", subject in "\\PC{1,6}", after in "\\PC{0,6}", pads in 0..5_usize,
    ) {
        let text = format!("{before}{subject}{after}");
        let longer = "y".repeat(text.len() + pads);
        let start = before.chars().count();
        let subject_span = span(start, start + subject.chars().count());
        let spans = [subject_span, span(0, 1)];
        for (side, shift) in [(PaddingSide::Right, 0), (PaddingSide::Left, pads)] {
            let options = EncodeOptions {
                subject_spans: Some(&spans), target_spans: Some(&spans), padding_side: side, ..OPTIONS
            };
            // Text that spells the special token would be that token.
            prop_assume!(!text.contains("<s>"));
            let batch = byte_level().encode(&[&text, &longer], &options).unwrap();
            let last = shift + before.len() + subject.len();
            prop_assert_eq!(batch.subject_last.unwrap()[0], i64::try_from(last).unwrap());
            let labels = &batch.labels.unwrap()[..batch.width];
            let met: Vec<usize> =
                (0..batch.width).filter(|&place| labels[place] != -100).collect();
            let wanted: Vec<usize> = (shift + before.len() + 1..=last).collect();
            prop_assert_eq!(met, wanted);
        }
    }
}
