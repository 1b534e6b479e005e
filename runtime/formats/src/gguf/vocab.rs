//! The vocabulary out of GGUF metadata.

use super::value::Metadata;
use crate::error::{Checked, Problem, shown};
use crate::vocabulary::GgufVocab;

/// Reads and checks it.
pub(crate) fn vocabulary(metadata: &Metadata) -> Checked<GgufVocab> {
    let key = "tokenizer.ggml.model";
    let model = metadata.text(key)?.ok_or_else(|| {
        Problem::field(
            format!("metadata '{key}'"),
            "nothing",
            "the kind of tokenizer",
        )
        .fix("the file has no tokenizer: take one that was converted together with it")
    })?;
    if !["gpt2", "llama"].contains(&model) {
        let expected = "'gpt2' (BPE) or 'llama' (SentencePiece)";
        let problem = Problem::field(format!("metadata '{key}'"), shown(model), expected);
        return Err(problem.fix("this kind of tokenizer is not supported"));
    }
    let truth = |name: &str| metadata.truth(&format!("tokenizer.ggml.{name}"));
    let vocab = GgufVocab {
        model: model.to_owned(),
        pre: metadata.text("tokenizer.ggml.pre")?.map(str::to_owned),
        tokens: metadata.texts("tokenizer.ggml.tokens")?,
        scores: metadata.numbers("tokenizer.ggml.scores")?,
        types: metadata.counts("tokenizer.ggml.token_type")?,
        merges: metadata.texts("tokenizer.ggml.merges")?,
        bos: metadata.id("tokenizer.ggml.bos_token_id")?,
        eos: metadata.id("tokenizer.ggml.eos_token_id")?,
        unk: metadata.id("tokenizer.ggml.unknown_token_id")?,
        eot: metadata.id("tokenizer.ggml.eot_token_id")?,
        add_bos: truth("add_bos_token")?,
        add_eos: truth("add_eos_token")?,
        add_space_prefix: truth("add_space_prefix")?,
    };
    check(&vocab)?;
    Ok(vocab)
}

fn check(vocab: &GgufVocab) -> Checked<()> {
    let count = vocab.tokens.len();
    if count == 0 {
        return Err(
            Problem::field("metadata 'tokenizer.ggml.tokens'", "nothing", "the tokens")
                .fix("the file has no tokenizer: take one that was converted together with it"),
        );
    }
    let needs = |name: &str, found: usize, needed: bool| {
        if found == count || (found == 0 && !needed) {
            return Ok(());
        }
        let expected = format!("{count}, one a token");
        Err(Problem::field(
            format!("metadata 'tokenizer.ggml.{name}'"),
            format!("{found} values"),
            expected,
        ))
    };
    needs("scores", vocab.scores.len(), vocab.model == "llama")?;
    needs("token_type", vocab.types.len(), false)?;
    if vocab.scores.iter().any(|score| score.is_nan()) {
        return Err(Problem::field(
            "metadata 'tokenizer.ggml.scores'",
            "not a number",
            "numbers",
        ));
    }
    if vocab.model == "gpt2" && vocab.merges.is_empty() {
        return Err(Problem::field(
            "metadata 'tokenizer.ggml.merges'",
            "nothing",
            "the merges of a BPE tokenizer",
        ));
    }
    let ids = [
        ("bos", vocab.bos),
        ("eos", vocab.eos),
        ("unknown", vocab.unk),
        ("eot", vocab.eot),
    ];
    for (name, id) in ids {
        if let Some(id) = id.filter(|&id| id as usize >= count) {
            let field = format!("metadata 'tokenizer.ggml.{name}_token_id'");
            return Err(Problem::field(
                field,
                id,
                format!("a token id under {count}"),
            ));
        }
    }
    Ok(())
}
