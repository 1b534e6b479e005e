use crate::support::{bpe, bytes, sentence_piece};
use plinth_text::{Tokenizer, Vocabulary};
use serde_json::Value;

/// The error's message holds all of `parts`.
fn check(vocabulary: Vocabulary, parts: &[&str]) {
    let error = Tokenizer::from_vocabulary(vocabulary)
        .unwrap_err()
        .to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn a_vocabulary_that_makes_no_sense_is_told_by_field() {
    check(Vocabulary::default(), &["tokens", "empty"]);
    check(
        bpe("glm4"),
        &["'glm4'", "smollm, starcoder", "llama-bpe", "qwen2"],
    );
    let mut types = bpe("smollm");
    types.types.pop();
    check(types, &["types", "found", "one a token"]);
    let mut number = bpe("smollm");
    number.types[7] = 9;
    check(number, &["types[7]", "found 9", "from 1 to 6"]);
    let mut eos = bpe("smollm");
    eos.eos = Some(70_000);
    check(eos, &["eos", "70000", "number of tokens"]);
    let mut merge = bpe("smollm");
    merge.merges[3] = "ab".to_owned();
    check(merge, &["merges[3]", "'ab'", "two parts"]);
    let mut missing = bpe("smollm");
    let at = missing
        .tokens
        .iter()
        .position(|token| token == "A")
        .unwrap();
    missing.tokens[at] = "AAAA".to_owned();
    check(missing, &["0x41", "unknown token"]);
}

#[test]
fn a_sentence_piece_vocabulary_needs_scores_and_bytes() {
    let (mut vocabulary, _) = sentence_piece(true);
    vocabulary.scores.clear();
    check(vocabulary, &["scores", "found 0"]);
    let (mut vocabulary, _) = sentence_piece(true);
    vocabulary.scores[5] = f32::NAN;
    check(vocabulary, &["scores[5]", "NaN"]);
    let (mut vocabulary, _) = sentence_piece(true);
    let byte = vocabulary.types.iter().position(|&kind| kind == 6).unwrap();
    vocabulary.tokens[byte] = "<0xZZ>".to_owned();
    check(vocabulary, &["tokens", "<0xZZ>", "<0xNN>"]);
    let (mut vocabulary, _) = sentence_piece(true);
    vocabulary.types[byte] = 1;
    vocabulary.unk = None;
    check(vocabulary, &["0x00", "unknown token"]);
}

#[test]
fn hugging_face_files_that_cannot_be_read_say_why() {
    let check = |json: &[u8], eos: &[u32], parts: &[&str]| {
        let error = Tokenizer::from_huggingface(json, None, eos)
            .unwrap_err()
            .to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    check(b"{", &[], &["tokenizer.json", "EOF"]);
    let good = bytes("byte_level.tokenizer.json");
    check(&good, &[1_000_000], &["eos_token_id", "1000000"]);
    let mut changed: Value = serde_json::from_slice(&good).unwrap();
    changed["decoder"] = serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    check(
        changed.to_string().as_bytes(),
        &[],
        &["decoder", "WordPiece", "ByteLevel"],
    );
    changed = serde_json::from_slice(&good).unwrap();
    changed["model"]["vocab"]["far"] = 4_000_000_000u32.into();
    check(changed.to_string().as_bytes(), &[], &["4000000000"]);
}
