//! Progress bars on standard error, shown in a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// A bar over bytes, which takes itself away when dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar that counts bytes, with what they are for ("packing weights").
    pub fn bytes(what: &'static str, quiet: bool) -> Self {
        Self::new(
            what,
            quiet,
            "{msg} {bar:30} {bytes} of {total_bytes} ({eta})",
        )
    }

    /// A bar that counts things, such as requests.
    pub fn count(what: &'static str, quiet: bool) -> Self {
        Self::new(what, quiet, "{msg} {bar:30} {pos} of {len} ({eta})")
    }

    fn new(what: &'static str, quiet: bool, template: &str) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target).with_message(what);
        // A template that does not parse costs the look of the bar, not the work behind it.
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self(bar)
    }

    /// Shows `done` of `total`.
    pub fn set(&self, done: u64, total: u64) {
        // Until the work has told its length there is nothing to show.
        if self.0.length() == Some(0) {
            self.0.enable_steady_tick(Duration::from_millis(200));
        }
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
