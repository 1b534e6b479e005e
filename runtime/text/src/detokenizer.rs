//! Tokens to text while they come, without breaking a character.

use crate::tokenizer::Tokenizer;
use std::sync::Arc;

/// Decodes a stream of tokens. **Invariant:** what [`Detokenizer::push`] and [`Detokenizer::finish`] return, put
/// together, is [`Tokenizer::decode`] of all ids.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// No byte has come yet, so a space that encoding put there is still to be dropped.
    at_start: bool,
    /// The beginning of a character.
    held: Vec<u8>,
}

impl Detokenizer {
    /// Decodes an answer: control tokens are skipped.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            at_start: tokenizer.strips_space(),
            tokenizer,
            skip_special: true,
            held: Vec::new(),
        }
    }

    /// The same, with control tokens spelled out.
    pub fn with_special(mut self) -> Self {
        self.skip_special = false;
        self
    }

    /// The same for tokens that go on where a text ended: a space at the start is kept.
    pub fn continuing(mut self) -> Self {
        self.at_start = false;
        self
    }

    /// The characters that are complete with this token; often none.
    pub fn push(&mut self, id: u32) -> String {
        let mut bytes = self.tokenizer.decoded_bytes(id, self.skip_special);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.held.extend_from_slice(bytes);
        self.take_complete()
    }

    /// What is held back, now that nothing follows.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut done = 0;
        loop {
            let rest = &self.held[done..];
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    done = self.held.len();
                    break;
                }
                Err(error) => error,
            };
            text.push_str(&String::from_utf8_lossy(&rest[..error.valid_up_to()]));
            done += error.valid_up_to();
            match error.error_len() {
                Some(invalid) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += invalid;
                }
                None => break, // More bytes may complete it.
            }
        }
        self.held.drain(..done);
        text
    }
}
