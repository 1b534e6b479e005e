//! Strings that end an answer, found in a stream.

/// Finds the stop string that is complete first in a stream of text (of several, the longest), and holds back what may be
/// the beginning of one. How the text is cut into pieces makes no difference.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What may be shown after some more text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Text that is before any stop string.
    pub emit: String,
    /// Is a stop string reached? Then nothing more is emitted.
    pub stopped: bool,
}

impl StopStrings {
    /// Stops at any of these; empty ones are left out, as they would stop everything.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Stopped {
        if !self.stopped {
            self.held.push_str(text);
            let found = self.stops.iter().filter_map(|stop| {
                let start = self.held.find(stop)?;
                Some((start + stop.len(), start))
            });
            let found = found.min();
            self.stopped = found.is_some();
            let end = found.map_or_else(|| self.held.len() - self.begun(), |(_, start)| start);
            let rest = self.held.split_off(end);
            let emit = std::mem::replace(&mut self.held, rest);
            return Stopped {
                emit,
                stopped: self.stopped,
            };
        }
        Stopped {
            emit: String::new(),
            stopped: true,
        }
    }

    /// What is held back, now that nothing follows; nothing after a stop.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        if self.stopped { String::new() } else { held }
    }

    /// Length of the longest end of the held text that a stop string begins with.
    fn begun(&self) -> usize {
        let held = self.held.as_bytes();
        let of = |stop: &String| {
            let longest = held.len().min(stop.len() - 1);
            let begins = |len: &usize| held.ends_with(&stop.as_bytes()[..*len]);
            (1..=longest).rev().find(begins).unwrap_or(0)
        };
        self.stops.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stops: &[&str], chunks: &[&str], emitted: &[&str], rest: &str) {
        let mut stop_strings = StopStrings::new(stops.iter().map(|s| s.to_string()).collect());
        let emits: Vec<String> = chunks
            .iter()
            .map(|chunk| stop_strings.push(chunk).emit)
            .collect();
        assert_eq!(emits, emitted, "{stops:?} in {chunks:?}");
        assert_eq!(stop_strings.finish(), rest, "{stops:?} in {chunks:?}");
    }

    #[test]
    fn holds_back_only_what_may_begin_a_stop_string() {
        check(&["END"], &["a E", "N", "x E"], &["a ", "", "ENx "], "E");
        check(&["END"], &["a E", "ND b", "c"], &["a ", "", ""], "");
        check(&["aab"], &["aaa", "b", "z"], &["a", "", ""], "");
        check(
            &["\n\n", "User:"],
            &["x\n", "User", ":"],
            &["x", "\n", ""],
            "",
        );
        check(&["é!"], &["caf", "é", "é", "!"], &["caf", "", "é", ""], "");
        check(&[""], &["a"], &["a"], "");
        check(&[], &["a", ""], &["a", ""], "");
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        check(&["abb", "b"], &["ab", "b"], &["a", ""], "");
        check(&["abb", "b"], &["abb"], &["a"], "");
        check(&["ab", "b"], &["xa", "b"], &["x", ""], "");
        check(&["world", "o w"], &["hello world"], &["hell"], "");
    }

    #[test]
    fn stays_stopped() {
        let mut stop_strings = StopStrings::new(vec!["x".to_owned()]);
        assert!(!stop_strings.push("a").stopped);
        assert!(stop_strings.push("x").stopped);
        let again = stop_strings.push("a");
        assert_eq!((again.emit.as_str(), again.stopped), ("", true));
    }
}
