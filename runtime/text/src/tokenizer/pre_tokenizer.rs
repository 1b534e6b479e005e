//! Cuts text into words, which tokens do not cross. Each cutter does what a published regular expression says, by hand:
//! no backtracking, so that no text takes long.

use super::char_class::{Cases, Letters, is_number, is_space};
use crate::error::TokenizerError;

/// What a pre-tokenizer's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pattern: Pattern,
    /// Numbers are cut out digit by digit before the pattern is applied.
    single_digits: bool,
    /// A word that is a token is taken whole, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Does a text begin with the token that begins texts, where the file does not say?
    pub(super) add_bos: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3 { digits: usize },
    /// `LEAD?UPPER*LOWER+ENDING|LEAD?UPPER+LOWER*ENDING|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    /// with `LEAD` = `[^\r\n\p{L}\p{N}]`, `UPPER` and `LOWER` as [`Cases`] has them, and `ENDING` =
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)?` or nothing.
    Cased { digits: usize, endings: bool },
}

const GPT2: Rules = Rules {
    pattern: Pattern::Gpt2,
    single_digits: false,
    ignore_merges: false,
    add_bos: false,
};
const SMOLLM: Rules = Rules {
    single_digits: true,
    ..GPT2
};
const LLAMA3: Rules = Rules {
    pattern: Pattern::Llama3 { digits: 3 },
    single_digits: false,
    ignore_merges: true,
    add_bos: true,
};
const QWEN2: Rules = Rules {
    pattern: Pattern::Llama3 { digits: 1 },
    ignore_merges: false,
    add_bos: false,
    ..LLAMA3
};

/// Llama 3's words without its merges: Phi 4 and others.
const DBRX: Rules = Rules {
    ignore_merges: false,
    add_bos: false,
    ..LLAMA3
};
const GPT4O: Rules = Rules {
    pattern: Pattern::Cased {
        digits: 3,
        endings: true,
    },
    ..DBRX
};
const TEKKEN: Rules = Rules {
    pattern: Pattern::Cased {
        digits: 1,
        endings: false,
    },
    ignore_merges: true,
    add_bos: true,
    ..GPT4O
};

/// Names as GGUF files have them, and what llama.cpp (release 11434, `src/llama-vocab.cpp`) does under each.
const KNOWN: [(&str, Rules); 20] = [
    ("default", GPT2),
    ("gpt-2", GPT2),
    ("mpt", GPT2),
    ("olmo", GPT2),
    ("phi-2", GPT2),
    ("smollm", SMOLLM),
    ("starcoder", SMOLLM),
    ("refact", SMOLLM),
    ("llama-bpe", LLAMA3),
    ("llama3", LLAMA3),
    ("llama-v3", LLAMA3),
    ("falcon3", LLAMA3),
    ("pixtral", LLAMA3),
    ("dbrx", DBRX),
    ("smaug-bpe", DBRX),
    ("gpt-4o", GPT4O),
    ("llama4", GPT4O),
    ("tekken", TEKKEN),
    ("qwen2", QWEN2),
    ("deepseek-r1-qwen", QWEN2),
];

impl Rules {
    /// The rules of this name; none means `default`.
    pub(super) fn by_name(name: Option<&str>) -> Result<Rules, TokenizerError> {
        let name = name.unwrap_or("default");
        let known = KNOWN.iter().find(|(known, _)| *known == name);
        known
            .map(|&(_, rules)| rules)
            .ok_or_else(|| TokenizerError::PreTokenizer {
                found: name.to_owned(),
                known: KNOWN.map(|(name, _)| name).join(", "),
            })
    }
}

/// A pre-tokenizer, ready to cut.
pub(super) struct PreTokenizer {
    rules: Rules,
    letters: Letters,
    cases: Cases,
}

impl PreTokenizer {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            letters: Letters::new(),
            cases: Cases::new(),
        }
    }

    /// Gives the words of `text` to `word`, in order; together they are the text.
    pub(super) fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        if !self.rules.single_digits {
            return self.split_by_pattern(text, &mut word);
        }
        let mut rest = text;
        while let Some((at, digit)) = rest.char_indices().find(|&(_, c)| is_number(c)) {
            let end = at + digit.len_utf8();
            self.split_by_pattern(&rest[..at], &mut word);
            word(&rest[at..end]);
            rest = &rest[end..];
        }
        self.split_by_pattern(rest, &mut word);
    }

    fn split_by_pattern<'t>(&self, text: &'t str, word: &mut impl FnMut(&'t str)) {
        let mut rest = text;
        while !rest.is_empty() {
            let len = match self.rules.pattern {
                Pattern::Gpt2 => self.gpt2(rest),
                Pattern::Llama3 { digits } => self.llama3(rest, digits),
                Pattern::Cased { digits, endings } => self.cased(rest, digits, endings),
            };
            word(&rest[..len]);
            rest = &rest[len..];
        }
    }

    /// Length of the first word of a text that is not empty.
    fn gpt2(&self, text: &str) -> usize {
        if let Some(len) = contraction(text, false) {
            return len;
        }
        let start = usize::from(text.starts_with(' '));
        for class in [Class::Letter, Class::Number, Class::Other] {
            let run = self.run(&text[start..], class, usize::MAX);
            if run > 0 {
                return start + run;
            }
        }
        spaces(text)
    }

    /// Length of the first word of a text that is not empty.
    fn llama3(&self, text: &str, digits: usize) -> usize {
        if let Some(len) = contraction(text, true) {
            return len;
        }
        let first = first_char(text);
        let lead = match self.class(first) {
            Class::Space | Class::Other if first != '\r' && first != '\n' => first.len_utf8(),
            _ => 0,
        };
        let letters = self.run(&text[lead..], Class::Letter, usize::MAX);
        if letters > 0 {
            return lead + letters;
        }
        self.no_word(text, digits, b"\r\n")
    }

    /// Length of the first word of a text that is not empty.
    fn cased(&self, text: &str, digits: usize, endings: bool) -> usize {
        let first = first_char(text);
        let lead = match self.class(first) {
            Class::Space | Class::Other if first != '\r' && first != '\n' => first.len_utf8(),
            _ => 0,
        };
        // The lead is tried first, and left out where that gives no word: it may be a mark, which is part of one.
        let with = |word: &dyn Fn(&str) -> usize| {
            [lead, 0]
                .into_iter()
                .find_map(|lead| match word(&text[lead..]) {
                    0 => None,
                    len => Some(lead + len),
                })
        };
        let word = with(&|text| self.to_lower(text)).or_else(|| with(&|text| self.to_upper(text)));
        let Some(word) = word else {
            return self.no_word(text, digits, b"\r\n/");
        };
        match endings {
            true => word + contraction(&text[word..], true).unwrap_or(0),
            false => word,
        }
    }

    /// Length of `UPPER*LOWER+`, 0 for none.
    fn to_lower(&self, text: &str) -> usize {
        let upper = prefix(text, |c| self.cases.leads(c));
        let lower = prefix(&text[upper..], |c| self.cases.follows(c));
        if lower > 0 {
            return upper + lower;
        }
        // What is of both kinds can end the word as well: the last such character does.
        let both = |&(_, c): &(usize, char)| self.cases.follows(c);
        let last = text[..upper].char_indices().rev().find(both);
        last.map_or(0, |(at, c)| at + c.len_utf8())
    }

    /// Length of `UPPER+LOWER*`, 0 for none, of a text that has no `UPPER*LOWER+`: nothing of `LOWER` follows.
    fn to_upper(&self, text: &str) -> usize {
        prefix(text, |c| self.cases.leads(c))
    }

    /// Length of what is at the start of a text that is not empty, where there are no letters: numbers; anything else,
    /// with the bytes of `tail` that follow; white space.
    fn no_word(&self, text: &str, digits: usize, tail: &[u8]) -> usize {
        let numbers = self.run(text, Class::Number, digits);
        if numbers > 0 {
            return numbers;
        }
        let start = usize::from(text.starts_with(' '));
        let others = self.run(&text[start..], Class::Other, usize::MAX);
        if others > 0 {
            let end = start + others;
            let after = text[end..].bytes().take_while(|byte| tail.contains(byte));
            return end + after.count();
        }
        let run = space_run(text);
        match text[..run].rfind(['\r', '\n']) {
            Some(last_break) => last_break + 1,
            None => spaces(text),
        }
    }

    /// Bytes of the characters of this class that `text` begins with, `limit` characters at most.
    fn run(&self, text: &str, class: Class, limit: usize) -> usize {
        text.chars()
            .take(limit)
            .take_while(|&c| self.class(c) == class)
            .map(char::len_utf8)
            .sum()
    }

    fn class(&self, c: char) -> Class {
        if self.letters.contains(c) {
            Class::Letter
        } else if is_number(c) {
            Class::Number
        } else if is_space(c) {
            Class::Space
        } else {
            Class::Other
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// Length of an English contraction at the start of the text.
fn contraction(text: &str, ignore_case: bool) -> Option<usize> {
    let tail = text.strip_prefix('\'')?;
    let begins = |ending: &str| {
        let mut chars = tail.chars();
        let mut len = 1;
        for expected in ending.chars() {
            let c = chars.next()?;
            // The long s is the one letter beyond ASCII that folds to a letter of these endings.
            let folded = match c {
                'ſ' => 's',
                c => c.to_ascii_lowercase(),
            };
            if c != expected && !(ignore_case && folded == expected) {
                return None;
            }
            len += c.len_utf8();
        }
        Some(len)
    };
    ["s", "t", "re", "ve", "m", "ll", "d"]
        .into_iter()
        .find_map(begins)
}

/// `\s+(?!\S)|\s+`: a run of white space, without its last character where a word follows.
fn spaces(text: &str) -> usize {
    let run = space_run(text);
    if run == text.len() {
        return run;
    }
    match text[..run].char_indices().next_back() {
        Some((last, _)) if last > 0 => last,
        _ => run,
    }
}

fn space_run(text: &str) -> usize {
    text.find(|c| !is_space(c)).unwrap_or(text.len())
}

/// Bytes of the characters that `text` begins with and that are in a class.
fn prefix(text: &str, is_in: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is_in(c)).unwrap_or(text.len())
}

fn first_char(text: &str) -> char {
    text.chars().next().unwrap_or('\0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The expected words come from regular expressions, run by another library.
    #[test]
    fn cuts_where_the_regular_expressions_do() {
        let bpe = include_str!("../../tests/fixtures/bpe.json");
        check(bpe, &["gpt-2", "smollm", "llama-bpe", "qwen2"]);
        let words = include_str!("../../tests/fixtures/words.json");
        check(words, &["tekken", "gpt-4o"]);
    }

    fn check(fixture: &str, names: &[&str]) {
        let fixture: Value = serde_json::from_str(fixture).unwrap();
        for name in names {
            let pre_tokenizer = PreTokenizer::new(Rules::by_name(Some(name)).unwrap());
            for case in fixture["cases"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let mut words = Vec::new();
                pre_tokenizer.split(text, |word| words.push(word));
                let expected: Vec<&str> = case[format!("words {name}")]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|word| word.as_str().unwrap())
                    .collect();
                assert_eq!(words, expected, "{name}: {text:?}");
            }
        }
    }
}
