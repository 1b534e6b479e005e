//! `plinth synthetic`: a model of any size, to measure speed.

use super::convert::{format, may_write};
use crate::cli::SyntheticArgs;
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::startup;
use anyhow::anyhow;
use plinth_formats::synthetic::{Options, write_watched};
use plinth_formats::{ModelConfig, RopeConfig, RopeLayout, RopeScaling, Sizes, TokenizerSource};
use plinth_platform::text::bytes;

/// Runs the command.
pub fn run(args: &SyntheticArgs) -> Result<()> {
    let shown = args.output.display();
    may_write(&args.output, args.force)?;
    let even_heads = 2 * args.heads as usize;
    if !args.hidden_size.is_multiple_of(even_heads) {
        return Err(Failure::Input(anyhow!(
            "--hidden-size: found {}, expected a multiple of {even_heads}: {} heads of an even width",
            args.hidden_size,
            args.heads
        )));
    }
    let source = startup::open(&args.vocabulary)?;
    let TokenizerSource::Gguf(vocab) = source.tokenizer().map_err(Failure::input)? else {
        return Err(Failure::Input(anyhow!(
            "--vocabulary: '{}' is a folder, expected a .gguf file; `plinth convert` makes one of it",
            args.vocabulary.display()
        )));
    };
    let config = config(args, vocab.tokens.len());
    let options = Options {
        format: format(args.target),
        tied: !args.untied,
        biases: false,
        seed: args.seed,
    };
    let progress = Progress::bytes("drawing weights", args.quiet);
    let written = write_watched(&args.output, &config, &options, &vocab, &|done, total| {
        progress.set(done, total)
    });
    drop(progress);
    written.map_err(Failure::input)?;
    if !args.quiet {
        let len = std::fs::metadata(&args.output)?.len();
        eprintln!("wrote {}, to {shown}", bytes(len));
    }
    Ok(())
}

fn config(args: &SyntheticArgs, vocab_size: usize) -> ModelConfig {
    let num_heads = args.heads as usize;
    let head_dim = args.hidden_size / num_heads;
    let sizes = Sizes {
        num_layers: args.layers,
        hidden_size: args.hidden_size,
        intermediate_size: args.feed_forward_size,
        num_heads,
        num_kv_heads: args.kv_heads,
        head_dim,
        vocab_size,
        context_length: args.context,
    };
    let rope = RopeConfig {
        base: 10_000.0,
        dims: head_dim,
        layout: RopeLayout::Interleaved,
        scaling: RopeScaling::None,
    };
    ModelConfig {
        name: Some("synthetic".to_owned()),
        ..ModelConfig::llama(sizes, 1e-5, rope)
    }
}
