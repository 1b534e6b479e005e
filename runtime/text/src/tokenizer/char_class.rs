//! Letters, numbers and white space as Unicode has them, which is how pre-tokenizers are defined.

use regex_syntax::hir::{Class, HirKind};

/// The general category `L`, as sorted ranges that do not touch.
pub(super) struct Letters {
    ranges: Vec<(char, char)>,
}

impl Letters {
    pub(super) fn new() -> Self {
        // The pattern is a constant: it parses, and to a class of characters.
        let class = match regex_syntax::parse(r"\p{L}").map(regex_syntax::hir::Hir::into_kind) {
            Ok(HirKind::Class(Class::Unicode(class))) => class,
            other => unreachable!("\\p{{L}} is a class of characters, not {other:?}"),
        };
        let ranges = class.iter().map(|r| (r.start(), r.end())).collect();
        Self { ranges }
    }

    pub(super) fn contains(&self, c: char) -> bool {
        if c.is_ascii() {
            return c.is_ascii_alphabetic();
        }
        let after = self.ranges.partition_point(|&(start, _)| start <= c);
        after > 0 && self.ranges[after - 1].1 >= c
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
