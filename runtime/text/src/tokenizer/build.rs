//! Builds a tokenizer from a vocabulary, and judges the vocabulary.

use super::bpe::{self, Bpe};
use super::pieces::{Pieces, Spelling};
use super::pre_tokenizer::Rules;
use super::sentence_piece::SentencePiece;
use super::special::{Added, AddedTokens};
use super::{Encoder, Tokenizer};
use crate::error::TokenizerError;
use crate::vocabulary::{Algorithm, Kind, Vocabulary};

/// Spellings of tokens that end a turn or a text in the models that are known. Files often name one of them only.
const END_OF_GENERATION: [&str; 12] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>",
    "<EOT>",
    "_<EOT>",
    "<|return|>",
];

impl Tokenizer {
    /// A tokenizer of a vocabulary as GGUF files hold it.
    ///
    /// **Errors**: the vocabulary contradicts itself, cannot encode every text, or cuts words in a way that is not known.
    pub fn from_vocabulary(vocabulary: Vocabulary) -> Result<Self, TokenizerError> {
        let kinds = kinds(&vocabulary)?;
        let unknown = vocabulary
            .unk
            .filter(|&id| kinds[id as usize] != Kind::Control);
        let spelling = match vocabulary.model {
            Algorithm::Bpe => Spelling::ByteLevel,
            Algorithm::SentencePiece => Spelling::SentencePiece,
        };
        let texts = vocabulary.tokens.iter().map(String::as_str);
        let pieces = Pieces::new(spelling, texts.zip(kinds.iter().copied()));
        let (encoder, add_bos) = match vocabulary.model {
            Algorithm::Bpe => {
                let rules = Rules::by_name(vocabulary.pre.as_deref())?;
                let source = bpe::Source {
                    rules,
                    pieces: &pieces,
                    tokens: &vocabulary.tokens,
                    kinds: &kinds,
                    merges: &vocabulary.merges,
                    unknown,
                };
                (Encoder::Bpe(Bpe::new(&source)?), rules.add_bos)
            }
            Algorithm::SentencePiece => {
                let encoder = SentencePiece::new(&vocabulary, &kinds, unknown)?;
                (Encoder::SentencePiece(encoder), true)
            }
        };
        Ok(Self {
            strip_space: matches!(&encoder, Encoder::SentencePiece(pieces) if pieces.space_prefix),
            eog: end_of_generation(&vocabulary, &kinds),
            added: AddedTokens::new(added(&vocabulary, &kinds)),
            pieces,
            kinds,
            encoder,
            bos: vocabulary.bos,
            eos: vocabulary.eos,
            add_bos: vocabulary.add_bos.unwrap_or(add_bos),
            add_eos: vocabulary.add_eos.unwrap_or(false),
        })
    }
}

/// Checks ids and lengths; gives the kind of every token.
fn kinds(vocabulary: &Vocabulary) -> Result<Vec<Kind>, TokenizerError> {
    let tokens = vocabulary.tokens.len();
    if tokens == 0 {
        return Err(TokenizerError::Empty);
    }
    let with_scores = vocabulary.model == Algorithm::SentencePiece;
    for (field, found, needed) in [
        ("types", vocabulary.types.len(), false),
        ("scores", vocabulary.scores.len(), with_scores),
    ] {
        if found != tokens && (needed || found != 0) {
            return Err(TokenizerError::Length {
                field,
                found,
                expected: tokens,
            });
        }
    }
    let mut kinds = vec![Kind::Normal; tokens];
    for (index, (&number, kind)) in vocabulary.types.iter().zip(&mut kinds).enumerate() {
        *kind = Kind::from_number(number).ok_or_else(|| TokenizerError::Entry {
            field: "types",
            index,
            found: number.to_string(),
            expected: "a type from 1 to 6",
        })?;
    }
    let steering = [
        ("bos", vocabulary.bos),
        ("eos", vocabulary.eos),
        ("eot", vocabulary.eot),
        ("unk", vocabulary.unk),
    ];
    for (field, id) in steering {
        let Some(id) = id else { continue };
        let Some(kind) = kinds.get_mut(id as usize) else {
            return Err(TokenizerError::Id { field, id, tokens });
        };
        // Files made by older converters call these tokens normal ones; what steers is never plain text.
        if field != "unk" {
            *kind = Kind::Control;
        }
    }
    for (text, kind) in vocabulary.tokens.iter().zip(&mut kinds) {
        if *kind == Kind::UserDefined && END_OF_GENERATION.contains(&text.as_str()) {
            *kind = Kind::Control;
        }
    }
    Ok(kinds)
}

fn end_of_generation(vocabulary: &Vocabulary, kinds: &[Kind]) -> Vec<u32> {
    let texts = vocabulary.tokens.iter().map(String::as_str);
    let named = texts.zip(kinds.iter().copied()).zip(0..);
    let mut ids = named_ends(named.map(|((text, kind), id)| (text, kind, id)));
    ids.extend([vocabulary.eos, vocabulary.eot].into_iter().flatten());
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The control tokens among these that are known to end a turn or a text.
pub(super) fn named_ends<'t>(tokens: impl Iterator<Item = (&'t str, Kind, u32)>) -> Vec<u32> {
    tokens
        .filter(|(text, kind, _)| *kind == Kind::Control && END_OF_GENERATION.contains(text))
        .map(|(_, _, id)| id)
        .collect()
}

/// Is this the spelling of a token that ends a turn or a text?
pub(super) fn is_named_end(text: &str) -> bool {
    END_OF_GENERATION.contains(&text)
}

fn added(vocabulary: &Vocabulary, kinds: &[Kind]) -> Vec<Added> {
    let texts = vocabulary.tokens.iter().zip(kinds).zip(0..);
    texts
        .filter(|((_, kind), _)| matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown))
        .map(|((text, &kind), id)| Added {
            text: text.clone(),
            id,
            kind,
            strip_left: false,
            strip_right: false,
            single_word: false,
        })
        .collect()
}
