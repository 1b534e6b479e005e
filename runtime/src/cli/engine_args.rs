//! Flags of every command that plans: the machine, the platform, and wishes about the engine.

use clap::Args;
use std::path::PathBuf;

/// Which facts and which platforms.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Platform")]
pub struct PlatformArgs {
    /// Use this platform, or fail and say why it cannot be had
    #[arg(long, value_name = "ID")]
    pub platform: Option<String>,
    /// Load a platform component; may be given several times
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
    /// Load every *.wasm of a folder; otherwise $PLINTH_PLUGIN_DIR, or plinth/plugins in the user's data folder
    #[arg(long, value_name = "DIR")]
    pub plugin_dir: Option<PathBuf>,
    /// Plan for the machine in this file (made by `plinth facts --json`) instead of this one
    #[arg(long, value_name = "FILE")]
    pub facts: Option<PathBuf>,
    /// Fail where a plugin cannot be loaded or probed, instead of noting it in the plan
    #[arg(long)]
    pub strict: bool,
    /// Let the platform override what you set, visibly, instead of refusing to start
    #[arg(long)]
    pub allow_overrides: bool,
}

/// Wishes about the engine. What is absent is decided by the platform.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    #[command(flatten)]
    pub platform: PlatformArgs,
    /// Worker threads
    #[arg(short = 't', long, value_name = "N", help_heading = "Engine")]
    pub threads: Option<u32>,
    /// Longest context, in tokens of prompt and answer together
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub max_model_len: Option<u32>,
    /// Sequences that run at once
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub max_num_seqs: Option<u32>,
    /// Tokens that one step may carry
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub max_num_batched_tokens: Option<u32>,
    /// Tokens in a KV block
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub block_size: Option<u32>,
    /// Devices that share every layer
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub tensor_parallel: Option<u32>,
    /// Activation dtype: f32
    #[arg(long, value_name = "DTYPE", help_heading = "Engine")]
    pub dtype: Option<String>,
    /// KV-cache dtype: f32, f16, bf16, or q8 (half the memory of f16, for a little accuracy)
    #[arg(long, value_name = "DTYPE", help_heading = "Engine")]
    pub kv_dtype: Option<String>,
    /// Memory for the KV cache, such as 512M or 2G
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Engine")]
    pub kv_cache_memory: Option<u64>,
    /// Share of the memory budget that may be taken, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = "Engine")]
    pub memory_utilization: Option<f64>,
    /// Attention kernel, by its id in the catalogue
    #[arg(long, value_name = "KERNEL", help_heading = "Engine")]
    pub attention_kernel: Option<String>,
    /// Guess tokens ahead and check them in one step: off, ngram (from what the text said before), or ngram:N for at
    /// most N tokens, 1 to 10. Answers stay the same
    #[arg(long, value_name = "HOW", value_parser = Speculation::parse, help_heading = "Engine")]
    pub speculate: Option<Speculation>,
    /// Do not reuse the KV blocks of equal beginnings
    #[arg(long, help_heading = "Engine")]
    pub no_prefix_caching: bool,
    /// Compute each prompt in one step
    #[arg(long, help_heading = "Engine")]
    pub no_chunked_prefill: bool,
    /// Keep the packed weights in this folder (plinth/packed in the user's cache folder if none is named), about as many
    /// bytes as the model has, so that the next start need not pack them
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, help_heading = "Engine")]
    pub pack_cache: Option<Option<PathBuf>>,
}

/// What is guessed ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    Off,
    /// From the sequence's own n-grams, at most so many tokens.
    Ngram(u32),
}

/// Tokens of `ngram` alone: with the one that is drawn anyway, as many rows as are multiplied together.
const NGRAM_TOKENS: u32 = 7;

/// More never fit into a step: from [`plinth_kernels::MANY_ROWS`] rows on, other kernels may serve.
const MOST_NGRAM_TOKENS: u32 = plinth_kernels::MANY_ROWS as u32 - 2;

impl Speculation {
    fn parse(text: &str) -> Result<Self, String> {
        let number = match text {
            "off" => return Ok(Self::Off),
            "ngram" => return Ok(Self::Ngram(NGRAM_TOKENS)),
            other => other.strip_prefix("ngram:").and_then(|n| n.parse().ok()),
        };
        let known = number.filter(|n| (1..=MOST_NGRAM_TOKENS).contains(n));
        known.map(Self::Ngram).ok_or_else(|| {
            format!("expected off, ngram, or ngram:N with N from 1 to {MOST_NGRAM_TOKENS}")
        })
    }

    /// Most tokens drafted ahead, as a plan has it.
    pub fn spec_tokens(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Ngram(tokens) => tokens,
        }
    }
}

/// Reads `1048576`, `512M`, `2G`, `1.5GiB` as bytes (units of 1,024).
fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => {
            return Err(format!(
                "unknown unit '{unit}': write bytes, or a number with K, M, G or T"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("'{text}' is not a number of bytes, such as 512M"))?;
    let bytes = number * f64::from(1u32 << 20) * f64::exp2(f64::from(shift) - 20.0);
    if !(1.0..=1e18).contains(&bytes) {
        return Err(format!("'{text}' is out of range: at least 1 byte"));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::{Speculation, parse_bytes};

    #[test]
    fn drafts_are_off_or_a_number() {
        let check = |text: &str, want| assert_eq!(Speculation::parse(text).ok(), want, "{text}");
        check("off", Some(Speculation::Off));
        check("ngram", Some(Speculation::Ngram(7)));
        check("ngram:10", Some(Speculation::Ngram(10)));
        check("ngram:11", None);
        check("ngram:0", None);
        check("ngram:", None);
        check("7", None);
    }

    #[test]
    fn bytes_have_units_of_1024() {
        let check =
            |text: &str, want: Option<u64>| assert_eq!(parse_bytes(text).ok(), want, "{text}");
        check("4096", Some(4096));
        check("512M", Some(512 << 20));
        check("1.5GiB", Some(3 << 29));
        check("2 gb", Some(2 << 30));
        check("0", None);
        check("-1", None);
        check("12X", None);
        check("", None);
        check("1e400", None);
    }
}
