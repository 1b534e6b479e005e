//! Flags that say how the next token is drawn.

use clap::Args;

/// How tokens are drawn, and when to stop.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most tokens to generate; absent, until the model ends its answer or the context is full
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; higher is more varied
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "T",
        allow_negative_numbers = true
    )]
    pub temperature: f32,
    /// Draw from the K likeliest tokens only; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: u32,
    /// Draw from the fewest tokens that together have this probability
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "P",
        allow_negative_numbers = true
    )]
    pub top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "P",
        allow_negative_numbers = true
    )]
    pub min_p: f32,
    /// Divide the logits of tokens that occurred (1 does nothing)
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub repetition_penalty: f32,
    /// Subtract from the logits of tokens that were generated
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// Subtract, for each time a token was generated
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Add to the logit of a token: ID=NUMBER; may be given several times
    #[arg(long, value_name = "ID=X", value_parser = parse_bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed draws the same tokens
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// End at this text, which is not printed; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// End at this token; may be given several times
    #[arg(long, value_name = "ID")]
    pub stop_id: Vec<u32>,
    /// Go on where the model would end its answer
    #[arg(long)]
    pub ignore_eos: bool,
    /// Do not end before this many tokens
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub min_tokens: u32,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text
        .split_once('=')
        .ok_or_else(|| format!("'{text}' is not ID=NUMBER, such as 42=-5"))?;
    let id = id
        .trim()
        .parse()
        .map_err(|_| format!("'{id}' is not a token id"))?;
    let bias = bias
        .trim()
        .parse()
        .map_err(|_| format!("'{bias}' is not a number"))?;
    Ok((id, bias))
}
