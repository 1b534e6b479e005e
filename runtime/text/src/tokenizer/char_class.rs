//! Letters, numbers and white space as Unicode has them, which is how pre-tokenizers are defined.

use regex_syntax::hir::{Class, HirKind};

/// A class of characters, as sorted ranges that do not touch.
struct Set(Vec<(char, char)>);

impl Set {
    /// `pattern` is a constant: it parses, and to a class of characters.
    fn new(pattern: &'static str) -> Self {
        let class = match regex_syntax::parse(pattern).map(regex_syntax::hir::Hir::into_kind) {
            Ok(HirKind::Class(Class::Unicode(class))) => class,
            other => unreachable!("{pattern} is a class of characters, not {other:?}"),
        };
        Self(class.iter().map(|r| (r.start(), r.end())).collect())
    }

    fn contains(&self, c: char) -> bool {
        let after = self.0.partition_point(|&(start, _)| start <= c);
        after > 0 && self.0[after - 1].1 >= c
    }
}

/// The general category `L`.
pub(super) struct Letters(Set);

impl Letters {
    pub(super) fn new() -> Self {
        Self(Set::new(r"\p{L}"))
    }

    pub(super) fn contains(&self, c: char) -> bool {
        if c.is_ascii() {
            return c.is_ascii_alphabetic();
        }
        self.0.contains(c)
    }
}

/// Letters by where in a word they may stand if a word is a few capitals and then small letters. Letters without case,
/// and marks, are of both kinds.
pub(super) struct Cases {
    leading: Set,
    following: Set,
}

impl Cases {
    pub(super) fn new() -> Self {
        Self {
            leading: Set::new(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"),
            following: Set::new(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"),
        }
    }

    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
    pub(super) fn leads(&self, c: char) -> bool {
        if c.is_ascii() {
            return c.is_ascii_uppercase();
        }
        self.leading.contains(c)
    }

    /// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
    pub(super) fn follows(&self, c: char) -> bool {
        if c.is_ascii() {
            return c.is_ascii_lowercase();
        }
        self.following.contains(c)
    }
}

/// The general category `N`.
pub(super) fn is_number(c: char) -> bool {
    c.is_numeric()
}

/// What patterns write as `\s`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_the_general_category_not_the_wider_property() {
        let letters = Letters::new();
        for c in ['a', 'Z', 'é', 'ß', 'ا', '語', '한', 'ʰ', '𠀀'] {
            assert!(letters.contains(c), "{c:?}");
        }
        // The last three are `Alphabetic`, yet marks and a letter number.
        for c in [
            '1', ' ', '_', '²', '。', '\u{200d}', '\u{e31}', '\u{903}', 'Ⅷ',
        ] {
            assert!(!letters.contains(c), "{c:?}");
        }
    }
}
