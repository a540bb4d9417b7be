//! Properties: what is written in a form is read back, and no bytes make the reader panic.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use easyedit_fast_core::records::{
    Format, OnError, Probe, ReadOptions, Record, Section, parse_records,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A character that is neither a brace (a place holder would be filled) nor space.
fn letter() -> impl Strategy<Value = char> {
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    any::<char>().prop_filter("a brace or space", move |&c| {
        !matches!(c, '{' | '}') && !space(c)
    })
}

/// Texts of characters of all kinds, without space at their ends.
fn text() -> impl Strategy<Value = String> {
    let inner = prop_oneof![4 => letter(), 1 => Just(' ')];
    (letter(), vec(inner, 0..8), letter())
        .prop_map(|(first, middle, last)| [vec![first], middle, vec![last]].concat())
        .prop_map(String::from_iter)
}

fn probes(fewest: usize) -> impl Strategy<Value = Vec<Probe>> {
    let probe = (text(), option::of(text())).prop_map(|(prompt, ground_truth)| Probe {
        prompt,
        ground_truth,
    });
    vec(probe, fewest..4)
}

/// Sections of up to three keys; the keys differ.
fn section() -> impl Strategy<Value = Section> {
    vec(probes(0), 0..3).prop_map(|lists| {
        let named = |(place, probes)| (format!("clé {place}"), probes);
        lists.into_iter().enumerate().map(named).collect()
    })
}

fn record() -> impl Strategy<Value = Record> {
    let texts = (text(), text(), text(), text(), option::of(text()));
    (texts, vec(text(), 0..3), section(), section()).prop_map(
        |(
            (before, subject, after, target_new, ground_truth),
            rephrase_prompt,
            locality,
            portability,
        )| {
            Record {
                number: 0,
                template: format!("{before} {{}} {after}"),
                prompt: format!("{before} {subject} {after}"),
                subject_start: before.chars().count() + 1,
                subject,
                target_new,
                ground_truth,
                rephrase_prompt,
                locality,
                portability,
            }
        },
    )
}

fn prompts(probes: &[Probe]) -> Vec<&str> {
    probes.iter().map(|probe| probe.prompt.as_str()).collect()
}

fn answers(probes: &[Probe]) -> Vec<Option<&str>> {
    probes
        .iter()
        .map(|probe| probe.ground_truth.as_deref())
        .collect()
}

fn section_json(section: &Section) -> Value {
    let entry = |(key, probes): &(String, Vec<Probe>)| {
        (
            key.clone(),
            json!({"prompt": prompts(probes), "ground_truth": answers(probes)}),
        )
    };
    Value::Object(section.iter().map(entry).collect())
}

/// Each answer as a text, a list of texts or a list of alias lists, by `shape`.
fn probe_lists(section: &Section, shape: usize) -> Value {
    let probe = |probe: &Probe| {
        let truth = &probe.ground_truth;
        let truth = match shape {
            0 => json!(truth),
            1 => json!([truth, " "]),
            _ => json!([[], [null, truth]]),
        };
        json!({"prompt": probe.prompt, "ground_truth": truth})
    };
    let entry = |(key, probes): &(String, Vec<Probe>)| {
        (
            key.clone(),
            Value::Array(probes.iter().map(probe).collect()),
        )
    };
    Value::Object(section.iter().map(entry).collect())
}

/// Any JSON, of the names that `KnowEdit` has.
fn junk() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        prop_oneof![Just(String::new()), Just("Ann".to_owned()), text()].prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "prompt",
        "subject",
        "target_new",
        "text",
        "concept",
        "labels",
        "ground_truth",
        "rephrase",
        "rephrase_prompt",
        "locality",
        "portability",
        "Forgetfulness",
        "Reasoning",
    ]);
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key.clone().prop_map(str::to_owned), inner), 0..8)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn as_request(record: &Record) -> Value {
    json!({
        "prompt": record.template, "subject": record.subject, "target_new": record.target_new,
        "ground_truth": record.ground_truth, "rephrase_prompt": record.rephrase_prompt,
        "locality": section_json(&record.locality),
        "portability": section_json(&record.portability),
    })
}

fn read_one(value: &Value, format: Format) -> Record {
    let options = ReadOptions {
        format,
        ..ReadOptions::default()
    };
    let bytes = serde_json::to_vec(&json!([value])).unwrap();
    parse_records(&bytes, &options).unwrap().records.remove(0)
}

proptest! {
    #[test]
    fn requests_round_trip(expected in record()) {
        prop_assert_eq!(read_one(&as_request(&expected), Format::Auto), expected);
    }

    #[test]
    fn lines_and_arrays_agree(expected in vec(record(), 1..6)) {
        let values: Vec<Value> = expected.iter().map(as_request).collect();
        let array = serde_json::to_string_pretty(&values).unwrap();
        let lines: Vec<String> = values.iter().map(Value::to_string).collect();
        let options = ReadOptions::default();
        let first = parse_records(array.as_bytes(), &options).unwrap().records;
        let second = parse_records(lines.join("\n").as_bytes(), &options).unwrap().records;
        prop_assert_eq!(&first, &second);
        for (number, (read, mut wanted)) in first.into_iter().zip(expected).enumerate() {
            wanted.number = number;
            prop_assert_eq!(read, wanted);
        }
    }

    #[test]
    fn flat_counterfact_round_trips(mut expected in record(), near in probes(1)) {
        let value = json!({
            "case_id": 7, "prompt": expected.template, "subject": expected.subject,
            "target_new": expected.target_new, "ground_truth": expected.ground_truth,
            "rephrase_prompt": expected.rephrase_prompt,
            "locality_prompt": prompts(&near), "locality_ground_truth": answers(&near),
        });
        expected.locality = vec![("neighborhood".to_owned(), near)];
        expected.portability = vec![];
        prop_assert_eq!(read_one(&value, Format::Auto), expected);
    }

    #[test]
    fn nested_counterfact_round_trips(mut expected in record(), truth in text(), mut near in probes(1)) {
        let value = json!({
            "requested_rewrite": {
                "prompt": expected.template, "subject": expected.subject,
                "target_new": {"str": expected.target_new}, "target_true": {"str": truth},
            },
            "paraphrase_prompts": expected.rephrase_prompt,
            "neighborhood_prompts": prompts(&near),
        });
        for probe in &mut near {
            probe.ground_truth = Some(truth.clone());
        }
        expected.ground_truth = Some(truth);
        expected.locality = vec![("neighborhood".to_owned(), near)];
        expected.portability = vec![];
        prop_assert_eq!(read_one(&value, Format::Auto), expected);
    }

    #[test]
    fn zsre_round_trips(mut expected in record(), near in probes(1), hop in probes(1)) {
        let (near, hop) = (&near[..1], &hop[..1]);
        let value = json!({
            "subject": expected.subject, "src": expected.template, "alt": expected.target_new,
            "answers": expected.ground_truth.iter().collect::<Vec<_>>(),
            "rephrase": expected.rephrase_prompt,
            "loc": format!("nq question: {}", near[0].prompt), "loc_ans": near[0].ground_truth,
            "portability": {"New Question": hop[0].prompt, "New Answer": hop[0].ground_truth},
        });
        expected.locality = vec![("neighborhood".to_owned(), near.to_vec())];
        expected.portability = vec![("one_hop".to_owned(), hop.to_vec())];
        prop_assert_eq!(read_one(&value, Format::Auto), expected);
    }

    #[test]
    fn knowedit_round_trips(expected in record(), passage in any::<bool>(), shape in 0..3_usize) {
        let [prompt, subject, target_new] =
            if passage { ["text", "concept", "labels"] } else { ["prompt", "subject", "target_new"] };
        let value = json!({
            prompt: expected.template, subject: expected.subject, target_new: expected.target_new,
            "ground_truth": expected.ground_truth, "rephrase_prompt": expected.rephrase_prompt,
            "locality": probe_lists(&expected.locality, shape),
            "portability": probe_lists(&expected.portability, shape),
        });
        prop_assert_eq!(&read_one(&value, Format::KnowEdit), &expected);
        prop_assert_eq!(read_one(&value, Format::Auto), expected);
    }

    #[test]
    fn no_json_makes_the_reader_of_knowedit_panic(records in vec(junk(), 0..4)) {
        let bytes = serde_json::to_vec(&records).unwrap();
        for format in [Format::Auto, Format::KnowEdit] {
            let options = ReadOptions { format, on_error: OnError::Skip, ..ReadOptions::default() };
            let read = parse_records(&bytes, &options).unwrap();
            prop_assert_eq!(read.records.len() + read.skipped.len(), records.len());
        }
    }

    #[test]
    fn the_subject_is_where_the_record_says(read in record()) {
        let found: String =
            read.prompt.chars().skip(read.subject_start).take(read.subject.chars().count()).collect();
        prop_assert_eq!(&found, &read.subject);
        let literal = json!({
            "prompt": read.prompt, "subject": read.subject, "target_new": read.target_new,
        });
        let again = read_one(&literal, Format::Auto);
        let found: String =
            again.prompt.chars().skip(again.subject_start).take(again.subject.chars().count()).collect();
        prop_assert_eq!(found, again.subject);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..200), start in "[\\[{ ]{0,3}") {
        let bytes = [start.as_bytes(), &bytes].concat();
        for name in Format::NAMES {
            let format = Format::parse(name).unwrap();
            let options = ReadOptions { format, on_error: OnError::Skip, ..ReadOptions::default() };
            let _ = parse_records(&bytes, &options);
        }
    }

    #[test]
    fn a_cut_array_is_refused(records in vec(record(), 1..4), cut in any::<prop::sample::Index>()) {
        let values: Vec<Value> = records.iter().map(as_request).collect();
        let whole = serde_json::to_vec(&values).unwrap();
        let part = &whole[..cut.index(whole.len())];
        prop_assert!(parse_records(part, &ReadOptions::default()).is_err());
    }
}
