use crate::support::{all, bpe, bytes, fixture, gemma3, list, sentence_piece, smollm};
use plinth_text::{Special, Tokenizer};
use serde_json::{Value, json};

fn check(tokenizer: &Tokenizer, case: &Value, ids: &Value, special: Special) {
    let text = case["text"].as_str().unwrap();
    assert_eq!(
        tokenizer.encode(text, special),
        list::<u32>(ids),
        "{text:?}"
    );
}

fn check_decoded(tokenizer: &Tokenizer, case: &Value) {
    let decoded = tokenizer.decode(&list::<u32>(&case["ids"]), true);
    assert_eq!(
        decoded,
        case["decoded"].as_str().unwrap(),
        "{}",
        case["text"]
    );
}

#[test]
fn bpe_equals_the_reference_with_every_pre_tokenizer() {
    let fixture = fixture("bpe.json");
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
        let tokenizer = Tokenizer::from_vocabulary(bpe(pre)).unwrap();
        for case in fixture["cases"].as_array().unwrap() {
            check(&tokenizer, case, &case[pre], Special::Parse);
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.decode(&list(&case[pre]), false), text);
        }
    }
}

#[test]
fn sentence_piece_equals_the_reference() {
    for prefix in [true, false] {
        let (vocabulary, cases) = sentence_piece(prefix);
        let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
        for case in cases.as_array().unwrap() {
            check(&tokenizer, case, &case["ids"], Special::Plain);
            check_decoded(&tokenizer, case);
        }
    }
}

/// The vocabulary of Gemma 3, as far as the texts touch it: its runs of spaces and line breaks are tokens that are never
/// cut, no space is put before a text, and what is rare becomes bytes.
#[test]
fn gemma_3_equals_the_reference() {
    let fixture = fixture("gemma3.json");
    let tokenizer = Tokenizer::from_vocabulary(gemma3()).unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        check(&tokenizer, case, &case["ids"], Special::Plain);
        let text = case["text"].as_str().unwrap();
        let decoded = tokenizer.decode(&list(&case["ids"]), false);
        // Written with U+2581, the vocabulary's own spelling of a space, a text comes back with spaces.
        assert_eq!(decoded, text.replace('▁', " "));
    }
    assert!(tokenizer.adds_bos());
    let turn = tokenizer.encode("<bos>", Special::Parse);
    assert_eq!(turn, [tokenizer.bos().unwrap()]);
}

#[test]
fn hugging_face_files_equal_the_reference() {
    for name in ["byte_level", "byte_fallback"] {
        let json = bytes(&format!("{name}.tokenizer.json"));
        let tokenizer = Tokenizer::from_huggingface(&json, None, &[]).unwrap();
        for case in fixture(&format!("{name}.cases.json")).as_array().unwrap() {
            check(&tokenizer, case, &case["ids"], Special::Parse);
            check_decoded(&tokenizer, case);
        }
    }
}

#[test]
fn control_tokens_are_parsed_only_when_asked() {
    let tokenizer = smollm();
    let text = "<|im_start|>a<|im_end|>";
    let parsed = tokenizer.encode(text, Special::Parse);
    assert_eq!((parsed[0], parsed[parsed.len() - 1]), (1, 2));
    let plain = tokenizer.encode(text, Special::Plain);
    assert!(
        plain.iter().all(|&id| !tokenizer.is_special(id)),
        "{plain:?}"
    );
    for ids in [&parsed, &plain] {
        assert_eq!(tokenizer.decode(ids, false), text);
    }
    assert_eq!(tokenizer.decode(&parsed, true), "a");
}

#[test]
fn plain_text_never_becomes_a_control_token() {
    for tokenizer in all() {
        let spellings: Vec<String> = (0..tokenizer.vocab_size() as u32)
            .filter(|&id| id != 0) // The unknown token stands for text.
            .filter_map(|id| tokenizer.special_text(id))
            .collect();
        assert!(spellings.len() >= 2);
        for text in spellings {
            let ids = tokenizer.encode(&text, Special::Plain);
            assert!(
                ids.iter().all(|&id| !tokenizer.is_special(id)),
                "{text}: {ids:?}"
            );
        }
    }
}

#[test]
fn the_first_token_is_added_once_and_where_asked() {
    let mut vocabulary = bpe("llama-bpe");
    vocabulary.add_bos = None; // As this pre-tokenizer has it: yes.
    let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
    assert_eq!(tokenizer.with_bos(vec![7]), [1, 7]);
    assert_eq!(tokenizer.with_bos(vec![1, 7]), [1, 7]);
    assert_eq!(tokenizer.with_bos(vec![]), [1]);
    assert_eq!(smollm().with_bos(vec![7]), [7]);
}

#[test]
fn the_ends_of_an_answer_are_known_by_id_and_by_name() {
    let mut vocabulary = bpe("smollm");
    vocabulary.eot = Some(300);
    let tokenizer = Tokenizer::from_vocabulary(vocabulary).unwrap();
    assert_eq!(tokenizer.eog_ids(), [0, 2, 300]);
    assert!(
        tokenizer.is_special(300),
        "a token that ends a turn is never plain text"
    );
}

#[test]
fn hugging_face_configurations_name_the_first_and_last_token() {
    let json = bytes("byte_fallback.tokenizer.json");
    let of = |config: Option<Value>, eos: &[u32]| {
        Tokenizer::from_huggingface(&json, config.as_ref(), eos).unwrap()
    };
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": false});
    let tokenizer = of(Some(config), &[5]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert_eq!(tokenizer.eog_ids(), [2, 5]);
    assert_eq!(tokenizer.with_bos(vec![9]), [9]);
    // Without a configuration, the post-processor tells.
    assert_eq!(of(None, &[]).with_bos(vec![9]), [1, 9]);
}

#[test]
fn pieces_are_the_bytes_of_a_token() {
    let tokenizer = smollm();
    let ids = tokenizer.encode("naïve 日", Special::Plain);
    let bytes: Vec<u8> = ids
        .iter()
        .flat_map(|&id| tokenizer.piece_bytes(id))
        .copied()
        .collect();
    assert_eq!(bytes, "naïve 日".as_bytes());
    assert_eq!(tokenizer.piece(1), "<|im_start|>");
    assert_eq!(tokenizer.piece(u32::MAX), "");
    assert_eq!(tokenizer.special_text(1).as_deref(), Some("<|im_start|>"));
    assert_eq!(tokenizer.special_text(ids[0]), None);
}

#[test]
fn a_word_of_many_letters_takes_no_quadratic_time() {
    // A loop that looks at every pair for every merge would take minutes.
    let text = "ab".repeat(100_000);
    for tokenizer in [
        smollm(),
        Tokenizer::from_vocabulary(sentence_piece(true).0).unwrap(),
    ] {
        assert_eq!(
            tokenizer.decode(&tokenizer.encode(&text, Special::Plain), true),
            text
        );
    }
}
