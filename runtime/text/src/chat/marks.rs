//! Marks: private-use characters that stand for message text while a template is rendered.

use crate::error::TemplateError;
use crate::tokenizer::Guarded;
use std::collections::HashMap;
use std::ops::Range;

/// The private-use planes. Their characters in message text are marked themselves, so that every mark is one of ours.
const PLANES: [Range<u32>; 2] = [0xF_0000..0xF_FFFE, 0x10_0000..0x10_FFFE];
const LIMIT: usize = 2 * 0xFFFE;

/// Can this character be a mark?
pub(super) fn is_mark(c: char) -> bool {
    PLANES.iter().any(|plane| plane.contains(&u32::from(c)))
}

/// What each mark stands for.
#[derive(Default)]
pub(super) struct Marks {
    texts: Vec<String>,
    by_text: HashMap<String, char>,
}

/// A rendering with its marks undone.
pub(super) struct Restored {
    pub(super) text: String,
    /// What marks stood for; neighbours are joined.
    pub(super) content: Vec<Range<usize>>,
}

impl Marks {
    /// Puts a mark for every character but white space, which templates trim.
    pub(super) fn hide(&mut self, text: &str) -> Result<String, TemplateError> {
        let mut hidden = String::with_capacity(text.len() * 4);
        for c in text.chars() {
            hidden.push(if c.is_whitespace() {
                c
            } else {
                self.mark(c.encode_utf8(&mut [0; 4]))?
            });
        }
        Ok(hidden)
    }

    /// Puts a mark for each spelling of a guarded token, and for what at the edges could complete one.
    pub(super) fn hide_spellings(
        &mut self,
        text: &str,
        guarded: &Guarded,
    ) -> Result<String, TemplateError> {
        let mut spans = guarded.spans(text);
        spans.extend(
            text.char_indices()
                .filter(|&(_, c)| is_mark(c))
                .map(|(at, c)| at..at + c.len_utf8()),
        );
        spans.sort_by_key(|span| span.start);
        let mut hidden = String::with_capacity(text.len());
        let mut done = 0;
        for span in spans {
            if span.end <= done {
                continue;
            }
            let start = span.start.max(done);
            hidden.push_str(&text[done..start]);
            hidden.push(self.mark(&text[start..span.end])?);
            done = span.end;
        }
        hidden.push_str(&text[done..]);
        Ok(hidden)
    }

    fn mark(&mut self, text: &str) -> Result<char, TemplateError> {
        if let Some(&mark) = self.by_text.get(text) {
            return Ok(mark);
        }
        let mark = PLANES.iter().cloned().flatten().nth(self.texts.len());
        let mark = mark
            .and_then(char::from_u32)
            .ok_or(TemplateError::Marks { limit: LIMIT })?;
        self.texts.push(text.to_owned());
        self.by_text.insert(text.to_owned(), mark);
        Ok(mark)
    }

    fn text_of(&self, mark: char) -> Option<&str> {
        let code = u32::from(mark);
        let [first, second] = &PLANES;
        let index = if first.contains(&code) {
            code - first.start
        } else if second.contains(&code) {
            code - second.start + (first.end - first.start)
        } else {
            return None;
        };
        self.texts.get(index as usize).map(String::as_str)
    }

    /// Puts back what the marks of a rendering stand for.
    pub(super) fn restore(&self, rendered: &str) -> Restored {
        let mut text = String::with_capacity(rendered.len());
        let mut content: Vec<Range<usize>> = Vec::new();
        for c in rendered.chars() {
            let start = text.len();
            let Some(original) = self.text_of(c) else {
                text.push(c);
                continue;
            };
            text.push_str(original);
            match content.last_mut() {
                Some(last) if last.end == start => last.end = text.len(),
                _ => content.push(start..text.len()),
            }
        }
        Restored { text, content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_but_white_space_is_hidden_and_comes_back() {
        let text = "a <|x|>\n\u{F0000}\u{10FFFD} é";
        let mut marks = Marks::default();
        let hidden = marks.hide(text).unwrap();
        assert!(
            hidden.chars().all(|c| is_mark(c) || c.is_whitespace()),
            "{hidden:?}"
        );
        let restored = marks.restore(&format!("[{hidden}]"));
        assert_eq!(restored.text, format!("[{text}]"));
        let shown: Vec<&str> = restored
            .content
            .iter()
            .map(|r| &restored.text[r.clone()])
            .collect();
        assert_eq!(shown, ["a", "<|x|>", "\u{F0000}\u{10FFFD}", "é"]);
    }

    #[test]
    fn more_characters_than_marks_are_an_error() {
        let many: String = ('\u{1}'..=char::MAX)
            .filter(|c| !c.is_whitespace())
            .take(LIMIT + 1)
            .collect();
        let error = Marks::default().hide(&many).unwrap_err();
        assert!(error.to_string().contains("131068"), "{error}");
    }
}
