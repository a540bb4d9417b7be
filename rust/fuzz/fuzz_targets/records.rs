//! Random bytes for the record readers: every form, with bad records refused and skipped.
//!
//! In this folder, for five minutes, on the stable toolchain:
//!
//! ```text
//! mkdir -p corpus/records artifacts
//! cargo run --release --bin records -- -max_total_time=300 -artifact_prefix=artifacts/ \
//!     -dict=records.dict corpus/records ../../tests/attacks/records
//! ```

#![no_main]

use easyedit_fast_core::records::{Format, OnError, ReadOptions, ReadRecords, parse_records};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for format in [
        Format::Auto,
        Format::Requests,
        Format::CounterFact,
        Format::Zsre,
        Format::KnowEdit,
    ] {
        let options = ReadOptions {
            format,
            on_error: OnError::Skip,
            ..ReadOptions::default()
        };
        let skipping = parse_records(bytes, &options);
        if let Ok(read) = &skipping {
            check(read);
        }
        let refusing = parse_records(
            bytes,
            &ReadOptions {
                on_error: OnError::Raise,
                ..options
            },
        );
        let clean = skipping.is_ok_and(|read| read.skipped.is_empty());
        assert_eq!(
            refusing.is_ok(),
            clean,
            "both ways of handling errors must agree"
        );
    }
});

/// What holds for every record that is accepted, and for the numbers of all.
fn check(read: &ReadRecords) {
    let mut numbers: Vec<usize> = read.records.iter().map(|record| record.number).collect();
    numbers.extend(read.skipped.iter().map(|error| error.record));
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..numbers.len()));
    for record in &read.records {
        let length = record.subject.chars().count();
        let at: String = record
            .prompt
            .chars()
            .skip(record.subject_start)
            .take(length)
            .collect();
        assert_eq!(at, record.subject);
        assert!(!record.subject.trim().is_empty());
        assert!(!record.target_new.is_empty());
    }
}
