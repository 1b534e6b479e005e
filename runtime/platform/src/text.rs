//! Text that came from outside: what may be shown, and how the rest is quoted. And numbers as people read them.

use std::fmt::Write;

/// Longest text of an answer, in bytes: a reason, a message, a fix.
pub const MAX_TEXT: usize = 1024;

/// Why `text` may not be part of an answer; `None` if it may.
///
/// Control and direction characters are refused because they let a line of a plan or of a log look like another.
pub fn fault(text: &str) -> Option<String> {
    if text.len() > MAX_TEXT {
        return Some(format!(
            "text of {} bytes where at most {MAX_TEXT} are allowed: {}",
            count(text.len() as u64),
            quote(text)
        ));
    }
    let bad = text.chars().find(|c| is_deceptive(*c))?;
    Some(format!(
        "text with the character U+{:04X}, which could make it look like something else: {}",
        u32::from(bad),
        quote(text)
    ))
}

/// Characters that move the cursor, end the line, reorder what stands beside them, or cannot be seen at all.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{2069}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

/// `text` in single quotes, deceptive characters escaped, cut to 80 characters: safe to show whoever wrote it.
pub fn quote(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut out = String::from("'");
    for c in text.chars().take(SHOWN) {
        if is_deceptive(c) {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out.push('\'');
    out
}

/// `text` with deceptive characters escaped: safe to show, whoever wrote it.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_deceptive(c) {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    out
}

/// A count with a comma every three digits.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the largest binary unit that leaves at least 1, with one decimal below 100.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        // 1023.95 would be shown as 1024.0 of the smaller unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let shown = if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    };
    format!("{} {unit}", shown.strip_suffix(".0").unwrap_or(&shown))
}

/// Items as they show themselves.
pub fn shown<T: std::fmt::Display>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

/// Items as a sentence has them: `a, b and c`.
pub fn list<S: AsRef<str>>(items: &[S]) -> String {
    match items {
        [] => "none".into(),
        [one] => one.as_ref().into(),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(12_345_678), "12,345,678");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1 KiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1 MiB");
        assert_eq!(bytes(369_098_752), "352 MiB");
        assert_eq!(bytes(u64::MAX), "16384 PiB");
        assert_eq!(list::<&str>(&[]), "none");
        assert_eq!(list(&["a"]), "a");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }

    #[test]
    fn deceptive_text_is_refused_and_quoted_visibly() {
        assert_eq!(fault("plain, with ünïcödé and 漢字"), None);
        assert_eq!(
            fault("a\nb").as_deref(),
            Some(
                "text with the character U+000A, which could make it look like something else: 'a\\u{a}b'"
            )
        );
        for bad in [
            "\u{202E}x",
            "x\u{2066}",
            "\u{7}",
            "a\u{200B}b",
            "\u{FEFF}",
            "\u{E0041}",
        ] {
            assert!(fault(bad).is_some(), "{bad:?}");
            assert!(quote(bad).is_ascii(), "{bad:?}");
        }
        assert_eq!(fault(&"x".repeat(1024)), None);
        assert!(
            fault(&"x".repeat(1025))
                .is_some_and(|f| f.starts_with("text of 1,025 bytes where at most 1024"))
        );
        assert!(quote(&"x".repeat(500)).ends_with("x…'"));
    }
}
