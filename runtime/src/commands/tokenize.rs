//! `plinth tokenize` and `plinth detokenize`: text and token ids, both ways.

use crate::cli::{DetokenizeArgs, TokenizeArgs};
use crate::error::{Failure, Result};
use crate::startup;
use anyhow::Context;
use plinth_text::{Special, Tokenizer};
use serde::Serialize;
use std::io::{Read, Write};

#[derive(Serialize)]
struct Tokens {
    ids: Vec<u32>,
    pieces: Vec<String>,
}

/// Runs `tokenize`.
pub fn tokenize(args: &TokenizeArgs, out: &mut dyn Write) -> Result<()> {
    let tokenizer = startup::tokenizer(&args.model)?;
    let special = if args.special {
        Special::Parse
    } else {
        Special::Plain
    };
    if args.json {
        let texts: Vec<String> = read_json("a JSON list of texts")?;
        let tokens: Vec<_> = texts
            .iter()
            .map(|text| tokens(&tokenizer, text, special))
            .collect();
        serde_json::to_writer(&mut *out, &tokens).map_err(Failure::failed)?;
        writeln!(out)?;
        return Ok(());
    }
    let text = match &args.text {
        Some(text) => text.clone(),
        None => read_input()?,
    };
    let tokens = tokens(&tokenizer, &text, special);
    for (id, piece) in tokens.ids.iter().zip(&tokens.pieces) {
        writeln!(out, "{id:>7}  {piece:?}")?;
    }
    Ok(())
}

/// Runs `detokenize`.
pub fn detokenize(args: &DetokenizeArgs, out: &mut dyn Write) -> Result<()> {
    let tokenizer = startup::tokenizer(&args.model)?;
    let check = |ids: &[u32]| known_ids(&tokenizer, ids).map_err(Failure::Input);
    if args.json {
        let lists: Vec<Vec<u32>> = read_json("a JSON list of lists of token ids")?;
        lists.iter().try_for_each(|ids| check(ids))?;
        let texts: Vec<_> = lists
            .iter()
            .map(|ids| tokenizer.decode(ids, args.skip_special))
            .collect();
        serde_json::to_writer(&mut *out, &texts).map_err(Failure::failed)?;
        writeln!(out)?;
        return Ok(());
    }
    check(&args.ids)?;
    writeln!(out, "{}", tokenizer.decode(&args.ids, args.skip_special))?;
    Ok(())
}

fn tokens(tokenizer: &Tokenizer, text: &str, special: Special) -> Tokens {
    let ids = tokenizer.encode(text, special);
    let pieces = ids.iter().map(|&id| tokenizer.piece(id)).collect();
    Tokens { ids, pieces }
}

fn known_ids(tokenizer: &Tokenizer, ids: &[u32]) -> anyhow::Result<()> {
    let vocabulary = tokenizer.vocab_size();
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => anyhow::bail!(
            "token id {id} is not in the vocabulary: the largest is {}",
            vocabulary.saturating_sub(1)
        ),
        None => Ok(()),
    }
}

fn read_input() -> Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    read.context("cannot read standard input as UTF-8")
        .map_err(Failure::Input)?;
    Ok(text)
}

fn read_json<T: serde::de::DeserializeOwned>(expected: &str) -> Result<T> {
    let text = read_input()?;
    serde_json::from_str(&text)
        .with_context(|| format!("standard input is not {expected}"))
        .map_err(Failure::Input)
}
