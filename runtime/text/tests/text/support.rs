//! Fixtures, read.

use plinth_text::{Algorithm, Tokenizer, Vocabulary};
use serde_json::Value;

pub fn fixture(name: &str) -> Value {
    serde_json::from_slice(&bytes(name)).unwrap()
}

pub fn bytes(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The byte-level vocabulary: 0 `<|endoftext|>`, 1 `<|im_start|>`, 2 `<|im_end|>`.
pub fn bpe(pre: &str) -> Vocabulary {
    let fixture = fixture("bpe.json");
    Vocabulary {
        model: Algorithm::Bpe,
        pre: Some(pre.to_owned()),
        tokens: list(&fixture["tokens"]),
        types: list(&fixture["types"]),
        merges: list(&fixture["merges"]),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        add_bos: Some(false),
        ..Vocabulary::default()
    }
}

/// The SentencePiece vocabulary: 0 `<unk>`, 1 `<s>`, 2 `</s>`.
pub fn sentence_piece(add_space_prefix: bool) -> (Vocabulary, Value) {
    let fixture = fixture(if add_space_prefix {
        "sentence_piece.json"
    } else {
        "sentence_piece.no_prefix.json"
    });
    let vocabulary = Vocabulary {
        model: Algorithm::SentencePiece,
        tokens: list(&fixture["tokens"]),
        scores: list(&fixture["scores"]),
        types: list(&fixture["types"]),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        add_space_prefix: Some(add_space_prefix),
        ..Vocabulary::default()
    };
    (vocabulary, fixture["cases"].clone())
}

/// Gemma 3's vocabulary, as far as the texts of its fixture touch it.
pub fn gemma3() -> Vocabulary {
    let fixture = fixture("gemma3.json");
    let id = |name: &str| fixture[name].as_u64().map(|id| id as u32);
    Vocabulary {
        model: Algorithm::SentencePiece,
        tokens: list(&fixture["tokens"]),
        scores: list(&fixture["scores"]),
        types: list(&fixture["types"]),
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unk"),
        add_bos: Some(true),
        add_space_prefix: Some(false),
        ..Vocabulary::default()
    }
}

pub fn smollm() -> Tokenizer {
    Tokenizer::from_vocabulary(bpe("smollm")).unwrap()
}

/// Every kind of tokenizer.
pub fn all() -> Vec<Tokenizer> {
    let huggingface = |name: &str| Tokenizer::from_huggingface(&bytes(name), None, &[]).unwrap();
    vec![
        smollm(),
        Tokenizer::from_vocabulary(bpe("llama-bpe")).unwrap(),
        Tokenizer::from_vocabulary(sentence_piece(true).0).unwrap(),
        Tokenizer::from_vocabulary(sentence_piece(false).0).unwrap(),
        huggingface("byte_level.tokenizer.json"),
        huggingface("byte_fallback.tokenizer.json"),
    ]
}
