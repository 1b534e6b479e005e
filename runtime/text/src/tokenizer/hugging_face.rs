//! Vocabularies from a `tokenizer.json`: any normalizer, pre-tokenizer and model of the `tokenizers` library, and the
//! decoders of language models.

use super::build::{is_named_end, named_ends};
use super::pieces::{Pieces, Spelling, byte_token};
use super::special::{Added, AddedTokens, Part};
use super::{Encoder, Tokenizer};
use crate::error::TokenizerError;
use crate::vocabulary::Kind;
use serde_json::Value;
use tokenizers::tokenizer::normalizer::Range as Referential;
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token,
};

/// The pipeline of a `tokenizer.json`, without its added tokens: those are found as everywhere.
pub(super) struct HuggingFace {
    pipeline: tokenizers::Tokenizer,
}

impl HuggingFace {
    /// The tokens of `text`, whose added tokens are found already; `plain` tells which ids text may become.
    pub(super) fn encode(
        &self,
        text: &str,
        parts: &[Part],
        plain: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        // The library's errors here are vocabularies without an unknown token: what they lack is left out, as it does.
        self.run(text, parts, plain).unwrap_or_default()
    }

    fn run(
        &self,
        text: &str,
        parts: &[Part],
        plain: impl Fn(u32) -> bool,
    ) -> tokenizers::Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, whole: NormalizedString| {
            Ok(parts.iter().filter_map(move |part| split(&whole, part)))
        })?;
        if let Some(normalizer) = self.pipeline.get_normalizer() {
            pieces.normalize(|text| normalizer.normalize(text))?;
        }
        if let Some(pre_tokenizer) = self.pipeline.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|text| self.tokenize(text.get(), &plain))?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A word that happens to be spelled as a control token is cut into its characters.
    fn tokenize(&self, word: &str, plain: impl Fn(u32) -> bool) -> tokenizers::Result<Vec<Token>> {
        let model = self.pipeline.get_model();
        let tokens = model.tokenize(word)?;
        if tokens.iter().all(|token| plain(token.id)) {
            return Ok(tokens);
        }
        let mut cut = Vec::new();
        for c in word.chars() {
            cut.extend(model.tokenize(c.encode_utf8(&mut [0; 4]))?);
        }
        cut.retain(|token| plain(token.id));
        Ok(cut)
    }
}

fn split(whole: &NormalizedString, part: &Part) -> Option<(NormalizedString, Option<Vec<Token>>)> {
    let (range, id) = match part {
        Part::Token { id, range } => (range.clone(), Some(*id)),
        Part::Text(range) => (range.clone(), None),
    };
    let len = range.len();
    let slice = whole.slice(Referential::Original(range))?;
    let tokens = id.map(|id| vec![Token::new(id, slice.get().to_owned(), (0, len))]);
    Some((slice, tokens))
}

impl Tokenizer {
    /// A tokenizer of the files of a Hugging Face folder: `tokenizer.json`, the contents of `tokenizer_config.json`, and
    /// the ids that end an answer from `generation_config.json`.
    ///
    /// **Errors**: the file is not valid, or its decoder is none of a language model.
    pub fn from_huggingface(
        tokenizer_json: &[u8],
        config: Option<&Value>,
        eos_ids: &[u32],
    ) -> Result<Self, TokenizerError> {
        let invalid =
            |error: &dyn std::fmt::Display| TokenizerError::HuggingFace(error.to_string());
        let parts: Parts =
            serde_json::from_slice(tokenizer_json).map_err(|error| invalid(&error))?;
        let decoding = Decoding::of(&parts.decoder)?;
        let pipeline =
            tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(|error| invalid(&error))?;
        let named = |name: &str| config.and_then(|config| named_token(&config[name]));
        let (bos, eos) = (named("bos_token"), named("eos_token"));
        let added = added(&pipeline, |text| Some(text) == bos || Some(text) == eos);
        let (texts, kinds) = tokens(&pipeline, &added, decoding.spelling)?;
        let id = |text: Option<&str>| text.and_then(|text| pipeline.token_to_id(text));
        let (bos, eos) = (id(bos), id(eos));
        let count = texts.len();
        if let Some(&id) = eos_ids.iter().find(|&&id| id as usize >= count) {
            return Err(TokenizerError::Id {
                field: "eos_token_id",
                id,
                tokens: count,
            });
        }
        let asks = |name: &str| config.and_then(|config| config[name].as_bool());
        let templated =
            first_of_template(&parts.post_processor).and_then(|text| pipeline.token_to_id(text));
        let mut eog = named_ends(
            added
                .iter()
                .map(|token| (token.text.as_str(), token.kind, token.id)),
        );
        eog.extend(eos_ids.iter().copied().chain(eos));
        eog.sort_unstable();
        eog.dedup();
        Ok(Self {
            pieces: Pieces::new(
                decoding.spelling,
                texts.iter().map(String::as_str).zip(kinds.iter().copied()),
            ),
            kinds,
            added: AddedTokens::new(added),
            encoder: Encoder::HuggingFace(Box::new(HuggingFace { pipeline })),
            bos: bos.or(templated),
            eos: eos.or(eos_ids.first().copied()),
            add_bos: asks("add_bos_token").unwrap_or(templated.is_some()),
            add_eos: asks("add_eos_token").unwrap_or(false),
            eog,
            strip_space: decoding.strip_space,
        })
    }
}

/// What of a `tokenizer.json` is read here, beside the library.
#[derive(serde::Deserialize)]
struct Parts {
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    post_processor: Value,
}

/// A token in `tokenizer_config.json`: its text, or an object that holds it.
fn named_token(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// The special token that a text begins with, by the post-processor.
fn first_of_template(processor: &Value) -> Option<&str> {
    match processor["type"].as_str()? {
        "TemplateProcessing" => processor["single"][0]["SpecialToken"]["id"].as_str(),
        "Sequence" => processor["processors"]
            .as_array()?
            .iter()
            .find_map(first_of_template),
        _ => None,
    }
}

fn added(pipeline: &tokenizers::Tokenizer, steers: impl Fn(&str) -> bool) -> Vec<Added> {
    let tokens = pipeline.get_added_vocabulary().get_added_tokens_decoder();
    let mut added: Vec<Added> = tokens
        .iter()
        .map(|(&id, token)| {
            let control = token.special || steers(&token.content) || is_named_end(&token.content);
            Added {
                text: token.content.clone(),
                id,
                kind: if control {
                    Kind::Control
                } else {
                    Kind::UserDefined
                },
                strip_left: token.lstrip,
                strip_right: token.rstrip,
                single_word: token.single_word,
            }
        })
        .collect();
    added.sort_by_key(|token| token.id);
    added
}

/// Text and kind of every id.
fn tokens(
    pipeline: &tokenizers::Tokenizer,
    added: &[Added],
    spelling: Spelling,
) -> Result<(Vec<String>, Vec<Kind>), TokenizerError> {
    let vocabulary = pipeline.get_vocab(true);
    let count = vocabulary
        .values()
        .max()
        .map_or(0, |&last| last as usize + 1);
    if count == 0 {
        return Err(TokenizerError::Empty);
    }
    // Gaps between ids are few; a number that makes the list absurd is an error, not an allocation.
    if count > vocabulary.len().saturating_mul(2).saturating_add(65_536) {
        return Err(TokenizerError::HuggingFace(format!(
            "model.vocab: found the id {}, expected ids near the number of tokens, {}",
            count - 1,
            vocabulary.len()
        )));
    }
    let mut texts = vec![String::new(); count];
    let mut kinds = vec![Kind::Unused; count];
    for (text, id) in vocabulary {
        let is_byte = spelling == Spelling::SentencePiece && byte_token(&text).is_some();
        kinds[id as usize] = if is_byte { Kind::Byte } else { Kind::Normal };
        texts[id as usize] = text;
    }
    for token in added {
        kinds[token.id as usize] = token.kind;
    }
    Ok((texts, kinds))
}

/// What turns tokens back into text.
#[derive(Clone, Copy)]
struct Decoding {
    spelling: Spelling,
    strip_space: bool,
}

impl Decoding {
    fn of(decoder: &Value) -> Result<Self, TokenizerError> {
        let steps: Vec<&Value> = match decoder["decoders"].as_array() {
            Some(steps) => steps.iter().collect(),
            None => vec![decoder],
        };
        let find = |kind: &str| steps.iter().find(|step| step["type"] == kind);
        let metaspace = find("Metaspace");
        if find("ByteLevel").is_some() {
            return Ok(Self {
                spelling: Spelling::ByteLevel,
                strip_space: false,
            });
        }
        if metaspace.is_some() || find("ByteFallback").is_some() || find("Replace").is_some() {
            let prefixed = metaspace.is_some_and(|step| step["prepend_scheme"] != "never");
            let stripped =
                find("Strip").is_some_and(|step| step["content"] == " " && step["start"] == 1);
            return Ok(Self {
                spelling: Spelling::SentencePiece,
                strip_space: prefixed || stripped,
            });
        }
        Err(TokenizerError::Unsupported {
            field: "decoder",
            found: decoder["type"].as_str().unwrap_or("none").to_owned(),
            expected: "ByteLevel, Metaspace, or ByteFallback with Replace",
        })
    }
}
