//! Corpora: what is read, how it is packed, and what is refused.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use easyedit_fast_core::corpus::{Blocks, Corpus, Documents, Packer, ReadAhead};
use easyedit_fast_core::error::{Error, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::collection::vec;
use proptest::prelude::*;
use support::byte_level;
use tempfile::{TempDir, tempdir};

const BOS: i64 = 256;

fn file(folder: &TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn gz(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn texts(paths: &[&Path]) -> Result<Vec<String>> {
    let paths = paths.iter().map(|&path| path.to_owned()).collect();
    Documents::new(paths, "text".to_owned())?.collect()
}

fn corpus(path: &Path, block: usize, rows: usize) -> Corpus {
    let paths = vec![path.to_owned()];
    Corpus::new(
        paths,
        "text".to_owned(),
        Arc::new(byte_level()),
        block,
        rows,
    )
    .unwrap()
}

fn refusal(name: &str, content: &[u8]) -> String {
    let folder = tempdir().unwrap();
    let path = file(&folder, name, content);
    texts(&[&path]).unwrap_err().to_string()
}

#[test]
fn kinds_are_told_by_the_name_and_files_follow_each_other() {
    let folder = tempdir().unwrap();
    let plain = file(
        &folder,
        "a.txt",
        "\u{feff}Eine Zeile\r\nnoch eine".as_bytes(),
    );
    let lines = file(
        &folder,
        "b.JSONL",
        b"{\"text\": \"one\", \"id\": 1}\n\n \"two\"\n{\"text\": \"\"}\n{\"text\": \"three\"}",
    );
    let packed = file(
        &folder,
        "c.txt.gz",
        &[gz(b"first "), gz(b"second")].concat(),
    );
    assert_eq!(
        texts(&[&plain, &lines, &packed]).unwrap(),
        [
            "Eine Zeile\r\nnoch eine",
            "one",
            "two",
            "three",
            "first second"
        ]
    );
    assert!(texts(&[]).unwrap().is_empty());
}

#[test]
fn a_long_text_comes_in_pieces_that_end_with_a_line() {
    let folder = tempdir().unwrap();
    let line = "a line of some length, with ünïcode\n";
    let whole = line.repeat(10_000);
    let pieces = texts(&[&file(&folder, "a.txt", whole.as_bytes())]).unwrap();
    assert!(pieces.len() > 3);
    assert!(pieces.iter().all(|piece| piece.ends_with('\n')));
    assert_eq!(pieces.concat(), whole);
}

#[test]
fn a_line_beyond_the_bound_is_cut_between_characters() {
    let folder = tempdir().unwrap();
    let whole = format!("x{}", "é€".repeat(700_000));
    let pieces = texts(&[&file(&folder, "a.txt", whole.as_bytes())]).unwrap();
    assert!(pieces.len() > 1);
    assert!(pieces.iter().all(|piece| piece.len() <= (1 << 20) + 4));
    assert_eq!(pieces.concat(), whole);
}

#[test]
fn what_is_wrong_is_named() {
    for (name, content, words) in [
        ("a.csv", &b"x"[..], "is neither .txt nor .jsonl"),
        ("a.txt", b"good \xff bad", "not UTF-8 text (byte 5)"),
        ("a.txt", b"cut off \xe2\x82", "not UTF-8 text (byte 8)"),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n\"\xff\"\n",
            "not UTF-8 text (byte 15)",
        ),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": 3}",
            "record 1, field 'text': must be a text",
        ),
        (
            "a.jsonl",
            b"{\"body\": \"a\"}",
            "record 0, field 'text': is missing; name the field",
        ),
        ("a.jsonl", b"[1]", "record 0: must be an object or a text"),
        ("a.jsonl", b"{\"text\": ", "record 0: is not valid JSON"),
        ("a.txt.gz", b"not compressed", "cannot be read"),
        ("a.txt.gz", &gz(&[b'a'; 100])[..20], "cannot be read"),
    ] {
        let message = refusal(name, content);
        assert!(message.contains(words), "{name}: {message}");
        assert!(message.contains(name), "{name}: {message}");
    }
    let missing = Documents::new(vec!["nowhere.txt".into()], String::new());
    assert!(matches!(missing.err(), Some(Error::Missing(_))));
}

#[test]
fn an_error_ends_the_corpus() {
    let folder = tempdir().unwrap();
    let path = file(
        &folder,
        "a.jsonl",
        b"{\"text\": \"abc\"}\nnothing\n{\"text\": \"d\"}\n",
    );
    let mut blocks = corpus(&path, 4, 1);
    assert!(blocks.next().unwrap().is_err());
    assert!(blocks.next().is_none());
}

#[test]
fn blocks_are_full_begin_with_bos_and_lose_nothing() {
    let folder = tempdir().unwrap();
    let path = file(&folder, "a.txt", b"abcdefghij");
    let blocks: Vec<Blocks> = corpus(&path, 4, 2).map(Result::unwrap).collect();
    let shapes: Vec<_> = blocks.iter().map(|b| (b.rows, b.width)).collect();
    assert_eq!(shapes, [(2, 4), (1, 4), (1, 2)]);
    let ids: Vec<i64> = blocks.iter().flat_map(|b| b.input_ids.clone()).collect();
    assert_eq!(ids.iter().filter(|&&id| id == BOS).count(), 4);
    assert!([0, 4, 8, 12].iter().all(|&place| ids[place] == BOS));
}

#[test]
fn a_block_needs_room_for_a_token() {
    for length in [0, 1, usize::MAX] {
        let error = Packer::new(Arc::new(byte_level()), length).err().unwrap();
        assert!(error.to_string().contains("from 2 to"), "{error}");
    }
}

#[test]
fn reading_ahead_gives_the_same_items_and_ends_when_it_is_dropped() {
    let mut ahead = ReadAhead::start(0..1000, 3).unwrap();
    for expected in 0..1000 {
        assert_eq!(ahead.next_item().unwrap(), Some(expected));
    }
    assert_eq!(ahead.next_item().unwrap(), None);
    assert_eq!(ahead.next_item().unwrap(), None);
    let sign = Arc::new(());
    let watched = Arc::clone(&sign);
    let endless = ReadAhead::start(std::iter::repeat_with(move || Arc::clone(&watched)), 2);
    drop(endless.unwrap());
    assert_eq!(Arc::strong_count(&sign), 1, "the thread has ended");
}

#[test]
fn a_thread_that_panics_is_an_error() {
    let items = (0..3).inspect(|&item| assert!(item < 2, "on purpose"));
    let mut ahead = ReadAhead::start(items, 1).unwrap();
    assert_eq!(ahead.next_item().unwrap(), Some(0));
    assert_eq!(ahead.next_item().unwrap(), Some(1));
    assert!(ahead.next_item().is_err());
}

proptest! {
    #[test]
    fn packing_does_not_depend_on_how_texts_are_handed_over(
        texts in vec("[a-z ]{0,20}", 0..12),
        block in 2_usize..9,
        rows in 1_usize..4,
        split in 0_usize..12,
    ) {
        let split = split.min(texts.len());
        let mut packer = Packer::new(Arc::new(byte_level()), block).unwrap();
        let mut ids = Vec::new();
        for part in [&texts[..split], &texts[split..]] {
            packer.push(part).unwrap();
            while let Some(blocks) = packer.take(rows) {
                prop_assert!(blocks.rows <= rows && blocks.width == block);
                prop_assert_eq!(blocks.input_ids.len(), blocks.rows * block);
                ids.extend(blocks.input_ids);
            }
        }
        if let Some(rest) = packer.take_rest() {
            prop_assert!(rest.rows == 1 && rest.width < block);
            ids.extend(rest.input_ids);
        }
        prop_assert!(packer.take_rest().is_none());
        let expected: usize = texts.iter().map(String::len).sum();
        prop_assert_eq!(ids.iter().filter(|&&id| id != BOS).count(), expected);
        prop_assert_eq!(ids.iter().filter(|&&id| id == BOS).count(), expected.div_ceil(block - 1));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(content in vec(any::<u8>(), 0..200), name in 0_usize..4) {
        let folder = tempdir().unwrap();
        let name = ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"][name];
        let read = texts(&[&file(&folder, name, &content)]);
        if name == "a.txt" {
            prop_assert_eq!(read.is_ok(), std::str::from_utf8(&content).is_ok());
        }
    }
}
