//! Words are tokenised once: what is kept gives the tokens that the tokenizer itself gives.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::sync::OnceLock;

use easyedit_fast_core::batch::{Batch, IGNORED_LABEL, PaddingSide};
use easyedit_fast_core::tokenize::{EncodeOptions, RequestTokenizer, Span};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn byte_level(use_regex: bool, trim_offsets: bool, add_prefix_space: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets, "use_regex": use_regex})
}

/// A byte-level BPE with merges within words and across what stands between them.
fn tokenizer(changes: &Value) -> String {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<String> = alphabet.into_iter().map(String::from).collect();
    let merges = [
        ("a", "b"),
        ("Ġ", "a"),
        ("Ġ", "Ġ"),
        ("Ġa", "b"),
        ("'", "s"),
        ("ab", "Ġ"),
    ];
    tokens.extend(merges.map(|(left, right)| format!("{left}{right}")));
    tokens.extend(["<s>", "</s>", "<x>"].map(str::to_owned));
    let added = |content: &str, special: bool| {
        let id = tokens.iter().position(|token| token == content);
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special})
    };
    let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let id = |token: &str| tokens.iter().position(|other| other == token);
    let mut text = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added("<s>", true), added("</s>", true), added("<x>", false)],
        "pre_tokenizer": byte_level(true, true, false),
        "post_processor": {"type": "TemplateProcessing",
            "single": [special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, special("</s>")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [id("<s>")], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [id("</s>")], "tokens": ["</s>"]}}},
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false,
            "vocab": tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id)))
                .collect::<serde_json::Map<_, _>>(),
            "merges": merges.map(|(left, right)| [left, right])},
    });
    for (key, value) in changes.as_object().unwrap() {
        text[key] = value.clone();
    }
    text.to_string()
}

/// Pipelines whose words are kept, and some whose words must not be.
fn pipelines() -> Vec<Value> {
    let split = json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated",
        "invert": false});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
    let reaching = json!([{"id": 0, "content": "ss", "single_word": false, "lstrip": true,
        "rstrip": true, "normalized": false, "special": false}]);
    let spaced = json!([{"id": 0, "content": "b a", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false}]);
    vec![
        json!({}),
        json!({"normalizer": {"type": "NFC"}}),
        json!({"pre_tokenizer": sequence(vec![digits, byte_level(true, true, false)])}),
        json!({"pre_tokenizer": sequence(vec![split, byte_level(false, true, false)]),
            "post_processor": byte_level(true, true, false)}),
        json!({"post_processor": byte_level(true, true, true)}),
        json!({"pre_tokenizer": byte_level(true, true, true)}),
        json!({"pre_tokenizer": byte_level(false, true, false)}),
        json!({"normalizer": {"type": "Lowercase"}}),
        json!({"added_tokens": reaching}),
        json!({"added_tokens": spaced}),
    ]
}

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => "[abs]{1,3}",
        6 => Just(" ".to_owned()),
        1 => Just("  ".to_owned()),
        2 => prop::sample::select(vec!["'s", "<x>", "<s>", "é", "e\u{301}", "7", "12", ".", "\n", "東", "🗼"])
            .prop_map(str::to_owned),
    ];
    vec(piece, 1..14).prop_map(|pieces| pieces.concat())
}

fn encode(tokenizer: &RequestTokenizer, text: &str, special: bool) -> Batch {
    let options = EncodeOptions {
        subject_spans: None,
        target_spans: None,
        padding_side: PaddingSide::Right,
        pad_id: 0,
        add_special_tokens: special,
    };
    tokenizer.encode(&[text], &options).unwrap()
}

/// For each character the tokens that it is a label of, told by our own spans.
fn met(tokenizer: &RequestTokenizer, text: &str, character: usize) -> Option<Vec<bool>> {
    let options = EncodeOptions {
        subject_spans: None,
        target_spans: Some(&[Span {
            start: character,
            end: character + 1,
        }]),
        padding_side: PaddingSide::Right,
        pad_id: 0,
        add_special_tokens: true,
    };
    let labels = tokenizer.encode(&[text], &options).ok()?.labels?;
    Some(labels.iter().map(|&label| label != IGNORED_LABEL).collect())
}

/// Each pipeline with ours and the tokenizer itself.
fn both() -> &'static [(Value, RequestTokenizer, Tokenizer)] {
    static BOTH: OnceLock<Vec<(Value, RequestTokenizer, Tokenizer)>> = OnceLock::new();
    BOTH.get_or_init(|| {
        let made = |changes| {
            let json = tokenizer(&changes);
            let own = RequestTokenizer::from_json(&json, false).unwrap();
            (changes, own, json.parse().unwrap())
        };
        pipelines().into_iter().map(made).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn tokens_and_offsets_are_the_tokenizers_own(text in text()) {
        for (changes, own, plain) in both() {
            for special in [false, true] {
                let wanted = plain.encode_char_offsets(text.as_str(), special).unwrap();
                let ids: Vec<i64> = wanted.get_ids().iter().map(|&id| i64::from(id)).collect();
                // Twice: as the words are met, and as they are known.
                for _ in 0..2 {
                    let found = encode(own, &text, special).input_ids;
                    prop_assert_eq!(&found, &ids, "{:?} {}", text, changes);
                }
            }
            let wanted = plain.encode_char_offsets(text.as_str(), true).unwrap();
            for character in 0..text.chars().count() {
                let meets = wanted.get_offsets().iter().zip(wanted.get_special_tokens_mask())
                    .map(|(&(start, end), &special)| {
                        special == 0 && start.max(character) < end.min(character + 1)
                    });
                let meets: Vec<bool> = meets.collect();
                let expected = meets.contains(&true).then_some(meets);
                prop_assert_eq!(met(own, &text, character), expected, "{:?} {}", text, changes);
            }
        }
    }
}
