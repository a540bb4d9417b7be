//! Records of every form, and what is refused.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use easyedit_fast_core::records::{
    Format, OnError, ParseError, Probe, ReadOptions, ReadRecords, Record, parse_records,
};

fn read(text: &str, options: &ReadOptions) -> Result<ReadRecords, ParseError> {
    parse_records(text.as_bytes(), options)
}

fn one(text: &str) -> Record {
    let mut read = read(text, &ReadOptions::default()).unwrap();
    assert_eq!(read.records.len(), 1);
    read.records.remove(0)
}

fn message(text: &str) -> String {
    read(text, &ReadOptions::default()).unwrap_err().to_string()
}

fn probe(prompt: &str, ground_truth: Option<&str>) -> Probe {
    Probe {
        prompt: prompt.to_owned(),
        ground_truth: ground_truth.map(str::to_owned),
    }
}

#[test]
fn a_request_in_easyedits_form() {
    let record = one(
        r#"[{"prompt": "{} speaks", "subject": "Ann", "target_new": " English ",
        "ground_truth": "French", "rephrase_prompt": ["Ann talks", " "],
        "locality": {"near": {"prompt": "Bob speaks", "ground_truth": "Dutch"}, "empty": []},
        "portability": {"one_hop": {"prompt": ["a", "b"], "ground_truth": ["x", null]}},
        "case_id": 1e999}]"#,
    );
    assert_eq!(
        (record.prompt.as_str(), record.subject_start),
        ("Ann speaks", 0)
    );
    assert_eq!(record.template, "{} speaks");
    assert_eq!(record.target_new, "English");
    assert_eq!(record.ground_truth.as_deref(), Some("French"));
    assert_eq!(record.rephrase_prompt, ["Ann talks"]);
    let near = ("near".to_owned(), vec![probe("Bob speaks", Some("Dutch"))]);
    assert_eq!(record.locality, [near, ("empty".to_owned(), vec![])]);
    let hops = vec![probe("a", Some("x")), probe("b", None)];
    assert_eq!(record.portability, [("one_hop".to_owned(), hops)]);
}

#[test]
fn counterfact_flat() {
    let record = one(
        r#"{"case_id": 2, "prompt": "Toko, the", "target_new": "piano",
        "subject": "Toko", "ground_truth": "guitar", "rephrase_prompt": "Toko plays",
        "locality_prompt": "John plays the", "locality_ground_truth": "guitar"}"#,
    );
    let near = vec![probe("John plays the", Some("guitar"))];
    assert_eq!(record.locality, [("neighborhood".to_owned(), near)]);
    assert_eq!(record.rephrase_prompt, ["Toko plays"]);
}

#[test]
fn counterfact_nested() {
    let record = one(
        r#"[{"case_id": 0, "requested_rewrite": {"prompt": "The tongue of {} is",
        "relation_id": "P103", "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"}, "subject": "Danielle"},
        "paraphrase_prompts": ["Danielle speaks"], "neighborhood_prompts": ["Léon is", "Ann is"],
        "attribute_prompts": [1], "generation_prompts": [{}]}]"#,
    );
    assert_eq!(
        (record.prompt.as_str(), record.subject_start),
        ("The tongue of Danielle is", 14)
    );
    assert_eq!(record.ground_truth.as_deref(), Some("French"));
    let near = vec![
        probe("Léon is", Some("French")),
        probe("Ann is", Some("French")),
    ];
    assert_eq!(record.locality, [("neighborhood".to_owned(), near)]);
}

#[test]
fn zsre_in_mends_form() {
    let record = one(
        r#"[{"subject": "IAAF", "src": "When did IAAF begin?", "pred": "2011",
        "rephrase": "When was the IAAF launched?", "alt": "2006", "answers": ["1998", "1999"],
        "loc": "nq question: the last episode", "loc_ans": "The String", "cond": "a >> b || c",
        "portability": {"New Question": "Which sport?", "New Answer": "Athletics"}}]"#,
    );
    assert_eq!(
        (record.prompt.as_str(), record.subject_start),
        ("When did IAAF begin?", 9)
    );
    assert_eq!(
        (record.target_new.as_str(), record.ground_truth.as_deref()),
        ("2006", Some("1998"))
    );
    let near = vec![probe("the last episode", Some("The String"))];
    assert_eq!(record.locality, [("neighborhood".to_owned(), near)]);
    let hop = vec![probe("Which sport?", Some("Athletics"))];
    assert_eq!(record.portability, [("one_hop".to_owned(), hop)]);
}

#[test]
fn knowedit_of_wiki() {
    let record = one(
        r#"[{"subject": "Ann", "prompt": "Ann lives in", "target_new": "Rome",
        "ground_truth": [["Oslo", "Kristiania"]], "rephrase": "Ann's home is", "cond": 7,
        "portability": {"Reasoning": [
            {"prompt": "Ann's mayor is", "ground_truth": [["", "Bo"], ["Cy"]]},
            {"prompt": ["Ann pays in"], "ground_truth": [[]]}, {"prompt": null}]},
        "locality": {"Relation_Specificity": [
            {"prompt": "Ann eats ", "ground_truth": "figs"},
            {"prompt": " ", "ground_truth": "pears"},
            {"prompt": "Ann drinks", "ground_truth": [null, "tea"]}], "Forgetfulness": null}}]"#,
    );
    assert_eq!(
        (record.prompt.as_str(), record.subject_start),
        ("Ann lives in", 0)
    );
    assert_eq!(record.target_new, "Rome");
    assert_eq!(record.ground_truth.as_deref(), Some("Oslo"));
    assert_eq!(record.rephrase_prompt, ["Ann's home is"]);
    let hops = vec![
        probe("Ann's mayor is", Some("Bo")),
        probe("Ann pays in", None),
    ];
    assert_eq!(record.portability, [("Reasoning".to_owned(), hops)]);
    let near = vec![
        probe("Ann eats", Some("figs")),
        probe("Ann drinks", Some("tea")),
    ];
    let near = ("Relation_Specificity".to_owned(), near);
    assert_eq!(
        record.locality,
        [near, ("Forgetfulness".to_owned(), vec![])]
    );
}

#[test]
fn knowedit_of_wikibio() {
    let text = "A page about ann orr. Ann Orr (1801) was";
    let record = one(&format!(
        r#"[{{"text": "{text} ", "concept": "ann orr", "labels": "a potter. "}}]"#
    ));
    assert_eq!((record.prompt.as_str(), record.subject_start), (text, 13));
    assert_eq!(
        (record.subject.as_str(), record.target_new.as_str()),
        ("ann orr", "a potter.")
    );
    let error = message(&format!(
        r#"[{{"text": "{text}", "concept": "orr_ann", "labels": "x"}}]"#
    ));
    assert!(
        error.starts_with("record 0, field 'concept': subject 'orr_ann' is not in the text 'A p"),
        "{error}"
    );
    let error = message(r#"[{"text": "Ann", "concept": "Ann", "labels": null}]"#);
    assert_eq!(error, "record 0, field 'labels': must be a text, not null");
}

#[test]
fn knowedits_errors_name_the_path_in_the_file() {
    for (probes, expected) in [
        ("[7]", "'locality.F[0]': must be an object, not a number"),
        (
            "{}",
            "'locality.F': must be a list of objects that hold 'prompt', not an object",
        ),
        (
            "[{}]",
            "'locality.F[0].prompt': is missing; add it to the probe",
        ),
        (
            r#"[{"prompt": 7}]"#,
            "'locality.F[0].prompt': holds a number; give a text",
        ),
        (
            r#"[{"prompt": "a"}, {"prompt": null, "ground_truth": [["b"], [{}]]}]"#,
            "'locality.F[1].ground_truth': holds an object; give a text, a list of texts or",
        ),
        (
            r#"[{"prompt": "a", "ground_truth": [[["b"]]]}]"#,
            "'locality.F[0].ground_truth': holds a list; give",
        ),
        (
            r#"[{"prompt": "a", "prompt": "b"}]"#,
            "'locality.F[0]': is ambiguous or damaged: the key 'prompt' is there twice",
        ),
    ] {
        let record = r#""prompt": "Ann is", "subject": "Ann", "target_new": "x""#;
        let options = ReadOptions {
            format: Format::KnowEdit,
            ..ReadOptions::default()
        };
        let text = format!(r#"[{{{record}, "locality": {{"F": {probes}}}}}]"#);
        let error = read(&text, &options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn knowedit_is_told_by_its_lists_of_probes() {
    let record = |sections: &str| {
        format!(r#"{{"prompt": "Ann is", "subject": "Ann", "target_new": "x"{sections}}}"#)
    };
    let plain = record("");
    let empty = record(r#", "locality": {"k": []}, "portability": {}"#);
    let lists = record(r#", "portability": {"k": [ {"prompt": "a"}]}"#);
    let object = record(r#", "locality": {"k": {"prompt": "a"}}"#);
    let junk = record(r#", "locality": {"k": ["a"]}"#);
    let zsre = r#"{"src": "Ann?", "subject": "Ann", "alt": "x"}"#.to_owned();
    // The records of each file, and the number of those that its form cannot read.
    for (file, bad) in [
        (vec![&lists, &plain, &empty], vec![]),
        (vec![&empty, &empty, &lists], vec![]),
        (vec![&empty, &zsre, &lists], vec![1, 2]),
        (vec![&plain, &lists], vec![1]),
        (vec![&empty, &plain, &lists], vec![2]),
        (vec![&object, &lists], vec![1]),
        (vec![&empty, &object], vec![]),
        (vec![&lists, &object], vec![1]),
        (vec![&junk, &lists], vec![0, 1]),
    ] {
        let options = ReadOptions {
            on_error: OnError::Skip,
            ..ReadOptions::default()
        };
        let file: Vec<&str> = file.into_iter().map(String::as_str).collect();
        let skipped = read(&file.join("\n"), &options).unwrap().skipped;
        let numbers: Vec<usize> = skipped.iter().map(|error| error.record).collect();
        assert_eq!(numbers, bad, "{file:?}");
    }
}

#[test]
fn errors_name_the_record_the_files_field_and_the_cause() {
    let good = r#"{"prompt": "Ann is", "subject": "Ann", "target_new": "x"}"#;
    for (record, expected) in [
        (
            r#"{"prompt": "Ann is", "subject": "Bob", "target_new": "x"}"#,
            "'subject': subject 'Bob'",
        ),
        (
            r#"{"prompt": "Ann is", "subject": "Ann"}"#,
            "'target_new': is missing",
        ),
        (
            r#"{"prompt": null, "subject": "Ann", "target_new": "x"}"#,
            "'prompt': must be a text, not null",
        ),
        (
            r#"{"prompt": "Ann", "subject": "Ann", "target_new": "\u001c "}"#,
            "'target_new': is empty",
        ),
        (
            r#"{"prompt": "{} {}", "subject": "Ann", "target_new": "x"}"#,
            "'prompt': has 2 '{}'",
        ),
        (
            r#"{"prompt": "Ann", "subject": "Ann", "target_new": "x", "locality": {"k": {"prompt": ["a"], "ground_truth": []}}}"#,
            "'locality.k.prompt': has 1 entries",
        ),
        (
            r#"{"prompt": "Ann", "subject": "Ann", "target_new": "x", "locality": {"k": {}}}"#,
            "'locality.k': must hold 'prompt'",
        ),
        (
            r#"{"prompt": "Ann", "subject": "Ann", "target_new": "x", "locality_prompt": "a", "locality": {"neighborhood": []}}"#,
            "'locality_prompt': is there beside",
        ),
        (
            r#"{"prompt": "Ann", "subject": "Ann", "target_new": "x", "locality_ground_truth": "a"}"#,
            "'locality_prompt': has 0 entries",
        ),
        ("7", "is a number; a record must be an object"),
    ] {
        let text = message(&format!("[{good}, {record}]"));
        assert!(text.starts_with("record 1"), "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let zsre = message(r#"[{"src": "Ann?", "subject": "Ann", "alt": " "}]"#);
    assert_eq!(zsre, "record 0, field 'alt': is empty; give a text");
}

#[test]
fn skipping_keeps_the_errors_and_the_numbers() {
    let lines = concat!(
        "{\"prompt\": \"Ann is\", \"subject\": \"Ann\", \"target_new\": \"x\"}\n",
        "\n",
        "{\"prompt\": \"Ann is\", \"subject\"\n",
        "{\"prompt\": \"Bob is\", \"subject\": \"Bob\", \"target_new\": \"x\"}\r\n",
        "{\"prompt\": \"Cyd is\", \"subject\": \"Ann\", \"target_new\": \"x\"}",
    );
    let options = ReadOptions {
        on_error: OnError::Skip,
        ..ReadOptions::default()
    };
    let all = read(lines, &options).unwrap();
    assert_eq!(
        all.records
            .iter()
            .map(|record| record.number)
            .collect::<Vec<_>>(),
        [0, 2]
    );
    let numbers: Vec<_> = all.skipped.iter().map(|error| error.record).collect();
    assert_eq!(numbers, [1, 3]);
    assert!(
        all.skipped[0].reason.contains("line 3, column"),
        "{}",
        all.skipped[0]
    );
    let middle = ReadOptions {
        offset: 1,
        limit: Some(2),
        ..options
    };
    let some = read(lines, &middle).unwrap();
    assert_eq!(
        (
            some.records.len(),
            some.skipped.len(),
            some.records[0].number
        ),
        (1, 1, 2)
    );
    assert!(
        read(
            lines,
            &ReadOptions {
                offset: 9,
                ..options
            }
        )
        .unwrap()
        .records
        .is_empty()
    );
}

#[test]
fn a_form_that_is_named_is_used() {
    let text = r#"[{"prompt": "Ann is", "subject": "Ann", "target_new": "x", "src": 1}]"#;
    assert_eq!(one(text).prompt, "Ann is");
    let zsre = ReadOptions {
        format: Format::Zsre,
        ..ReadOptions::default()
    };
    let error = read(text, &zsre).unwrap_err().to_string();
    assert_eq!(error, "record 0, field 'src': must be a text, not a number");
    assert_eq!(Format::parse("zsre").unwrap(), Format::Zsre);
    assert!(
        Format::parse("csv")
            .unwrap_err()
            .to_string()
            .contains("auto, requests")
    );
}

#[test]
fn a_damaged_file_names_the_place() {
    let cut = message("[{\"prompt\": \"Ann is\"},\n {\"prompt\": \"Bo");
    assert!(
        cut.contains("line 2, column 15, byte 38: EOF while parsing a string"),
        "{cut}"
    );
    assert!(cut.contains("cut short"), "{cut}");
    assert!(message("[{\"a\": NaN}]").contains("line 1, column 8"));
    assert!(message("[] []").contains("trailing characters"));
    assert!(message("\u{feff}").contains("is empty"));
    assert!(message("prompt,subject").contains("neither a JSON array"));
    let latin = parse_records(b"[\n\"\xe9\"]", &ReadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(latin.contains("not UTF-8 text (line 2, byte 3)"), "{latin}");
}
