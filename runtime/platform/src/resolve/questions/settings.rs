//! The questions about settings, and what the user wished of them.

use super::{Answer, Questions, Refusal};
use crate::plan::DecidedBy;
use crate::policy::{
    BatchDefaults, Capabilities, ConfigCheck, Diagnostic, EngineConfig, Severity, Value,
};
use crate::{check, text};

impl Questions<'_> {
    /// What the user wrote must be settings that can be, whoever the platform is.
    pub(super) fn check_wishes(&mut self) -> Answer<()> {
        let config = self.settings.config.clone();
        let mut scratch = EngineConfig::default();
        for path in config.user_set.clone() {
            let auto = matches!(
                (
                    path.as_str(),
                    config.dtype.as_str(),
                    config.kv_dtype.as_str()
                ),
                ("dtype", "auto", _) | ("kv-dtype", _, "auto")
            );
            if let (false, Some(value)) = (auto, crate::settings::get(&config, &path)) {
                let set = crate::settings::set(&mut scratch, &path, &value);
                set.map_err(|message| self.wrong(&path, message, ""))?;
            }
        }
        Ok(())
    }

    pub(super) fn batch_defaults(&mut self) -> Answer<()> {
        let world = self.settings.config.tensor_parallel * self.settings.config.pipeline_parallel;
        let answer = self.said(
            "batch-defaults",
            |p, f| p.batch_defaults(f, "llm", world),
            check::batch,
        )?;
        let BatchDefaults {
            max_batched_tokens,
            max_num_seqs,
            reason,
        } = answer;
        for (path, value) in [
            ("max-batched-tokens", max_batched_tokens),
            ("max-num-seqs", max_num_seqs),
        ] {
            if !self.settings.is_users(path) {
                self.settings.decide(
                    path,
                    &Value::Unsigned(value.into()),
                    DecidedBy::Platform,
                    &reason,
                );
            }
        }
        Ok(())
    }

    pub(super) fn configuration(&mut self) -> Answer<()> {
        let (model, config) = (self.model, self.settings.config.clone());
        let patches = self.said(
            "default-config",
            |p, f| p.default_config(f, model, &config),
            |_| Ok(()),
        )?;
        let applied = self.settings.apply(&patches, false);
        let overrides = applied.map_err(|message| self.bad("default-config", message))?;
        if let Some((patch, _)) = overrides.first() {
            let message = format!("a default for '{}', which the user has set", patch.path);
            return Err(self.bad("default-config", message));
        }
        let config = self.settings.config.clone();
        let ConfigCheck {
            patches,
            diagnostics,
        } = self.said(
            "check-config",
            |p, f| p.check_config(f, model, &config),
            |answer| check::diagnostics(&answer.diagnostics),
        )?;
        let reject = |d: &&Diagnostic| d.severity == Severity::Reject;
        if diagnostics.iter().any(|d| reject(&d)) {
            return Err(self.rejected(diagnostics.iter().filter(reject).cloned().collect()));
        }
        self.note(&diagnostics);
        let allow = self.allow_overrides;
        let applied = self.settings.apply(&patches, allow);
        let overrides = applied.map_err(|message| self.bad("check-config", message))?;
        if !allow && !overrides.is_empty() {
            return Err(Box::new(Refusal::Overrides {
                platform: self.id.clone(),
                patches: overrides,
            }));
        }
        for (patch, wanted) in overrides {
            let (now, wanted) = (
                crate::settings::show(&patch.value),
                crate::settings::show(&wanted),
            );
            let message = format!("{now} instead of {wanted}, which you set: {}", patch.reason);
            self.warn(
                "overridden",
                &patch.path,
                message,
                Some("leave out --allow-overrides to refuse this".to_owned()),
            );
        }
        Ok(())
    }

    pub(super) fn dtypes(&mut self, capabilities: &Capabilities) -> Answer<()> {
        let Capabilities {
            dtypes, kv_dtypes, ..
        } = capabilities;
        let listed = |list: &[String]| text::list(list);
        let model_dtype = &self.model.dtype;
        let dtype = match self.settings.config.dtype.as_str() {
            "auto" => {
                // What a quantised model keeps in f32 (norms) says nothing of what it is computed in.
                let own = self.model.quantization.is_none() || model_dtype != "f32";
                let (dtype, reason) = match own && dtypes.contains(model_dtype) {
                    true => (model_dtype.clone(), "the model's own".to_owned()),
                    false => (
                        dtypes[0].clone(),
                        match dtypes.as_slice() {
                            [_] => "all that the platform computes in".to_owned(),
                            _ => format!(
                                "the first of {}, which the platform computes in",
                                listed(dtypes)
                            ),
                        },
                    ),
                };
                self.settings.decide(
                    "dtype",
                    &Value::Text(dtype.clone()),
                    DecidedBy::Platform,
                    &reason,
                );
                dtype
            }
            set => set.to_owned(),
        };
        if !dtypes.contains(&dtype) {
            let message = format!(
                "found {dtype}, expected one of {}, which the platform computes in",
                listed(dtypes)
            );
            return Err(self.wrong("dtype", message, "leave --dtype out"));
        }
        if self.settings.config.kv_dtype == "auto" {
            let exact = self.model.quantization.is_none()
                && model_dtype == "f32"
                && kv_dtypes.contains(model_dtype);
            let (kv_dtype, reason) = match exact {
                true => (
                    "f32".to_owned(),
                    "an f32 model keeps its precision".to_owned(),
                ),
                false => (
                    kv_dtypes[0].clone(),
                    match kv_dtypes.len() {
                        0..=4 => format!("the platform's first of {}", listed(kv_dtypes)),
                        more => format!("the platform's first of {more}"),
                    },
                ),
            };
            self.settings.decide(
                "kv-dtype",
                &Value::Text(kv_dtype),
                DecidedBy::Platform,
                &reason,
            );
        }
        let kv_dtype = &self.settings.config.kv_dtype;
        if !kv_dtypes.contains(kv_dtype) {
            let message = format!(
                "found {kv_dtype}, expected one of {}, which the platform keeps",
                listed(kv_dtypes)
            );
            return Err(self.wrong("kv-dtype", message, "leave --kv-dtype out"));
        }
        if let Some(allowed) = &capabilities.quantization {
            let refused = self
                .model
                .quantization
                .as_ref()
                .filter(|q| !allowed.contains(q));
            if let Some(quantization) = refused {
                let message = format!(
                    "the model is {quantization}, expected one of {}",
                    listed(allowed)
                );
                return Err(self.wrong(
                    "quantization",
                    message,
                    "take the model in another quantisation",
                ));
            }
        }
        Ok(())
    }

    pub(super) fn context(&mut self) -> Answer<()> {
        let most = self.model.max_len;
        if !(1..=crate::settings::LARGEST).contains(&most) {
            let message = format!(
                "the model was made for {} tokens, expected 1 to {}",
                text::count(most.into()),
                text::count(crate::settings::LARGEST.into())
            );
            return Err(self.wrong("max-model-len", message, "correct the model's file"));
        }
        let wanted = self.settings.config.max_model_len;
        if wanted == 0 {
            let reason = "what the model was made for";
            self.settings.decide(
                "max-model-len",
                &Value::Unsigned(most.into()),
                DecidedBy::Floor,
                reason,
            );
        } else if wanted > most {
            let message = format!(
                "found {}, expected at most {}, which the model was made for",
                text::count(wanted.into()),
                text::count(most.into())
            );
            return Err(self.wrong("max-model-len", message, "lower --max-model-len"));
        }
        let config = &self.settings.config;
        if !config.chunked_prefill && config.max_batched_tokens < config.max_model_len {
            let (step, len) = (config.max_batched_tokens, config.max_model_len);
            let message = format!(
                "a step carries {step} tokens and a prompt may have {len}: without chunked prefill longer ones are refused"
            );
            let fix = format!("allow chunked prefill, or set --max-num-batched-tokens {len}");
            self.warn("long-prompts", "chunked-prefill", message, Some(fix));
        }
        Ok(())
    }
}
