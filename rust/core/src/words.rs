//! Words that are tokenised once.
//!
//! Byte-level BPE tokenises each word by itself. A space between two ASCII letters always begins
//! one, whatever is around it: no branch of the pre-tokenizers' expressions crosses it, nor looks
//! across it. So texts are cut there, and the tokens of each part are kept. Prompts are made of few
//! words, most of which are met again.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::RwLock;

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Encoding, Tokenizer};

/// Longer parts are seldom met again, and are not kept.
const LONGEST_BYTES: usize = 48;

/// Locks, so that threads seldom wait, and parts behind each of them at most: some 50 MB in all.
const SHARDS: usize = 32;
const PARTS_PER_SHARD: usize = 1 << 13;

/// Expressions of published tokenizers (Llama 3; Qwen 2 and 3), beside `ByteLevel`'s own, of which
/// the above holds.
const KNOWN_EXPRESSIONS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// A token of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// Its id.
    pub(crate) id: u32,
    /// The first character that it stands for.
    pub(crate) start: usize,
    /// The character after the last one.
    pub(crate) end: usize,
    /// Whether the tokenizer added it, as BOS.
    pub(crate) special: bool,
}

impl Token {
    fn moved(self, characters: usize) -> Self {
        Self {
            start: self.start.saturating_add(characters),
            end: self.end.saturating_add(characters),
            ..self
        }
    }

    fn moved_back(self, characters: usize) -> Self {
        Self {
            start: self.start.saturating_sub(characters),
            end: self.end.saturating_sub(characters),
            ..self
        }
    }
}

/// The tokens of an encoding.
pub(crate) fn tokens(encoding: &Encoding) -> Vec<Token> {
    encoding
        .get_ids()
        .iter()
        .zip(encoding.get_offsets())
        .zip(encoding.get_special_tokens_mask())
        .map(|((&id, &(start, end)), &special)| Token {
            id,
            start,
            end,
            special: special == 1,
        })
        .collect()
}

type Shard = RwLock<HashMap<Box<str>, Box<[Token]>>>;

/// The parts of texts that one tokenizer has met, with their tokens.
pub(crate) struct Words {
    shards: Vec<Shard>,
    hasher: RandomState,
    /// Special tokens before and after every text.
    around: (Vec<Token>, Vec<Token>),
}

impl Words {
    /// None for a tokenizer whose tokens of a part may depend on the rest of the text.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let apart = plain_model(tokenizer.get_model())
            && tokenizer.get_normalizer().is_none_or(plain_normalizer)
            && tokenizer.get_pre_tokenizer().is_some_and(cuts_words)
            && tokenizer.get_post_processor().is_none_or(plain_processor)
            && tokenizer
                .get_added_tokens_decoder()
                .values()
                .all(plain_added);
        apart
            .then(|| special_tokens(tokenizer))
            .flatten()
            .map(|around| Self {
                shards: (0..SHARDS).map(|_| Shard::default()).collect(),
                hasher: RandomState::new(),
                around,
            })
    }

    /// The tokens of a text.
    pub(crate) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        add_special_tokens: bool,
    ) -> tokenizers::Result<Vec<Token>> {
        let mut found = Vec::with_capacity(text.len() / 3);
        if add_special_tokens {
            found.extend_from_slice(&self.around.0);
        }
        let (mut characters, mut rest) = (0_usize, text);
        let mut parts = parts(text).peekable();
        while let Some(part) = parts.next() {
            let mut bytes = part.len();
            if !self.add_known(part, characters, &mut found) {
                let mut new = vec![part];
                // A call of the tokenizer costs more than what it does, so as much as can be.
                while let Some(next) = parts.next_if(|next| !self.knows(next)) {
                    bytes = bytes.saturating_add(next.len());
                    new.push(next);
                }
                let whole = rest.get(..bytes).unwrap_or(rest);
                self.add_new(tokenizer, whole, &new, characters, &mut found)?;
            }
            let (met, left) = rest.split_at_checked(bytes).unwrap_or((rest, ""));
            characters = characters.saturating_add(length(met));
            rest = left;
        }
        if add_special_tokens {
            found.extend_from_slice(&self.around.1);
        }
        Ok(found)
    }

    /// Adds the tokens of a part, if it is known.
    fn add_known(&self, part: &str, characters: usize, found: &mut Vec<Token>) -> bool {
        self.look_up(part, |own| {
            found.extend(own.iter().map(|token| token.moved(characters)));
        })
        .is_some()
    }

    fn knows(&self, part: &str) -> bool {
        self.look_up(part, |_| ()).is_some()
    }

    /// What `read` makes of the tokens of a part, if it is known.
    fn look_up<T>(&self, part: &str, read: impl FnOnce(&[Token]) -> T) -> Option<T> {
        // Never waited for: in a forked child nobody may be there to let go of it.
        let known = self.shard(part)?.try_read().ok()?;
        known.get(part).map(|own| read(own))
    }

    /// Adds the tokens of a text, and keeps them for each of its parts.
    fn add_new(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        parts: &[&str],
        characters: usize,
        found: &mut Vec<Token>,
    ) -> tokenizers::Result<()> {
        let all = tokens(&encode(tokenizer, text)?);
        found.extend(all.iter().map(|token| token.moved(characters)));
        let (mut own, mut start) = (all.as_slice(), 0_usize);
        let mut left = parts.iter().peekable();
        while let Some(part) = left.next() {
            let end = start.saturating_add(length(part));
            // All that is left are the last one's: spaces at its end may be trimmed to nothing.
            let number = match left.peek() {
                Some(_) => own.partition_point(|token| token.start < end),
                None => own.len(),
            };
            let (first, others) = own.split_at(number);
            self.keep(part, first, start);
            (own, start) = (others, end);
        }
        Ok(())
    }

    /// Keeps the tokens of a part that begins at the character `start`.
    fn keep(&self, part: &str, tokens: &[Token], start: usize) {
        // A poisoned or busy lock is no reason to fail: the part is kept another time.
        if part.len() <= LONGEST_BYTES
            && let Some(Ok(mut known)) = self.shard(part).map(RwLock::try_write)
            && known.len() < PARTS_PER_SHARD
        {
            let own = tokens.iter().map(|token| token.moved_back(start));
            known.insert(part.into(), own.collect());
        }
    }

    fn shard(&self, part: &str) -> Option<&Shard> {
        let hash = usize::try_from(self.hasher.hash_one(part) >> 32).ok()?;
        self.shards.get(hash % SHARDS)
    }
}

/// The text, cut before each space between two ASCII letters.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let cuts = bytes
        .windows(3)
        .enumerate()
        .filter(|(_, window)| {
            matches!(window, [before, b' ', after]
                if before.is_ascii_alphabetic() && after.is_ascii_alphabetic())
        })
        .map(|(place, _)| place.saturating_add(1))
        .chain([bytes.len()]);
    let mut start = 0;
    cuts.filter_map(move |end| {
        let part = text.get(start..end);
        start = end;
        part.filter(|part| !part.is_empty())
    })
}

/// The encoding of a part, with offsets in characters.
fn encode(tokenizer: &Tokenizer, part: &str) -> tokenizers::Result<Encoding> {
    if part.is_ascii() {
        // Its bytes are its characters, and offsets in bytes need no table of them.
        tokenizer.encode(part, false)
    } else {
        tokenizer.encode_char_offsets(part, false)
    }
}

fn length(part: &str) -> usize {
    if part.is_ascii() {
        part.len()
    } else {
        part.chars().count()
    }
}

/// What the tokenizer puts before and after a text; None where it puts anything in between.
fn special_tokens(tokenizer: &Tokenizer) -> Option<(Vec<Token>, Vec<Token>)> {
    let text = "a b";
    let whole = tokens(&tokenizer.encode_char_offsets(text, true).ok()?);
    let bare = tokens(&tokenizer.encode_char_offsets(text, false).ok()?);
    let first = whole.iter().take_while(|token| token.special).count();
    let (before, rest) = whole.split_at_checked(first)?;
    let (inner, after) = rest.split_at_checked(bare.len())?;
    let plain = inner == bare && after.iter().all(|token| token.special);
    plain.then(|| (before.to_vec(), after.to_vec()))
}

fn plain_model(model: &ModelWrapper) -> bool {
    matches!(model, ModelWrapper::BPE(bpe) if bpe.dropout.is_none_or(|share| share == 0.0))
}

/// NFC does not reach across a space before a letter.
fn plain_normalizer(normalizer: &NormalizerWrapper) -> bool {
    matches!(normalizer, NormalizerWrapper::NFC(_))
}

/// Whether a pre-tokenizer cuts before a space between two letters.
fn cuts_words(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(level) => level.use_regex && !level.add_prefix_space,
        PreTokenizerWrapper::Sequence(steps) => {
            let steps: &[PreTokenizerWrapper] = steps.as_ref();
            steps
                .iter()
                .all(|step| cuts_words(step) || cuts_no_word(step))
                && steps.iter().any(cuts_words)
        }
        PreTokenizerWrapper::Split(split) => is_known(split),
        _ => false,
    }
}

/// Whether a pre-tokenizer, as a step among others, treats what lies on both sides by itself.
fn cuts_no_word(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(level) => !level.add_prefix_space,
        PreTokenizerWrapper::Digits(_) => true,
        _ => false,
    }
}

fn is_known(split: &Split) -> bool {
    let SplitPattern::Regex(expression) = &split.pattern else {
        return false;
    };
    KNOWN_EXPRESSIONS.contains(&expression.as_str())
        && split.behavior == SplitDelimiterBehavior::Isolated
        && !split.invert
}

/// Whether what happens after the model happens to each token by itself.
fn plain_processor(processor: &PostProcessorWrapper) -> bool {
    match processor {
        PostProcessorWrapper::Template(_) => true,
        // With both set, the first token's offsets are trimmed in another way.
        PostProcessorWrapper::ByteLevel(level) => !(level.trim_offsets && level.add_prefix_space),
        PostProcessorWrapper::Sequence(steps) => {
            let steps: &[PostProcessorWrapper] = steps.as_ref();
            steps.iter().all(plain_processor)
        }
        _ => false,
    }
}

fn plain_added(token: &AddedToken) -> bool {
    let reaches_out = token.lstrip || token.rstrip || token.single_word;
    // Nor may a part end where it ends, if a text goes on.
    !reaches_out && parts(&format!("{}a", token.content)).count() == 1
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn texts_are_cut_before_a_space_between_letters_alone() {
        let cut = |text| parts(text).collect::<Vec<_>>();
        assert_eq!(cut("The mother tongue"), ["The", " mother", " tongue"]);
        assert_eq!(cut(" a  b, c 5 d é f"), [" a  b, c 5 d é f"]);
        assert_eq!(cut("it's a"), ["it's", " a"]);
        assert!(cut("").is_empty());
    }
}
