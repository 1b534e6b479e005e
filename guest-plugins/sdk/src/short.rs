//! The records of an answer in a line.

use crate::prelude::{
    BatchPlan, Descriptor, Diagnostic, EngineConfig, Patch, Severity, Value, Version,
};

/// Who a platform is, with nothing out of the ordinary.
pub fn descriptor(id: &str, vendor: &str, (major, minor, patch): (u16, u16, u16)) -> Descriptor {
    Descriptor {
        id: id.to_owned(),
        vendor: vendor.to_owned(),
        version: Version {
            major,
            minor,
            patch,
        },
        visible_devices_var: None,
        env_allowlist: Vec::new(),
        extra_quantization: Vec::new(),
    }
}

fn diagnostic(severity: Severity, code: &str, message: String, fix: Option<String>) -> Diagnostic {
    Diagnostic {
        severity,
        code: code.to_owned(),
        path: None,
        message,
        fix,
    }
}

/// Something worth knowing. The first one of an answer about kernels says why the selected one won.
pub fn info(code: &str, message: impl Into<String>) -> Diagnostic {
    diagnostic(Severity::Info, code, message.into(), None)
}

/// Something that the user probably does not want.
pub fn warn(code: &str, message: impl Into<String>, fix: Option<String>) -> Diagnostic {
    diagnostic(Severity::Warn, code, message.into(), fix)
}

/// Something that cannot be served.
pub fn reject(code: &str, message: impl Into<String>, fix: Option<String>) -> Diagnostic {
    diagnostic(Severity::Reject, code, message.into(), fix)
}

/// Sizes of a batch, and why.
pub fn batch(max_batched_tokens: u32, max_num_seqs: u32, reason: &str) -> BatchPlan {
    BatchPlan {
        max_batched_tokens,
        max_num_seqs,
        reason: reason.to_owned(),
    }
}

/// A change that does not override the user.
pub fn patch(path: &str, value: Value, reason: &str) -> Patch {
    Patch {
        path: path.to_owned(),
        value,
        reason: reason.to_owned(),
        overrides_user: false,
    }
}

/// Names in a record of an answer.
pub fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|&name| name.to_owned()).collect()
}

/// Is this field the user's own choice?
pub fn set_by_user(config: &EngineConfig, path: &str) -> bool {
    config.user_set.iter().any(|field| field == path)
}
