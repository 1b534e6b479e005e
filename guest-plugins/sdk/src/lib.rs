//! For authors of Plinth platforms: the contract as a trait in which every question has a default answer.
//!
//! A platform with one opinion is ten lines:
//!
//! ```no_run
//! use plinth_sdk::prelude::*;
//!
//! struct Acme;
//!
//! impl Platform for Acme {
//!     fn describe() -> Descriptor {
//!         descriptor("acme", "Acme Inc.", (1, 0, 0))
//!     }
//!     fn batch_defaults(_: &Facts, _: &str, _: u32) -> BatchPlan {
//!         batch(4096, 32, "what Acme's machines were measured to do best")
//!     }
//! }
//!
//! export_platform!(Acme);
//! # fn main() {}
//! ```
//!
//! Everything else is answered by the defaults: they take the best kernels of the catalogue that the machine can run, by
//! rank, and give every reason for those that they reject.

/// The generated types and the exports. Use [`prelude`] instead.
#[doc(hidden)]
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "platform-plugin",
        pub_export_macro: true,
        default_bindings_module: "plinth_sdk::bindings",
        additional_derives: [PartialEq, Clone],
    });
}

pub mod accelerator;
mod by_engine;
mod exported;
mod kernels;
mod platform;
mod requirement;
mod short;
pub mod vllm;

#[doc(hidden)]
pub use exported::Exported;

pub use by_engine::ByEngine;
pub use kernels::{Need, decide, reasons_against, takes_block};
pub use platform::Platform;

/// Everything that a platform needs.
pub mod prelude {
    pub use crate::bindings::exports::plinth::platform::platform::{
        AttentionQuery, Availability, BatchPlan, BlockPlan, BlockQuery, Capabilities, CheckResult,
        Descriptor, GraphPlan, GraphQuery, Guest, KvTransferPlan, OpShape, ParallelPlan,
        ProbeResult, RankBinding, Rule, ThreadPlan,
    };
    pub use crate::bindings::log;
    pub use crate::bindings::plinth::platform::types::*;
    pub use crate::by_engine::ByEngine;
    pub use crate::export_platform;
    pub use crate::kernels::{Need, decide, reasons_against, takes_block, takes_head};
    pub use crate::platform::{
        Platform, SMALLEST, SMALLEST_FIRST, attention_need, best_rank, block_of, one_cpu_a_core,
        one_worker_a_core, op_need,
    };
    pub use crate::requirement::{Capability, unmet};
    pub use crate::short::{batch, descriptor, info, names, patch, reject, set_by_user, warn};
}

/// Makes a type that implements [`Platform`] the platform of this component.
#[macro_export]
macro_rules! export_platform {
    ($platform:ty) => {
        type PlinthExportedPlatform = $crate::Exported<$platform>;
        $crate::bindings::export!(PlinthExportedPlatform with_types_in $crate::bindings);
    };
}
